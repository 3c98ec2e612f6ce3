"""A captured network in float64 beside float32, whose results PyTorch's own float64 confirms."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fperr.exact.audit.samples import SampleAudit, audit_values
from fperr.exact.graph import Capture
from fperr.exact.monitored.array import MonitoredArray
from fperr.exact.monitored_network import log2_agreed_errors, samples_at_once
from fperr.exact.monitored_pair import Doubts, MonitoredPair, PairRun


@dataclass(frozen=True, slots=True)
class AgreedRun:
    """A forward run of a batch, some products J^T v, and what is known of their errors.

    Attributes:
        pair: The network in both formats.
        run: The forward run.
        leader, follower: (samples, entries) float64 for each product, in float64 and in float32.
        log2_errors: (samples,), log2 of the estimated relative error of all products in norm.
        log2_logit_errors: (samples,), the same of the logits.
        faults: Why a sample is in doubt, in words; None: it is not.
        audits: What PyTorch's float64 says of each sample; None where that is in doubt.
    """

    pair: MonitoredPair
    run: PairRun
    leader: list[Tensor]
    follower: list[Tensor]
    log2_errors: Tensor
    log2_logit_errors: Tensor
    faults: list[str | None]
    audits: list[SampleAudit | None]


class AgreedNetwork:
    """The captured network, for batches.

    Args:
        capture: Network, captured for a single sample.
        device: Device to compute on.

    Attributes:
        fast, thorough: Pairs of runs with coarse sizes of terms, and with the sizes and the value
            numbers of each number.
    """

    def __init__(self, capture: Capture, device: torch.device | str = "cpu") -> None:
        self.fast = MonitoredPair(capture, device, "coarse")
        self.thorough = MonitoredPair(capture, device, "by number")
        self._at_once = samples_at_once(capture)

    def pieces(self, samples: int) -> Iterator[slice]:
        """A batch in pieces that fit into memory."""
        for start in range(0, samples, self._at_once):
            yield slice(start, min(start + self._at_once, samples))

    def rows(self, pair: MonitoredPair, x: Tensor, v: Tensor, first: int = 0) -> AgreedRun:
        """All rows of J at x (samples, *shape); audited at v (samples, K) float64.

        Args:
            pair: One of the pairs of this network.
            x: Inputs (samples, *shape).
            v: Cotangents (samples, K) float64.
            first: Number of the first sample, for errors.
        """
        one_hot = torch.eye(v.shape[1], dtype=v.dtype, device=v.device)[:, None]
        return self._run(pair, x, list(one_hot), v, first)

    def products(self, pair: MonitoredPair, x: Tensor, v: Tensor, first: int = 0) -> AgreedRun:
        """J^T v at x (samples, *shape), audited; arguments as for `rows`."""
        return self._run(pair, x, [v], v, first)

    def _run(
        self, pair: MonitoredPair, x: Tensor, cotangents: Sequence[Tensor], v: Tensor, first: int
    ) -> AgreedRun:
        doubts, samples = Doubts(), len(x)
        run = pair.forward(x, doubts)
        saved = [run.leader.saved_values, run.follower.saved_values]
        pullbacks = [pair.pullback(saved, [w, w], doubts) for w in cotangents]
        leader, follower = (
            [g.expand(samples, -1) for g in products] for products in zip(*pullbacks, strict=True)
        )
        z, follower_z = (of_all(r.logits, samples) for r in (run.leader, run.follower))
        logit_errors = log2_agreed_errors(z, follower_z)
        a, b = torch.cat(leader, 1), torch.cat(follower, 1)
        is_finite = (a.isfinite() & b.isfinite()).all(1) & ~(z.isnan() | z.isposinf()).any(1)
        errors = torch.where(is_finite, log2_agreed_errors(a, b), torch.inf)
        faults = pair.faults(doubts, samples)
        for i, error in enumerate(errors.tolist()):
            if error == math.inf and faults[i] is None:
                faults[i] = "the gradient is not finite, or float32 agrees to no digit"
        # the product with v: the sum of the rows where those were computed
        gradient = leader[0]
        if cotangents[0] is not v:
            terms = [w[:, None] * row for w, row in zip(v.T, leader, strict=True)]
            gradient = torch.stack(terms).sum(0)
        is_usable = torch.tensor([fault is None for fault in faults])
        audits: list[SampleAudit | None] = [None] * samples
        if bool(is_usable.any()):
            logits_off = _norms(z) * torch.exp2(logit_errors)
            audits = audit_values(
                pair.leader,
                run.leader,
                x,
                v,
                (gradient, torch.zeros(samples, dtype=torch.int64)),
                off=_norms(gradient) * torch.exp2(errors),
                logits_off=float(logits_off[is_usable.to(x.device)].max()),
                is_usable=is_usable,
                names=range(first, first + samples),
            )
        return AgreedRun(pair, run, leader, follower, errors, logit_errors, faults, audits)


def of_all(a: MonitoredArray, samples: int) -> Tensor:
    """(samples, entries) float64."""
    return a.values.reshape(a.samples, -1).to(torch.float64).expand(samples, -1)


def _norms(a: Tensor) -> Tensor:
    """(samples,): norms without what is not finite, as masked logits are."""
    norms: Tensor = torch.linalg.vector_norm(a.nan_to_num(0.0, 0.0, 0.0), dim=1)
    return norms
