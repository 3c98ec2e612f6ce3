"""The table of ATen operations that have an exact meaning."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Meaning = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """The meaning of one ATen operation.

    Attributes:
        meaning: (arithmetic, *args, **kwargs) -> array, or a tuple for several outputs.
        shape_only: positions of tensor arguments of which only the shape is used: they arrive as
            their shape.
        decisions: position of an argument -> (arithmetic, array, arguments) -> what the operation
            uses of it, where that is less than its value; it arrives as that.
        refusal: (arguments, keyword arguments) -> why this use is not supported, or None.
    """

    meaning: Meaning
    shape_only: frozenset[int] = frozenset()
    decisions: Mapping[int, Callable[..., Any]] = field(default_factory=dict)
    refusal: Callable[[Sequence[Any], Mapping[str, Any]], str | None] = lambda *_: None


OPERATIONS: dict[str, Operation] = {}


def operation(*names: str, **traits: Any) -> Callable[[Meaning], Meaning]:
    """Enter the decorated meaning into the table under `names`, e.g. `"aten.mm.default"`."""

    def enter(meaning: Meaning) -> Meaning:
        OPERATIONS.update(dict.fromkeys(names, Operation(meaning, **traits)))
        return meaning

    return enter
