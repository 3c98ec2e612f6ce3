"""Images and classes in NumPy archives."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fperr.caller_state import in_neutral_state
from fperr.data.images import Images
from fperr.errors import MissingDataError

_NATIVE_FLOATS = tuple(np.dtype(name) for name in ("float16", "float32", "float64"))


@in_neutral_state
def from_npz(path: Path) -> Images:
    """Read images `x` (n, ...) and labels `y` (n,), or `images` and `labels`, from a NumPy archive.

    Unsigned bytes are pixels of 0..255: they become float32 in [0, 1] by a division each.

    Args:
        path: Path of the archive.

    Raises:
        MissingDataError: The file is missing.
        ValueError: An array is missing or pickled, there is no sample, or x is neither uint8 nor
            float16, float32 or float64 in this machine's byte order.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from fperr import data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "mine.npz"
        ...     np.savez(path, x=np.zeros((3, 1, 2, 2), "float32"), y=np.arange(3))
        ...     images = data.from_npz(path)
        >>> images.name, tuple(images.x.shape), images.y
        ('mine.npz', (3, 1, 2, 2), tensor([0, 1, 2]))
    """
    return labelled(path, *_arrays(path, ("x", "y"), ("images", "labels")))


def labelled(path: Path, x: np.ndarray, y: np.ndarray) -> Images:
    """Images of arrays that were read from a file.

    Raises:
        ValueError: They are no images with labels; names the file.
    """
    if x.dtype not in (*_NATIVE_FLOATS, np.uint8):
        raise ValueError(f"{path}: x has dtype {x.dtype}, {_float_remedy(x)}")
    if x.ndim < 2 or not x.size:
        raise ValueError(
            f"{path}: x has shape {x.shape}, expected (n, *shape) with samples in it: write at "
            "least one sample, e.g. x[None] for a single one"
        )
    return Images(path.name, in_unit_interval(torch.from_numpy(x)), _classes(path, "y", y, len(x)))


def in_unit_interval(x: Tensor) -> Tensor:
    """Pixels of 0..255 (uint8) as float32 in [0, 1], by a division each; other tensors as is."""
    return x.to(torch.float32) / 255 if x.dtype == torch.uint8 else x


@in_neutral_state
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

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from fperr import data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "mine.npz"
        ...     np.savez(path, x=np.zeros((3, 1, 2, 2), "float32"), targets=np.array([5, 6, 7]))
        ...     targets = data.classes_from_npz(path, "targets", 2)
        >>> targets
        tensor([5, 6])
    """
    x, classes = _arrays(path, ("x", name), ("images", name))
    return _classes(path, name, classes, len(x))[:n]


def _arrays(path: Path, names: tuple[str, str], others: tuple[str, str]) -> list[np.ndarray]:
    """The two arrays of the first names, or else of the others."""
    if not path.is_file():
        raise MissingDataError(
            f"{path} is missing: expected a .npz file with arrays {' and '.join(names)}, as "
            "np.savez writes it"
        )
    written = ", ".join(f"{name}=..." for name in names)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            in_file = sorted(archive.files)
            chosen = names if set(names) <= set(in_file) else others
            arrays = [archive[name] for name in chosen if name in in_file]
    except Exception as fault:  # NumPy and zipfile raise a dozen kinds, MemoryError among them
        reason = f"{type(fault).__name__}: {' '.join(str(fault).split())[:200]}"
        raise ValueError(
            f"{path} cannot be read as a NumPy archive of numbers ({reason}): write it with "
            f"np.savez({path.name!r}, {written})"
        ) from fault
    if len(arrays) < len(names):
        raise ValueError(
            f"{path}: expected arrays {' and '.join(names)} (or {' and '.join(others)}), got "
            f"{in_file}: write it with np.savez({path.name!r}, {written})"
        )
    return arrays


def _float_remedy(x: np.ndarray) -> str:
    """The remedy for an array whose dtype is not a floating-point dtype of this machine."""
    if np.issubdtype(x.dtype, np.integer):
        return (
            "expected floating point in the model's domain, or uint8 for pixels of 0..255. "
            "Convert it, e.g. x.astype('uint8')"
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
