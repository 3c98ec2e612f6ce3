"""Networks of torchvision, as small as its own options make them."""

import functools
import importlib
from collections.abc import Callable

from torch import Tensor, nn

from tests.makers.packaged.untrained import CLASSES, untrained


def _models() -> object:
    return importlib.import_module("torchvision.models")


def _part(module: str, name: str) -> Callable[..., object]:
    return getattr(importlib.import_module(f"torchvision.models.{module}"), name)


def _by_name(name: str, **options: object) -> nn.Module:
    return getattr(_models(), name)(num_classes=CLASSES, **options)


def _vgg() -> nn.Module:
    layers = _part("vgg", "make_layers")([8, "M", 8, "M", 16, "M", 16, "M"], batch_norm=True)
    features: nn.Module = _part("vgg", "VGG")(layers, num_classes=CLASSES).features
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, CLASSES))


def _resnet(block: str, **options: object) -> nn.Module:
    kind = _part("resnet", block)
    return _part("resnet", "ResNet")(kind, [1, 1, 1, 1], num_classes=CLASSES, **options)


def _inverted_residuals() -> nn.Module:
    config = functools.partial(_part("mobilenetv3", "InvertedResidualConfig"), width_mult=1.0)
    settings = [
        config(8, 3, 8, 8, True, "RE", 2, 1),
        config(8, 3, 16, 8, False, "RE", 2, 1),
        config(8, 5, 24, 16, True, "HS", 2, 1),
        config(16, 5, 24, 16, True, "HS", 1, 1),
    ]
    return _part("mobilenetv3", "MobileNetV3")(settings, 16, num_classes=CLASSES)


def _regnet() -> nn.Module:
    parameters = _part("regnet", "BlockParams").from_init_params(
        depth=4, w_0=8, w_a=8.0, w_m=2.0, group_width=8, se_ratio=0.25
    )
    return _part("regnet", "RegNet")(parameters, num_classes=CLASSES, stem_width=8)


def _shufflenet() -> nn.Module:
    kind = _part("shufflenetv2", "ShuffleNetV2")
    return kind([1, 2, 1], [8, 8, 16, 16, 32], num_classes=CLASSES)


def _swin(block: str, merging: str) -> nn.Module:
    return _part("swin_transformer", "SwinTransformer")(
        patch_size=[4, 4], embed_dim=12, depths=[2, 2], num_heads=[2, 2], window_size=[4, 4],
        num_classes=CLASSES, block=_part("swin_transformer", block),
        downsample_layer=_part("swin_transformer", merging),
    )  # fmt: skip


def _convnext() -> nn.Module:
    config = _part("convnext", "CNBlockConfig")
    settings = [config(8, 8, 1), config(8, 16, 1), config(16, 16, 1), config(16, None, 1)]
    return _part("convnext", "ConvNeXt")(settings, num_classes=CLASSES)


def _maxvit() -> nn.Module:
    return _part("maxvit", "MaxVit")(
        input_size=(32, 32), stem_channels=8, partition_size=2, block_channels=[8, 16],
        block_layers=[1, 1], head_dim=8, stochastic_depth_prob=0.0, num_classes=CLASSES,
    )  # fmt: skip


def _efficientnet() -> nn.Module:
    config = functools.partial(
        _part("efficientnet", "MBConvConfig"), width_mult=0.5, depth_mult=1.0
    )
    settings = [config(1, 3, 1, 16, 16, 1), config(4, 3, 2, 16, 24, 2), config(4, 5, 2, 24, 32, 1)]
    return _part("efficientnet", "EfficientNet")(settings, dropout=0.2, num_classes=CLASSES)


def _vit() -> nn.Module:
    return _part("vision_transformer", "VisionTransformer")(
        image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32,
        num_classes=CLASSES,
    )  # fmt: skip


# name -> builder, side of the images
_NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "alexnet": (functools.partial(_by_name, "alexnet"), 64),
    "vgg": (_vgg, 32),
    "resnet18": (functools.partial(_resnet, "BasicBlock"), 32),
    "resnet50": (functools.partial(_resnet, "Bottleneck"), 32),
    "resnext50": (functools.partial(_resnet, "Bottleneck", groups=4, width_per_group=4), 32),
    "densenet": (
        functools.partial(
            _by_name, "DenseNet", growth_rate=8, block_config=(1, 2, 2, 1), num_init_features=8
        ),
        32,
    ),
    "googlenet": (
        functools.partial(
            _by_name, "googlenet", aux_logits=False, init_weights=True, transform_input=True
        ),
        32,
    ),
    "inception_v3": (
        functools.partial(_by_name, "inception_v3", aux_logits=False, init_weights=True), 75
    ),
    "mnasnet": (functools.partial(_by_name, "MNASNet", alpha=0.25), 64),
    "mobilenet_v2": (functools.partial(_by_name, "mobilenet_v2", width_mult=0.25), 32),
    "mobilenet_v3": (_inverted_residuals, 32),
    "efficientnet": (_efficientnet, 32),
    "regnet_y": (_regnet, 32),
    "shufflenet_v2": (_shufflenet, 32),
    "squeezenet1_1": (functools.partial(_by_name, "squeezenet1_1"), 32),
    "swin": (functools.partial(_swin, "SwinTransformerBlock", "PatchMerging"), 32),
    "swin_v2": (functools.partial(_swin, "SwinTransformerBlockV2", "PatchMergingV2"), 32),
    "convnext": (_convnext, 32),
    "maxvit": (_maxvit, 32),
    "vit_b_16": (_vit, 32),
}  # fmt: skip


def _network(build: Callable[[], nn.Module], side: int) -> tuple[nn.Module, Tensor]:
    return untrained(build, 3, side, side)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    f"torchvision:{name}": functools.partial(_network, *made) for name, made in _NETWORKS.items()
}
