"""The value of `--targets`: the target class of each image."""

from pathlib import Path

import torch
from torch import Tensor

from fperr import data
from fperr.cli.options import is_class


def target_classes(text: str, y: Tensor, classes: int, seed: int, dataset: str | None) -> Tensor:
    """Read the target class of each image.

    Args:
        text: Class for all images; or `next` for the class after the true one, and 0 after the
            last; or `random` for another class at random; or the name of an array in the data set's
            .npz file.
        y: True classes of the images, (n,) int64.
        classes: Number of classes K of the network.
        seed: Seed of `random`.
        dataset: Value of the option `--data`.

    Returns:
        Target classes (n,) int64. A class for all images may be the true class of some of them.

    Raises:
        ValueError: The text is none of these, or not a class of the network.
    """
    if text == "next":
        return (y + 1) % classes
    if text == "random":
        generator = torch.Generator().manual_seed(seed)
        # y + 1 + r with r from 0 to K - 2, modulo K, is every class but y
        further = [int(torch.randint(classes - 1, (), generator=generator)) for _ in y]
        return (y + 1 + torch.tensor(further)) % classes
    if is_class(text):
        if not 0 <= int(text) < classes:
            raise ValueError(
                f"--targets must be a class from 0 to {classes - 1}, got {text}: give one of them"
            )
        return torch.full_like(y, int(text))
    if dataset is None or not dataset.endswith(".npz"):
        raise ValueError(
            f"--targets must be a class, next or random, got {text!r}: give one of them, or the "
            "name of an array in the .npz file that --data names"
        )
    return data.classes_from_npz(Path(dataset), text, len(y))
