"""Certified results: raise the precision of the balls until enough bits are proved."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from flint import arb
from mpmath import MPContext
from mpmath.libmp import fninf, from_man_exp
from numpy.typing import NDArray
from torch import Tensor

from fperr.errors import ReferenceNotCertifiedError, UndecidedError
from fperr.exact.audit.samples import SampleAudit, audit_sample
from fperr.exact.ball.arithmetic import BallArithmetic, log2_upper
from fperr.exact.ball.array import BallArray, mantissa
from fperr.exact.graph import Capture, Node
from fperr.exact.interpreter import ForwardRun, Interpreter
from fperr.exact.singularities import check_regular

LARGEST_BITS = 8192
# A start, not a bound: on trained and random networks 1 to 3 bits were lost with each product.
_BITS_PER_LAYER = 3
_BITS_FOR_THE_REST = 12
_MINUS_INFINITY = arb("-inf")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Enclosure:
    """Proved numbers.

    Attributes:
        midpoint, radius: NumPy arrays of `mpf`: every number lies within the radius.
        bits: the working precision.
        log2_error: log2 of an upper bound on |radius|_2 / |number|_2.
        audit: what PyTorch in float64 says of the network at this sample, if it was asked.
    """

    midpoint: NDArray[np.object_]
    radius: NDArray[np.object_]
    bits: int
    log2_error: float
    audit: SampleAudit | None = None


class AdaptivePrecision:
    """A captured network in ball arithmetic, at whatever precision it takes.

    Args:
        capture: the network, for one sample.
        bits: wanted, normwise.
        largest: working precision at which to give up.
    """

    def __init__(self, capture: Capture, bits: int, largest: int = LARGEST_BITS) -> None:
        self.capture = capture
        self.bits, self.largest = bits, largest
        self.start = max(bits + _BITS_PER_LAYER * capture.depth + _BITS_FOR_THE_REST, 53)
        self._interpreters: dict[int, Interpreter] = {}

    def interpreter(self, bits: int) -> Interpreter:
        """The network at that precision."""
        if bits not in self._interpreters:
            self._interpreters[bits] = Interpreter(self.capture, BallArithmetic(bits))
        return self._interpreters[bits]

    def product(self, x: Tensor, v: Tensor, sample: int = 0) -> Enclosure:
        """J^T v of one sample, (1, entries), proved and audited.

        Args:
            x: (1, *shape).
            v: (1, K).
            sample: its number, for errors.

        Raises:
            ReferenceNotCertifiedError: not at the largest precision; says where the bits went.
            SingularGradientError: it is infinite or undefined; says where.
            ContradictedError: PyTorch in float64 computes something else.
        """

        def attempt(interpreter: Interpreter) -> tuple[BallArray, Interpreter, ForwardRun]:
            run = interpreter.forward(x)
            entering = interpreter.arithmetic.from_torch(v)
            gradient = interpreter.products(run.saved_values, entering)
            check_regular(interpreter, run, entering, gradient, sample)
            return gradient, interpreter, run

        def proved(result: tuple[BallArray, Interpreter, ForwardRun]) -> float:
            return -log2_relative_radius(result[0])

        (balls, interpreter, run), bits = self.raised(attempt, proved, lambda i: losses(i, x, v))
        return enclosure(balls, bits, audit_sample(interpreter, run, x, v, balls, sample))

    def raised(
        self,
        attempt: Callable[[Interpreter], Result],
        proved: Callable[[Result], float],
        explain: Callable[[Interpreter], str],
        largest: int | None = None,
    ) -> tuple[Result, int]:
        """The first attempt that is proved to enough bits, and its working precision.

        Args:
            attempt: computes; may raise `UndecidedError`.
            proved: how many bits a result has.
            explain: where the bits went, in words.
            largest: working precision at which to give up, if not that of all.

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
                got = proved(result)
                if got >= self.bits:
                    return result, bits
                missing = self.bits - got
            except UndecidedError as fault:
                undecided, missing, got = fault, math.inf, 0.0
            if bits >= largest:
                reason = str(undecided) if undecided else explain(interpreter)
                raise ReferenceNotCertifiedError(
                    f"{max(got, 0.0):.1f} of {self.bits} bits are proved at {bits} bits, the "
                    f"largest working precision allowed: {reason}"
                ) from undecided
            step = bits if not math.isfinite(missing) else int(missing) + 16
            bits = min(bits + min(step, bits), largest)


def log2_relative_radius(balls: BallArray) -> float:
    """log2 of an upper bound on |radius|_2/|number|_2; -inf for exact numbers."""
    radius, number = norms(balls)
    if radius.is_zero():
        return -math.inf
    lowest = number - radius
    return log2_upper(radius / lowest) if lowest > 0 else math.inf


def norms(balls: BallArray) -> tuple[Any, Any]:
    """An upper bound on |radius|_2, and an enclosure of |midpoint|_2, of all but masked logits."""
    unmasked = [ball for ball in balls.listed() if not _is_masked(ball)]
    radius = sum((ball.rad() ** 2 for ball in unmasked), arb(0)).sqrt()
    return radius.upper(), sum((ball.mid() ** 2 for ball in unmasked), arb(0)).sqrt()


def enclosure(balls: BallArray, bits: int, audit: SampleAudit | None = None) -> Enclosure:
    """Balls as numbers of mpmath, in a context of that precision."""
    context = MPContext()
    context.prec = bits
    radii = _numbers(balls, arb.rad, context)
    error = log2_relative_radius(balls)
    return Enclosure(midpoints(balls, context), radii, bits, error, audit)


def midpoints(balls: BallArray, context: MPContext) -> NDArray[np.object_]:
    """The midpoints, exactly, as `mpf` of a context, in whose precision they are used further.

    Raises:
        ReferenceNotCertifiedError: one is not finite.
    """
    return _numbers(balls, arb.mid, context)


def _is_masked(ball: arb) -> bool:
    """Whether it is minus infinity, as the logit of a class is that is masked."""
    return bool(ball.mid() == _MINUS_INFINITY) and bool(ball.rad().is_finite())


def to_balls(A: BallArithmetic, numbers: NDArray[np.object_]) -> BallArray:
    """Numbers of mpmath in ball arithmetic, rounded with a radius where they are longer."""
    return A.array([arb_of(number) for number in numbers.reshape(-1)], numbers.shape)


def arb_of(number: Any) -> Any:
    """The `mpf`, which may be minus infinity, as a ball, exactly."""
    if number._mpf_ == fninf:
        return _MINUS_INFINITY
    sign, man, exponent, _ = number._mpf_
    return arb((-int(man) if sign else int(man), exponent))


def _numbers(
    balls: BallArray, component: Callable[[Any], Any], context: MPContext
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


def losses(interpreter: Interpreter, x: Tensor, v: Tensor | None) -> str:
    """Where the bits went: the operations after which fewest are left, in words."""
    bits_left: list[tuple[str, float]] = []
    limit = float(interpreter.arithmetic.bits)  # exact numbers count as all bits

    def observe(node: Node, value: Any) -> None:
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
