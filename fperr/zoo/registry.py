"""Trained networks by name: the packaged one, and published checkpoints found in FPERR_DATA."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fperr import data
from fperr.caller_state import in_neutral_state
from fperr.zoo.architectures import conv_small, conv_small_cifar, lenet5, small_cnn


@dataclass(frozen=True, slots=True)
class Entry:
    """A trained network that can be had by name.

    Attributes:
        name: its name here.
        architecture: builds the untrained network.
        dataset: name of the data set it is measured on.
        source: where the weights come from.
        checkpoint: path below FPERR_DATA, or None for a packaged safetensors file.
        sha256: digest of the checkpoint file; None for a packaged one.
        keys: where in the checkpoint the weights are, from the outside in.
    """

    name: str
    architecture: Callable[[], nn.Module]
    dataset: str
    source: str
    checkpoint: str | None = None
    sha256: str | None = None
    keys: tuple[str | int, ...] = ()


_LEVELSETS = "github.com/matanatz/ControllingNeuralLevelsets, evaluation/mnist"
_ADVERTORCH = "github.com/BorealisAI/advertorch, advertorch_examples/trained_models"

_ENTRIES = (
    Entry(
        "fashion_standard",
        conv_small,
        "fashion_mnist_1000",
        "packaged; python -m fperr.zoo.train fashion_standard",
    ),
    Entry(
        "fashion_adversarial",
        conv_small,
        "fashion_mnist_1000",
        "packaged; python -m fperr.zoo.train fashion_adversarial",
    ),
    Entry(
        "fashion_saturated",
        conv_small,
        "fashion_mnist_1000",
        "packaged; python -m fperr.zoo.train fashion_saturated",
    ),
    Entry(
        "mnist_levelsets_eps0.4",
        small_cnn,
        "mnist_test",
        f"{_LEVELSETS}/ours/eps0.4/200.pth (Atzmon et al., NeurIPS 2019)",
        "checkpoints/mnist_levelsets_eps0.4.pth",
        "0a1e2307851134d93b8ee6fd3e3183b0d01115e5fec019669e8fcf1ba305b308",
        ("model_state_dict",),
    ),
    Entry(
        "mnist_levelsets_xent",
        small_cnn,
        "mnist_test",
        f"{_LEVELSETS}/xent/200.pth (Atzmon et al., NeurIPS 2019)",
        "checkpoints/mnist_levelsets_xent.pth",
        "93eed7e2157bd8b8d459e7186889922af88afc3d75e08269dbf33c3d88ec19a4",
        ("model_state_dict",),
    ),
    Entry(
        "mnist_fastat_pgd",
        conv_small,
        "mnist_test",
        "github.com/locuslab/fast_adversarial, MNIST/models/pgd_madry.pth",
        "checkpoints/mnist_fastat_pgd.pth",
        "877b74b1d2bf22a2ea958f7d8c892c02710e7c84627d14b44b1c67046fcd5a79",
    ),
    Entry(
        "mnist_wong_kolter",
        conv_small,
        "mnist_test",
        "github.com/locuslab/convex_adversarial, models/mnist.pth (MIT licence)",
        "checkpoints/mnist_wong_kolter.pth",
        "95014ab0c04c73f48b3be0cb7acc42aff60ce4420c6c43bec25e9a1447279e08",
    ),
    Entry(
        "mnist_lenet5_advtrained",
        lenet5,
        "mnist_test",
        f"{_ADVERTORCH}/mnist_lenet5_advtrained.pt",
        "checkpoints/mnist_lenet5_advtrained.pt",
        "b89abfcfe8b33235fe8f8e964188d82a97c56a12ffe25132eaba197e40ac7658",
    ),
    Entry(
        "cifar_wong_kolter_small_8px",
        conv_small_cifar,
        "cifar10_test_800",
        "github.com/locuslab/convex_adversarial, models_scaled/cifar_small_8px.pth (MIT licence): "
        "the first of its cascade",
        "checkpoints/cifar_wong_kolter_small_8px.pth",
        "f07c615f58616cbc7667974f146c4baa851bf0e71df8431a150abea8b7901f37",
        ("state_dict", 0),
    ),
    Entry(
        "mnist_lenet5_clntrained",
        lenet5,
        "mnist_test",
        f"{_ADVERTORCH}/mnist_lenet5_clntrained.pt",
        "checkpoints/mnist_lenet5_clntrained.pt",
        "551a11267982991fb0c9f74e9094de19e54b51455eff9bd1c19c77a69d85156a",
    ),
)
REGISTRY = {entry.name: entry for entry in _ENTRIES}


def entry(name: str) -> Entry:
    """The entry called `name`.

    Raises:
        ValueError: no such entry; lists the known ones.
    """
    if name not in REGISTRY:
        raise ValueError(f"unknown network {name!r}: expected one of {', '.join(REGISTRY)}")
    return REGISTRY[name]


@in_neutral_state
def load(name: str) -> nn.Module:
    """The trained network called `name`, in evaluation mode.

    Raises:
        ValueError: no such entry, or the checkpoint is not the published file.
        MissingDataError: its checkpoint is not on this machine; says what it is and its source.
    """
    found = entry(name)
    model = found.architecture()
    if found.checkpoint is None:
        with resources.as_file(_weights(f"{name}.safetensors")) as path:
            model.load_state_dict(load_file(path))
    else:
        fill_in_order(model, _checkpoint(found).values())
    return model.eval()


def card(name: str) -> dict[str, Any]:
    """The card of a packaged network: clean accuracy, margin quantiles, how it was trained.

    Raises:
        ValueError: no such entry, or it is not a packaged one.
    """
    found = entry(name)
    if found.checkpoint is not None:
        raise ValueError(f"{name} is not packaged and has no card; its source: {found.source}")
    content: dict[str, Any] = json.loads(_weights(f"{name}.json").read_text())
    return content


def fill_in_order(model: nn.Module, tensors: Iterable[Tensor]) -> None:
    """Copy `tensors` into the parameters of `model`, in order: files name their layers differently.

    Raises:
        ValueError: number or shapes do not fit; nothing is copied then.
    """
    given, parameters = list(tensors), list(model.parameters())
    expected = [tuple(p.shape) for p in parameters]
    got = [tuple(t.shape) for t in given]
    if expected != got:
        raise ValueError(
            f"the checkpoint's tensors do not fit the network: expected {expected}, got {got}"
        )
    with torch.no_grad():
        for parameter, tensor in zip(parameters, given, strict=True):
            parameter.copy_(tensor)


def _weights(file: str) -> Any:
    return resources.files("fperr.zoo") / "weights" / file


def _checkpoint(found: Entry) -> dict[str, Tensor]:
    assert found.checkpoint is not None
    what = f"the checkpoint of {found.name}, from {found.source}"
    path: Path = data.fperr_data(found.checkpoint, what)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 != found.sha256:
        raise ValueError(
            f"{path}: SHA-256 {sha256}, expected {found.sha256}: it is not {what}. Get it again"
        )
    weights: Any = torch.load(path, map_location="cpu", weights_only=True)
    for key in found.keys:
        weights = weights[key]
    content: dict[str, Tensor] = weights
    return content
