"""Networks of timm, as small as its own options make them."""

import functools
import importlib
from collections.abc import Callable

from torch import Tensor, nn

from tests.makers.packaged.untrained import CLASSES, untrained

_BLOCKS = (1, 1, 1, 1)
_NARROW, _WIDE = (8, 8, 16, 16), (32, 32, 64, 64)
_VIT = {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 3}
_SWIN = {"img_size": 32, "window_size": 4, "depths": (2, 2), "embed_dim": 12, "num_heads": (2, 2)}
_PYRAMID = {"embed_dims": _NARROW, "num_heads": (1, 1, 2, 2)}

# name -> side of the images, options
_NETWORKS: dict[str, tuple[int, dict[str, object]]] = {
    "resnet10t": (32, {"channels": _NARROW, "stem_width": 8}),
    "seresnet18": (32, {"layers": _BLOCKS, "channels": (8, 16, 16, 16)}),
    "skresnet18": (32, {"layers": _BLOCKS, "channels": (16, 16, 16, 16)}),
    "ecaresnet26t": (32, {"layers": _BLOCKS, "channels": _NARROW}),
    "resnest14d": (32, {"channels": _NARROW, "stem_width": 8}),
    "res2net50_26w_4s": (32, {"layers": _BLOCKS, "channels": _NARROW}),
    "resnetv2_50": (32, {"layers": _BLOCKS, "channels": (16, 16, 32, 32)}),
    "nf_resnet26": (32, {"depths": _BLOCKS, "channels": (16, 16, 32, 32)}),
    "eca_nfnet_l0": (32, {"depths": _BLOCKS, "channels": _WIDE, "group_size": 8}),
    "dm_nfnet_f0": (32, {"depths": _BLOCKS, "channels": _WIDE, "group_size": 8}),
    "regnetx_002": (32, {}),
    "regnety_002": (32, {}),
    "dla34": (32, {"channels": (4, 8, 8, 16, 16, 16)}),
    "densenet121": (32, {"block_config": (1, 2, 2, 1), "growth_rate": 8}),
    "ese_vovnet19b_slim": (64, {}),
    "rexnet_100": (64, {"width_mult": 0.3}),
    "hrnet_w18_small": (32, {}),
    "xception41": (64, {}),
    "mobilenetv2_035": (64, {}),
    "mobilenetv3_small_050": (64, {}),
    "efficientnet_b0": (64, {}),
    "ghostnet_050": (32, {}),
    "convnext_atto": (32, {"depths": _BLOCKS, "dims": _NARROW}),
    "convnextv2_atto": (32, {"depths": _BLOCKS, "dims": _NARROW}),
    "edgenext_xx_small": (64, {"depths": (1, 1, 2, 1), "dims": (8, 16, 16, 24)}),
    "fastvit_t8": (64, {"layers": _BLOCKS, "embed_dims": _NARROW}),
    "deit_tiny_patch16_224": (32, _VIT),
    "deit3_small_patch16_224": (32, _VIT),
    "vit_base_patch16_siglip_224": (32, _VIT),
    "beit_base_patch16_224": (32, _VIT),
    "cait_xxs24_224": (32, _VIT),
    "xcit_nano_12_p16_224": (32, _VIT),
    "eva02_tiny_patch14_224": (28, {**_VIT, "img_size": 28}),
    "crossvit_tiny_240": (
        48, {
            "img_size": 48, "img_scale": (1.0, 2 / 3), "embed_dim": (16, 24), "num_heads": (2, 2),
            "depth": ((1, 1, 0),),
        },
    ),
    "levit_128s": (
        64, {"img_size": 64, "embed_dim": (16, 24, 32), "depth": (1, 1, 1), "key_dim": 8}
    ),
    "pit_ti_224": (64, {"img_size": 64, "depth": (1, 1, 1), "base_dims": (8, 8, 8)}),
    "swin_tiny_patch4_window7_224": (32, _SWIN),
    "swinv2_tiny_window8_256": (32, _SWIN),
    "pvt_v2_b0": (64, {"depths": _BLOCKS, **_PYRAMID}),
    "twins_svt_small": (64, {"img_size": 64, "depths": (2, 2, 2, 2), **_PYRAMID}),
    "tiny_vit_5m_224": (64, {"depths": _BLOCKS, **_PYRAMID}),
    "visformer_tiny": (32, {"img_size": 32, "embed_dim": 48, "depth": (1, 1, 1), "num_heads": 3}),
    "coatnet_nano_rw_224": (
        64, {"img_size": 64, "depths": _BLOCKS, "embed_dim": _WIDE, "stem_width": 32}
    ),
    "maxvit_tiny_rw_224": (
        64, {"img_size": 64, "depths": _BLOCKS, "embed_dim": (32, 32, 32, 32), "stem_width": 8}
    ),
    "mobilevit_xxs": (64, {}),
    "mobilevitv2_050": (64, {}),
}  # fmt: skip

