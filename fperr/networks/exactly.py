"""The reference side of a measurement: the exact network at one sample, by any engine."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from flint import arb
from torch import Tensor

from fperr.errors import ReferenceNotCertifiedError, SingularGradientError, UndecidedError
from fperr.exact.adaptive_precision import arb_of, log2_relative_radius, midpoints, norms, to_balls
from fperr.exact.ball.arithmetic import BallArithmetic, log2_upper
from fperr.exact.ball.array import BallArray
from fperr.exact.double_word import LARGEST_BITS, DoubleWordArithmetic
from fperr.exact.double_word_network import log2_relative_errors
from fperr.exact.engines.ball import BallEngine
from fperr.exact.engines.base import ExactEngine, ExactPoint, NoExactPoint
from fperr.exact.engines.double_word import DoubleWordEngine
from fperr.exact.engines.jacobian import StoredRows
from fperr.exact.engines.mpmath import MpmathEngine
from fperr.exact.engines.scaled import scaled
from fperr.exact.engines.vectors import DoubleWordVectors, MpVectors, Vector, Vectors
from fperr.exact.entry import GUARD_BITS, LEAST_BOUND, log2_difference
from fperr.exact.error_bound import logit_gradient_balls
from fperr.exact.graph import Capture, called_in, probe
from fperr.exact.interpreter import Interpreter
from fperr.exact.logit_gradient import cross_entropy, logit_gradient
from fperr.exact.loss_function import LossGradient
from fperr.exact.mp import MpArithmetic
from fperr.networks.in_format import FormatNetwork
from fperr.reasons import (
    INPUT_NOT_FINITE,
    LOGITS_NOT_FINITE,
    TOO_FEW_CLASSES,
    infinite_slope,
    not_certified,
)

_LOGIT_BITS = 200  # working precision of logit gradients, for words
_FEWEST_CLASSES = 2
_STAGE_BITS = 10  # by which stages are finer than a format's rounding
_FEW_DIGITS, _FEW_BITS = 10, 63  # up to so many digits, products at so many bits suffice


@dataclass(frozen=True, slots=True)
class LossAtSample:
    """A loss at one sample: what its exact logit gradient depends on beside the logits.

    Attributes:
        kind: as for `logit_gradient`.
        label: the class that the loss uses.
        c: the scale that the format's run computed, an `mpf`.
        targeted: the label is a target.
        y: the true label, where it is known.
        function: the loss itself where it is given as a function of the logits; label and c say
            nothing then. By balls and pairs of float64 only.
    """

    kind: str
    label: int
    c: Any
    targeted: bool
    y: int | None
    function: LossGradient | None = None


@dataclass(frozen=True, slots=True)
class ExactGradientAt:
    """The exact gradient of one loss at one sample.

    Attributes:
        v, gradient: vectors of K and of as many numbers as x has; for balls the midpoints.
        log2_error: log2 of the relative error of the gradient in norm. Proved, or seen: for mpmath
            the largest difference to twice the precision for cross-entropy at this sample; for
            pairs of float64 whose bound is too wide, that to fewer bits.
        is_proved: which of the two.
        enclosure: the gradient (1, entries) as balls, or None.
        log2_error_before: of a gradient that balls took over, what its error was at the precision
            of the engine, which its stages still have; None for all others.
    """

    v: Vector
    gradient: Vector
    log2_error: float
    is_proved: bool
    enclosure: BallArray | None
    log2_error_before: float | None = None

    def resolves_stages(self, unit_roundoff: float) -> bool:
        """Whether stages, relative to the gradient, are known to a thousandth of a rounding."""
        before = self.log2_error_before
        return before is None or before <= math.log2(unit_roundoff) - _STAGE_BITS


@dataclass(frozen=True, slots=True)
class NoExactSample:
    """A sample without an exact network.

    Attributes:
        reason: why, in words.
        is_certified: False where a certificate was tried for; None where there was nothing to try.
    """

    reason: str
    is_certified: bool | None = False


class ExactSample:
    """One sample through the exact network.

    Attributes:
        state: the network there.
        z: the K logits.
        order: the classes by descending logit.
    """

    def __init__(self, reference: "ExactNetwork", x: Tensor, state: ExactPoint[Any, Any]) -> None:
        self._reference, self._x = reference, x
        self.state, self.z = state, state.z
        self.order = sorted(range(len(self.z)), key=lambda i: -self.z[i])
        self._states_in_balls: dict[int, ExactPoint[Any, Any]] = {}
        self._is_hopeless = False  # balls at the largest precision have been tried

    @cached_property
    def logits(self) -> Tensor:
        """The logits (1, K), rounded to float64."""
        return torch.tensor([[float(value) for value in self.z]], dtype=torch.float64)

    @property
    def row_log2_norms(self) -> list[float]:
        """log2 of the norms of the rows of J, all of which must have been computed."""
        assert isinstance(self.state.map, StoredRows)
        return self.state.map.log2_norms

    def gradient(self, loss: LossAtSample) -> ExactGradientAt | None:
        """The exact gradient of the loss; None where it is undefined."""
        A = self._reference.vectors
        asked = {"c": loss.c, "targeted": loss.targeted, "y": loss.y}
        if loss.function is not None:
            return self._of_function(loss, asked)
        v = logit_gradient(loss.kind, A.context, self.z, loss.label, **asked)
        if v is None:
            return None
        B = self.state.interpreter.arithmetic
        if isinstance(B, BallArithmetic):
            found = self._in_balls(self.state, loss, asked)
            return found if self._reference.certifies(found) else self._raised(found, loss, asked)
        if isinstance(B, DoubleWordArithmetic):
            found = self._in_double_words(loss, asked)
            return found if self._reference.certifies(found) else self._raised(found, loss, asked)
        exact = A.array(v)
        product = self.state.map.product(exact)
        error = max(self.log2_disagreement, self._log2_cancellation(exact, product))
        found = ExactGradientAt(exact, product, error, False, None)
        return found if self._reference.certifies(found) else self._raised(found, loss, asked)

    def _of_function(self, loss: LossAtSample, asked: dict[str, Any]) -> ExactGradientAt | None:
        """The gradient of a loss that is a function; None where it is undefined, or undecided."""
        is_in_balls = isinstance(self.state.interpreter.arithmetic, BallArithmetic)
        try:
            in_balls = self._in_balls(self.state, loss, asked) if is_in_balls else None
            found = in_balls or self._in_double_words(loss, asked)
        except (UndecidedError, ReferenceNotCertifiedError):
            found = None
        if found is not None:
            return found if self._reference.certifies(found) else self._raised(found, loss, asked)
        try:
            return self._by_balls(loss, asked)
        except ReferenceNotCertifiedError:
            return None

    def product(self, v: Tensor) -> tuple[Vector, float]:
        """J^T v of a floating-point v (K,), taken exactly; log2 of the relative error in norm.

        Proved by balls; by pairs of float64 as far as the rows are; of mpmath's the difference to
        twice the precision that cross-entropy shows.
        """
        A, B = self._reference.vectors, self.state.interpreter.arithmetic
        exact = A.from_torch(v[None])
        if isinstance(B, BallArithmetic):
            balls = to_balls(B, A.numbers(exact))
            g = _of_balls(self.state, balls)
            return A.from_balls(g), log2_relative_radius(g)
        found = self.state.map.product(exact)
        if isinstance(B, DoubleWordArithmetic):
            return found, float(log2_relative_errors(found.words))
        return found, self.log2_disagreement

    def _in_balls(
        self, state: ExactPoint[Any, Any], loss: LossAtSample, asked: dict[str, Any]
    ) -> ExactGradientAt:
        """The gradient at a state of the balls, of whatever precision."""
        A, B = self._reference.vectors, state.interpreter.arithmetic
        assert isinstance(B, BallArithmetic)
        enclosed = _enclosed(B, loss, state.logits, asked)
        g = _of_balls(state, enclosed)
        error = max(log2_relative_radius(enclosed), log2_relative_radius(g))
        return ExactGradientAt(A.from_balls(enclosed), A.from_balls(g), error, True, g)

    def _raised(
        self, found: ExactGradientAt, loss: LossAtSample, asked: dict[str, Any]
    ) -> ExactGradientAt:
        """The gradient by balls at a precision that gives it its digits; `found` if none does.

        The rows of J may be certain where their combination cancels, and pairs of float64 may
        have too few bits for the exponents of a large margin.
        """
        if self._is_hopeless:
            return found
        try:
            raised = self._by_balls(loss, asked)
            return replace(raised, log2_error_before=found.log2_error)
        except ReferenceNotCertifiedError:
            self._is_hopeless = True
            return found

    def _by_balls(self, loss: LossAtSample, asked: dict[str, Any]) -> ExactGradientAt:
        """The gradient by balls at a precision that gives it its digits.

        Raises:
            ReferenceNotCertifiedError: none does.
        """
        return self._reference.balls.raised(
            self._x,
            lambda state: self._in_balls(state, loss, asked),
            lambda result: -result.log2_error,
            self._states_in_balls,
        )

    def _in_double_words(self, loss: LossAtSample, asked: dict[str, Any]) -> ExactGradientAt:
        """The logit gradient in balls around the logits, and its product in words."""
        A, B = self._reference.vectors, BallArithmetic(_LOGIT_BITS)
        radius = 2.0 ** math.ceil(max(self.state.log2_radius, -1000.0))
        logits = B.array([arb(arb_of(z), radius) for z in self.z], (1, len(self.z)))
        enclosed = _enclosed(B, loss, logits, asked)
        numbers = midpoints(enclosed, A.context)
        width, _ = norms(enclosed)
        v = A.array(numbers, log2_upper(width) if width > 0 else None)
        g = self.state.map.product(v)
        errors = [float(log2_relative_errors(part.words)) for part in (v, g)]
        found = ExactGradientAt(v, g, max(errors), self.state.is_proved, None)
        coarser = self.state.coarser
        settled = self._reference.certifies(found) or not errors[1] <= LEAST_BOUND
        if coarser is None or settled or coarser.is_undecided:
            return found
        apart = scaled(A, A.sub(g, coarser.product(v))).log2_norm - scaled(A, g).log2_norm
        return replace(found, log2_error=max(errors[0], apart), is_proved=False)

    def _log2_cancellation(self, v: Vector, g: Vector) -> float:
        """log2 of what mpmath loses where the K rows cancel in g = J^T v, relative to g.

        Twice the precision shows what cross-entropy loses; other losses may lose more. A row is
        taken to have lost half of the guard bits.
        """
        A, norm = self._reference.vectors, scaled(self._reference.vectors, g).log2_norm
        if not isinstance(self.state.map, StoredRows) or norm == -math.inf:
            return -math.inf
        context, norms = A.context, self.state.map.log2_norms
        terms = zip(A.numbers(v).reshape(-1), norms, strict=True)
        total = context.fsum(abs(value) * context.mpf(2) ** size for value, size in terms)
        log2_total = float(context.log(total, 2))
        bits: int = context.prec - GUARD_BITS // 2
        return log2_total - norm - bits

    @cached_property
    def log2_disagreement(self) -> float:
        """log2 of the largest relative difference to twice the precision; -inf if equal.

        In norm, of cross-entropy's logit and input gradients for the two largest classes.
        """
        A, B = self._reference.vectors, self._reference.control_arithmetic
        control = self._reference.control
        run = control.forward(self._x)
        if B.has_absorbed:
            return math.inf  # agreement proves nothing
        worst = -math.inf
        for label in self.order[:2]:
            v = A.array(cross_entropy(A.context, self.z, label, A.context.one))
            finer = cross_entropy(B.context, list(run.logits[0]), label, B.context.one)
            w = B.array(finer, (1, len(finer)))
            g, h = self.state.map.product(v), control.products(run.saved_values, w)
            for ours, theirs in ((v, w), (g, h)):
                worst = max(worst, log2_difference(ours, theirs, B))
        return worst


def _enclosed(
    A: BallArithmetic, loss: LossAtSample, logits: BallArray, asked: dict[str, Any]
) -> BallArray:
    """The loss's logit gradient at enclosed logits, both (1, K).

    Raises:
        UndecidedError, ReferenceNotCertifiedError: of a function alone: a decision of it lies
            inside an enclosure, or its gradient is infinite or undefined.
    """
    if loss.function is None:
        enclosed = logit_gradient_balls(A, loss.kind, logits, loss.label, **asked)
        assert enclosed is not None
        return enclosed
    found = loss.function.at(A.bits, logits.listed())
    if found is None:
        raise ReferenceNotCertifiedError("the loss has no finite gradient at these logits")
    return found


def _of_balls(state: ExactPoint[Any, Any], v: BallArray) -> BallArray:
    """J^T v, enclosed."""
    if state.rows is not None:
        found: BallArray = state.interpreter.arithmetic.matmul(v, state.rows)
    else:
        found = state.interpreter.products(state.saved_values, v)
    return found


class ExactNetwork:
    """The exact network at `digits` digits.

    Args:
        network: the model in its own dtype.
        x: the inputs, of which the first gives the shape.
        digits: decimal digits that shall be correct.
        engine: `"mpmath"`, `"ball"` or `"double_word"`.
        by_rows: compute every row of J, instead of one product for each gradient.
    """

    def __init__(
        self, network: FormatNetwork, x: Tensor, digits: int, engine: str, *, by_rows: bool
    ) -> None:
        self.network, self.digits, self.by_rows = network, digits, by_rows
        self._kind = engine
        self._bits = math.ceil(digits * math.log2(10))
        self.vectors: Vectors[Any] = (
            DoubleWordVectors(x.device)
            if engine == "double_word"
            else MpVectors(MpArithmetic(self._bits + GUARD_BITS))
        )
        self.capture: Capture = network.capture(x[:1])
        self.engine = self.engine_for(self.capture)

    def engine_for(self, capture: Capture) -> ExactEngine[Any]:
        """An engine for a capture, of this reference's kind and precision."""
        if isinstance(self.vectors, MpVectors) and self._kind == "mpmath":
            return MpmathEngine(capture, self.vectors, by_rows=self.by_rows)
        balls = self._balls_for(capture)
        if not isinstance(self.vectors, DoubleWordVectors):
            return balls
        working = _FEW_BITS if self.digits <= _FEW_DIGITS else LARGEST_BITS
        return DoubleWordEngine(
            capture, self.vectors, self._bits, working, balls, by_rows=self.by_rows
        )

    def _balls_for(self, capture: Capture) -> BallEngine[Any]:
        bits = self._bits + GUARD_BITS // 2  # of every row: their sum may cancel
        return BallEngine(capture, self.vectors, bits, by_rows=self.by_rows)

    @cached_property
    def balls(self) -> BallEngine[Any]:
        """The network in balls, for what the engine leaves open."""
        return self.engine if isinstance(self.engine, BallEngine) else self._balls_for(self.capture)

    @cached_property
    def control_arithmetic(self) -> MpArithmetic:
        """Twice the precision, to check mpmath."""
        return MpArithmetic(2 * (self._bits + GUARD_BITS))

    @cached_property
    def control(self) -> Interpreter:
        """The network at twice the precision."""
        return Interpreter(self.capture, self.control_arithmetic)

    def samples(
        self, x: Tensor, advance: Callable[[], object]
    ) -> list[ExactSample | NoExactSample]:
        """The exact network at each sample of x (batch, *shape).

        Args:
            x: the inputs.
            advance: called once for each sample.

        Raises:
            CaptureAuditError: eager run and graph differ at a sample.
            ContradictedError: PyTorch in float64 computes something else than the exact network.
        """
        found: list[ExactSample | NoExactSample] = []
        for piece in self.engine.pieces(len(x)):
            finite = x[piece].flatten(1).isfinite().all(1)
            known = x[piece][finite]
            for i in range(len(known)):
                one = known[i : i + 1]
                with self.network.running():
                    self.capture.audit(self.network.model, one, probe(self.network.model(one)))
            states = iter(self.engine.states(known) if len(known) else [])
            for i, is_finite in zip(range(*piece.indices(len(x))), finite.tolist(), strict=True):
                if is_finite:
                    found.append(self._sample(next(states), x[i : i + 1]))
                else:
                    found.append(NoExactSample(INPUT_NOT_FINITE, None))
                advance()
        return found

    def _sample(
        self, state: ExactPoint[Any, Any] | NoExactPoint, x: Tensor
    ) -> ExactSample | NoExactSample:
        if isinstance(state, ExactPoint):
            present = [z for z in state.z if z != self.vectors.context.ninf]
            if not all(map(self.vectors.context.isfinite, present)):
                return NoExactSample(LOGITS_NOT_FINITE, None)
            if len(present) < _FEWEST_CLASSES:
                return NoExactSample(TOO_FEW_CLASSES, None)
            return ExactSample(self, x, state)
        fault = state.fault
        if isinstance(fault, SingularGradientError):
            with self.network.running():
                modules = called_in(fault.operation, self.network.model, x)
            return NoExactSample(infinite_slope(f"{fault.operation}{modules}"))
        return NoExactSample(not_certified(str(fault)))

    def certifies(self, exact: ExactGradientAt) -> bool:
        """Whether the gradient has the digits that were asked for."""
        return exact.log2_error <= -self.digits * math.log2(10)
