"""Values of command-line options, read from text: numbers, boxes, target classes, folders."""

import hashlib
import math
import re
from pathlib import Path

import torch
import typer
from torch import Tensor

from fperr import data
from fperr.vocabulary import RENAMED_OPTIONS

_LONGEST = 100  # letters: file systems hold 255 bytes, and suffixes are added
_WITH_DIGEST = re.compile(r"-[0-9a-f]{8}$")


def number(text: str, option: str) -> float:
    """Read a finite number such as `0.03`, `1e-2` or `8/255`; a fraction is divided in float64.

    Raises:
        ValueError: The text is not such a number.

    Example:
        >>> number("8/255", "--radius") == 8 / 255
        True
    """
    numerator, slash, denominator = text.partition("/")
    try:
        if "_" in text or (slash and denominator.strip().startswith("-")):
            raise ValueError  # Python's float() takes both, and nobody means them
        value = float(numerator) / (float(denominator) if slash else 1.0)
    except (ValueError, ZeroDivisionError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(
            f"{option} must be a number as 0.03, 1e-2 or 8/255, got {text!r}: give one"
        )
    return value


def box(text: str) -> tuple[float, float]:
    """Read the lowest and highest value of an input, `LOW,HIGH`.

    Raises:
        ValueError: The text is not two numbers with the smaller one first.
    """
    ends = text.split(",")
    if len(ends) != 2:
        raise ValueError(f"--box must be LOW,HIGH, got {text!r}: give e.g. --box=-0.81,2.02")
    low, high = (number(end, "--box") for end in ends)
    if not low < high:
        raise ValueError(
            f"--box must be LOW,HIGH with LOW below HIGH, got {text!r}: give e.g. --box=-0.81,2.02"
        )
    return low, high


def is_class(text: str) -> bool:
    """Whether `--targets` names one class for all images."""
    return re.fullmatch(r"[+-]?\d+", text) is not None


def targets(text: str, y: Tensor, classes: int, seed: int, dataset: str | None) -> Tensor:
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


def folder_name(name: str) -> str:
    """A folder's name for a network: letters, digits, `.`, `_` and `-`; different for each name.

    A name with other letters gets a digest of itself as suffix, and so does a name that already
    ends like such a suffix.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("-.")[:_LONGEST]
    if safe == name and safe and not _WITH_DIGEST.search(safe):
        return safe
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{safe}-{digest}" if safe else digest


def renamed(parameter: typer.CallbackParam, value: str | None) -> None:
    """Refuse an option of an earlier version, and name today's.

    Raises:
        ValueError: It was given.
    """
    if value is not None:
        old = parameter.opts[0]
        raise ValueError(f"{old} is called {RENAMED_OPTIONS[old]} now: give {RENAMED_OPTIONS[old]}")
