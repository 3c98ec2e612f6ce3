"""Networks of other packages by name: `timm:`, `torchvision:`, `hf:` and `robustbench:`.

The packages are the user's own. Nothing is downloaded: weights come from a checkpoint, and a
missing one is an error that says how to fetch it.
"""

import difflib
import importlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fperr.networks import checkpoints

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation, of torchvision


@dataclass(frozen=True, slots=True)
class Packaged:
    """A network of a package.

    Attributes:
        model: Network in evaluation mode, from pixels in [0, 1].
        logits: Name of the logits in its output, or None if it returns them.
        described: What it is, and how it standardises pixels, in a sentence.
    """

    model: nn.Module
    logits: str | None
    described: str


class Standardised(nn.Module):
    """A network behind the standardisation of pixels that its package states.

    Args:
        inner: Network for standardised images.
        mean, deviation: Numbers for each channel.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, inner: nn.Module, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("mean", torch.tensor(list(mean))[:, None, None])
        self.register_buffer("deviation", torch.tensor(list(deviation))[:, None, None])

    def forward(self, x: Tensor) -> Any:
        """What the network returns for images (batch, channels, height, width) in [0, 1]."""
        return self.inner((x - self.mean) / self.deviation)


def is_packaged(source: str) -> bool:
    """Whether the source begins with the name of a package that is known here."""
    package, colon, _ = source.partition(":")
    return bool(colon) and package in _LOADERS


def load(
    source: str, checkpoint: Path | None, notify: Callable[[str], object] | None = None
) -> Packaged:
    """A network of a package, with its weights from a checkpoint.

    Args:
        source: `timm:NAME`, `torchvision:NAME`, `hf:FOLDER` or `robustbench:DATASET/THREAT/NAME`;
            options of the first two follow as in `timm:resnet18?num_classes=10`.
        checkpoint: File with a state_dict; a folder of `hf:` holds its own weights.
        notify: Function that is called with a sentence if the checkpoint has another dtype.

    Raises:
        ValueError: The package is not installed, has no such network, or its weights are missing;
            says what to install or fetch.
    """
    package, _, name = source.partition(":")
    try:
        return _LOADERS[package](name, checkpoint, notify or (lambda _: None))
    except ModuleNotFoundError as fault:
        raise ValueError(f"{package} needs {fault.name}: `pip install {fault.name}`") from fault


Notify = Callable[[str], object]


def _package(name: str) -> ModuleType:
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"{name} is not installed: `pip install {name}`, beside your own torch")
    return importlib.import_module(name)


def _unknown(package: str, name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5) or known[:5]
    return f"{package} has no network {name!r}: expected e.g. {', '.join(near)}"


def _options(name: str) -> tuple[str, dict[str, Any]]:
    """The name, and its options: numbers, or words."""
    name, _, query = name.partition("?")
    options: dict[str, Any] = {}
    for part in query.split("&") if query else ():
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"{part!r} is no option: expected e.g. {name}?num_classes=10")
        options[key] = int(value) if value.isdigit() else value
    return name, options


def _built(build: Callable[..., Any], source: str, options: dict[str, Any]) -> nn.Module:
    try:
        model: nn.Module = build(**options)
    except Exception as fault:
        raise ValueError(f"{source} cannot be built: {type(fault).__name__}: {fault}") from fault
    return model


def _fill(model: nn.Module, checkpoint: Path | None, fetch: str, notify: Notify) -> None:
    """Load the weights, or say how to fetch them."""
    if checkpoint is None:
        raise ValueError(
            f"there are no weights, and fperr downloads none: fetch them once with `{fetch}`, and "
            "give that file with --checkpoint"
        )
    cast = checkpoints.fill(model, checkpoints.state_dict(checkpoint), checkpoint)
    if cast is not None:
        notify(cast)


def _timm(name: str, checkpoint: Path | None, notify: Notify) -> Packaged:
    timm = _package("timm")
    name, options = _options(name)
    if name.partition(".")[0] not in timm.list_models():
        raise ValueError(_unknown("timm", name, timm.list_models()))
    inner = _built(timm.create_model, f"timm:{name}", {"model_name": name} | options)
    settings: Any = inner.pretrained_cfg
    fetch = (
        f"python -c \"import timm, torch; torch.save(timm.create_model('{name}', pretrained=True)"
        f".state_dict(), '{name}.pt')\""
    )
    _fill(inner, checkpoint, fetch, notify)
    return _standardised(inner, f"timm:{name}", settings["mean"], settings["std"])


def _torchvision(name: str, checkpoint: Path | None, notify: Notify) -> Packaged:
    models = _package("torchvision").models
    name, options = _options(name)
    if name not in models.list_models(module=models):
        raise ValueError(_unknown("torchvision", name, models.list_models(module=models)))
    inner = _built(
        models.get_model, f"torchvision:{name}", {"name": name, "weights": None} | options
    )
    fetch = (
        f"python -c \"import torch, torchvision; torch.save(torchvision.models.get_model('{name}', "
        f"weights='DEFAULT').state_dict(), '{name}.pt')\""
    )
    _fill(inner, checkpoint, fetch, notify)
    return _standardised(inner, f"torchvision:{name}", *_IMAGENET)


def _hugging_face(folder: str, checkpoint: Path | None, notify: Notify) -> Packaged:
    del notify
    path = Path(folder)
    if checkpoint is not None:
        raise ValueError(f"hf:{folder} holds its own weights: leave --checkpoint out")
    if not (path / "config.json").is_file():
        raise ValueError(
            f"{folder} is no folder of a network: expected config.json and model.safetensors in "
            f"it; fetch it once with `huggingface-cli download NAME --local-dir {folder}`"
        )
    classifier = _package("transformers").AutoModelForImageClassification
    inner = _built(
        classifier.from_pretrained,
        f"hf:{folder}",
        {
            "pretrained_model_name_or_path": folder,
            "local_files_only": True,
            "use_safetensors": True,
        },
    )
    described, settings = f"hf:{folder}", path / "preprocessor_config.json"
    if not settings.is_file():
        return Packaged(inner.eval(), "logits", f"{described}, pixels as they are")
    kept = json.loads(settings.read_text(encoding="utf-8"))
    if not kept.get("do_normalize", True):
        return Packaged(inner.eval(), "logits", f"{described}, pixels as they are")
    found = _standardised(inner, described, kept["image_mean"], kept["image_std"])
    return Packaged(found.model, "logits", found.described)


def _robustbench(name: str, checkpoint: Path | None, notify: Notify) -> Packaged:
    parts = name.split("/")
    if len(parts) != 3:
        raise ValueError(
            f"robustbench:{name} must be DATASET/THREAT/NAME, e.g. cifar10/Linf/Standard"
        )
    _package("robustbench")
    models = importlib.import_module("robustbench.model_zoo.models").model_dicts
    by_value = {key.value.lower(): threats for key, threats in models.items()}
    dataset, threat, entry = parts
    threats = {key.value.lower(): entries for key, entries in by_value.get(dataset, {}).items()}
    entries = threats.get(threat.lower(), {})
    if entry not in entries:
        raise ValueError(_unknown("robustbench", name, list(entries) or [*by_value]))
    model = _built(entries[entry]["model"], f"robustbench:{name}", {})
    fetch = (
        'python -c "from robustbench.utils import load_model; '
        f"load_model('{entry}', dataset='{dataset}', threat_model='{threat}')\""
    )
    _fill(model, checkpoint, fetch, notify)
    return Packaged(model.eval(), None, f"robustbench:{name}, with its own standardisation")


def _standardised(
    inner: nn.Module, source: str, mean: Sequence[float], deviation: Sequence[float]
) -> Packaged:
    described = f"{source}, pixels less {tuple(mean)} over {tuple(deviation)}"
    return Packaged(Standardised(inner, mean, deviation).eval(), None, described)


_LOADERS: dict[str, Callable[[str, Path | None, Notify], Packaged]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "hf": _hugging_face,
    "robustbench": _robustbench,
}
