"""The exact network at the samples of a batch, by any engine."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fperr import reasons
from fperr.errors import ReferenceNotCertifiedError, SingularGradientError, UndecidedError
from fperr.exact.adaptive_precision import log2_relative_radius, to_balls
from fperr.exact.ball.arithmetic import BallArithmetic
from fperr.exact.double_word import LARGEST_BITS, DoubleWordArithmetic
from fperr.exact.double_word_network import log2_relative_errors
from fperr.exact.engines.ball import BallEngine
from fperr.exact.engines.base import ExactEngine, ExactPoint, NoExactPoint
from fperr.exact.engines.double_word import DoubleWordEngine
from fperr.exact.engines.jacobian import StoredRows
from fperr.exact.engines.mpmath import MpmathEngine
from fperr.exact.engines.vectors import DoubleWordVectors, MpVectors, Vector, Vectors
from fperr.exact.entry import GUARD_BITS, log2_difference
from fperr.exact.graph import Capture, called_in, probe
from fperr.exact.interpreter import Interpreter
from fperr.exact.logit_gradient import cross_entropy, logit_gradient
from fperr.exact.mp import MpArithmetic
from fperr.networks.exact_gradient import (
    GradientAtSample,
    LossAtSample,
    gradient_in_balls,
    gradient_in_double_words,
    log2_cancellation,
    product_in_balls,
)
from fperr.networks.in_format import FormatNetwork

_FEWEST_CLASSES = 2
# up to so many digits, products in pairs of float64 with so many bits suffice
_FEW_DIGITS, _FEW_BITS = 10, 63


@dataclass(frozen=True, slots=True)
class NoExactSample:
    """A sample without an exact network.

    Attributes:
        reason: Reason in words, as `fperr.reasons` has them.
        is_certified: False where a certificate was attempted; None where there was nothing to
            certify.
    """

    reason: str
    is_certified: bool | None = False


class ExactSample:
    """The exact network at one sample.

    Args:
        network: The exact network.
        x: Input (1, *shape).

    Attributes:
        state: Result of the network's engine at x.
        z: The K exact logits.
        order: Classes by descending logit.
    """

    def __init__(self, network: "ExactNetwork", x: Tensor, state: ExactPoint[Any, Any]) -> None:
        self._network, self._x = network, x
        self.state, self.z = state, state.z
        self.order = sorted(range(len(self.z)), key=lambda i: -self.z[i])
        self._states_in_balls: dict[int, ExactPoint[Any, Any]] = {}
        self._is_hopeless = False  # balls have failed at the largest precision

    @cached_property
    def logits(self) -> Tensor:
        """The logits (1, K), rounded to float64."""
        return torch.tensor([[float(value) for value in self.z]], dtype=torch.float64)

    @property
    def row_log2_norms(self) -> list[float]:
        """log2 of the norms of the rows of J, all of which must have been computed."""
        assert isinstance(self.state.map, StoredRows)
        return self.state.map.log2_norms

    def gradient(self, loss: LossAtSample) -> GradientAtSample | None:
        """The exact gradient of the loss; None where it is undefined."""
        A = self._network.vectors
        if loss.function is not None:
            return self._gradient_of_function(loss)
        v = logit_gradient(loss.kind, A.context, self.z, loss.label, **loss.options)
        if v is None:
            return None
        B = self.state.interpreter.arithmetic
        if isinstance(B, BallArithmetic):
            gradient = gradient_in_balls(A, self.state, loss)
        elif isinstance(B, DoubleWordArithmetic):
            gradient = gradient_in_double_words(A, self.state, loss, self._network.digits)
        else:
            exact = A.array(v)
            product = self.state.map.product(exact)
            cancellation = log2_cancellation(A, self.state, exact, product)
            error = max(self.log2_disagreement, cancellation)
            gradient = GradientAtSample(exact, product, error, False, None)
        return self._with_digits(gradient, loss)

    def _gradient_of_function(self, loss: LossAtSample) -> GradientAtSample | None:
        """The gradient of a loss that is a function; None where it is undefined, or undecided."""
        A, digits = self._network.vectors, self._network.digits
        try:
            gradient = (
                gradient_in_balls(A, self.state, loss)
                if isinstance(self.state.interpreter.arithmetic, BallArithmetic)
                else gradient_in_double_words(A, self.state, loss, digits)
            )
        except (UndecidedError, ReferenceNotCertifiedError):
            try:
                return self._gradient_at_higher_precision(loss)
            except ReferenceNotCertifiedError:
                return None
        return self._with_digits(gradient, loss)

    def product(self, v: Tensor) -> tuple[Vector, float]:
        """J^T v of a floating-point v (K,), taken exactly; log2 of the relative error in norm.

        The error is a proved bound with balls, and with pairs of float64 where the rows of J are
        proved. With mpmath it is the difference to twice the precision, for cross-entropy.
        """
        A, B = self._network.vectors, self.state.interpreter.arithmetic
        exact = A.from_torch(v[None])
        if isinstance(B, BallArithmetic):
            g = product_in_balls(self.state, to_balls(B, A.numbers(exact)))
            return A.from_balls(g), log2_relative_radius(g)
        product = self.state.map.product(exact)
        if isinstance(B, DoubleWordArithmetic):
            return product, float(log2_relative_errors(product.words))
        return product, self.log2_disagreement

    def _with_digits(self, gradient: GradientAtSample, loss: LossAtSample) -> GradientAtSample:
        """The gradient, by balls at a higher precision if it lacks digits and those give them.

        The rows of J may be accurate where their combination cancels, and pairs of float64 may
        have too few bits for the exponents of a large margin.
        """
        if self._network.certifies(gradient) or self._is_hopeless:
            return gradient
        try:
            raised = self._gradient_at_higher_precision(loss)
            return replace(raised, log2_error_before=gradient.log2_error)
        except ReferenceNotCertifiedError:
            self._is_hopeless = True
            return gradient

    def _gradient_at_higher_precision(self, loss: LossAtSample) -> GradientAtSample:
        """The gradient by balls, at the first precision that gives it its digits.

        Raises:
            ReferenceNotCertifiedError: no precision does.
        """
        return self._network.balls.raised(
            self._x,
            lambda state: gradient_in_balls(self._network.vectors, state, loss),
            lambda gradient: -gradient.log2_error,
            self._states_in_balls,
        )

    @cached_property
    def log2_disagreement(self) -> float:
        """log2 of the largest relative difference to twice the precision; -inf if equal.

        The difference is taken in norm, of cross-entropy's logit and input gradients for the two
        classes with the largest logits.
        """
        A, B = self._network.vectors, self._network.control_arithmetic
        control = self._network.control
        run = control.forward(self._x)
        if B.has_absorbed:
            return math.inf  # agreement proves nothing
        worst = -math.inf
        for label in self.order[:2]:
            v = A.array(cross_entropy(A.context, self.z, label, A.context.one))
            finer = cross_entropy(B.context, list(run.logits[0]), label, B.context.one)
            w = B.array(finer, (1, len(finer)))
            g, h = self.state.map.product(v), control.products(run.saved_values, w)
            for vector, finer_vector in ((v, w), (g, h)):
                worst = max(worst, log2_difference(vector, finer_vector, B))
        return worst


class ExactNetwork:
    """The exact network, with a given number of correct digits.

    Args:
        network: The model in its own dtype.
        x: Inputs, of which the first gives the shape.
        digits: Decimal digits that shall be correct.
        engine: Engine: `"mpmath"`, `"ball"` or `"double_word"`.
        by_rows: Compute every row of J, instead of one product for each gradient.
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
        """An engine for a capture, of the same kind and precision as this network's."""
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
        """An engine in balls for a capture."""
        bits = self._bits + GUARD_BITS // 2  # the bits of each row: their sum may cancel
        return BallEngine(capture, self.vectors, bits, by_rows=self.by_rows)

    @cached_property
    def balls(self) -> BallEngine[Any]:
        """The network in balls, for samples at which the engine proves too little."""
        return self.engine if isinstance(self.engine, BallEngine) else self._balls_for(self.capture)

    @cached_property
    def control_arithmetic(self) -> MpArithmetic:
        """An arithmetic of twice the precision, to check mpmath."""
        return MpArithmetic(2 * (self._bits + GUARD_BITS))

    @cached_property
    def control(self) -> Interpreter[Any]:
        """The network at twice the precision."""
        return Interpreter(self.capture, self.control_arithmetic)

    def samples(
        self, x: Tensor, advance: Callable[[], object]
    ) -> list[ExactSample | NoExactSample]:
        """The exact network at each sample of x (batch, *shape).

        Args:
            x: Inputs (batch, *shape).
            advance: Function that is called once for each sample.

        Raises:
            CaptureAuditError: eager run and graph differ at a sample.
            ContradictedError: PyTorch in float64 computes something else than the exact network.
        """
        samples: list[ExactSample | NoExactSample] = []
        for piece in self.engine.pieces(len(x)):
            finite = x[piece].flatten(1).isfinite().all(1)
            finite_x = x[piece][finite]
            for i in range(len(finite_x)):
                single, model = finite_x[i : i + 1], self.network.model
                with self.network.running():
                    self.capture.audit(model, single, probe(model(single)))
            # one state for each finite sample, in order
            states = iter(self.engine.states(finite_x) if len(finite_x) else [])
            for i, is_finite in zip(range(*piece.indices(len(x))), finite.tolist(), strict=True):
                if is_finite:
                    samples.append(self._sample(next(states), x[i : i + 1]))
                else:
                    samples.append(NoExactSample(reasons.INPUT_NOT_FINITE, None))
                advance()
        return samples

    def _sample(
        self, state: ExactPoint[Any, Any] | NoExactPoint, x: Tensor
    ) -> ExactSample | NoExactSample:
        """The sample x (1, *shape), from the state that the engine computed there."""
        if isinstance(state, ExactPoint):
            # a logit of -infinity is a class that the model masks
            present = [z for z in state.z if z != self.vectors.context.ninf]
            if not all(map(self.vectors.context.isfinite, present)):
                return NoExactSample(reasons.LOGITS_NOT_FINITE, None)
            if len(present) < _FEWEST_CLASSES:
                return NoExactSample(reasons.TOO_FEW_CLASSES, None)
            return ExactSample(self, x, state)
        fault = state.fault
        if isinstance(fault, SingularGradientError):
            with self.network.running():
                modules = called_in(fault.operation, self.network.model, x)
            return NoExactSample(reasons.infinite_slope(f"{fault.operation}{modules}"))
        return NoExactSample(reasons.not_certified(str(fault)))

    def certifies(self, exact: GradientAtSample) -> bool:
        """Whether the gradient has the digits that the network was made for."""
        return exact.has_digits(self.digits)
