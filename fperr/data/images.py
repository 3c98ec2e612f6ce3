"""Labelled images, and the digest of tensors."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


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
