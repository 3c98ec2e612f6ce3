"""Labelled images by the name of a data set, or of a file."""

from collections.abc import Callable
from pathlib import Path

from fperr.data.downloads import Download
from fperr.data.folder import is_at_hand
from fperr.data.images import Images
from fperr.data.originals import from_file
from fperr.data.published import (
    MNIST_DOWNLOADS,
    cifar10_test_800,
    fashion_mnist_1000,
    mnist_test,
)
from fperr.errors import MissingDataError

DATASETS: dict[str, Callable[[], Images]] = {
    "fashion_mnist_1000": fashion_mnist_1000,
    "mnist_test": mnist_test,
    "cifar10_test_800": cifar10_test_800,
}
"""The functions that read a data set, by the name of the data set.

Example:
    >>> from fperr import data
    >>> list(data.DATASETS)
    ['fashion_mnist_1000', 'mnist_test', 'cifar10_test_800']
"""


# data set -> its files in the data folder
_FILES: dict[str, tuple[str, ...]] = {
    "fashion_mnist_1000": (),
    "mnist_test": tuple(file.relative for file in MNIST_DOWNLOADS),
    "cifar10_test_800": ("cifar10/cifar10_test_first800.npz",),
}
_SUFFIXES = (".npz", ".pt", ".pth")


def images_named(name: str) -> Images:
    """The data set called `name`, or the one in a file or folder (`from_file`).

    Args:
        name: Name of a data set in `DATASETS`, or path of a file or folder.

    Raises:
        ValueError: No data set has that name.
        MissingDataError: The data set is not on this machine.

    Example:
        >>> from fperr import data
        >>> len(data.images_named("fashion_mnist_1000").y)
        1000
    """
    if name in DATASETS:
        return DATASETS[name]()
    if Path(name).suffix in _SUFFIXES or Path(name).is_dir():
        return from_file(Path(name))
    names = ", ".join(DATASETS)
    raise ValueError(
        f"unknown data set {name!r}: expected one of {names}, a .npz or .pt file, or a folder"
    )


def is_dataset_at_hand(name: str) -> bool:
    """Whether a data set is part of fperr, or its files are in the data folder.

    Args:
        name: Name of a data set in `DATASETS`.

    Example:
        >>> from fperr import data
        >>> data.is_dataset_at_hand("fashion_mnist_1000")
        True
    """
    return all(is_at_hand(file) for file in _FILES[name])


def downloads_of(name: str) -> tuple[Download, ...]:
    """The files that a data set needs; none for one that is part of fperr.

    Args:
        name: Name of a data set in `DATASETS`.

    Raises:
        MissingDataError: The data set has no address of its own; the message says how to get it.

    Example:
        >>> from fperr import data
        >>> len(data.downloads_of("mnist_test")), len(data.downloads_of("fashion_mnist_1000"))
        (2, 0)
    """
    if name == "mnist_test":
        return MNIST_DOWNLOADS
    if name == "cifar10_test_800":
        raise MissingDataError(
            "cifar10_test_800 has no address: it is a part of CIFAR-10's test images. Get these "
            "from cs.toronto.edu/~kriz/cifar.html, and give their folder with --data"
        )
    return ()
