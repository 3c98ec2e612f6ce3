"""How many bits of an exact gradient one computed gradient needs."""

from collections.abc import Callable
from typing import Any

from fperr.exact.engines.scaled import Vector, scaled
from fperr.exact.engines.vectors import Vectors
from fperr.exact.precision import BITS_OF_DELTA

# Even where delta is large, signs of small components should be right.
_LEAST_BITS = 24
# (arithmetic, exact gradient) -> bits of it that are needed
NeededBits = Callable[[Vectors[Any], Vector], float]


def needed_bits(bits: float, computed: Callable[[Vectors[Any]], Vector | None]) -> NeededBits:
    """The bits that four digits of delta need: fewer than a format's where delta is large.

    Args:
        bits: Bits that delta near the format's unit roundoff needs.
        computed: The computed gradient (1, entries) in an arithmetic; None where it is not finite,
            or where all bits are asked for.
    """

    def needed(A: Vectors[Any], gradient: Vector) -> float:
        vector = computed(A)
        if vector is None:
            return bits
        error, size = scaled(A, A.sub(vector, gradient)), scaled(A, gradient)
        if not bool(error.values.any()) or not bool(size.values.any()):
            return bits
        return min(bits, max(_LEAST_BITS, BITS_OF_DELTA - (error.log2_norm - size.log2_norm)))

    return needed
