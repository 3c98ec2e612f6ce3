"""Labelled images from a data set of PyTorch."""

from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from fperr.data.archives import in_unit_interval
from fperr.data.images import Images


def from_dataset(
    dataset: "Dataset[Any] | DataLoader[Any] | Iterable[Any]", n: int, name: str = "dataset"
) -> Images:
    """The first n samples of a data set of PyTorch, or of a loader.

    Tensors of unsigned bytes are pixels of 0..255: they become float32 in [0, 1].

    Args:
        dataset: Data set whose items are (x, y), or `DataLoader` whose batches are.
        n: Number of samples, at least 1; all, if there are fewer.
        name: Name for reports.

    Raises:
        ValueError: n is below 1, there is no sample, the loader shuffles, or the items are not
            tensors with classes.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from fperr import data
        >>> pairs = TensorDataset(torch.rand(5, 3, 8, 8), torch.arange(5))
        >>> data.from_dataset(DataLoader(pairs, batch_size=2), 3).y
        tensor([0, 1, 2])
    """
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")
    if isinstance(dataset, DataLoader):
        if isinstance(dataset.sampler, RandomSampler):
            raise ValueError("the loader shuffles: give one with shuffle=False, whose images stay")
        samples: Iterator[Any] = (pair for batch in dataset for pair in _split(batch))
    elif hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        samples = (dataset[i] for i in range(len(cast(Sized, dataset))))
    else:
        samples = iter(dataset)
    pairs = [_pair(item) for item in islice(samples, n)]
    if not pairs:
        raise ValueError(f"{name} has no samples: give a data set with one or more")
    images, labels = zip(*pairs, strict=True)
    if len({(x.shape, x.dtype) for x in images}) > 1:
        shapes = sorted({str(tuple(x.shape)) for x in images})
        raise ValueError(
            f"{name} has images of different shapes or dtypes ({', '.join(shapes)}): crop or "
            "resize them"
        )
    return Images(name, in_unit_interval(torch.stack(images)), torch.tensor(labels))


def _split(batch: Any) -> Iterator[tuple[Any, Any]]:
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        raise ValueError(f"a batch must be (x, y), got {_kind(batch)}")
    return zip(*batch, strict=True)


def _pair(item: Any) -> tuple[Tensor, int]:
    if not isinstance(item, list | tuple) or len(item) != 2:
        raise ValueError(f"an item must be (x, y), got {_kind(item)}: wrap the data set")
    x, y = item
    if not isinstance(x, Tensor) or not (x.is_floating_point() or x.dtype == torch.uint8):
        raise ValueError(
            f"an image must be a tensor of floating point or uint8, got {_kind(x)}: give the data "
            "set a transform that makes one, e.g. torchvision's ToTensor()"
        )
    is_class = isinstance(y, int) or (
        isinstance(y, Tensor) and y.numel() == 1 and not y.is_floating_point()
    )
    if not is_class:
        raise ValueError(f"a label must be a class, an integer, got {_kind(y)}")
    return x.detach().cpu(), int(y)


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__
