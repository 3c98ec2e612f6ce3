"""The table of ATen operations that have an exact meaning."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

Meaning = TypeVar("Meaning", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Operation:
    """The meaning of one ATen operation.

    Attributes:
        meaning: (arithmetic, *args, **kwargs) -> array, or a tuple for several outputs.
        shape_only: positions of tensor arguments of which only the shape is used: they arrive as
            their shape.
        discrete: positions of arguments that take masks or indices, as they are. Integers and
            booleans anywhere else arrive as numbers of the arithmetic.
        decides: the result is a mask or an index although the arguments are numbers.
        decisions: position of an argument -> (arithmetic, array, arguments) -> what the operation
            uses of it, where that is less than its value; it arrives as that.
        kinks: position of an argument -> (arguments) -> the numbers at which the result, or what is
            decided by it, jumps as that argument passes them.
        refusal: (arguments, keyword arguments) -> why this use is not supported, or None.
    """

    meaning: Callable[..., Any]
    shape_only: frozenset[int] = frozenset()
    discrete: frozenset[int] = frozenset()
    decides: bool = False
    decisions: Mapping[int, Callable[..., Any]] = field(default_factory=dict)
    kinks: Mapping[int, Callable[[Sequence[Any]], tuple[float, ...]]] = field(default_factory=dict)
    refusal: Callable[[Sequence[Any], Mapping[str, Any]], str | None] = lambda *_: None


def at_zero(arguments: Sequence[Any]) -> tuple[float, ...]:
    """A kink at 0, whatever the arguments."""
    del arguments
    return (0.0,)


OPERATIONS: dict[str, Operation] = {}


def operation(*names: str, **traits: Any) -> Callable[[Meaning], Meaning]:
    """Enter the decorated meaning into the table under `names`, e.g. `"aten.mm.default"`."""

    def enter(meaning: Meaning) -> Meaning:
        OPERATIONS.update(dict.fromkeys(names, Operation(meaning, **traits)))
        return meaning

    return enter
