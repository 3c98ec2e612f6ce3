"""The table of ATen operations that have an exact meaning."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypedDict, TypeVar, Unpack

from torch import fx

from fperr.exact.arithmetic import Arithmetic, T
from fperr.exact.index_arrays import IndexArray

Argument = fx.node.Argument  # of an ATen call, as the graph writes it
Meaning = TypeVar("Meaning", bound=Callable[..., object])


class Comparison(Protocol):
    """A comparison of numbers, whose result an operation uses instead of the numbers."""

    def __call__(self, A: Arithmetic[T], a: T, arguments: Sequence[Argument], /) -> IndexArray:
        """Compare the numbers `a`, an argument of the ATen call with these `arguments`."""


Kinks = Callable[[Sequence[Argument]], tuple[float, ...]]
Jumps = Callable[[Sequence[Argument]], tuple[float, float]]
Refusal = Callable[[Sequence[Argument], Mapping[str, Argument]], str | None]


@dataclass(frozen=True, slots=True)
class Operation:
    """The meaning of one ATen operation.

    Attributes:
        meaning: Function (arithmetic, *args, **kwargs) -> array, or a tuple for several outputs.
        shape_only: Positions of the tensor arguments of which only the shape is used. They arrive
            as their shape.
        uses_values: Function (arguments) -> whether this use needs the values of those, too.
        discrete: Positions of the arguments that are masks or index arrays and arrive unchanged.
            Integers and booleans at other positions arrive as numbers of the arithmetic.
        decides: Whether the result is a mask or an index array although the arguments are numbers.
        decisions: Comparison for the position of an argument of which the operation uses less than
            the value: for ReLU's derivative, where it was positive. The resulting mask arrives
            instead of the array.
        kinks: Function (arguments) -> numbers, for the position of an argument: the numbers at
            which the result, or a mask made of it, jumps as that argument passes them.
        jumps: Function (arguments) -> first and distance of evenly spaced numbers at which the
            result jumps, for the position of an argument.
        refusal: Function (arguments, keyword arguments) -> reason why this use is not supported, or
            None if it is.
    """

    meaning: Callable[..., object]
    shape_only: frozenset[int] = frozenset()
    uses_values: Callable[[Sequence[Argument]], bool] = lambda _: False
    discrete: frozenset[int] = frozenset()
    decides: bool = False
    decisions: Mapping[int, Comparison] = field(default_factory=dict)
    kinks: Mapping[int, Kinks] = field(default_factory=dict)
    jumps: Mapping[int, Jumps] = field(default_factory=dict)
    refusal: Refusal = lambda *_: None

    def only_shapes(self, arguments: Sequence[Argument]) -> frozenset[int]:
        """Positions of the arguments of this call of which only the shape is used."""
        return frozenset() if self.uses_values(arguments) else self.shape_only


class Traits(TypedDict, total=False):
    """Attributes of an `Operation` other than its meaning."""

    shape_only: frozenset[int]
    uses_values: Callable[[Sequence[Argument]], bool]
    discrete: frozenset[int]
    decides: bool
    decisions: Mapping[int, Comparison]
    kinks: Mapping[int, Kinks]
    jumps: Mapping[int, Jumps]
    refusal: Refusal


def number(arguments: Sequence[Argument], position: int) -> float:
    """The argument at `position` of an ATen call, which its schema declares to be a number."""
    argument = arguments[position]
    assert isinstance(argument, int | float)
    return float(argument)


def at_zero(arguments: Sequence[Argument]) -> tuple[float, ...]:
    """The kink at 0 of an operation whose kinks do not depend on its other arguments."""
    del arguments
    return (0.0,)


OPERATIONS: dict[str, Operation] = {}


def operation(*names: str, **traits: Unpack[Traits]) -> Callable[[Meaning], Meaning]:
    """Enter the decorated function into the table as the meaning of operations.

    Args:
        names: Names of ATen operations, e.g. `"aten.mm.default"`.
        traits: Other attributes of the `Operation`.
    """

    def enter(meaning: Meaning) -> Meaning:
        OPERATIONS.update(dict.fromkeys(names, Operation(meaning, **traits)))
        return meaning

    return enter
