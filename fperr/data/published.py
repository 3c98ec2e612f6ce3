"""Published data sets, checked by their digests."""

import gzip
import hashlib
from importlib import resources
from pathlib import Path

import numpy as np
import torch

from fperr.caller_state import in_neutral_state
from fperr.data.downloads import Download
from fperr.data.folder import fperr_data
from fperr.data.images import Images
from fperr.errors import MissingDataError

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CIFAR_SHA256 = "f5a3dc75b0bdbf6afc29053a04b746395539702ce68c7a371a1ee72281bd2d8f"
FASHION_REMEDY = (
    "the Fashion-MNIST files (train-images-idx3-ubyte.gz, ...). Install Debian's package "
    f"dataset-fashion-mnist, which puts them into {FASHION_FOLDER}"
)
# SHA-256 of the uncompressed files, as Debian's dataset-fashion-mnist
# 0.0~git20200523.55506a9-1 has them
FASHION_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
# SHA-256 of the uncompressed files of yann.lecun.com/exdb/mnist
MNIST_SHA256 = {
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

MNIST_DOWNLOADS = tuple(
    Download(f"mnist/{file}.gz", f"https://ossci-datasets.s3.amazonaws.com/mnist/{file}.gz", sha256)
    for file, sha256 in {
        "t10k-images-idx3-ubyte": (
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
        ),
        "t10k-labels-idx1-ubyte": (
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
        ),
    }.items()
)


def _idx(folder: Path, name: str, sha256: str) -> np.ndarray:
    """Read `folder/name.gz` or `folder/name`, an IDX file of unsigned bytes.

    Raises:
        ValueError: The file's SHA-256 is not `sha256`.
    """
    packed = folder / f"{name}.gz"
    raw = gzip.decompress(packed.read_bytes()) if packed.exists() else (folder / name).read_bytes()
    actual = hashlib.sha256(raw).hexdigest()
    if actual != sha256:
        raise ValueError(
            f"{folder / name}: SHA-256 {actual}, expected {sha256}: not the published file. "
            "Get it again from its source"
        )
    # IDX: two bytes 0, a byte for the type, a byte for the number of dimensions; then each
    # dimension as a big-endian 32-bit number; then the entries
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">u4", count=dimensions, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _images(name: str, pixels: np.ndarray, labels: np.ndarray) -> Images:
    """Convert grey pixels (n, height, width) of 0..255 to [0, 1], by a float32 division each."""
    x = torch.from_numpy(pixels.copy()).unsqueeze(1).to(torch.float32) / 255
    return Images(name, x, torch.from_numpy(labels.copy()).to(torch.int64))


def _idx_pair(name: str, folder: Path, stem: str, sha256: dict[str, str], remedy: str) -> Images:
    images, labels = f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"
    for file in (images, labels):
        if not ((folder / f"{file}.gz").exists() or (folder / file).exists()):
            raise MissingDataError(f"{folder / file}.gz is missing. It is one of {remedy}")
    return _images(name, _idx(folder, images, sha256[images]), _idx(folder, labels, sha256[labels]))


@in_neutral_state
def fashion_mnist(split: str = "train", folder: Path | None = None) -> Images:
    """Fashion-MNIST's split `"train"` (60,000 images) or `"t10k"` (10,000 images).

    Args:
        split: Name of the split.
        folder: Folder of the four published files; that of Debian's package by default.

    Raises:
        MissingDataError: A file is missing; the message names the package.
        ValueError: A file is not the published one.

    Example:
        >>> from pathlib import Path
        >>> from fperr import data
        >>> data.fashion_mnist("t10k", Path("no_such_folder"))
        Traceback (most recent call last):
            ...
        fperr.errors.MissingDataError: no_such_folder/t10k-images-idx3-ubyte.gz is missing. ...
    """
    source = folder or FASHION_FOLDER
    return _idx_pair(f"fashion_mnist_{split}", source, split, FASHION_SHA256, FASHION_REMEDY)


def idx_test_images(folder: Path) -> Images | None:
    """The test images of MNIST or Fashion-MNIST in a folder; None if there are no such files.

    Raises:
        MissingDataError: The labels are missing.
        ValueError: A file is not the published one.
    """
    stem = "t10k-images-idx3-ubyte"
    packed, plain = folder / f"{stem}.gz", folder / stem
    if not packed.is_file() and not plain.is_file():
        return None
    raw = gzip.decompress(packed.read_bytes()) if packed.is_file() else plain.read_bytes()
    if hashlib.sha256(raw).hexdigest() == MNIST_SHA256[stem]:
        return _idx_pair("mnist_test", folder, "t10k", MNIST_SHA256, "MNIST's test files")
    return fashion_mnist("t10k", folder)


@in_neutral_state
def fashion_mnist_1000() -> Images:
    """The first 1,000 test images of Fashion-MNIST, which are part of this package.

    Example:
        >>> from fperr import data
        >>> tuple(data.fashion_mnist_1000().x.shape)
        (1000, 1, 28, 28)
    """
    packaged = resources.files("fperr.datasets") / "fashion_mnist_t10k_first1000.npz"
    with packaged.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return _images("fashion_mnist_1000", arrays["images"], arrays["labels"])


@in_neutral_state
def mnist_test() -> Images:
    """The 10,000 test images of MNIST, from `mnist/` in the data folder.

    Raises:
        MissingDataError: The files are missing.
        ValueError: A file is not the published one.

    Example:
        >>> from fperr import data, errors
        >>> try:
        ...     images = data.mnist_test()
        ... except errors.MissingDataError:
        ...     images = data.fashion_mnist_1000()
        >>> tuple(images.x.shape[1:])
        (1, 28, 28)
    """
    remedy = "MNIST's test files, from yann.lecun.com/exdb/mnist"
    folder = fperr_data("mnist/t10k-images-idx3-ubyte.gz", remedy, "mnist_test").parent
    return _idx_pair("mnist_test", folder, "t10k", MNIST_SHA256, remedy)


@in_neutral_state
def cifar10_test_800() -> Images:
    """The first 800 test images of CIFAR-10, from `cifar10/` in the data folder.

    Raises:
        MissingDataError: The file is missing.
        ValueError: The file is not the expected one.

    Example:
        >>> from fperr import data, errors
        >>> try:
        ...     images = data.cifar10_test_800()
        ... except errors.MissingDataError:
        ...     images = data.fashion_mnist_1000()
        >>> bool((images.x >= 0).all() and (images.x <= 1).all())
        True
    """
    description = (
        "the first 800 images of CIFAR-10's test batch, from cs.toronto.edu/~kriz/cifar.html"
    )
    path = fperr_data("cifar10/cifar10_test_first800.npz", description)
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != CIFAR_SHA256:
        raise ValueError(
            f"{path}: SHA-256 {actual}, expected {CIFAR_SHA256}: it is not {description}. "
            "Get it again"
        )
    with np.load(path) as arrays:
        pixels, labels = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    return Images("cifar10_test_800", pixels.float() / 255, labels.long())
