"""Labelled images by name: packaged ones, and data sets that are on this machine."""

import gzip
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fperr.caller_state import in_neutral_state
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

_NATIVE_FLOATS = tuple(np.dtype(name) for name in ("float16", "float32", "float64"))


@dataclass(frozen=True, slots=True)
class Images:
    """Labelled images.

    Attributes:
        name: Name of the data set, for reports.
        x: Images (n, channels, height, width), float32 in [0, 1].
        y: Class labels (n,), int64.
    """

    name: str
    x: Tensor
    y: Tensor

    def first(self, n: int) -> "Images":
        """The first n images with their labels.

        Raises:
            ValueError: n is below 1, or there are fewer than n images.
        """
        if not 1 <= n <= len(self.x):
            raise ValueError(
                f"{n} images were asked for, but {self.name} has {len(self.x)}: "
                f"give a number from 1 to {len(self.x)}"
            )
        return Images(self.name, self.x[:n], self.y[:n])


def digest(*tensors: Tensor) -> str:
    """The SHA-256 of the tensors' dtypes, shapes and bytes, in order.

    Two results are equal if and only if the tensors are, collisions of SHA-256 aside.
    """
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def fperr_data(relative: str, description: str) -> Path:
    """The path of a file in the folder that the environment variable FPERR_DATA names.

    Args:
        relative: Path of the file, relative to that folder.
        description: Name and origin of the file, for the error's message.

    Raises:
        MissingDataError: The variable is not set, or the file is missing.
    """
    folder = os.environ.get("FPERR_DATA")
    if not folder:
        raise MissingDataError(
            f"{description} is looked for in the folder named by the environment variable "
            f"FPERR_DATA, which is not set. Set it to a folder that holds {relative}"
        )
    path = Path(folder) / relative
    if not path.is_file():
        raise MissingDataError(
            f"{path} is missing: it should hold {description}. Get it, or set FPERR_DATA to a "
            f"folder that holds {relative}"
        )
    return path


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
    """
    source = folder or FASHION_FOLDER
    return _idx_pair(f"fashion_mnist_{split}", source, split, FASHION_SHA256, FASHION_REMEDY)


@in_neutral_state
def fashion_mnist_1000() -> Images:
    """The first 1,000 test images of Fashion-MNIST, which are part of this package.

    Example:
        >>> tuple(fashion_mnist_1000().x.shape)
        (1000, 1, 28, 28)
    """
    packaged = resources.files("fperr.datasets") / "fashion_mnist_t10k_first1000.npz"
    with packaged.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return _images("fashion_mnist_1000", arrays["images"], arrays["labels"])


@in_neutral_state
def mnist_test() -> Images:
    """The 10,000 test images of MNIST, from `mnist/` under FPERR_DATA.

    Raises:
        MissingDataError: The files are missing.
    """
    remedy = "MNIST's test files, from yann.lecun.com/exdb/mnist"
    folder = fperr_data("mnist/t10k-images-idx3-ubyte.gz", remedy).parent
    return _idx_pair("mnist_test", folder, "t10k", MNIST_SHA256, remedy)


@in_neutral_state
def cifar10_test_800() -> Images:
    """The first 800 test images of CIFAR-10, from `cifar10/` under FPERR_DATA.

    Raises:
        MissingDataError: The file is missing.
        ValueError: The file is not the expected one.
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


@in_neutral_state
def from_npz(path: Path) -> Images:
    """Read images `x` (n, ...) and labels `y` (n,) from a NumPy archive.

    Raises:
        MissingDataError: The file is missing.
        ValueError: An array is missing or pickled, there is no sample, or x is not float16, float32
            or float64 in this machine's byte order.
    """
    x, y = _arrays(path, ("x", "y"))
    if x.dtype not in _NATIVE_FLOATS:
        raise ValueError(f"{path}: x has dtype {x.dtype}, {_float_remedy(x)}")
    if x.ndim < 2 or not x.size:
        raise ValueError(
            f"{path}: x has shape {x.shape}, expected (n, *shape) with samples in it: write at "
            "least one sample, e.g. x[None] for a single one"
        )
    return Images(path.name, torch.from_numpy(x), _classes(path, "y", y, len(x)))


def classes_from_npz(path: Path, name: str, n: int) -> Tensor:
    """Read the classes of the first n samples from a NumPy archive.

    Args:
        path: Path of the archive, which holds x, too.
        name: Name of the array, which holds an integer for each sample of x.
        n: Number of samples.

    Returns:
        Classes (n,) int64.

    Raises:
        MissingDataError: The file is missing.
        ValueError: The array is missing, or does not hold an integer for each sample of x.
    """
    x, classes = _arrays(path, ("x", name))
    return _classes(path, name, classes, len(x))[:n]


def _arrays(path: Path, names: tuple[str, ...]) -> list[np.ndarray]:
    if not path.is_file():
        raise MissingDataError(
            f"{path} is missing: expected a .npz file with arrays {' and '.join(names)}, as "
            "np.savez writes it"
        )
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            names_in_file = sorted(archive.files)
            arrays = [archive[name] for name in names if name in names_in_file]
    except Exception as fault:  # NumPy and zipfile raise a dozen kinds, MemoryError among them
        reason = f"{type(fault).__name__}: {' '.join(str(fault).split())[:200]}"
        raise ValueError(
            f"{path} cannot be read as a NumPy archive of numbers ({reason}): write it with "
            f"np.savez({path.name!r}, {', '.join(f'{name}=...' for name in names)})"
        ) from fault
    if len(arrays) < len(names):
        raise ValueError(
            f"{path}: expected arrays {' and '.join(names)}, got {names_in_file}: write it with "
            f"np.savez({path.name!r}, {', '.join(f'{name}=...' for name in names)})"
        )
    return arrays


def _float_remedy(x: np.ndarray) -> str:
    """The remedy for an array whose dtype is not a floating-point dtype of this machine."""
    if np.issubdtype(x.dtype, np.integer):
        return (
            "expected floating point in the model's domain. Convert it, e.g. "
            "x.astype('float32') / 255 for pixels of 0..255"
        )
    if x.dtype.newbyteorder("=") in _NATIVE_FLOATS:
        return "in the other byte order. Convert it with x.astype(x.dtype.newbyteorder('='))"
    return "expected float16, float32 or float64. Convert it, e.g. x.astype('float64')"


def _classes(path: Path, name: str, classes: np.ndarray, n: int) -> Tensor:
    if not np.issubdtype(classes.dtype, np.integer) or classes.shape != (n,):
        raise ValueError(
            f"{path}: {name} must hold one integer class for each of the {n} samples of x, got "
            f"{classes.dtype} of shape {classes.shape}: write whole numbers of an integer type"
        )
    wide = classes.astype(np.int64)
    if not np.array_equal(wide, classes):
        raise ValueError(f"{path}: {name} holds classes beyond int64: write other labels")
    return torch.from_numpy(wide)


DATASETS: dict[str, Callable[[], Images]] = {
    "fashion_mnist_1000": fashion_mnist_1000,
    "mnist_test": mnist_test,
    "cifar10_test_800": cifar10_test_800,
}


def images_named(name: str) -> Images:
    """The data set called `name`, or the one in a file whose name ends in `.npz`.

    Raises:
        ValueError: No data set has that name.
        MissingDataError: The data set is not on this machine.
    """
    if name.endswith(".npz"):
        return from_npz(Path(name))
    if name not in DATASETS:
        names = ", ".join(DATASETS)
        raise ValueError(f"unknown data set {name!r}: expected one of {names}, or a .npz file")
    return DATASETS[name]()
