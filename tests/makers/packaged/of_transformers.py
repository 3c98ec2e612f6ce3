"""Networks of transformers from their configurations, as small as these make them."""

import functools
import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.makers.packaged.untrained import CLASSES, untrained

_TOKENS, _WIDTH = 6, 16
_LAYERS = {
    "hidden_size": _WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32,
}  # fmt: skip
_TEXT = {**_LAYERS, "vocab_size": 12, "max_position_embeddings": 16}
_IMAGES = {**_LAYERS, "image_size": 16, "patch_size": 4}


class Logits(nn.Module):
    """The logits of a network, as a function of one of its arguments."""

    def __init__(self, model: nn.Module, argument: str, **others: object) -> None:
        super().__init__()
        self.model, self.argument, self.others = model, argument, others

    def forward(self, x: Tensor) -> Tensor:
        others = {
            name: value.expand(len(x), -1) if isinstance(value, Tensor) else value
            for name, value in self.others.items()
        }
        return self.model(**{self.argument: x}, **others).logits


class ImageEmbedding(nn.Module):
    """A tower of CLIP for images, and a linear head on its embedding."""

    def __init__(self, tower: nn.Module, width: int) -> None:
        super().__init__()
        self.tower, self.head = tower, nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tower(pixel_values=x).image_embeds)


class ZeroShot(nn.Module):
    """CLIP with a text for each class: the similarities of an image to them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("texts", torch.randint(3, 11, (CLASSES, 5)))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(pixel_values=x, input_ids=self.texts).logits_per_image


def _made(
    name: str, head: str, argument: str, call: dict[str, object], **settings: object
) -> nn.Module:
    package = importlib.import_module("transformers")
    config = getattr(package, f"{name}Config")(num_labels=CLASSES, **settings)
    return Logits(getattr(package, f"{name}{head}")(config), argument, **call)


def _image(
    name: str, call: dict[str, object] | None = None, **settings: object
) -> Callable[[], nn.Module]:
    head = "ForImageClassification"
    return functools.partial(_made, name, head, "pixel_values", call or {}, **settings)


def _text(name: str, **settings: object) -> Callable[[], nn.Module]:
    head = "ForSequenceClassification"
    return functools.partial(_made, name, head, "inputs_embeds", {}, **settings)


def _sound(name: str, head: str, **settings: object) -> Callable[[], nn.Module]:
    return functools.partial(_made, name, head, "input_values", {}, **settings)


def _clip_settings() -> tuple[dict[str, object], dict[str, object]]:
    text = {**_TEXT, "projection_dim": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return text, {**_IMAGES, "projection_dim": 8}


def _clip_tower() -> nn.Module:
    package = importlib.import_module("transformers")
    config = package.CLIPVisionConfig(**_clip_settings()[1])
    return ImageEmbedding(package.CLIPVisionModelWithProjection(config), 8)


def _clip_zero_shot() -> nn.Module:
    package = importlib.import_module("transformers")
    text, vision = _clip_settings()
    return ZeroShot(
        package.CLIPModel(
            package.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        )
    )


_SWIN = {
    "image_size": 32, "patch_size": 4, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2],
    "window_size": 4,
}  # fmt: skip
_MOBILE = {"hidden_sizes": [8, 8, 16], "neck_hidden_sizes": [4, 8, 8, 8, 8, 8, 16]}
_SPECTRUM = {"patch_size": 4, "frequency_stride": 4, "time_stride": 4, "num_mel_bins": 16}
_WAVES = {
    "conv_dim": (8, 8), "conv_kernel": (5, 3), "conv_stride": (4, 2), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8,
}  # fmt: skip
_DISTILLED = {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "vocab_size": 12}
_GENERATIVE = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 12}

# name -> builder, shape of one input
_NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ViT": (_image("ViT", **_IMAGES), (3, 16, 16)),
    "ViT eager": (_image("ViT", attn_implementation="eager", **_IMAGES), (3, 16, 16)),
    "DeiT": (_image("DeiT", **_IMAGES), (3, 16, 16)),
    "BEiT": (_image("Beit", **_IMAGES), (3, 16, 16)),
    "DINOv2": (_image("Dinov2", **_IMAGES), (3, 16, 16)),
    "DINOv2 at another size": (_image("Dinov2", **_IMAGES), (3, 24, 24)),
    "Swin": (_image("Swin", **_SWIN), (3, 32, 32)),
    "Swinv2": (_image("Swinv2", **_SWIN), (3, 32, 32)),
    "ConvNeXt": (_image("ConvNext", hidden_sizes=[8, 8, 16, 16], depths=[1] * 4), (3, 32, 32)),
    "MobileViT": (_image("MobileViT", image_size=32, **_MOBILE), (3, 32, 32)),
    "ResNet": (
        _image("ResNet", embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1]), (3, 32, 32)
    ),
    "CLIP image tower": (_clip_tower, (3, 16, 16)),
    "CLIP zero-shot": (_clip_zero_shot, (3, 16, 16)),
    "AST": (
        _sound("AST", "ForAudioClassification", max_length=16, **_LAYERS, **_SPECTRUM), (16, 16)
    ),
    "wav2vec2": (_sound("Wav2Vec2", "ForSequenceClassification", **_TEXT, **_WAVES), (120,)),
    "BERT": (_text("Bert", **_TEXT), (_TOKENS, _WIDTH)),
    "BERT beside padding": (
        functools.partial(
            _made, "Bert", "ForSequenceClassification", "inputs_embeds",
            {"attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]])}, **_TEXT,
        ),
        (_TOKENS, _WIDTH),
    ),
    "RoBERTa": (_text("Roberta", **_TEXT), (_TOKENS, _WIDTH)),
    "DistilBERT": (
        _text("DistilBert", max_position_embeddings=16, **_DISTILLED), (_TOKENS, _WIDTH)
    ),
    "GPT2": (
        _text("GPT2", pad_token_id=0, bos_token_id=1, eos_token_id=2, **_GENERATIVE),
        (_TOKENS, _WIDTH),
    ),
    "Llama": (_text("Llama", pad_token_id=0, **_TEXT), (_TOKENS, _WIDTH)),
}  # fmt: skip


def _network(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    return untrained(build, *shape)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    f"transformers:{name}": functools.partial(_network, *made) for name, made in _NETWORKS.items()
}
