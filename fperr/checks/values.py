"""Checks of plain arguments: names, paths, flags, numbers and sequences of names."""

import math
import numbers
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import Tensor

from fperr.vocabulary import RENAMED_CHOICES

Name = TypeVar("Name", bound=str)


def choice(name: str, value: object, options: Sequence[Name]) -> Name:
    """Check that a value is one of the options.

    Raises:
        TypeError, ValueError: The value is not one of the options, or is an old name of one.
    """
    if not isinstance(value, str):
        raise TypeError(
            f"{name} must be a name, got {shown(value)}: expected one of {', '.join(options)}"
        )
    for option in options:
        if value == option:
            return option
    new_name = RENAMED_CHOICES.get(value)
    if new_name in options:
        raise ValueError(f"{name} {value!r} is called {new_name!r} now: give {name}={new_name!r}")
    raise ValueError(f"unknown {name} {value!r}: expected one of {', '.join(options)}")


def text(name: str, value: object) -> str:
    """Check that a value is a string that is not blank.

    Raises:
        TypeError, ValueError: The value is not a string, or blank.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {shown(value)}: give a name in quotes")
    if not value.strip():
        raise ValueError(f"{name} must be a name, got {value!r}: give at least one letter")
    return value


def path(name: str, value: object) -> Path:
    """Convert a string or a path to a path.

    Raises:
        TypeError: The value is neither a string nor a path.
    """
    if not isinstance(value, str | Path):
        raise TypeError(f"{name} must be a path, got {shown(value)}: give a str or a pathlib.Path")
    return Path(value)


def flag(name: str, value: object) -> bool:
    """Check that a value is True or False.

    Raises:
        TypeError: The value is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shown(value)}: give one of the two")
    return value


def optional_flag(name: str, value: object) -> bool | None:
    """Check that a value is True, False or None.

    Raises:
        TypeError: The value is none of them.
    """
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{name} must be True, False or None, got {shown(value)}: give one of them")
    return value


def whole_number(name: str, value: object, least: int, most: int | None = None) -> int:
    """Check that a value is an integer from `least` to `most`; True and False are refused.

    Raises:
        TypeError, ValueError: The value is not an integer, or outside the limits.
    """
    limits = f"from {least} on" if most is None else f"from {least} to {most}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a whole number {limits}, got {shown(value)}: give an int")
    number = int(value)
    if number < least or (most is not None and number > most):
        raise ValueError(
            f"{name} must be a whole number {limits}, got {number}: give one within that range"
        )
    return number


def real_number(
    name: str, value: object, *, above: float = -math.inf, least: float = -math.inf,
    below: float = math.inf,
) -> float:  # fmt: skip
    """Check that a value is a finite number within limits; True and False are refused.

    Args:
        name: Name of the argument.
        value: Value of the argument.
        above: Limit below every allowed value, not allowed itself.
        least: Smallest allowed value.
        below: Limit above every allowed value, not allowed itself.

    Raises:
        TypeError, ValueError: The value is not a finite number, or outside the limits.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {shown(value)}: give a float")
    number = float(value)
    if not (above < number < below and number >= least):
        ends = [
            f"above {above:g}" if above > -math.inf else "",
            f"from {least:g} on" if least > -math.inf else "",
            f"below {below:g}" if below < math.inf else "",
        ]
        limits = " and ".join(end for end in ends if end)
        raise ValueError(
            f"{name} must be a finite number {limits}".rstrip() + f", got {number!r}: give another"
        )
    return number


def names(name: str, values: object) -> list[str]:
    """Check that a value is a sequence of names, which may be empty.

    Raises:
        TypeError: The value is a single string, not a sequence, or holds something else.
    """
    if isinstance(values, str):
        raise TypeError(
            f"{name} must be a sequence of names, got the string {values!r}: use a list"
        )
    if not isinstance(values, Sequence) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{name} must hold names, got {shown(values)}: use a list of strings")
    return list(values)


def distinct_names(name: str, values: object) -> list[str]:
    """Check that a value is a sequence of distinct names that is not empty.

    Raises:
        TypeError, ValueError: The value is no sequence of names, empty, or repeats a name.
    """
    distinct = names(name, values)
    if not distinct:
        raise ValueError(f"{name} is empty: name at least one")
    if len(set(distinct)) < len(distinct):
        raise ValueError(f"{name} names something twice: {distinct}: name each once")
    return distinct


def shown(value: object) -> str:
    """Describe a value in a message: by its `repr` if that is short, else by type and shape."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim:
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__} {text[:57]}..."
