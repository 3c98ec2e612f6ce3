"""Trained networks by name: packaged ones, and published checkpoints in the data folder."""

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
from fperr.zoo.architectures import (
    SmallTransformer,
    conv_small,
    conv_small_cifar,
    lenet5,
    mlp,
    small_cnn,
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A trained network of the zoo.

    Attributes:
        name: Name of the network.
        architecture: Function that builds the untrained network.
        dataset: Name of the data set on which the network is measured.
        source: Origin of the weights, for reports.
        checkpoint: Path in the data folder; None for a packaged safetensors file.
        sha256: SHA-256 of the checkpoint file; None for a packaged one.
        url: Address of the checkpoint file; None for a packaged one.
        keys: Keys that lead to the weights inside the checkpoint, the outermost first.

    Example:
        >>> from fperr import zoo
        >>> entry = zoo.entry("mnist_fastat_pgd")
        >>> entry.dataset, entry.checkpoint
        ('mnist_test', 'checkpoints/mnist_fastat_pgd.pth')
    """

    name: str
    architecture: Callable[[], nn.Module]
    dataset: str
    source: str
    checkpoint: str | None = None
    sha256: str | None = None
    url: str | None = None
    keys: tuple[str | int, ...] = ()


_LEVELSETS = "github.com/matanatz/ControllingNeuralLevelsets, evaluation/mnist"
_ADVERTORCH = "github.com/BorealisAI/advertorch, advertorch_examples/trained_models"

_RAW = "https://raw.githubusercontent.com"
_LEVELSETS_RAW = (
    f"{_RAW}/matanatz/ControllingNeuralLevelsets/c2ea62467031be3f5b54d1b63841c64eca1716b4/"
    "evaluation/mnist"
)
_ADVERTORCH_RAW = (
    f"{_RAW}/BorealisAI/advertorch/a83f4c77bbd1487edac84e34720377d0eebccd92/"
    "advertorch_examples/trained_models"
)
_CONVEX_RAW = f"{_RAW}/locuslab/convex_adversarial"

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
        "fashion_mlp",
        mlp,
        "fashion_mnist_1000",
        "packaged; python -m fperr.zoo.train fashion_mlp",
    ),
    Entry(
        "fashion_transformer",
        SmallTransformer,
        "fashion_mnist_1000",
        "packaged; python -m fperr.zoo.train fashion_transformer",
    ),
    Entry(
        "mnist_levelsets_eps0.4",
        small_cnn,
        "mnist_test",
        f"{_LEVELSETS}/ours/eps0.4/200.pth (Atzmon et al., NeurIPS 2019)",
        "checkpoints/mnist_levelsets_eps0.4.pth",
        "0a1e2307851134d93b8ee6fd3e3183b0d01115e5fec019669e8fcf1ba305b308",
        f"{_LEVELSETS_RAW}/ours/eps0.4/200.pth",
        ("model_state_dict",),
    ),
    Entry(
        "mnist_levelsets_xent",
        small_cnn,
        "mnist_test",
        f"{_LEVELSETS}/xent/200.pth (Atzmon et al., NeurIPS 2019)",
        "checkpoints/mnist_levelsets_xent.pth",
        "93eed7e2157bd8b8d459e7186889922af88afc3d75e08269dbf33c3d88ec19a4",
        f"{_LEVELSETS_RAW}/xent/200.pth",
        ("model_state_dict",),
    ),
    Entry(
        "mnist_fastat_pgd",
        conv_small,
        "mnist_test",
        "github.com/locuslab/fast_adversarial, MNIST/models/pgd_madry.pth",
        "checkpoints/mnist_fastat_pgd.pth",
        "877b74b1d2bf22a2ea958f7d8c892c02710e7c84627d14b44b1c67046fcd5a79",
        f"{_RAW}/locuslab/fast_adversarial/HEAD/MNIST/models/pgd_madry.pth",
    ),
    Entry(
        "mnist_wong_kolter",
        conv_small,
        "mnist_test",
        "github.com/locuslab/convex_adversarial, models/mnist.pth (MIT licence)",
        "checkpoints/mnist_wong_kolter.pth",
        "95014ab0c04c73f48b3be0cb7acc42aff60ce4420c6c43bec25e9a1447279e08",
        f"{_CONVEX_RAW}/c5d17a6e9c0616ec4c71b851862e1d902f994c78/models/mnist.pth",
    ),
    Entry(
        "mnist_lenet5_advtrained",
        lenet5,
        "mnist_test",
        f"{_ADVERTORCH}/mnist_lenet5_advtrained.pt",
        "checkpoints/mnist_lenet5_advtrained.pt",
        "b89abfcfe8b33235fe8f8e964188d82a97c56a12ffe25132eaba197e40ac7658",
        f"{_ADVERTORCH_RAW}/mnist_lenet5_advtrained.pt",
    ),
    Entry(
        "cifar_wong_kolter_small_8px",
        conv_small_cifar,
        "cifar10_test_800",
        "github.com/locuslab/convex_adversarial, models_scaled/cifar_small_8px.pth (MIT licence): "
        "the first of its cascade",
        "checkpoints/cifar_wong_kolter_small_8px.pth",
        "f07c615f58616cbc7667974f146c4baa851bf0e71df8431a150abea8b7901f37",
        f"{_CONVEX_RAW}/f8aa112cd4a2d0bc4f05d32e077ce5eb242a0fe0/models_scaled/cifar_small_8px.pth",
        ("state_dict", 0),
    ),
    Entry(
        "mnist_lenet5_clntrained",
        lenet5,
        "mnist_test",
        f"{_ADVERTORCH}/mnist_lenet5_clntrained.pt",
        "checkpoints/mnist_lenet5_clntrained.pt",
        "551a11267982991fb0c9f74e9094de19e54b51455eff9bd1c19c77a69d85156a",
        f"{_ADVERTORCH_RAW}/mnist_lenet5_clntrained.pt",
    ),
)
REGISTRY = {entry.name: entry for entry in _ENTRIES}
"""The entries of the zoo, by name: five are packaged, the others are published checkpoints.

Example:
    >>> from fperr import zoo
    >>> [name for name, entry in zoo.REGISTRY.items() if entry.checkpoint is None]
    ['fashion_standard', 'fashion_adversarial', 'fashion_saturated', 'fashion_mlp', ...]
"""


def entry(name: str) -> Entry:
    """The zoo's entry for the network called `name`.

    Args:
        name: Name of a network, as `fperr zoo` or `zoo.REGISTRY` lists them.

    Raises:
        ValueError: The zoo has no network of that name.

    Example:
        >>> from fperr import zoo
        >>> zoo.entry("fashion_saturated").dataset
        'fashion_mnist_1000'
    """
    if name not in REGISTRY:
        raise ValueError(f"unknown network {name!r}: expected one of {', '.join(REGISTRY)}")
    return REGISTRY[name]


@in_neutral_state
def load(name: str) -> nn.Module:
    """The trained network called `name`, in evaluation mode.

    Args:
        name: Name of a network, as `fperr zoo` or `zoo.REGISTRY` lists them.

    Raises:
        ValueError: The zoo has no network of that name, or the checkpoint is not the published
            file.
        MissingDataError: The checkpoint is not on this machine; the message names its source.

    Example:
        >>> from fperr import data, zoo
        >>> images = data.fashion_mnist_1000().first(2)
        >>> model = zoo.load("fashion_standard")
        >>> model(images.x).argmax(1) == images.y
        tensor([True, True])
    """
    network = entry(name)
    model = network.architecture()
    if network.checkpoint is None:
        with resources.as_file(_weights(f"{name}.safetensors")) as path:
            model.load_state_dict(load_file(path))
    else:
        fill_in_order(model, _checkpoint(network).values())
    return model.eval()


def card(name: str) -> dict[str, Any]:
    """The model card of a packaged network: clean accuracy, margin quantiles, training recipe.

    Args:
        name: Name of a packaged network.

    Raises:
        ValueError: The zoo has no network of that name, or it is not packaged.

    Example:
        >>> from fperr import zoo
        >>> card = zoo.card("fashion_standard")
        >>> card["name"], "recipe" in card
        ('fashion_standard', True)
    """
    network = entry(name)
    if network.checkpoint is not None:
        raise ValueError(f"{name} is not packaged and has no card; its source: {network.source}")
    content: dict[str, Any] = json.loads(_weights(f"{name}.json").read_text())
    return content


def fill_in_order(model: nn.Module, tensors: Iterable[Tensor]) -> None:
    """Copy `tensors` into the parameters of `model`, in order.

    Names are not compared, because published files name their layers differently.

    Raises:
        ValueError: Number or shapes differ from those of the parameters; nothing is copied then.
    """
    values, parameters = list(tensors), list(model.parameters())
    expected_shapes = [tuple(p.shape) for p in parameters]
    shapes = [tuple(t.shape) for t in values]
    if expected_shapes != shapes:
        raise ValueError(
            f"the checkpoint's tensors do not fit the network: expected {expected_shapes}, "
            f"got {shapes}"
        )
    with torch.no_grad():
        for parameter, tensor in zip(parameters, values, strict=True):
            parameter.copy_(tensor)


def _weights(file: str) -> Any:
    return resources.files("fperr.zoo") / "weights" / file


def _checkpoint(network: Entry) -> dict[str, Tensor]:
    assert network.checkpoint is not None
    description = f"the checkpoint of {network.name}, from {network.source}"
    path: Path = data.fperr_data(network.checkpoint, description, network.name)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 != network.sha256:
        raise ValueError(
            f"{path}: SHA-256 {sha256}, expected {network.sha256}: it is not {description}. "
            "Get it again"
        )
    weights: Any = torch.load(path, map_location="cpu", weights_only=True)
    for key in network.keys:
        weights = weights[key]
    content: dict[str, Tensor] = weights
    return content
