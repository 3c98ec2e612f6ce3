"""The exact network in pairs of float64, piece by piece of a batch."""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fperr.exact import index_arrays
from fperr.exact.audit.samples import SampleAudit
from fperr.exact.branches import branches_of
from fperr.exact.double_word import DoubleWords
from fperr.exact.double_word.comparisons import order_in_doubt
from fperr.exact.double_word.numbers import euclidean
from fperr.exact.double_word_network import BatchedNetwork, BatchRun, of_all, to_mpmath
from fperr.exact.engines.base import (
    BallEngine,
    CoarserJacobian,
    ExactEngine,
    ExactPoint,
    NoExactPoint,
)
from fperr.exact.engines.jacobian import DoubleWordRows, Pullbacks, TransposedJacobian
from fperr.exact.engines.vectors import DoubleWordVectors, ScaledDoubleWords
from fperr.exact.entry import LEAST_BOUND
from fperr.exact.graph import Capture, probe
from fperr.exact.interpreter import ForwardRun, SavedValues

_RUNG = 22  # bits below, where a run must agree if the bound proves too few bits
# Of the rows, whose sum may cancel; and of the logits, beyond: losses amplify their differences.
_GUARD_BITS, _MORE_OF_LOGITS = 4, 12


class CoarserPullbacks(CoarserJacobian):
    """J^T at one sample with fewer bits, run when it is asked for."""

    def __init__(self, network: BatchedNetwork, x: Tensor, vectors: DoubleWordVectors) -> None:
        self._network, self._x, self._vectors = network, x, vectors

    @property
    def is_open(self) -> bool:
        """See `CoarserJacobian`."""
        return self._run[1]

    @cached_property
    def _run(self) -> tuple[SavedValues, bool]:
        self._network.arithmetic.forget_doubts()
        saved_values = sample_of(self._network.forward(self._x).run.saved_values, 0)
        return saved_values, bool(self._network.in_doubt(1))

    def product(self, v: ScaledDoubleWords) -> ScaledDoubleWords:
        """See `TransposedJacobian`."""
        found: ScaledDoubleWords = Pullbacks(
            self._network.interpreter, self._run[0], self._vectors
        ).product(v)
        return found


