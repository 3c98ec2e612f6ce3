"""The exact network at the samples of a batch, by each of the engines."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from fperr.errors import ReferenceNotCertifiedError, UndecidedError
from fperr.exact.adaptive_precision import (
    LARGEST_BITS,
    AdaptivePrecision,
    log2_relative_radius,
    losses,
    midpoints,
)
from fperr.exact.arithmetic import Array
from fperr.exact.audit.samples import SampleAudit, audit_sample
from fperr.exact.ball.array import BallArray
from fperr.exact.branches import Branches, branches_of
from fperr.exact.engines.jacobian import (
    Pullbacks,
    TransposedJacobian,
    jacobian_of_rows,
    transposed_jacobian,
)
from fperr.exact.engines.vectors import MpVectors, Vectors
from fperr.exact.error_bound import decide_order
from fperr.exact.graph import Capture, probe
from fperr.exact.interpreter import ForwardRun, Interpreter, SavedValues
from fperr.exact.singularities import check_regular

Result = TypeVar("Result")
_LARGEST_RAISE = 8  # a sample whose decisions are undecided at this many times the start is marked


@dataclass(frozen=True, slots=True)
class ExactPoint:
    """The exact network at one sample.

    Attributes:
        z: the K logits, of mpmath.
        log2_radius: log2 of a bound on the error of each of them; -inf where it is not looked at.
        readings: what the backward half uses.
        map: v -> J^T v.
        interpreter: what computed it.
        logits: (1, K) of the interpreter's arithmetic.
        rows: J (K, entries) of that arithmetic, where all rows were computed.
        decisions: which way ReLUs and poolings decided.
        is_proved: its errors are bounds, and not differences between two precisions.
        audit: what PyTorch in float64 says of the network at this sample.
        coarser: the same map with fewer bits, where products with too wide a bound are compared.
    """

    z: list[Any]
    log2_radius: float
    saved_values: SavedValues
    map: TransposedJacobian
    interpreter: Interpreter
    logits: Array
    rows: Array | None
    decisions: tuple[Branches, ...]
    is_proved: bool
    audit: SampleAudit
    coarser: "CoarserJacobian | None" = None


@dataclass(frozen=True, slots=True)
class NoExactPoint:
    """A sample at which the exact network could not be had.

    Attributes:
        fault: why.
    """

    fault: ReferenceNotCertifiedError


class CoarserJacobian(TransposedJacobian):
    """A map with fewer bits."""

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """Whether it left a decision open, so that nothing can be said."""


class ExactEngine(ABC):
    """A captured network that is run exactly."""

    @abstractmethod
    def pieces(self, samples: int) -> Iterator[slice]:
        """A batch in pieces that are computed together."""

    @abstractmethod
    def states(self, x: Tensor) -> list[ExactPoint | NoExactPoint]:
        """The network at each sample of a piece x.

        Raises:
            ContradictedError: PyTorch in float64 computes something else.
        """

    @abstractmethod
    def maps(
        self, states: Sequence[ExactPoint], saved_values: Sequence[SavedValues]
    ) -> list[TransposedJacobian]:
        """The maps that other readings define, for the samples that the states belong to."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name and precision."""


