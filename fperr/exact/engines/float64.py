"""The exact network in plain float64, with float32 beside it to estimate its error.

The lowest rung: cheap, and agreed, never proved. See `fperr.exact.agreed_run`.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fperr.errors import ReferenceNotCertifiedError, UndecidedError
from fperr.exact.adaptive_precision import arb_of
from fperr.exact.agreed_run import AgreedRun, agreed_run, audits_of, log2_of_share
from fperr.exact.audit.samples import SampleAudit
from fperr.exact.ball.arithmetic import BallArithmetic
from fperr.exact.branches import branches_of
from fperr.exact.engines.base import ExactEngine, ExactPoint, NoExactPoint
from fperr.exact.engines.float64_vectors import Float64Vectors
from fperr.exact.engines.gradient import GradientAtSample, LossAtSample, logit_gradient_in_balls
from fperr.exact.engines.jacobian import TransposedJacobian
from fperr.exact.engines.samples_of_run import sample_of_run, stacked
from fperr.exact.engines.scaled import Scaled
from fperr.exact.graph import Capture, probe
from fperr.exact.interpreter import SavedValues
from fperr.exact.logit_direction import are_neighbours_close
from fperr.exact.monitored.array import MonitoredArray, norms
from fperr.exact.monitored.watch import MARGIN
from fperr.exact.monitored_network import MonitoredNetwork
from fperr.exact.monitored_pair import Doubts, MonitoredPair

_LOGIT_BITS = 200  # working precision of the gradients of losses that are functions
# A sum of float32 numbers that is this much smaller than its terms has lost all but 8 bits.
_LARGEST_CANCELLATION = 2.0**24 / MARGIN


class AgreedJacobian(TransposedJacobian[Scaled]):
    """J^T at one sample, in float64 and in float32.

    Attributes:
        follower_z: K logits in float32, `mpf`; empty for saved values of another run.
    """

    follower_z: Sequence[Any]

    @abstractmethod
    def products(self, v: Scaled, follower_v: Scaled) -> tuple[Scaled, Scaled]:
        """J^T v in float64, and J^T of another v in float32.

        Raises:
            UndecidedError: A rule leaves the products in doubt.
        """


@dataclass(frozen=True, slots=True)
class AgreedRows(AgreedJacobian):
    """All rows of J, stored.

    Attributes:
        rows, follower_rows: (K, entries) float64, and float32.
        follower_z: See `AgreedJacobian`.
    """

    rows: Tensor
    follower_rows: Tensor
    follower_z: Sequence[Any] = ()

    def product(self, v: Scaled) -> Scaled:
        """See `TransposedJacobian`."""
        return Scaled(v.values @ self.rows, v.exponent)

    def products(self, v: Scaled, follower_v: Scaled) -> tuple[Scaled, Scaled]:
        """See `AgreedJacobian`."""
        g = self.product(v)
        terms = torch.linalg.vector_norm(v.values.abs() @ self.rows.abs())
        if float(terms) > _LARGEST_CANCELLATION * float(torch.linalg.vector_norm(g.values)):
            raise UndecidedError("the rows of J cancel, and float32 loses all but 8 bits")
        return g, Scaled(
            follower_v.values @ self.follower_rows.to(torch.float64), follower_v.exponent
        )

    @property
    def log2_norms(self) -> list[float]:
        """See `TransposedJacobian`."""
        # scaled, because squares of small numbers vanish
        largest = self.rows.abs().amax(1, keepdim=True).clamp_min(2.0**-1022)
        norms = torch.linalg.vector_norm(self.rows / largest, dim=1).log2()
        sizes: list[float] = (norms + largest[:, 0].log2()).tolist()
        return sizes


@dataclass(frozen=True, slots=True)
class AgreedPullbacks(AgreedJacobian):
    """A run of the backward half for each product.

    Attributes:
        pair: The network in both formats.
        saved: Saved values of one sample in float64.
        follower_saved: The same in float32; None for saved values of another run.
        follower_z: See `AgreedJacobian`.
    """

    pair: MonitoredPair
    saved: SavedValues[MonitoredArray]
    follower_saved: SavedValues[MonitoredArray] | None
    follower_z: Sequence[Any] = ()

    def product(self, v: Scaled) -> Scaled:
        """See `TransposedJacobian`."""
        (g,) = self._pullbacks([self.saved], [v])
        return g

    def products(self, v: Scaled, follower_v: Scaled) -> tuple[Scaled, Scaled]:
        """See `AgreedJacobian`."""
        assert self.follower_saved is not None
        g, h = self._pullbacks([self.saved, self.follower_saved], [v, follower_v])
        return g, h

    def _pullbacks(self, saved: list[SavedValues[MonitoredArray]], v: list[Scaled]) -> list[Scaled]:
        doubts = Doubts()
        products = self.pair.pullback(saved, [w.values[None] for w in v], doubts)
        (doubt,) = doubts.of_samples(1)
        if doubt is not None:
            raise UndecidedError(doubt)
        return [Scaled(g[0], w.exponent) for g, w in zip(products, v, strict=True)]


_Point = ExactPoint[MonitoredArray, Scaled]


class Float64Engine(ExactEngine[Scaled]):
    """Plain float64, a batch at once.

    Args:
        capture: Network, captured for a single sample.
        device: Device to compute on.
        by_rows: Whether all rows of J are computed.
    """

    vectors: Float64Vectors

    def __init__(self, capture: Capture, device: torch.device, *, by_rows: bool) -> None:
        super().__init__(Float64Vectors(device))
        self._network, self._by_rows = MonitoredNetwork(capture, device), by_rows
        self._classes = capture.shapes[capture.results[0].name][1]

    @property
    def name(self) -> str:
        """See `ExactEngine`."""
        return "float64, errors by agreement with float32"

    def pieces(self, samples: int) -> Iterator[slice]:
        """See `ExactEngine`."""
        return self._network.pieces(samples)

    def states(self, x: Tensor) -> list[_Point | NoExactPoint]:
        """See `ExactEngine`; without a point where a rule leaves the sample in doubt.

        Samples that value numbers could settle are computed again with them.
        """
        points = self._states(self._network.coarse, x)
        again = [i for i, point in enumerate(points) if isinstance(point, NoExactPoint)]
        if again:
            for i, point in zip(again, self._states(self._network.thorough, x[again]), strict=True):
                points[i] = point
        return points

    def _states(self, pair: MonitoredPair, x: Tensor) -> list[_Point | NoExactPoint]:
        v = probe(x.new_empty((len(x), self._classes), dtype=torch.float64))
        cotangents = list(self._one_hot()) if self._by_rows else [v]
        run = agreed_run(pair, x, lambda *_: cotangents)
        gradient = run.leader[0]
        if self._by_rows:
            terms = [w[:, None] * row for w, row in zip(v.T, run.leader, strict=True)]
            gradient = torch.stack(terms).sum(0)
        audits = audits_of(run, x, v, gradient, range(len(x)))
        unclear = are_neighbours_close(run.logits.sort(1, descending=True).values)
        return [
            NoExactPoint(
                ReferenceNotCertifiedError(
                    run.faults[i] or "two logits are too close to tell their order"
                )
            )
            if audit is None or is_unclear
            else self._point(run, x, i, audit)
            for i, (audit, is_unclear) in enumerate(zip(audits, unclear.tolist(), strict=True))
        ]

    def _one_hot(self) -> Tensor:
        """(K, 1, K): the cotangents of single logits."""
        return torch.eye(self._classes, dtype=torch.float64, device=self.vectors.device)[:, None]

    def _point(self, run: AgreedRun, x: Tensor, i: int, audit: SampleAudit) -> _Point:
        pair = run.pair
        own, follower = sample_of_run(run.run.leader, i), sample_of_run(run.run.follower, i)
        context = self.vectors.context
        follower_z = [context.mpf(value) for value in follower.logits.values.flatten().tolist()]
        jacobian: AgreedJacobian
        if self._by_rows:
            rows = torch.stack([row[i] for row in run.leader])
            follower_rows = torch.stack([row[i] for row in run.follower]).to(torch.float32)
            jacobian = AgreedRows(rows, follower_rows, follower_z)
        else:
            saved = own.saved_values, follower.saved_values
            jacobian = AgreedPullbacks(pair, *saved, follower_z)
        z = run.logits[i]
        size = float(norms(z[None]))
        return ExactPoint(
            x[i : i + 1],
            [context.mpf(value) for value in z.tolist()],
            math.log2(size) + float(run.log2_logit_errors[i]) if size else -math.inf,
            own.saved_values,
            jacobian,
            pair.leader,
            own.logits,
            None,
            branches_of(pair.leader.capture, own, pair.leader.arithmetic),
            float(run.log2_errors[i]),
            False,
            audit,
        )

    def maps(
        self, states: Sequence[_Point], saved_values: Sequence[SavedValues[Any]]
    ) -> list[TransposedJacobian[Scaled] | None]:
        """See `ExactEngine`; in float64 alone."""
        maps = dict[int, TransposedJacobian[Scaled] | None]()
        for pair in (self._network.coarse, self._network.thorough):
            own = [i for i, state in enumerate(states) if state.interpreter is pair.leader]
            if own and self._by_rows:
                saved = [saved_values[i] for i in own]
                maps |= zip(own, self._rows_of(pair, saved), strict=True)
            elif own:
                maps |= {i: AgreedPullbacks(pair, saved_values[i], None) for i in own}
        return [maps[i] for i in range(len(states))]

    def _rows_of(
        self, pair: MonitoredPair, saved_values: Sequence[SavedValues[MonitoredArray]]
    ) -> list[AgreedRows | None]:
        """The rows that saved values define; None where a rule doubts them."""
        doubts, samples = Doubts(), len(saved_values)
        saved = stacked(saved_values)
        rows = [pair.pullback([saved], [v], doubts)[0].expand(samples, -1) for v in self._one_hot()]
        return [
            None
            if doubt is not None
            else AgreedRows(matrix := torch.stack([row[i] for row in rows]), matrix)
            for i, doubt in enumerate(doubts.of_samples(samples))
        ]

    def gradient(self, point: _Point, loss: LossAtSample, bits: float) -> GradientAtSample:
        """See `ExactEngine`: v is exact at each run's own logits."""
        del bits
        assert isinstance(point.map, AgreedJacobian)
        v, follower_v = (self._logit_gradient(loss, z) for z in (point.z, point.map.follower_z))
        g, h = point.map.products(v, follower_v)
        errors = [self._log2_error(v, follower_v), self._log2_error(g, h)]
        return GradientAtSample(v, g, max(errors), False)

    def _logit_gradient(self, loss: LossAtSample, z: Sequence[Any]) -> Scaled:
        A = self.vectors
        if loss.function is not None:
            B = BallArithmetic(_LOGIT_BITS)
            numbers = B.array([arb_of(value) for value in z], (1, len(z)))
            return A.from_balls(logit_gradient_in_balls(B, loss, numbers))
        v = loss.logit_gradient(A.context, z)
        if v is None:
            raise UndecidedError("the loss is undefined at float32's logits")
        return A.array(v)

    def _log2_error(self, a: Scaled, b: Scaled) -> float:
        """log2 of the estimated relative error of a in norm, from the same vector in float32."""
        difference = self.vectors.sub(a, b)
        if not bool(a.values.any()):
            return math.inf if bool(difference.values.any()) else -math.inf
        return float(log2_of_share(torch.tensor(difference.ratio(a), dtype=torch.float64)))

    def product(self, point: _Point, v: Tensor) -> tuple[Scaled, float, bool]:
        """See `ExactEngine`."""
        assert isinstance(point.map, AgreedJacobian)
        entering = self.vectors.from_torch(v[None])
        g, h = point.map.products(entering, entering)
        return g, self._log2_error(g, h), False
