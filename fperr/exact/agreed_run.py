"""A batch in float64 and in float32, and what their agreement says of float64's error.

float64's error is estimated from the difference d of the two gradients. Roundings of float32 are
2^29 times those of float64, and so are the errors that they make, unless both runs go wrong alike:
by a branch, by a sum that cancels, or by a number that vanishes. Both runs are watched for these
(`fperr.exact.monitored.watch`), and float32 takes float64's branches. The estimate is d * 2^-19:
2^10 times more than roundings explain. It is an estimate that has been attacked, and no proof.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fperr.exact.audit.samples import SampleAudit, audit_values
from fperr.exact.monitored.array import MonitoredArray, by_sample, largest, norms
from fperr.exact.monitored_pair import Doubts, MonitoredPair, PairRun

LOG2_SHARE = -19  # of the difference that is claimed as an error, log2
_FEW = 16  # numbers; of more, it takes many that are close by luck
_ROUNDINGS = 4  # units roundoff of float64, the least relative error that is claimed
# (logits of a run, logits of the run in float64) -> v for each product, (samples or 1, K); what v
# decides, and constants of the loss, are those of float64
CotangentsOfRun = Callable[[Tensor, Tensor], Sequence[Tensor]]


@dataclass(frozen=True, slots=True)
class AgreedRun:
    """A forward run of a batch, some products J^T v, and what is known of their errors.

    Attributes:
        pair: The network in both formats.
        run: The forward run.
        logits: (samples, K) float64.
        leader, follower: (samples, entries) float64 for each product, in float64 and in float32.
        log2_errors: (samples,), log2 of the estimated relative error of all products in norm; inf
            where they are not finite.
        log2_logit_errors: (samples,), the same of the logits.
        faults: Why a sample is in doubt, in words; None: it is not.
    """

    pair: MonitoredPair
    run: PairRun
    logits: Tensor
    leader: list[Tensor]
    follower: list[Tensor]
    log2_errors: Tensor
    log2_logit_errors: Tensor
    faults: list[str | None]


def agreed_run(pair: MonitoredPair, x: Tensor, cotangents: CotangentsOfRun) -> AgreedRun:
    """Run a batch that fits into memory, in both formats.

    Args:
        pair: The network in both formats.
        x: Inputs (samples, *shape).
        cotangents: Function that computes the cotangents from logits.
    """
    doubts, samples = Doubts(), len(x)
    run = pair.forward(x, doubts)
    z, follower_z = (_of_all(r.logits, samples) for r in (run.leader, run.follower))
    saved = [run.leader.saved_values, run.follower.saved_values]
    pullbacks = [
        pair.pullback(saved, [v, follower_v], doubts, has_checked=True)
        for v, follower_v in zip(cotangents(z, z), cotangents(follower_z, z), strict=True)
    ]
    leader, follower = (
        [g.expand(samples, -1) for g in products] for products in zip(*pullbacks, strict=True)
    )
    everything, in_float32 = torch.cat(leader, 1), torch.cat(follower, 1)
    # the norms leave infinities and NaN out, the judgement does not; a masked logit is -infinity
    is_finite = largest(everything).isfinite() & largest(in_float32).isfinite()
    is_finite = is_finite & (z < math.inf).all(1)
    errors = log2_agreed_errors(everything, in_float32)
    if everything.shape[1] <= _FEW:
        # one difference in 2^10 is small by luck; float64 lost what the worst of its sums lost
        lost = _ROUNDINGS * 2.0**-53 * doubts.condition_of_samples(samples).to(z.device)
        errors = torch.maximum(errors, torch.log2(lost))
    errors = torch.where(is_finite, errors, torch.inf)
    faults = [
        "the logits or the gradient are not finite"
        if fault is None and error == math.inf
        else fault
        for fault, error in zip(pair.faults(doubts, samples), errors.tolist(), strict=True)
    ]
    logit_errors = log2_agreed_errors(z, follower_z)
    return AgreedRun(pair, run, z, leader, follower, errors, logit_errors, faults)


def audits_of(
    agreed: AgreedRun, x: Tensor, v: Tensor, gradient: Tensor, names: Sequence[int]
) -> list[SampleAudit | None]:
    """What PyTorch's float64 says of each sample; None where the sample is in doubt.

    Args:
        agreed: The run.
        x: Its inputs (samples, *shape).
        v: (samples, K) float64.
        gradient: J^T v (samples, entries) by the run.
        names: Numbers of the samples, for errors.

    Raises:
        ContradictedError: PyTorch in float64 computes something else.
    """
    is_usable = torch.tensor([fault is None for fault in agreed.faults])
    if not bool(is_usable.any()):
        return [None] * len(x)
    logits_off = norms(agreed.logits) * torch.exp2(agreed.log2_logit_errors)
    return audit_values(
        agreed.pair.leader,
        agreed.run.leader,
        x,
        v,
        (gradient, torch.zeros(len(x), dtype=torch.int64)),
        off=norms(gradient) * torch.exp2(agreed.log2_errors),
        logits_off=float(logits_off[is_usable.to(x.device)].max()),
        is_usable=is_usable,
        names=names,
    )


def log2_agreed_errors(a: Tensor, b: Tensor) -> Tensor:
    """(samples,): log2 of the estimated relative error of a in norm, where b is a in float32.

    Args:
        a: (samples, entries) float64; entries that are not finite are left out.
        b: Like a.
    """
    difference, size = norms(a - b), norms(a)
    return log2_of_share(torch.where(difference == 0, 0.0, difference / size))


def log2_of_share(relative_difference: Tensor) -> Tensor:
    """log2 of the error that is claimed for a relative difference; inf for NaN."""
    least = torch.full_like(relative_difference, _ROUNDINGS * 2.0**-53)
    claimed = torch.maximum(relative_difference * 2.0**LOG2_SHARE, least)
    return torch.log2(claimed).nan_to_num(nan=math.inf, posinf=math.inf)


def _of_all(a: MonitoredArray, samples: int) -> Tensor:
    """(samples, entries), in the format of the run."""
    return by_sample(a.values).expand(samples, -1)
