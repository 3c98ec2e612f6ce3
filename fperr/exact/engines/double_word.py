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

from fperr.errors import UndecidedError
from fperr.exact.audit.samples import SampleAudit
from fperr.exact.branches import branches_of
from fperr.exact.double_word import DoubleWords
from fperr.exact.double_word.comparisons import order_undecided
from fperr.exact.double_word.numbers import euclidean
from fperr.exact.double_word_network import BatchedNetwork, BatchRun, of_all, to_mpmath
from fperr.exact.engines.ball import BallEngine
from fperr.exact.engines.base import ExactEngine, ExactPoint, NoExactPoint
from fperr.exact.engines.jacobian import DoubleWordPullbacks, DoubleWordRows, TransposedJacobian
from fperr.exact.engines.samples_of_run import sample_of_run, sample_of_saved, stacked
from fperr.exact.engines.vectors import DoubleWordVectors, ScaledDoubleWords
from fperr.exact.entry import LEAST_BOUND
from fperr.exact.graph import Capture, probe
from fperr.exact.interpreter import ForwardRun, SavedValues

_RUNG = 22  # bits below, where a run must agree if the bound proves too few bits
# More bits of the rows, whose sum may cancel; and more than that of the logits, as losses amplify
# their differences.
_GUARD_BITS, _MORE_OF_LOGITS = 4, 12


class CoarserPullbacks(TransposedJacobian[ScaledDoubleWords]):
    """J^T at one sample with fewer bits, of which nothing is computed before it is used.

    Args:
        network: Network with fewer bits.
        x: (1, *shape).
    """

    def __init__(self, network: BatchedNetwork, x: Tensor) -> None:
        self._network, self._x = network, x

    @cached_property
    def _saved_values(self) -> SavedValues[DoubleWords] | None:
        """Values that the backward half uses; None where the forward half is undecided."""
        forward = self._network.forward(self._x)
        return None if forward.undecided.any() else sample_of_saved(forward.run.saved_values, 0)

    def product(self, v: ScaledDoubleWords) -> ScaledDoubleWords:
        """See `TransposedJacobian`."""
        if self._saved_values is None:
            raise UndecidedError(
                f"a comparison of the forward half is closer than {self._network.arithmetic.name} "
                "can tell"
            )
        return DoubleWordPullbacks(self._network, self._saved_values).product(v)


