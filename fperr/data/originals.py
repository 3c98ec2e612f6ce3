"""Images in the files in which other people keep them: `.pt`, CIFAR's and MNIST's own formats."""

import codecs
import pickle
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fperr.caller_state import in_neutral_state
from fperr.data.archives import from_npz, labelled
from fperr.data.images import Images
from fperr.data.published import idx_test_images
from fperr.errors import MissingDataError

_SHAPE = (3, 32, 32)  # of CIFAR's images, planes of red, green and blue
_PAIRS = (("x", "y"), ("images", "labels"), ("data", "targets"))


@in_neutral_state
def from_file(path: Path) -> Images:
    """Read labelled images from a file, or the test images in a folder of an original data set.

    * `.npz` with `x` and `y`, or `images` and `labels`: as `from_npz`;
    * `.pt` or `.pth`: two tensors, as `torch.save((x, y), path)` writes them; never unpickled;
    * a folder of CIFAR-10 or CIFAR-100, in the binary version or in that for Python, of which
      nothing but arrays is unpickled; fine labels of CIFAR-100;
    * a folder of MNIST's or Fashion-MNIST's `t10k` files, checked by their digests.

    Unsigned bytes are pixels of 0..255: they become float32 in [0, 1] by a division each.

    Args:
        path: Path of the file or folder.

    Raises:
        MissingDataError: There is no such file, or nothing in the folder that is known.
        ValueError: The file is not what its name says.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from fperr import data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "mine.pt"
        ...     torch.save((torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 2])), path)
        ...     images = data.from_file(path)
        >>> images.name, tuple(images.x.shape), images.y
        ('mine.pt', (3, 1, 2, 2), tensor([0, 1, 2]))
    """
    if path.is_dir():
        return _from_folder(path)
    if path.suffix == ".npz":
        return from_npz(path)
    if not path.is_file():
        raise MissingDataError(f"{path} is missing: expected a file of images and labels")
    if path.suffix in (".pt", ".pth"):
        return _from_pt(path)
    raise ValueError(f"{path} is of no known kind: expected .npz, .pt, .pth or a folder")


def _from_pt(path: Path) -> Images:
    written = f"write it with torch.save((x, y), {path.name!r})"
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as fault:  # of pickle, zipfile and torch
        raise ValueError(
            f"{path} cannot be read as tensors alone ({type(fault).__name__}): {written}"
        ) from fault
    if isinstance(found, Mapping):
        names = next((pair for pair in _PAIRS if set(pair) <= set(found)), ())
        found = tuple(found[name] for name in names)
    is_pair = isinstance(found, list | tuple) and len(found) == 2
    if not is_pair or not all(isinstance(each, Tensor) for each in found):
        raise ValueError(f"{path} holds no two tensors x and y: {written}")
    x, y = found
    if x.dtype == torch.bfloat16:
        raise ValueError(f"{path}: x has dtype bfloat16: store x.float()")
    return labelled(path, x.numpy(), y.numpy())


def _from_folder(folder: Path) -> Images:
    for name, read in _FILES.items():
        if (folder / name).is_file():
            return labelled(folder, *read(folder / name))
    found = idx_test_images(folder)
    if found is None:
        raise MissingDataError(
            f"{folder} holds no data set that is known: expected one of {', '.join(_FILES)} "
            "(CIFAR), or t10k-images-idx3-ubyte.gz (MNIST, Fashion-MNIST)"
        )
    return found


def _binary(labels: int) -> Callable[[Path], tuple[np.ndarray, np.ndarray]]:
    """A reader of CIFAR's binary version; the last of so many labels for an image is the finest."""

    def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
        raw, length = np.fromfile(path, np.uint8), labels + int(np.prod(_SHAPE))
        if not raw.size or raw.size % length:
            raise ValueError(
                f"{path} has {raw.size} bytes, which are no records of {length}: it is cut, or not "
                "CIFAR's binary version. Get it again"
            )
        rows = raw.reshape(-1, length)
        return rows[:, labels:].reshape(-1, *_SHAPE), rows[:, labels - 1]

    return read


class _Arrays(pickle.Unpickler):
    """Unpickles arrays, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.rpartition(".")[2], name) == ("multiarray", "_reconstruct"):
            return np.empty(0).__reduce__()[0]
        if (module, name) == ("_codecs", "encode"):  # how bytes are written for Python 2
            return codecs.encode
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no array")


def _pickled(label: bytes) -> Callable[[Path], tuple[np.ndarray, np.ndarray]]:
    """A reader of CIFAR's version for Python; the labels are kept under that name."""

    def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
        try:
            found = _Arrays(BytesIO(path.read_bytes()), encoding="bytes").load()
            x, y = np.asarray(found[b"data"]), np.asarray(found[label])
            return x.reshape(-1, *_SHAPE), y
        except Exception as fault:  # pickle raises any
            raise ValueError(
                f"{path} is not CIFAR's version for Python "
                f"({type(fault).__name__}: {fault}): get it again"
            ) from fault

    return read


_FILES: dict[str, Callable[[Path], tuple[np.ndarray, np.ndarray]]] = {
    "test_batch.bin": _binary(1),
    "test.bin": _binary(2),
    "test_batch": _pickled(b"labels"),
    "test": _pickled(b"fine_labels"),
}
