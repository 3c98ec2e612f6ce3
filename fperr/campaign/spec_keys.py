"""The kinds of values that a spec may hold, and the keys of its tables."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from fperr.losses import loss_named
from fperr.vocabulary import ATTACK_FORMATS, FORMAT_NAMES


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of values.

    Attributes:
        words: What is expected, for messages.
        read: Function that turns a value of TOML into ours, and raises TypeError or ValueError for
            any other.
    """

    words: str
    read: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a table of a spec.

    Attributes:
        name: Name of the key.
        kind: Kind of its value.
        meaning: What it is, for the documentation.
        default: Value where the key is missing.
        is_required: Whether it must not be missing.
    """

    name: str
    kind: Kind
    meaning: str
    default: Any = None
    is_required: bool = False


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError
    return value


def _whole(least: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError
        return value

    return read


def _number(value: object) -> float:
    """A number, or a fraction in quotes: divided exactly, and rounded once, as Python divides."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    number = float(Fraction(value.replace(" ", ""))) if isinstance(value, str) else float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _positive(value: object) -> float:
    number = _number(value)
    if number <= 0:
        raise ValueError
    return number


def _box(value: object) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise TypeError
    low, high = map(_number, value)
    if not low < high:
        raise ValueError
    return low, high


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return value


def _loss(value: object) -> str:
    name = _text(value)
    loss_named(name)
    return name


def _choice(options: Sequence[str]) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in options:
            raise ValueError
        return str(value)

    return read


def _list(read: Callable[[object], Any]) -> Callable[[object], tuple[Any, ...]]:
    def read_all(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list) or not value:
            raise TypeError
        items = tuple(map(read, value))
        if len(set(items)) < len(items):
            raise ValueError
        return items

    return read_all


def choice(*options: str) -> Kind:
    """One of some words."""
    return Kind(f"one of {', '.join(options)}", _choice(options))


def choices(*options: str) -> Kind:
    """A list of different words out of some."""
    return Kind(f"a list of different names out of {', '.join(options)}", _list(_choice(options)))


def whole(least: int) -> Kind:
    """A whole number, not below `least`."""
    return Kind(f"a whole number, at least {least}", _whole(least))


TEXT = Kind("a text in quotes", _text)
FLAG = Kind("true or false", _flag)
POSITIVE = Kind('a number above 0, as 0.03 or "8/255"', _positive)
NUMBER = Kind('a number, as 0.5 or "1/2"', _number)
BOX = Kind("two numbers, the lower one first, as [0, 1]", _box)
LOSSES = Kind('a list of different losses, as ["ce", "mifpe:T=4"]', _list(_loss))
FORMATS = choices(*FORMAT_NAMES)
ATTACKED_FORMATS = choices(*ATTACK_FORMATS)
TABLE = Kind("a table", _table)
TEXTS = Kind("a list of different texts in quotes", _list(_text))
