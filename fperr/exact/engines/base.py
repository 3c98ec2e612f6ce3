"""The exact network at the samples of a batch: what every engine offers.

An engine is a rung of a ladder. Which samples climb to the next one is the ladder's business: an
engine says how far its results can be trusted.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fperr.errors import ReferenceNotCertifiedError
from fperr.exact.arithmetic import T
from fperr.exact.audit.samples import SampleAudit, audit_sample
from fperr.exact.branches import Branches, branches_of
from fperr.exact.engines.gradient import GradientAtSample, LossAtSample
from fperr.exact.engines.jacobian import StoredRows, TransposedJacobian
from fperr.exact.engines.vectors import V, Vectors
from fperr.exact.graph import probe
from fperr.exact.interpreter import ForwardRun, Interpreter, SavedValues
from fperr.exact.singularities import check_regular


@dataclass(frozen=True, slots=True)
class ExactPoint(Generic[T, V]):
    """The exact network at a single sample.

    Attributes:
        x: Input (1, *shape).
        z: K logits, `mpf`.
        log2_radius: log2 of an upper bound on the error of each logit; -inf where it is not used.
        saved_values: Values that the backward half uses.
        map: The map v -> J^T v.
        interpreter: Interpreter[T] that computed all this.
        logits: (1, K), an array of the interpreter's arithmetic.
        rows: J (K, entries), an array of that arithmetic, where all rows were computed.
        decisions: Branches that ReLUs and poolings took.
        log2_error: log2 of the relative error of J in norm, a bound or an estimate; of the logits
            where no row of J was computed.
        is_proved: Whether its errors are bounds, and not differences between two precisions.
        audit: What PyTorch in float64 says of the network at this sample.
        coarser: The same map with fewer bits, to compare with where the bound on a product is wide.
        finer_points: The same sample at higher precisions, by their bits: filled where a loss
            needs them.
    """

    x: Tensor
    z: list[Any]
    log2_radius: float
    saved_values: SavedValues[T]
    map: TransposedJacobian[V]
    interpreter: Interpreter[T]
    logits: T
    rows: T | None
    decisions: tuple[Branches, ...]
    log2_error: float
    is_proved: bool
    audit: SampleAudit
    coarser: TransposedJacobian[V] | None = None
    finer_points: "dict[int, ExactPoint[T, V]]" = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NoExactPoint:
    """A sample at which the exact network could not be computed.

    Attributes:
        fault: Error that says why.
    """

    fault: ReferenceNotCertifiedError


class ExactEngine(ABC, Generic[V]):
    """A captured network that is run exactly.

    Args:
        vectors: Vectors of its gradients.
    """

    def __init__(self, vectors: Vectors[V]) -> None:
        self.vectors = vectors

    @abstractmethod
    def pieces(self, samples: int) -> Iterator[slice]:
        """A batch in pieces that are computed together."""

    @abstractmethod
    def states(self, x: Tensor) -> list[ExactPoint[Any, V] | NoExactPoint]:
        """The network at each sample of a piece x.

        Raises:
            ContradictedError: PyTorch in float64 computes something else.
        """

    @abstractmethod
    def maps(
        self, states: Sequence[ExactPoint[Any, V]], saved_values: Sequence[SavedValues[Any]]
    ) -> list[TransposedJacobian[V] | None]:
        """The maps v -> J^T v that other saved values define; None where a row is undecided.

        Args:
            states: States of this engine at the samples.
            saved_values: Saved values for each of these samples.
        """

    @abstractmethod
    def gradient(
        self, point: ExactPoint[Any, V], loss: LossAtSample, bits: float
    ) -> GradientAtSample:
        """The gradient of a loss that is defined at a point.

        Args:
            point: The exact network at a sample, by this engine.
            loss: The loss.
            bits: Bits that suffice: an error that shows them is not improved.

        Raises:
            UndecidedError, ReferenceNotCertifiedError: A decision of a loss that is a function
                cannot be made, or it has no finite gradient.
        """

    @abstractmethod
    def product(self, point: ExactPoint[Any, V], v: Tensor) -> tuple[V, float, bool]:
        """J^T v at a point, for a floating-point v (K,), taken exactly.

        Returns:
            The product, log2 of its relative error in norm, and whether that is a proved bound.

        Raises:
            UndecidedError: A comparison of the backward half cannot be decided.
        """

    @property
    @abstractmethod
    def name(self) -> str:
        """Name and precision."""


class SampleEngine(ExactEngine[V], Generic[T, V]):
    """An engine that takes a single sample at a time.

    Args:
        vectors: Vectors of the measurement.
        by_rows: Whether all rows of J are computed.
    """

    def __init__(self, vectors: Vectors[V], *, by_rows: bool) -> None:
        super().__init__(vectors)
        self._by_rows = by_rows

    @abstractmethod
    def state(self, x: Tensor) -> ExactPoint[T, V]:
        """The network at x (1, *shape).

        Raises:
            ReferenceNotCertifiedError: The required digits cannot be proved.
            ContradictedError: PyTorch in float64 computes something else.
        """

    @abstractmethod
    def _midpoints(self, numbers: T) -> NDArray[np.object_]:
        """The numbers, or their midpoints, as `mpf`."""

    @abstractmethod
    def _stored_rows(self, rows: T) -> StoredRows[V]:
        """The map of the rows (K, entries)."""

    @abstractmethod
    def _pullbacks(
        self, interpreter: Interpreter[T], saved_values: SavedValues[T]
    ) -> TransposedJacobian[V]:
        """The map that runs the backward half for each product."""

    def pieces(self, samples: int) -> Iterator[slice]:
        """See `ExactEngine`."""
        return (slice(i, i + 1) for i in range(samples))

    def states(self, x: Tensor) -> list[ExactPoint[Any, V] | NoExactPoint]:
        """See `ExactEngine`."""
        return [self.state_if_certified(x[i : i + 1]) for i in range(len(x))]

    def state_if_certified(self, x: Tensor) -> ExactPoint[T, V] | NoExactPoint:
        """The network at x (1, *shape), or why it cannot be certified there."""
        try:
            return self.state(x)
        except ReferenceNotCertifiedError as fault:
            return NoExactPoint(fault)

    def maps(
        self, states: Sequence[ExactPoint[Any, V]], saved_values: Sequence[SavedValues[Any]]
    ) -> list[TransposedJacobian[V] | None]:
        """See `ExactEngine`."""
        return [
            self._pullbacks(state.interpreter, saved)
            if state.rows is None
            else self._stored_rows(state.interpreter.jacobian(saved))
            for state, saved in zip(states, saved_values, strict=True)
        ]

    @abstractmethod
    def _log2_error(self, logits: T, rows: T | None) -> float:
        """log2 of a bound on the relative error of the rows, or of the logits without any."""

    def _state(
        self, interpreter: Interpreter[T], run: ForwardRun[T], x: Tensor, *, is_proved: bool
    ) -> ExactPoint[T, V]:
        """The state of a forward run at x (1, *shape), audited at a generic v."""
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
        return ExactPoint(
            x,
            list(self._midpoints(run.logits)[0]),
            -math.inf,
            run.saved_values,
            self._pullbacks(interpreter, run.saved_values)
            if rows is None
            else self._stored_rows(rows),
            interpreter,
            run.logits,
            rows,
            branches_of(interpreter.capture, run, interpreter.arithmetic),
            self._log2_error(run.logits, rows),
            is_proved,
            audit,
        )