class DoubleWordEngine(ExactEngine):
    """Pairs of float64; balls for samples whose decisions or digits they cannot settle.

    Args:
        capture: the network, for one sample.
        vectors: of the measurement.
        bits: correct bits wanted, of logits and rows.
        working_bits: of the products.
        balls: for the other samples.
        by_rows: compute all rows of J.
    """

    def __init__(
        self,
        capture: Capture,
        vectors: DoubleWordVectors,
        bits: int,
        working_bits: int,
        balls: BallEngine,
        *,
        by_rows: bool,
    ) -> None:
        device = vectors.arithmetic.device
        self._network = BatchedNetwork(capture, working_bits, device)
        self._coarser = BatchedNetwork(capture, working_bits - _RUNG, device, is_control=True)
        self._vectors, self._balls, self._by_rows = vectors, balls, by_rows
        self._largest = -bits - _GUARD_BITS
        self._classes = capture.shapes[capture.results[0].name][1]
        self._by_balls = self._by_agreement = self._samples = 0

    @property
    def name(self) -> str:
        """See `ExactEngine`; for how many samples there was more to do."""
        name = self._network.arithmetic.name
        if self._by_agreement:
            name += (
                f", errors by agreement with {self._coarser.arithmetic.bits} bits for "
                f"{self._by_agreement} of {self._samples} samples"
            )
        if self._by_balls:
            name += f", {self._balls.name} for {self._by_balls} of {self._samples} samples"
        return name

    def pieces(self, samples: int) -> Iterator[slice]:
        """See `ExactEngine`."""
        return self._network.pieces(samples)

    def states(self, x: Tensor) -> list[ExactPoint | NoExactPoint]:
        """See `ExactEngine`."""
        run, logits, rows, doubt = self._run(self._network, x)
        doubt |= order_in_doubt(logits)
        errors = [logits, *rows]
        bounds = _worst(errors)
        vacuous = ~(bounds <= LEAST_BOUND + _MORE_OF_LOGITS)
        doubt |= vacuous  # agreement means nothing there
        wide = ~doubt & (bounds > self._largest)
        if wide.any():
            errors, doubtful = self._by_difference(errors, x, wide)
            doubt |= doubtful | (wide & (_worst(errors) > self._largest))
        logits, *rows = errors
        audits = self._audits(run, rows, x, ~doubt)
        doubt |= torch.tensor([audit is None for audit in audits], device=doubt.device)
        self._samples += len(x)
        self._by_balls += int(doubt.sum())
        self._by_agreement += int((wide & ~doubt).sum())
        return [
            self._balls.state_if_known(x[i : i + 1])
            if audit is None
            else self._state(
                sample_of_run(run, i),
                logits.of(i),
                [r.of(i) for r in rows],
                x[i : i + 1],
                wide[i],
                audit,
            )
            for i, audit in enumerate(audits)
        ]

    def _audits(
        self, run: ForwardRun, rows: list[DoubleWords], x: Tensor, is_known: Tensor
    ) -> list[SampleAudit | None]:
        """Of the samples whose decisions and digits are settled, for a generic v."""
        A, network = self._network.arithmetic, self._network
        v = probe(x.new_empty((len(x), self._classes), dtype=torch.float64))
        if rows:
            terms = [A.mul(row, A.from_samples(v[:, k, None])) for k, row in enumerate(rows)]
            gradient = functools.reduce(A.add, terms)
        else:
            gradient = network.pullback(run.saved_values, A.from_samples(v[:, None]))
        gradient = of_all(gradient, len(x))
        # an infinite slope is for the balls to name
        is_known = is_known & gradient.high.flatten(1).isfinite().all(1)
        return network.audits(BatchRun(run, len(x)), x, v, gradient, is_known)

    def maps(
        self, states: Sequence[ExactPoint], saved_values: Sequence[SavedValues]
    ) -> list[TransposedJacobian]:
        """See `ExactEngine`."""
        mine = [i for i, s in enumerate(states) if s.interpreter is self._network.interpreter]
        found: dict[int, TransposedJacobian] = {}
        if mine and self._by_rows:
            rows = self._jacobians(
                self._network, stacked([saved_values[i] for i in mine]), len(mine)
            )
            for place, i in enumerate(mine):
                found[i] = DoubleWordRows(_matrix([r.of(place) for r in rows]), self._vectors)
        for i in mine if not self._by_rows else ():
            found[i] = Pullbacks(self._network.interpreter, saved_values[i], self._vectors)
        for i in set(range(len(states))) - set(mine):
            found[i] = self._balls.maps([states[i]], [saved_values[i]])[0]
        return [found[i] for i in range(len(states))]

    def _run(
        self, network: BatchedNetwork, x: Tensor
    ) -> tuple[ForwardRun, DoubleWords, list[DoubleWords], Tensor]:
        network.arithmetic.forget_doubts()
        run = network.forward(x).run
        rows = self._jacobians(network, run.saved_values, len(x)) if self._by_rows else []
        return run, of_all(run.logits, len(x)), rows, network.in_doubt(len(x))

    def _jacobians(
        self, network: BatchedNetwork, saved_values: SavedValues, samples: int
    ) -> list[DoubleWords]:
        """Row k of every sample's Jacobian, (samples, entries), for each k."""
        identity = torch.eye(self._classes, dtype=torch.float64)[:, None, None]
        vectors = (network.arithmetic.from_samples(v) for v in identity)
        return [of_all(network.pullback(saved_values, v), samples) for v in vectors]

    def _by_difference(
        self, errors: list[DoubleWords], x: Tensor, wide: Tensor
    ) -> tuple[list[DoubleWords], Tensor]:
        """The arrays with the distance to the coarser run as their radius, where that is wide."""
        chosen = torch.nonzero(wide).flatten()
        _, logits, rows, doubt = self._run(self._coarser, x[chosen])
        found = []
        for mine, other in zip(errors, [logits, *rows], strict=True):
            part = mine.moved(lambda t: t[chosen])
            apart = self._coarser.arithmetic.sub(replace(part, radius=mine.radius[chosen]), other)
            radius = mine.radius.clone()
            radius[chosen] = apart.norm()
            found.append(replace(mine, radius=radius))
        doubtful = torch.zeros_like(wide)
        doubtful[chosen] = doubt
        return found, doubtful

    def _state(
        self,
        run: ForwardRun,
        logits: DoubleWords,
        rows: list[DoubleWords],
        x: Tensor,
        wide: Tensor,
        audit: SampleAudit,
    ) -> ExactPoint:
        interpreter = self._network.interpreter
        matrix = _matrix(rows) if rows else None
        radius = float(logits.radius)
        decisions = branches_of(interpreter.capture, run, interpreter.arithmetic)
        self._network.arithmetic.forget_doubts()
        return ExactPoint(
            _one_for_equal(to_mpmath(logits, self._vectors.context), logits),
            math.log2(radius) if radius else -math.inf,
            run.saved_values,
            Pullbacks(interpreter, run.saved_values, self._vectors)
            if matrix is None
            else DoubleWordRows(matrix, self._vectors),
            interpreter,
            logits,
            matrix,
            decisions,
            not bool(wide),
            audit,
            None if rows else CoarserPullbacks(self._coarser, x, self._vectors),
        )


