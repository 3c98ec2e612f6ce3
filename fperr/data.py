"""Images with labels: the packaged ones, and those found on this machine by name."""

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
        name: what they are, for reports.
        x: (n, channels, height, width), float32 in [0, 1].
        y: (n,), int64 class labels.
    """

    name: str
    x: Tensor
    y: Tensor

    def first(self, n: int) -> "Images":
        """The first n of them.

        Raises:
            ValueError: n is below 1 or there are fewer than n images.
        """
        if not 1 <= n <= len(self.x):
            raise ValueError(
                f"{n} images were asked for, but {self.name} has {len(self.x)}: "
                f"give a number from 1 to {len(self.x)}"
            )
        return Images(self.name, self.x[:n], self.y[:n])


def digest(*tensors: Tensor) -> str:
    """SHA-256 of dtypes, shapes and bytes, in order: equal if and only if the tensors are."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def fperr_data(relative: str, what: str) -> Path:
    """The path of `relative` in the folder that the environment variable FPERR_DATA names.

    Raises:
        MissingDataError: the variable is not set or the file is not there; says `what` it is.
    """
    folder = os.environ.get("FPERR_DATA")
    if not folder:
        raise MissingDataError(
            f"{what} is looked for in the folder named by the environment variable FPERR_DATA, "
            f"which is not set. Set it to a folder that holds {relative}"
        )
    path = Path(folder) / relative
    if not path.is_file():
        raise MissingDataError(
            f"{path} is missing: it should hold {what}. Get it, or set FPERR_DATA to a folder that "
            f"holds {relative}"
        )
    return path


def _idx(folder: Path, name: str, sha256: str) -> np.ndarray:
    """The array in `folder/name.gz` (or `folder/name`), an IDX file of unsigned bytes."""
    packed = folder / f"{name}.gz"
    raw = gzip.decompress(packed.read_bytes()) if packed.exists() else (folder / name).read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{folder / name}: SHA-256 {found}, expected {sha256}: not the published file. "
            "Get it again from its source"
        )
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">u4", count=dimensions, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _images(name: str, pixels: np.ndarray, labels: np.ndarray) -> Images:
    """Grey pixels (n, height, width) of 0..255 as `Images` in [0, 1]: one float32 division each."""
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
    """All of Fashion-MNIST's split `"train"` (60,000 images) or `"t10k"` (10,000 images).

    Args:
        split: which of the two.
        folder: where the four published files are; the folder of Debian's package by default.

    Raises:
        MissingDataError: the files are not there; names the package.
        ValueError: a file is not the published one.
    """
    where = folder or FASHION_FOLDER
    return _idx_pair(f"fashion_mnist_{split}", where, split, FASHION_SHA256, FASHION_REMEDY)


@in_neutral_state
def fashion_mnist_1000() -> Images:
    """The first 1,000 test images of Fashion-MNIST, which are part of this package."""
    packaged = resources.files("fperr.datasets") / "fashion_mnist_t10k_first1000.npz"
    with packaged.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return _images("fashion_mnist_1000", arrays["images"], arrays["labels"])


@in_neutral_state
def mnist_test() -> Images:
    """The 10,000 test images of MNIST, from `mnist/` under FPERR_DATA.

    Raises:
        MissingDataError: they are not there.
    """
    remedy = "MNIST's test files, from yann.lecun.com/exdb/mnist"
    folder = fperr_data("mnist/t10k-images-idx3-ubyte.gz", remedy).parent
    return _idx_pair("mnist_test", folder, "t10k", MNIST_SHA256, remedy)


@in_neutral_state
def cifar10_test_800() -> Images:
    """The first 800 test images of CIFAR-10, from `cifar10/` under FPERR_DATA.

    Raises:
        MissingDataError: they are not there.
        ValueError: the file is another one.
    """
    what = "the first 800 images of CIFAR-10's test batch, from cs.toronto.edu/~kriz/cifar.html"
    path = fperr_data("cifar10/cifar10_test_first800.npz", what)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != CIFAR_SHA256:
        raise ValueError(
            f"{path}: SHA-256 {found}, expected {CIFAR_SHA256}: it is not {what}. Get it again"
        )
    with np.load(path) as arrays:
        pixels, labels = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    return Images("cifar10_test_800", pixels.float() / 255, labels.long())


@in_neutral_state
def from_npz(path: Path) -> Images:
    """Images `x` (n, ...) and labels `y` (n,) of a NumPy archive.

    Raises:
        MissingDataError: no such file.
        ValueError: an array is missing or pickled, there is no sample, or x is not float16, float32
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
    """The array `name` of a NumPy archive: a class for each of its samples; the first n.

    Returns:
        (n,) int64.

    Raises:
        MissingDataError: no such file.
        ValueError: no such array, or it holds no integer for each sample of x.
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
            held = sorted(archive.files)
            arrays = [archive[name] for name in names if name in held]
    except Exception as fault:  # NumPy and zipfile raise a dozen kinds, MemoryError among them
        reason = f"{type(fault).__name__}: {' '.join(str(fault).split())[:200]}"
        raise ValueError(
            f"{path} cannot be read as a NumPy archive of numbers ({reason}): write it with "
            f"np.savez({path.name!r}, {', '.join(f'{name}=...' for name in names)})"
        ) from fault
    if len(arrays) < len(names):
        raise ValueError(
            f"{path}: expected arrays {' and '.join(names)}, got {held}: write it with "
            f"np.savez({path.name!r}, {', '.join(f'{name}=...' for name in names)})"
        )
    return arrays


def _float_remedy(x: np.ndarray) -> str:
    """What to do about an array that is not floating point as PyTorch has it."""
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
        ValueError: no such data set; lists the known ones.
        MissingDataError: it is not on this machine.
    """
    if name.endswith(".npz"):
        return from_npz(Path(name))
    if name not in DATASETS:
        known = ", ".join(DATASETS)
        raise ValueError(f"unknown data set {name!r}: expected one of {known}, or a .npz file")
    return DATASETS[name]()
