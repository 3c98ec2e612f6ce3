"""Labelled images, and the folder of data that belongs to others."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fperr.errors import MissingDataError


@dataclass(frozen=True, slots=True)
class Images:
    """Labelled images.

    Attributes:
        name: Name of the data set, for reports.
        x: Images (n, channels, height, width), float32 in [0, 1].
        y: Class labels (n,), int64.

    Example:
        >>> import torch
        >>> from fperr import data
        >>> images = data.Images("mine", torch.rand(3, 1, 28, 28), torch.tensor([0, 1, 2]))
        >>> images.first(2).y
        tensor([0, 1])
    """

    name: str
    x: Tensor
    y: Tensor

    def first(self, n: int) -> "Images":
        """The first n images with their labels.

        Args:
            n: Number of images, at least 1.

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

    Args:
        *tensors: Tensors of any dtype and shape.

    Example:
        >>> import torch
        >>> from fperr import data
        >>> data.digest(torch.zeros(2)) == data.digest(torch.zeros(2, 1))
        False
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

    Example:
        >>> from fperr import data
        >>> data.fperr_data("no_such_folder/no_such_file", "an example")
        Traceback (most recent call last):
            ...
        fperr.errors.MissingDataError: ...
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
