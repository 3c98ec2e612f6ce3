"""The exact network in pairs of float64, piece by piece of a batch."""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fperr.errors import ReferenceNotCertifiedError, UndecidedError
from fperr.exact.audit.samples import SampleAudit
from fperr.exact.branches import branches_of
from fperr.exact.double_word import LARGEST_BITS, DoubleWords
from fperr.exact.double_word.comparisons import order_undecided
from fperr.exact.double_word.numbers import euclidean
from fperr.exact.double_word_network import (
    BatchedNetwork,
    BatchRun,
    log2_relative_errors,
    of_all,
)
from fperr.exact.engines.base import ExactEngine, ExactPoint, NoExactPoint
from fperr.exact.engines.gradient import (
    GradientAtSample,
    LossAtSample,
    logit_gradient_in_pairs,
    logits_of_pairs,
)
from fperr.exact.engines.jacobian import DoubleWordPullbacks, DoubleWordRows, TransposedJacobian
from fperr.exact.engines.samples_of_run import sample_of_run, sample_of_saved, stacked
from fperr.exact.engines.scaled import scaled
from fperr.exact.engines.vectors import DoubleWordVectors, ScaledDoubleWords
from fperr.exact.graph import Capture, probe
from fperr.exact.interpreter import ForwardRun, SavedValues
from fperr.exact.precision import LEAST_BOUND

_RUNG = 22  # bits below, where a run must agree if the bound proves too few bits
# More bits of the rows, whose sum may cancel; and more than that of the logits, as losses amplify
# their differences.
_GUARD_BITS, _MORE_OF_LOGITS = 4, 12
# up to so many bits, matrix products with so many suffice
_FEW_BITS, _FEW_WORKING_BITS = 34, 63
_Point = ExactPoint[DoubleWords, ScaledDoubleWords]


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
    """Pairs of float64, a batch at once.

    Args:
        capture: Network, captured for a single sample.
        bits: Correct bits required: where a bound proves fewer, a run with fewer bits is compared.
        device: Device to compute on.
        by_rows: Whether all rows of J are computed.
    """

    vectors: DoubleWordVectors

    def __init__(self, capture: Capture, bits: int, device: torch.device, *, by_rows: bool) -> None:
        super().__init__(DoubleWordVectors(device))
        working_bits = _FEW_WORKING_BITS if bits <= _FEW_BITS else LARGEST_BITS
        self._network = BatchedNetwork(capture, working_bits, device)
        self._coarser = BatchedNetwork(capture, working_bits - _RUNG, device, is_control=True)
        self._by_rows = by_rows
        self._largest = -bits - _GUARD_BITS
        self._classes = capture.shapes[capture.results[0].name][1]

    @property
    def name(self) -> str:
        """See `ExactEngine`."""
        return self._network.arithmetic.name

    def pieces(self, samples: int) -> Iterator[slice]:
        """See `ExactEngine`."""
        return self._network.pieces(samples)

    def states(self, x: Tensor) -> list[_Point | NoExactPoint]:
        """See `ExactEngine`; without a point where a branch or the order of logits is undecided."""
        forward, logits, rows, undecided = self._run(self._network, x)
        undecided = undecided | order_undecided(logits)
        errors = [logits, *rows]
        bounds = _log2_errors(errors)
        # where a bound shows nothing, agreement means nothing
        is_lost = ~undecided & ~(bounds <= LEAST_BOUND + _MORE_OF_LOGITS)
        wide = ~undecided & ~is_lost & (bounds > self._largest)
        if wide.any():
            errors, undecided_coarser = self._by_difference(errors, x, wide)
            undecided = undecided | undecided_coarser
        logits, *rows = errors
        audits = self._audits(forward, rows, x, ~undecided & ~is_lost)
        log2_errors = _log2_errors(errors)
        return [
            NoExactPoint(ReferenceNotCertifiedError(self._fault(bool(undecided[i]))))
            if audit is None
            else self._state(
                sample_of_run(forward.run, i),
                logits.of(i),
                [row.of(i) for row in rows],
                x[i : i + 1],
                float(log2_errors[i]),
                audit,
                is_proved=not bool(wide[i]),
            )
            for i, audit in enumerate(audits)
        ]

    def _fault(self, is_undecided: bool) -> str:
        """Why there is no point at a sample, in words."""
        name = self._network.arithmetic.name
        if is_undecided:
            return f"a branch, or the order of two logits, is closer than {name} can tell"
        return f"the bound on the error of {name} shows no digit"

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
        del states  # all of the same network
        if not self._by_rows:
            return [DoubleWordPullbacks(self._network, saved) for saved in saved_values]
        samples = len(saved_values)
        rows, undecided = self._jacobians(self._network, stacked(saved_values), samples)
        undecided = undecided.expand(samples)
        return [
            None
            if bool(undecided[i])
            else DoubleWordRows(_matrix([row.of(i) for row in rows]), self.vectors)
            for i in range(samples)
        ]

    def gradient(self, point: _Point, loss: LossAtSample, bits: float) -> GradientAtSample:
        """See `ExactEngine`.

        The logit gradient is computed in balls around the point's logits; the product with the
        Jacobian is computed in pairs of float64.
        """
        A = self.vectors
        v = logit_gradient_in_pairs(A, loss, point.z, point.log2_radius)
        g = point.map.product(v)
        v_error, g_error = (float(log2_relative_errors(vector.words)) for vector in (v, g))
        error = max(v_error, g_error)
        proved = GradientAtSample(v, g, error, point.is_proved and error < math.inf)
        coarser = point.coarser
        settled = proved.has_bits(bits) or not g_error <= LEAST_BOUND  # NaN counts as settled
        if coarser is None or settled:
            return proved
        # the proved bound is too wide: take the relative difference to the product with fewer bits
        try:
            coarse = coarser.product(v)
        except UndecidedError:
            return proved
        difference = scaled(A, A.sub(g, coarse)).log2_norm - scaled(A, g).log2_norm
        return replace(proved, log2_error=max(v_error, difference), is_proved=False)

    def product(self, point: _Point, v: Tensor) -> tuple[ScaledDoubleWords, float, bool]:
        """See `ExactEngine`."""
        product = point.map.product(self.vectors.from_torch(v[None]))
        return product, float(log2_relative_errors(product.words)), point.is_proved

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
        log2_error: float,
        audit: SampleAudit,
        *,
        is_proved: bool,
    ) -> _Point:
        interpreter = self._network.interpreter
        matrix = _matrix(rows) if rows else None
        radius = float(logits.radius)
        return ExactPoint(
            x,
            logits_of_pairs(logits, self.vectors.context),
            math.log2(radius) if radius else -math.inf,
            run.saved_values,
            DoubleWordPullbacks(self._network, run.saved_values)
            if matrix is None
            else DoubleWordRows(matrix, self.vectors),
            interpreter,
            logits,
            matrix,
            branches_of(interpreter.capture, run, interpreter.arithmetic),
            log2_error,
            is_proved,
            audit,
            None if rows else CoarserPullbacks(self._coarser, x),
        )


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
