"""Adaptive precision: raise the precision of the balls until enough bits are proved."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from flint import arb
from mpmath import MPContext
from mpmath.libmp import fninf, from_man_exp
from numpy.typing import NDArray
from torch import Tensor

from fperr.errors import ReferenceNotCertifiedError, UndecidedError
from fperr.exact.arithmetic import NodeValue
from fperr.exact.audit.samples import SampleAudit, audit_sample
from fperr.exact.ball.arithmetic import BallArithmetic, log2_upper
from fperr.exact.ball.array import BallArray, mantissa
from fperr.exact.graph import Capture, Node
from fperr.exact.interpreter import ForwardRun, Interpreter
from fperr.exact.number_types import MpNumber
from fperr.exact.singularities import check_regular

LARGEST_BITS = 8192
# The first working precision, not a bound: on trained and random networks 1 to 3 bits were lost
# with each product of matrices.
_BITS_PER_LAYER = 3
_BITS_FOR_OTHER_OPERATIONS = 12
_MINUS_INFINITY = arb("-inf")
Result = TypeVar("Result")
_Attempt = tuple[BallArray, Interpreter[BallArray], ForwardRun[BallArray]]


@dataclass(frozen=True, slots=True)
class Enclosure:
    """Numbers with proved error bounds.

    Attributes:
        midpoint, radius: NumPy arrays of `mpf`; every number is within its radius of its midpoint.
        bits: Working precision, in bits.
        log2_error: Logarithm to base 2 of an upper bound on |radius|_2 / |number|_2.
        audit: Comparison with PyTorch's own float64 at this sample; None if it was not made.
    """

    midpoint: NDArray[np.object_]
    radius: NDArray[np.object_]
    bits: int
    log2_error: float
    audit: SampleAudit | None = None


class AdaptivePrecision:
    """A captured network in ball arithmetic, at the first precision that proves enough bits.

    Args:
        capture: Network, captured for one sample.
        bits: Correct bits required, relative to the norm of the result.
        largest: Largest working precision, in bits.
    """

    def __init__(self, capture: Capture, bits: int, largest: int = LARGEST_BITS) -> None:
        self.capture = capture
        self.bits, self.largest = bits, largest
        self.start = max(bits + _BITS_PER_LAYER * capture.depth + _BITS_FOR_OTHER_OPERATIONS, 53)
        self._interpreters: dict[int, Interpreter[BallArray]] = {}

    def interpreter(self, bits: int) -> Interpreter[BallArray]:
        """The network at that precision."""
        if bits not in self._interpreters:
            self._interpreters[bits] = Interpreter(self.capture, BallArithmetic(bits))
        return self._interpreters[bits]

    def product(self, x: Tensor, v: Tensor, sample: int = 0) -> Enclosure:
        """Compute J^T v of one sample, (1, entries), with proved bounds, and audit it.

        Args:
            x: Input (1, *shape), taken exactly.
            v: Cotangent of the logits (1, K), taken exactly.
            sample: Number of the sample, for errors.

        Raises:
            ReferenceNotCertifiedError: not at the largest precision; says where the bits went.
            SingularGradientError: it is infinite or undefined; says where.
            ContradictedError: PyTorch in float64 computes something else.
        """

        def attempt(interpreter: Interpreter[BallArray]) -> _Attempt:
            run = interpreter.forward(x)
            entering = interpreter.arithmetic.from_torch(v)
            gradient = interpreter.products(run.saved_values, entering)
            check_regular(interpreter, run, entering, gradient, sample)
            return gradient, interpreter, run

        def proved(result: _Attempt) -> float:
            return -log2_relative_radius(result[0])

        (balls, interpreter, run), bits = self.raised(attempt, proved, lambda i: losses(i, x, v))
        return enclosure(balls, bits, audit_sample(interpreter, run, x, v, balls, sample))

    def raised(
        self,
        attempt: Callable[[Interpreter[BallArray]], Result],
        proved: Callable[[Result], float],
        explain: Callable[[Interpreter[BallArray]], str],
        largest: int | None = None,
    ) -> tuple[Result, int]:
        """Raise the precision until a result has enough proved bits.

        Args:
            attempt: Function that computes a result; it may raise `UndecidedError`.
            proved: Function that returns the number of proved bits of a result.
            explain: Function that says in words after which operations bits are lost.
            largest: Largest working precision, in bits; by default that of this object.

        Returns:
            The result, and the working precision in bits.

        Raises:
            ReferenceNotCertifiedError: none is up to the largest precision.
        """
        largest = self.largest if largest is None else largest
        bits = min(self.start, largest)
        while True:
            undecided = None
            try:
                interpreter = self.interpreter(bits)
                result = attempt(interpreter)
                proved_bits = proved(result)
                if proved_bits >= self.bits:
                    return result, bits
                missing = self.bits - proved_bits
            except UndecidedError as fault:
                undecided, missing, proved_bits = fault, math.inf, 0.0
            if bits >= largest:
                reason = str(undecided) if undecided else explain(interpreter)
                raise ReferenceNotCertifiedError(
                    f"{max(proved_bits, 0.0):.1f} of {self.bits} bits are proved at {bits} bits, "
                    f"the largest working precision allowed: {reason}"
                ) from undecided
            # the bits that were missing and a few that the next run may lose; at most twice as many
            step = bits if not math.isfinite(missing) else int(missing) + 16
            bits = min(bits + min(step, bits), largest)


def log2_relative_radius(balls: BallArray) -> float:
    """log2 of an upper bound on |radius|_2/|number|_2; -inf for exact numbers."""
    radius, number = norms(balls)
    if radius.is_zero():
        return -math.inf
    lowest = number - radius
    return log2_upper(radius / lowest) if lowest > 0 else math.inf


def norms(balls: BallArray) -> tuple[arb, arb]:
    """An upper bound on |radius|_2, and an enclosure of |midpoint|_2, of all but masked logits."""
    unmasked = [ball for ball in balls.listed() if not _is_masked(ball)]
    radius = sum((ball.rad() ** 2 for ball in unmasked), arb(0)).sqrt()
    return radius.upper(), sum((ball.mid() ** 2 for ball in unmasked), arb(0)).sqrt()


def enclosure(balls: BallArray, bits: int, audit: SampleAudit | None = None) -> Enclosure:
    """Convert balls to midpoints and radii in mpmath, in a context of precision `bits`."""
    context = MPContext()
    context.prec = bits
    radii = _numbers(balls, arb.rad, context)
    error = log2_relative_radius(balls)
    return Enclosure(midpoints(balls, context), radii, bits, error, audit)


def midpoints(balls: BallArray, context: MPContext) -> NDArray[np.object_]:
    """Convert the midpoints to `mpf` of the context, exactly.

    Raises:
        ReferenceNotCertifiedError: one is not finite.
    """
    return _numbers(balls, arb.mid, context)


def _is_masked(ball: arb) -> bool:
    """Whether the ball is minus infinity, as the logit of a masked class is."""
    return bool(ball.mid() == _MINUS_INFINITY) and bool(ball.rad().is_finite())


def to_balls(A: BallArithmetic, numbers: NDArray[np.object_]) -> BallArray:
    """Convert numbers of mpmath to balls: exact, or rounded with a radius where they are longer."""
    return A.array([arb_of(number) for number in numbers.reshape(-1)], numbers.shape)


def arb_of(number: MpNumber) -> arb:
    """Convert an `mpf`, which may be minus infinity, to a ball, exactly."""
    if number._mpf_ == fninf:
        return _MINUS_INFINITY
    sign, man, exponent, _ = number._mpf_
    return arb((-int(man) if sign else int(man), exponent))


def _numbers(
    balls: BallArray, component: Callable[[arb], arb], context: MPContext
) -> NDArray[np.object_]:
    used, numbers = balls.used, np.full(len(balls.pool), None, dtype=object)
    components = [component(ball) for ball in balls.pool[used]]
    is_masked = [_is_masked(number) for number in components]
    if not all(
        number.is_finite() or masked for number, masked in zip(components, is_masked, strict=True)
    ):
        raise ReferenceNotCertifiedError("an enclosure is unbounded: more bits are needed")
    numbers[used] = [
        context.ninf if masked else context.make_mpf(from_man_exp(*mantissa(number)))
        for number, masked in zip(components, is_masked, strict=True)
    ]
    return numbers[balls.index]


def losses(interpreter: Interpreter[BallArray], x: Tensor, v: Tensor | None) -> str:
    """Say in words after which operations most bits are lost."""
    bits_left: list[tuple[str, float]] = []
    limit = float(interpreter.arithmetic.bits)  # exact numbers count as all bits

    def observe(node: Node, value: NodeValue[BallArray]) -> None:
        if isinstance(value, BallArray):
            bits_left.append((node.name, min(-log2_relative_radius(value), limit)))

    run = interpreter.forward(x)
    for node in interpreter.capture.forward:
        observe(node, run.values[node.name])
    if v is None:
        v = torch.ones(1, interpreter.arithmetic.shape(run.logits)[1])
    interpreter.products(run.saved_values, interpreter.arithmetic.from_torch(v), observe)
    drops = [
        (before - after, name, after)
        for (_, before), (name, after) in pairwise(bits_left)
        if math.isfinite(after) and before > after
    ]
    worst = sorted(drops, reverse=True)[:3]
    descriptions = ", ".join(
        f"{name} loses {drop:.0f} and leaves {left:.0f}" for drop, name, left in worst
    )
    return (
        f"bits are lost along the network: {descriptions}"
        if descriptions
        else "no operation keeps any"
    )
