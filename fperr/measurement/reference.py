"""The reference side of a measurement: the exact network at one sample, by either engine."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from fperr.errors import ReferenceNotCertifiedError
from fperr.exact.arithmetic import Array
from fperr.exact.ball import BallArithmetic
from fperr.exact.certified import Certifier, log2_relative_radius, losses, midpoints
from fperr.exact.enclosed import decide_order, logit_gradient_balls
from fperr.exact.engine import GUARD_BITS, log2_difference
from fperr.exact.graph import Capture, probe
from fperr.exact.interpreter import ForwardRun, Interpreter, Readings
from fperr.exact.logit_gradient import cross_entropy, logit_gradient
from fperr.exact.mp import MpArithmetic
from fperr.exact.pool import Balls
from fperr.exact.routing import Decisions, decisions_of
from fperr.measurement.maps import LinearMap, Products, Rows, in_mpmath, linear_map
from fperr.measurement.network import FormatNetwork
from fperr.measurement.stages import row, scaled

_LARGEST_RAISE = 8  # a sample whose decisions are undecided at this many times the start is marked


@dataclass(frozen=True, slots=True)
class LossAt:
    """A loss at one sample: what its exact logit gradient depends on beside the logits.

    Attributes:
        kind: as for `logit_gradient`.
        label: the class that the loss uses.
        c: the scale that the format's run computed, an `mpf`.
        targeted: the label is a target.
        y: the true label, where it is known.
    """

    kind: str
    label: int
    c: Any
    targeted: bool
    y: int | None


@dataclass(frozen=True, slots=True)
class ExactRow:
    """The exact gradient of one loss at one sample.

    Attributes:
        v, gradient: (1, K) and (1, entries), in mpmath: for balls the midpoints.
        log2_error: log2 of the relative error of the gradient in norm: proved for balls; for mpmath
            the largest difference to twice the precision seen for cross-entropy at this sample.
        enclosure: the gradient (1, entries) as balls, or None.
    """

    v: Array
    gradient: Array
    log2_error: float
    enclosure: Balls | None


@dataclass(frozen=True, slots=True)
class State:
    """The exact network at one sample.

    Attributes:
        z: the K logits, of mpmath.
        readings: what the backward half uses.
        map: v -> J^T v.
        interpreter: what computed it.
        logits: (1, K) of the interpreter's arithmetic.
        rows: J (K, entries) of that arithmetic, where all rows were computed.
        decisions: which way ReLUs and poolings decided.
    """

    z: list[Any]
    readings: Readings
    map: LinearMap
    interpreter: Interpreter
    logits: Array
    rows: Array | None
    decisions: tuple[Decisions, ...]


class Engine(ABC):
    """A captured network that is run exactly, one sample at a time."""

    @abstractmethod
    def state(self, x: Tensor) -> State:
        """The network at x (1, *shape).

        Raises:
            ReferenceNotCertifiedError: it cannot be proved to the digits that were asked for.
        """

    @property
    @abstractmethod
    def name(self) -> str:
        """Name and precision."""


class MpmathEngine(Engine):
    """Everything in mpmath, at one precision."""

    def __init__(self, capture: Capture, vectors: MpArithmetic, *, by_rows: bool) -> None:
        self.interpreter = Interpreter(capture, vectors)
        self._vectors, self._by_rows = vectors, by_rows

    @property
    def name(self) -> str:
        """See `Engine`."""
        return self._vectors.name

    def state(self, x: Tensor) -> State:
        """See `Engine`."""
        run = self.interpreter.forward(x)
        return _state(self.interpreter, run, self._vectors, by_rows=self._by_rows)


class BallEngine(Engine):
    """Everything in ball arithmetic, at the precision that proves `bits` bits."""

    def __init__(
        self, capture: Capture, vectors: MpArithmetic, bits: int, *, by_rows: bool
    ) -> None:
        self._certifier = Certifier(capture, bits)
        self._certifier.largest = _LARGEST_RAISE * self._certifier.start
        self._vectors, self._by_rows = vectors, by_rows
        self._highest = self._certifier.start

    @property
    def name(self) -> str:
        """See `Engine`; the highest precision that a sample has needed."""
        return f"Arb balls, {self._highest} bits"

    def state(self, x: Tensor) -> State:
        """See `Engine`."""

        def attempt(interpreter: Interpreter) -> State:
            run = interpreter.forward(x)
            decide_order(run.logits)
            return _state(interpreter, run, self._vectors, by_rows=self._by_rows)

        def proved(state: State) -> float:
            if not isinstance(state.rows, Balls):
                return -log2_relative_radius(state.logits)
            rows = [Balls(state.rows.pool, index[None]) for index in state.rows.index]
            return -max(map(log2_relative_radius, rows))

        found, bits = self._certifier.raised(attempt, proved, lambda i: losses(i, x, None))
        self._highest = max(self._highest, bits)
        return found


def _state(
    interpreter: Interpreter, run: ForwardRun, vectors: MpArithmetic, *, by_rows: bool
) -> State:
    rows = interpreter.jacobian(run.readings) if by_rows else None
    return State(
        list(in_mpmath(run.logits, vectors)[0]),
        run.readings,
        Products(interpreter, run.readings, vectors)
        if rows is None
        else Rows(in_mpmath(rows, vectors), vectors),
        interpreter,
        run.logits,
        rows,
        decisions_of(interpreter.capture, run, interpreter.arithmetic),
    )


class ExactSample:
    """One sample through the exact network.

    Attributes:
        state: the network there.
        z: the K logits.
        order: the classes by descending logit.
    """

    def __init__(self, reference: "Reference", x: Tensor, state: State) -> None:
        self._reference, self._x = reference, x
        self.state, self.z = state, state.z
        self.order = sorted(range(len(self.z)), key=lambda i: -self.z[i])

    @cached_property
    def logits(self) -> Tensor:
        """The logits (1, K), rounded to float64."""
        return self._reference.vectors.to_torch(row(self._reference.vectors, self.z))

    @cached_property
    def row_log2_norms(self) -> list[float]:
        """log2 of the norms of the rows of J, all of which must have been computed."""
        assert isinstance(self.state.map, Rows)
        return [scaled(self._reference.vectors, r).log2_norm for r in self.state.map.rows]

    def gradient(self, loss: LossAt) -> ExactRow | None:
        """The exact gradient of the loss; None where it is undefined."""
        A = self._reference.vectors
        asked = {"c": loss.c, "targeted": loss.targeted, "y": loss.y}
        v = logit_gradient(loss.kind, A.context, self.z, loss.label, **asked)
        if v is None:
            return None
        B = self.state.interpreter.arithmetic
        if not isinstance(B, BallArithmetic):
            exact = row(A, v)
            return ExactRow(exact, self.state.map.product(exact), self.log2_disagreement, None)
        enclosed = logit_gradient_balls(B, loss.kind, self.state.logits, loss.label, **asked)
        assert enclosed is not None
        if self.state.rows is not None:
            g = B.matmul(enclosed, self.state.rows)
        else:
            g = self.state.interpreter.products(self.state.readings, enclosed)
        error = max(log2_relative_radius(enclosed), log2_relative_radius(g))
        return ExactRow(midpoints(enclosed, A.context), midpoints(g, A.context), error, g)

    @cached_property
    def log2_disagreement(self) -> float:
        """log2 of the largest relative difference to twice the precision; -inf if equal.

        In norm, of cross-entropy's logit and input gradients for the two largest classes.
        """
        A, B = self._reference.vectors, self._reference.control_arithmetic
        control = self._reference.control
        run = control.forward(self._x)
        worst = -math.inf
        for label in self.order[:2]:
            v = row(A, cross_entropy(A.context, self.z, label, A.context.one))
            w = row(B, cross_entropy(B.context, list(run.logits[0]), label, B.context.one))
            g, h = self.state.map.product(v), control.products(run.readings, w)
            for ours, finer in ((v, w), (g, h)):
                worst = max(worst, log2_difference(ours, finer, B))
        return worst


class Reference:
    """The exact network at `digits` digits.

    Args:
        network: the model in its own dtype.
        x: the inputs, of which the first gives the shape.
        digits: decimal digits that shall be correct.
        engine: `"mpmath"` or `"ball"`.
        by_rows: compute every row of J, instead of one product for each gradient.
    """

    def __init__(
        self, network: FormatNetwork, x: Tensor, digits: int, engine: str, *, by_rows: bool
    ) -> None:
        self.network, self.digits, self.by_rows = network, digits, by_rows
        self._kind = engine
        self._bits = math.ceil(digits * math.log2(10))
        self.vectors = MpArithmetic(self._bits + GUARD_BITS)
        self.capture: Capture = network.capture(x[:1])
        self.engine = self.engine_for(self.capture)

    def engine_for(self, capture: Capture) -> Engine:
        """An engine for a capture, of this reference's kind and precision."""
        if self._kind == "mpmath":
            return MpmathEngine(capture, self.vectors, by_rows=self.by_rows)
        bits = self._bits + GUARD_BITS // 2  # of every row: their sum may cancel
        return BallEngine(capture, self.vectors, bits, by_rows=self.by_rows)

    @cached_property
    def control_arithmetic(self) -> MpArithmetic:
        """Twice the precision, to check mpmath."""
        return MpArithmetic(2 * self.vectors.bits)

    @cached_property
    def control(self) -> Interpreter:
        """The network at twice the precision."""
        return Interpreter(self.capture, self.control_arithmetic)

    def sample(self, x: Tensor) -> ExactSample | None:
        """The exact network at x (1, *shape).

        None where x is not finite, or where the exact network cannot be certified.

        Raises:
            CaptureAuditError: eager run and graph differ at this sample.
        """
        if not bool(x.isfinite().all()):
            return None
        with self.network.running():
            self.capture.audit(self.network.model, x, probe(self.network.model(x)))
        try:
            return ExactSample(self, x, self.engine.state(x))
        except ReferenceNotCertifiedError:
            return None

    def certifies(self, exact: ExactRow) -> bool:
        """Whether the gradient has the digits that were asked for."""
        return exact.log2_error <= -self.digits * math.log2(10)


def map_of(state: State, readings: Readings, vectors: MpArithmetic) -> LinearMap:
    """J^T for other readings of the network that `state` belongs to."""
    return linear_map(state.interpreter, readings, vectors, by_rows=state.rows is not None)
