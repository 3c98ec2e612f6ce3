"""Labelled images by the name of a data set, or of a file."""

from collections.abc import Callable
from pathlib import Path

from fperr.data.images import Images
from fperr.data.originals import from_file
from fperr.data.published import cifar10_test_800, fashion_mnist_1000, mnist_test

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
