"""A captured network in float64 and float32, which must agree: batches at once.

float64's error is estimated from the difference d of the two gradients. Roundings of float32 are
2^29 times those of float64, and so are the errors that they make, unless both runs go wrong alike:
by a branch, by a sum that cancels, or by a number that vanishes. Both runs are watched for these
(`fperr.exact.monitored.watch`), and float32 takes float64's branches. The estimate is d * 2^-19:
2^10 times more than roundings explain. It is an estimate that has been attacked, and no proof.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fperr.exact.graph import Capture
from fperr.exact.monitored.array import by_sample, largest, norms
from fperr.exact.monitored_pair import Doubts, MonitoredPair

# (numbers of samples, logits of a run, logits of the run in float64) -> v of those samples, each
# (samples, K); what v decides, and constants of the loss, are those of float64
Cotangents = Callable[[Tensor, Tensor, Tensor], Tensor]
LOG2_SHARE = -19  # of the difference that is claimed as an error, log2
_MEMORY = 1 << 31  # bytes for a piece of a batch
_BYTES = 40  # of a number: itself, the sizes of its terms, and its value numbers, in two formats
_ROUNDINGS = 4  # units roundoff of float64, the least relative error that is claimed


@dataclass(frozen=True, slots=True)
class AgreedGradients:
    """The gradients of a batch in float64, and how far float32 agrees.

    Attributes:
        logits: (samples, K) float64.
        gradient: (samples, entries) float64.
        log2_error: (samples,), log2 of the estimated relative error of the gradient in norm; inf
            where a rule leaves the sample in doubt.
        doubts: For each sample, the rule that leaves it in doubt, in words; None: none does.
    """

    logits: Tensor
    gradient: Tensor
    log2_error: Tensor
    doubts: tuple[str | None, ...]

    def replaced(self, samples: Tensor, others: "AgreedGradients") -> "AgreedGradients":
        """The same, with others in place of some samples, (samples,) bool."""
        doubts, logits, gradient, error = (
            list(self.doubts), self.logits.clone(), self.gradient.clone(), self.log2_error.clone()
        )  # fmt: skip
        logits[samples], gradient[samples] = others.logits, others.gradient
        error[samples] = others.log2_error
        for i, doubt in zip(torch.nonzero(samples).flatten().tolist(), others.doubts, strict=True):
            doubts[i] = doubt
        return AgreedGradients(logits, gradient, error, tuple(doubts))

    @property
    def are_agreed(self) -> Tensor:
        """(samples,) bool."""
        return self.log2_error.isfinite() | self.log2_error.isneginf()


class MonitoredNetwork:
    """The captured network in float64, with a run in float32 beside it.

    Args:
        capture: Network, captured for a single sample.
        device: Device to compute on.
        memory: Bytes that a piece of a batch may take.
    """

    def __init__(
        self, capture: Capture, device: torch.device | str = "cpu", memory: int = _MEMORY
    ) -> None:
        self._fast = MonitoredPair(capture, device, "coarse")
        self._thorough = MonitoredPair(capture, device, "by number")
        self._at_once = samples_at_once(capture, memory)

    def gradient(self, x: Tensor, v: Tensor | Cotangents) -> AgreedGradients:
        """J^T v of a batch.

        Samples that value numbers could settle are computed again with them, and so is the rest of
        a batch where that is most of a piece.

        Args:
            x: (samples, *shape), floating point.
            v: (samples, K), floating point; or a function that computes them from logits.
        """
        if isinstance(v, Tensor):
            v = functools.partial(_given, v)
        pieces, has_ties = list[AgreedGradients](), False
        for start in range(0, len(x), self._at_once):
            samples = torch.arange(start, min(start + self._at_once, len(x)), device=x.device)
            if has_ties:
                pieces.append(_gradients(self._thorough, x[samples], samples, v))
                continue
            piece = _gradients(self._fast, x[samples], samples, v)
            again = torch.tensor([doubt is not None for doubt in piece.doubts], device=x.device)
            if bool(again.any()):
                numbers = samples[again]
                piece = piece.replaced(again, _gradients(self._thorough, x[numbers], numbers, v))
            has_ties = int(again.sum()) > len(again) / 2
            pieces.append(piece)
        return AgreedGradients(
            torch.cat([piece.logits for piece in pieces]),
            torch.cat([piece.gradient for piece in pieces]),
            torch.cat([piece.log2_error for piece in pieces]),
            tuple(doubt for piece in pieces for doubt in piece.doubts),
        )


def _gradients(pair: MonitoredPair, x: Tensor, numbers: Tensor, v: Cotangents) -> AgreedGradients:
    """J^T v of samples that fit into memory, which have these numbers."""
    doubts, samples = Doubts(), len(x)
    run = pair.forward(x, doubts)
    logits, follower_logits = (
        by_sample(r.logits.values).expand(samples, -1) for r in (run.leader, run.follower)
    )
    cotangents = [v(numbers, z, logits) for z in (logits, follower_logits)]
    saved = [run.leader.saved_values, run.follower.saved_values]
    products = pair.pullback(saved, cotangents, doubts, has_checked=True)
    gradient, other = (g.expand(samples, -1) for g in products)
    # infinities and NaN are left out of norms, not of the judgement
    is_usable = largest(gradient).isfinite() & largest(other).isfinite()
    error = torch.where(is_usable, log2_agreed_errors(gradient, other), torch.inf)
    sentences = tuple(pair.faults(doubts, samples))
    in_doubt = torch.tensor([s is not None for s in sentences], device=error.device)
    return AgreedGradients(logits, gradient, torch.where(in_doubt, torch.inf, error), sentences)


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


def samples_at_once(capture: Capture, memory: int = _MEMORY) -> int:
    """How many samples fit into so many bytes."""
    sizes = [math.prod(shape) for shape in capture.shapes.values()]
    return max(1, memory // (_BYTES * sum(sizes)))


def _given(v: Tensor, samples: Tensor, logits: Tensor, leading: Tensor) -> Tensor:
    """The cotangents that do not depend on logits."""
    del logits, leading
    return v[samples]
