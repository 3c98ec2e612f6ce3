"""Which files of known networks and data sets are at hand."""

import os
from pathlib import Path

from fperr import data, zoo

# data set -> a file of it under FPERR_DATA; None: packaged
_FILES = {
    "fashion_mnist_1000": None,
    "mnist_test": "mnist/t10k-images-idx3-ubyte.gz",
    "cifar10_test_800": "cifar10/cifar10_test_first800.npz",
}


def state_of(relative: str | None) -> str:
    """Whether a file under FPERR_DATA is there: `packaged` (no file is needed), found, or missing.

    Args:
        relative: Path of the file relative to that folder; None: part of fperr.
    """
    if relative is None:
        return "packaged"
    folder = os.environ.get("FPERR_DATA")
    return "found" if folder and (Path(folder) / relative).is_file() else "missing"


def networks() -> dict[str, str]:
    """Network of the zoo -> state of its weights."""
    return {entry.name: state_of(entry.checkpoint) for entry in zoo.REGISTRY.values()}


def datasets() -> dict[str, str]:
    """Data set -> state of its files; Fashion-MNIST's whole sets are those of Debian's package."""
    files = {name: state_of(_FILES[name]) for name in data.DATASETS}
    has_whole = (data.FASHION_FOLDER / "t10k-images-idx3-ubyte.gz").is_file()
    return files | {str(data.FASHION_FOLDER): "found" if has_whole else "missing"}
