"""A network and its images: by name, or from a module and a data file."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fperr import data, zoo
from fperr.networks import from_file, from_package
from fperr.networks.model import Accessor, usable_device, usable_model
from fperr.networks.subject_images import USUAL_IMAGES, named_images


@dataclass(frozen=True, slots=True)
class Subject:
    """A network to measure, and its images.

    Attributes:
        name: Name of the network, for reports.
        model: Network as it was built or loaded.
        logits: Accessor of the logits in the network's output; None if it returns logits.
        images: Labelled images.
    """

    name: str
    model: nn.Module
    logits: Accessor | str | int | None
    images: data.Images

    def arguments(self, assigned: str | None) -> tuple[nn.Module, Tensor, Tensor | None]:
        """The model, the images, and the labels, or None if scenarios assign the labels."""
        return self.model, self.images.x, self.images.y if assigned is None else None

    @property
    def usable(self) -> nn.Module:
        """The network as a module that returns logits."""
        return usable_model(self.model, None, self.logits)

    @property
    def options(self) -> dict[str, Any]:
        """The options of `measure` that depend on the network."""
        return {"name": self.name, "logits": self.logits}


def subject_of(
    source: str,
    checkpoint: Path | None,
    logits: str | None,
    dataset: str | None,
    n: int | None,
    device: str,
    *,
    notify: Callable[[str], object],
    usual: int = USUAL_IMAGES,
) -> Subject:
    """Load a network and its images onto a device.

    Args:
        source: Name of a network of the zoo, `path/to/module.py:factory`, or a network of a
            package, as `timm:NAME` (see `fperr.networks.from_package`).
        checkpoint: File of weights for the factory's network, or None.
        logits: Value of the option `--logits`, or None.
        dataset: Name of a data set, a file or folder of images, `module.py:dataset`, or None for
            the data set of the zoo's network.
        n: Number of images, the first ones; None for `usual`, or all if there are fewer.
        device: Device on which all is computed: `cpu`, `cuda`, `cuda:1` or `auto`.
        notify: Function that is called with sentences about what was loaded.
        usual: Number of images where none is given.

    Raises:
        ValueError, FperrError: Network, file or data set is missing or unusable.
    """
    where = usable_device(device)
    if source.endswith(".py"):
        raise ValueError(f"{source} names no function: expected e.g. {source}:build")
    if ":" not in source:
        if checkpoint or logits:
            raise ValueError(
                f"--checkpoint and --logits belong to path/to/module.py:factory, got {source!r}: "
                "leave them out"
            )
        images = named_images(dataset or zoo.entry(source).dataset, n, usual)
        return Subject(source, zoo.load(source).to(where), None, _moved(images, where))
    if dataset is None:
        raise ValueError(
            f"{source} needs --data: a .npz file with x (floating point) and y (integers), a .pt "
            "file, a folder of CIFAR or MNIST, or module.py:dataset"
        )
    if from_package.is_packaged(source):
        if logits:
            raise ValueError(f"--logits belongs to path/to/module.py:factory, got {source!r}")
        found = from_package.load(source, checkpoint, notify=notify)
        notify(found.described)
        name = re.sub(r"[^\w.-]+", "-", source.partition("?")[0]).strip("-")
        moved = _moved(named_images(dataset, n, usual), where)
        return Subject(name, found.model.to(where), found.logits, moved)
    model = from_file.load(source, checkpoint, notify=notify)
    if checkpoint is None:
        notify(f"{source}: no --checkpoint, the weights are those that the factory makes")
    path, _, factory = source.rpartition(":")
    accessor = None if logits is None else _accessor(logits, path)
    return Subject(
        factory, model.to(where), accessor, _moved(named_images(dataset, n, usual), where)
    )


def _moved(images: data.Images, device: torch.device) -> data.Images:
    return data.Images(images.name, images.x.to(device), images.y.to(device))


def _accessor(logits: str, path: str) -> Accessor | str | int:
    """Read the option `--logits`: an index, a function of the module, or a name in the output."""
    if re.fullmatch(r"-?\d+", logits):
        return int(logits)
    function = getattr(from_file.module(Path(path)), logits, None)
    if function is None:
        return logits
    if not callable(function):
        raise ValueError(
            f"--logits {logits} is of type {type(function).__name__} in {path}: give a function "
            "of it, or a name or an index in the model's output"
        )
    accessor: Accessor = function
    return accessor