def sample_of_run(run: ForwardRun, sample: int) -> ForwardRun:
    """One sample of a batch's run: masks and indices become NumPy arrays."""
    values = {name: sample_of(value, sample) for name, value in run.values.items()}
    return ForwardRun(sample_of(run.logits, sample), sample_of(run.saved_values, sample), values)


def sample_of(value: Any, sample: int) -> Any:
    """One sample of an array, of a choice, or of several; what has none is left as it is."""
    if isinstance(value, SavedValues):
        return SavedValues({key: sample_of(part, sample) for key, part in value.values.items()})
    if isinstance(value, DoubleWords):
        return value.of(sample)
    if isinstance(value, Tensor):
        return value[sample if len(value) > 1 else 0].cpu().numpy()
    if isinstance(value, tuple | list):
        return [sample_of(part, sample) for part in value]
    return value


def stacked(saved_values: Sequence[SavedValues]) -> SavedValues:
    """The readings of single samples as those of a batch."""
    first, *others = (r.values for r in saved_values)
    return SavedValues({key: _joined([first[key], *(o[key] for o in others)]) for key in first})


def _joined(values: list[Any]) -> Any:
    first = values[0]
    if all(value is first for value in values):
        return first
    if isinstance(first, DoubleWords):
        parts = [torch.cat([getattr(v, n) for v in values]) for n in ("high", "low", "radius")]
        return DoubleWords(parts[0], parts[1], parts[2], None)
    if index_arrays.is_index_array(first):
        return torch.from_numpy(np.stack([np.asarray(v) for v in values]))
    return [_joined(list(parts)) for parts in zip(*values, strict=True)]


def _one_for_equal(numbers: NDArray[np.object_], logits: DoubleWords) -> list[Any]:
    """The numbers, with the first of those that are equal by construction for all of them."""
    assert logits.value_number is not None
    first: dict[int, Any] = {}
    identifiers = logits.value_number.identifiers().reshape(-1).tolist()
    pairs = zip(identifiers, numbers.reshape(-1), strict=True)
    return [first.setdefault(identifier, number) for identifier, number in pairs]


def _matrix(rows: list[DoubleWords]) -> DoubleWords:
    """The rows (entries,) of one sample as (K, entries)."""
    high, low = (torch.stack([getattr(r, n) for r in rows], 1) for n in ("high", "low"))
    return DoubleWords(high, low, euclidean(torch.stack([r.radius for r in rows]), 0), None)


def _worst(arrays: list[DoubleWords]) -> Tensor:
    """(samples,): log2 of the rows' relative error in all, or of the logits', if that is larger.

    The logits' counts as that many bits more.
    """
    logits, *rows = arrays
    present = replace(logits, high=torch.where(logits.high.isneginf(), 0.0, logits.high))
    found = logits.radius / present.norm() * 2.0**_MORE_OF_LOGITS  # masked classes apart
    if rows:
        radius = euclidean(torch.stack([r.radius for r in rows]), 0)
        size = torch.linalg.vector_norm(torch.stack([r.norm() for r in rows]), dim=0)
        found = torch.maximum(found, radius / size)
    return torch.log2(found.nan_to_num(nan=math.inf, posinf=math.inf))