class SampleEngine(ExactEngine):
    """An engine that takes one sample at a time."""

    def __init__(self, vectors: Vectors, *, by_rows: bool) -> None:
        self._vectors, self._by_rows = vectors, by_rows

    @abstractmethod
    def state(self, x: Tensor) -> ExactPoint:
        """The network at x (1, *shape).

        Raises:
            ReferenceNotCertifiedError: it cannot be proved to the digits that were asked for.
            ContradictedError: PyTorch in float64 computes something else.
        """

    def pieces(self, samples: int) -> Iterator[slice]:
        """See `ExactEngine`."""
        return (slice(i, i + 1) for i in range(samples))

    def states(self, x: Tensor) -> list[ExactPoint | NoExactPoint]:
        """See `ExactEngine`."""
        return [self.state_if_known(x[i : i + 1]) for i in range(len(x))]

    def state_if_known(self, x: Tensor) -> ExactPoint | NoExactPoint:
        """The network at x (1, *shape)."""
        try:
            return self.state(x)
        except ReferenceNotCertifiedError as fault:
            return NoExactPoint(fault)

    def maps(
        self, states: Sequence[ExactPoint], saved_values: Sequence[SavedValues]
    ) -> list[TransposedJacobian]:
        """See `ExactEngine`."""
        return [
            transposed_jacobian(
                state.interpreter, read, self._vectors, by_rows=state.rows is not None
            )
            for state, read in zip(states, saved_values, strict=True)
        ]

    def _state(
        self, interpreter: Interpreter, run: ForwardRun, x: Tensor, *, is_proved: bool
    ) -> ExactPoint:
        A, rows = interpreter.arithmetic, None
        v = probe(x.new_empty(A.shape(run.logits), dtype=torch.float64))
        entering = A.from_torch(v)
        if self._by_rows:
            rows = interpreter.jacobian(run.saved_values)
            gradient = A.matmul(entering, rows)
        else:
            gradient = interpreter.products(run.saved_values, entering)
        check_regular(interpreter, run, entering, gradient)
        audit = audit_sample(interpreter, run, x, v, gradient)
        products = Pullbacks(interpreter, run.saved_values, self._vectors)
        logits = run.logits
        if isinstance(logits, BallArray):
            logits = midpoints(logits, self._vectors.context)
        return ExactPoint(
            list(logits[0]),
            -math.inf,
            run.saved_values,
            products if rows is None else jacobian_of_rows(rows, self._vectors),
            interpreter,
            run.logits,
            rows,
            branches_of(interpreter.capture, run, interpreter.arithmetic),
            is_proved,
            audit,
        )


class MpmathEngine(SampleEngine):
    """Everything in mpmath, at one precision."""

    def __init__(self, capture: Capture, vectors: MpVectors, *, by_rows: bool) -> None:
        super().__init__(vectors, by_rows=by_rows)
        self.interpreter = Interpreter(capture, vectors.arithmetic)

    @property
    def name(self) -> str:
        """See `ExactEngine`."""
        return self.interpreter.arithmetic.name

    def state(self, x: Tensor) -> ExactPoint:
        """See `SampleEngine`."""
        try:
            run = self.interpreter.forward(x)
            return self._state(self.interpreter, run, x, is_proved=False)
        except UndecidedError as fault:
            raise ReferenceNotCertifiedError(str(fault)) from fault


class BallEngine(SampleEngine):
    """Everything in ball arithmetic, at the precision that proves `bits` bits."""

    def __init__(self, capture: Capture, vectors: Vectors, bits: int, *, by_rows: bool) -> None:
        super().__init__(vectors, by_rows=by_rows)
        self._certifier = AdaptivePrecision(capture, bits)
        self._certifier.largest = _LARGEST_RAISE * self._certifier.start
        self._highest = self._certifier.start

    @property
    def name(self) -> str:
        """See `ExactEngine`; the highest precision that a sample has needed."""
        return f"Arb balls, {self._highest} bits"

    def state(self, x: Tensor) -> ExactPoint:
        """See `SampleEngine`."""
        found, bits = self._certifier.raised(
            lambda interpreter: self._at(interpreter, x), _proved, lambda i: losses(i, x, None)
        )
        self._highest = max(self._highest, bits)
        return found

    def raised(
        self,
        x: Tensor,
        use: Callable[[ExactPoint], Result],
        proved: Callable[[Result], float],
        states: dict[int, ExactPoint],
    ) -> Result:
        """What is made of the network at x (1, *shape), at a precision that proves enough of it.

        Args:
            x: one sample.
            use: makes it.
            proved: how many bits of it are proved.
            states: those at x that the caller holds, by their precision; new ones are added.

        Raises:
            ReferenceNotCertifiedError: too few at the largest precision.
            ContradictedError: PyTorch in float64 computes something else.
        """

        def attempt(interpreter: Interpreter) -> Result:
            bits = interpreter.arithmetic.bits
            if bits not in states:
                states[bits] = self._at(interpreter, x)
            return use(states[bits])

        found, bits = self._certifier.raised(
            attempt, proved, lambda i: losses(i, x, None), LARGEST_BITS
        )
        self._highest = max(self._highest, bits)
        return found

    def _at(self, interpreter: Interpreter, x: Tensor) -> ExactPoint:
        run = interpreter.forward(x)
        decide_order(run.logits)
        return self._state(interpreter, run, x, is_proved=True)


def _proved(state: ExactPoint) -> float:
    """How many bits of the logits, or of every row, are proved."""
    if not isinstance(state.rows, BallArray):
        return -log2_relative_radius(state.logits)
    rows = [BallArray(state.rows.pool, index[None]) for index in state.rows.index]
    return -max(map(log2_relative_radius, rows))