class DoubleWordEngine(ExactEngine[ScaledDoubleWords]):
    """Pairs of float64; balls for samples whose decisions or digits they cannot settle.

    Args:
        capture: Network, captured for a single sample.
        vectors: Vectors of the measurement.
        bits: Correct bits required of logits and rows.
        working_bits: Accuracy of matrix products in bits.
        balls: Engine for the other samples.
        by_rows: Whether all rows of J are computed.
    """

    def __init__(
        self,
        capture: Capture,
        vectors: DoubleWordVectors,
        bits: int,
        working_bits: int,
        balls: BallEngine[ScaledDoubleWords],
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
        """See `ExactEngine`; with the number of samples that needed more work."""
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

    def states(self, x: Tensor) -> list[ExactPoint[Any, ScaledDoubleWords] | NoExactPoint]:
        """See `ExactEngine`."""
        forward, logits, rows, undecided = self._run(self._network, x)
        undecided = undecided | order_undecided(logits)
        errors = [logits, *rows]
        bounds = _log2_errors(errors)
        vacuous = ~(bounds <= LEAST_BOUND + _MORE_OF_LOGITS)
        for_balls = undecided | vacuous  # agreement means nothing there
        wide = ~for_balls & (bounds > self._largest)
        if wide.any():
            errors, undecided = self._by_difference(errors, x, wide)
            for_balls |= undecided | (wide & (_log2_errors(errors) > self._largest))
        logits, *rows = errors
        audits = self._audits(forward, rows, x, ~for_balls)
        for_balls |= torch.tensor([audit is None for audit in audits], device=for_balls.device)
        self._samples += len(x)
        self._by_balls += int(for_balls.sum())
        self._by_agreement += int((wide & ~for_balls).sum())
        return [
            self._balls.state_if_certified(x[i : i + 1])
            if audit is None
            else self._state(
                sample_of_run(forward.run, i),
                logits.of(i),
                [row.of(i) for row in rows],
                x[i : i + 1],
                wide[i],
                audit,
            )
            for i, audit in enumerate(audits)
        ]

    def _audits(
        self, forward: BatchRun, rows: list[DoubleWords], x: Tensor, is_usable: Tensor
    ) -> list[SampleAudit | None]:
        """The audits, for a generic v, of the samples whose decisions and digits are settled."""
        A, network = self._network.arithmetic, self._network
        v = probe(x.new_empty((len(x), self._classes), dtype=torch.float64))
        if rows:
            terms = [A.mul(row, A.from_samples(v[:, k, None])) for k, row in enumerate(rows)]
            gradient = functools.reduce(A.add, terms)
        else:
            gradient, undecided = network.pullback(
                forward.run.saved_values, A.from_samples(v[:, None])
            )
            is_usable = is_usable & ~undecided
        gradient = of_all(gradient, len(x))
        # an infinite slope is for the balls to name
        is_usable = is_usable & gradient.high.flatten(1).isfinite().all(1)
        return network.audits(forward, x, v, gradient, is_usable)

    def maps(
        self,
        states: Sequence[ExactPoint[Any, ScaledDoubleWords]],
        saved_values: Sequence[SavedValues[Any]],
    ) -> list[TransposedJacobian[ScaledDoubleWords] | None]:
        """See `ExactEngine`."""
        in_pairs = [i for i, s in enumerate(states) if s.interpreter is self._network.interpreter]
        maps: dict[int, TransposedJacobian[ScaledDoubleWords] | None] = {}
        if in_pairs and self._by_rows:
            rows, undecided = self._jacobians(
                self._network, stacked([saved_values[i] for i in in_pairs]), len(in_pairs)
            )
            for position, i in enumerate(in_pairs):
                matrix = _matrix([row.of(position) for row in rows])
                is_undecided = bool(undecided.expand(len(in_pairs))[position])
                maps[i] = None if is_undecided else DoubleWordRows(matrix, self._vectors)
        for i in in_pairs if not self._by_rows else ():
            maps[i] = DoubleWordPullbacks(self._network, saved_values[i])
        for i in set(range(len(states))) - set(in_pairs):
            maps[i] = self._balls.maps([states[i]], [saved_values[i]])[0]
        return [maps[i] for i in range(len(states))]

    def _run(
        self, network: BatchedNetwork, x: Tensor
    ) -> tuple[BatchRun, DoubleWords, list[DoubleWords], Tensor]:
        """The forward run at x, logits, rows of J, and the samples undecided in any of these."""
        forward = network.forward(x)
        rows, undecided = list[DoubleWords](), forward.undecided
        if self._by_rows:
            rows, undecided_rows = self._jacobians(network, forward.run.saved_values, len(x))
            undecided = undecided | undecided_rows
        return forward, of_all(forward.run.logits, len(x)), rows, undecided

    def _jacobians(
        self, network: BatchedNetwork, saved_values: SavedValues[DoubleWords], samples: int
    ) -> tuple[list[DoubleWords], Tensor]:
        """Row k of every sample's Jacobian, (samples, entries), for each k; what is undecided."""
        identity = torch.eye(self._classes, dtype=torch.float64)[:, None, None]
        products = [
            network.pullback(saved_values, network.arithmetic.from_samples(v)) for v in identity
        ]
        undecided = functools.reduce(torch.logical_or, (mask for _, mask in products))
        return [of_all(row, samples) for row, _ in products], undecided

    def _by_difference(
        self, errors: list[DoubleWords], x: Tensor, wide: Tensor
    ) -> tuple[list[DoubleWords], Tensor]:
        """The arrays, whose radius is the distance to the coarser run where the bound is wide.

        Returns:
            The arrays, and (samples,) bool, the samples that are undecided in the coarser run.
        """
        samples = torch.nonzero(wide).flatten()
        _, logits, rows, undecided = self._run(self._coarser, x[samples])
        arrays = []
        for fine, coarse in zip(errors, [logits, *rows], strict=True):
            selected = replace(fine.moved(lambda t: t[samples]), radius=fine.radius[samples])
            radius = fine.radius.clone()
            radius[samples] = self._coarser.arithmetic.sub(selected, coarse).norm()
            arrays.append(replace(fine, radius=radius))
        undecided_of_all = torch.zeros_like(wide)
        undecided_of_all[samples] = undecided
        return arrays, undecided_of_all

    def _state(
        self,
        run: ForwardRun[DoubleWords],
        logits: DoubleWords,
        rows: list[DoubleWords],
        x: Tensor,
        wide: Tensor,
        audit: SampleAudit,
    ) -> ExactPoint[DoubleWords, ScaledDoubleWords]:
        interpreter = self._network.interpreter
        matrix = _matrix(rows) if rows else None
        radius = float(logits.radius)
        return ExactPoint(
            _equal_logits_alike(to_mpmath(logits, self._vectors.context), logits),
            math.log2(radius) if radius else -math.inf,
            run.saved_values,
            DoubleWordPullbacks(self._network, run.saved_values)
            if matrix is None
            else DoubleWordRows(matrix, self._vectors),
            interpreter,
            logits,
            matrix,
            branches_of(interpreter.capture, run, interpreter.arithmetic),
            not bool(wide),
            audit,
            None if rows else CoarserPullbacks(self._coarser, x),
        )


def _equal_logits_alike(numbers: NDArray[np.object_], logits: DoubleWords) -> list[Any]:
    """The numbers, with the first of those that are equal by construction in place of all."""
    assert logits.value_number is not None
    first: dict[int, Any] = {}
    identifiers = logits.value_number.identifiers().reshape(-1).tolist()
    pairs = zip(identifiers, numbers.reshape(-1), strict=True)
    return [first.setdefault(identifier, number) for identifier, number in pairs]


def _matrix(rows: list[DoubleWords]) -> DoubleWords:
    """The rows (entries,) of one sample as (K, entries)."""
    high, low = (torch.stack([getattr(r, n) for r in rows], 1) for n in ("high", "low"))
    return DoubleWords(high, low, euclidean(torch.stack([r.radius for r in rows]), 0), None)


def _log2_errors(arrays: list[DoubleWords]) -> Tensor:
    """(samples,): log2 of the relative error of all rows, or of the logits where that is larger.

    The error of the logits counts as `_MORE_OF_LOGITS` bits larger than it is.
    """
    logits, *rows = arrays
    # masked classes, whose logits are minus infinity, do not count
    unmasked = replace(logits, high=torch.where(logits.high.isneginf(), 0.0, logits.high))
    error = logits.radius / unmasked.norm() * 2.0**_MORE_OF_LOGITS
    if rows:
        radius = euclidean(torch.stack([r.radius for r in rows]), 0)
        size = torch.linalg.vector_norm(torch.stack([r.norm() for r in rows]), dim=0)
        error = torch.maximum(error, radius / size)
    return torch.log2(error.nan_to_num(nan=math.inf, posinf=math.inf))