# what `create_model` gives in one size alone: name -> side, module, class, options
_CLASSES: dict[str, tuple[int, str, str, dict[str, object]]] = {
    "mixer": (32, "mlp_mixer", "MlpMixer", {"img_size": 32, "num_blocks": 2, "embed_dim": 16}),
    "poolformer": (32, "metaformer", "MetaFormer", {"depths": _BLOCKS, "dims": _NARROW}),
    "volo": (
        32, "volo", "VOLO", {
            "img_size": 32, "layers": (1, 1), "embed_dims": (12, 24), "num_heads": (2, 2),
            "stem_hidden_dim": 8,
        },
    ),
    "nest": (
        32, "nest", "Nest", {
            "img_size": 32, "embed_dims": (8, 8, 16), "num_heads": (1, 1, 2), "depths": (1, 1, 1),
        },
    ),
    "gcvit": (
        32, "gcvit", "GlobalContextVit", {
            "img_size": 32, "depths": _BLOCKS, "embed_dim": 8, "num_heads": (1, 1, 2, 2),
            "window_size": (4, 4, 2, 1),
        },
    ),
    "focalnet": (32, "focalnet", "FocalNet", {"depths": _BLOCKS, "embed_dim": 8}),
}  # fmt: skip


def _build(name: str, options: dict[str, object]) -> nn.Module:
    create: Callable[..., nn.Module] = importlib.import_module("timm").create_model
    return create(name, num_classes=CLASSES, **options)


def _build_class(module: str, name: str, options: dict[str, object]) -> nn.Module:
    kind = getattr(importlib.import_module(f"timm.models.{module}"), name)
    return kind(num_classes=CLASSES, **options)


def _network_of_class(
    side: int, module: str, name: str, options: dict[str, object]
) -> tuple[nn.Module, Tensor]:
    return untrained(functools.partial(_build_class, module, name, options), 3, side, side)


def _repvgg() -> tuple[nn.Module, Tensor]:
    part = importlib.import_module("timm.models.byobnet")
    blocks = tuple(part.ByoBlockCfg("rep", d=1, c=c, s=2) for c in (8, 8, 16, 16))
    options = {"blocks": blocks, "stem_chs": 8}
    return untrained(functools.partial(_build, "repvgg_a0", options), 3, 32, 32)


def _bit() -> tuple[nn.Module, Tensor]:
    """A big-transfer ResNet: standardised weights, group norms of 8 instead of 32 groups."""
    layers = importlib.import_module("timm.layers")
    options = {
        "layers": (1, 1, 1, 1), "channels": (32, 32, 64, 64), "stem_chs": 16, "stem_type": "fixed",
        "conv_layer": functools.partial(layers.StdConv2d, eps=1e-8),
        "norm_layer": functools.partial(layers.GroupNormAct, num_groups=8),
    }  # fmt: skip
    return _network_of_class(32, "resnetv2", "ResNetV2", options)


def _network(name: str, side: int, options: dict[str, object]) -> tuple[nn.Module, Tensor]:
    return untrained(functools.partial(_build, name, options), 3, side, side)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = (
    {
        f"timm:{name}": functools.partial(_network, name, side, options)
        for name, (side, options) in _NETWORKS.items()
    }
    | {
        f"timm:{name}": functools.partial(_network_of_class, *made)
        for name, made in _CLASSES.items()
    }
    | {"timm:repvgg_a0": _repvgg, "timm:resnetv2_50x1_bit": _bit}
)
