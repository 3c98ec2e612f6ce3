"""A captured network in float64, with a run in float32 that must agree: batches of any size."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fperr.exact.agreed_run import agreed_run, audits_of
from fperr.exact.audit.samples import SampleAudit
from fperr.exact.graph import Capture
from fperr.exact.monitored_pair import MonitoredPair

# (positions of samples, logits of a run, logits of the run in float64) -> v of those samples, each
# (samples, K); what v decides, and constants of the loss, are those of float64
Cotangents = Callable[[Tensor, Tensor, Tensor], Tensor]
_MEMORY = 1 << 31  # bytes for a piece of a batch
_BYTES = 40  # of a number: itself, the sizes of its terms, and its value numbers, in two formats


@dataclass(frozen=True, slots=True)
class AgreedGradients:
    """The gradients of a batch in float64, and how far float32 agrees.

    Attributes:
        logits: (samples, K) float64.
        gradient: (samples, entries) float64.
        log2_error: (samples,), log2 of the estimated relative error of the gradient in norm; inf
            where the sample is in doubt.
        doubts: For each sample, why it is in doubt, in words; None: it is not.
        audits: What PyTorch's float64 says of each sample; None where the sample is in doubt, or
            where no audit was asked for.
    """

    logits: Tensor
    gradient: Tensor
    log2_error: Tensor
    doubts: tuple[str | None, ...]
    audits: tuple[SampleAudit | None, ...]

    def replaced(self, positions: list[int], others: "AgreedGradients") -> "AgreedGradients":
        """The same, with others in place of the samples at some positions."""
        logits, gradient, error = (t.clone() for t in (self.logits, self.gradient, self.log2_error))
        logits[positions], gradient[positions] = others.logits, others.gradient
        error[positions] = others.log2_error
        doubts, audits = list(self.doubts), list(self.audits)
        for i, doubt, audit in zip(positions, others.doubts, others.audits, strict=True):
            doubts[i], audits[i] = doubt, audit
        return AgreedGradients(logits, gradient, error, tuple(doubts), tuple(audits))

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

    Attributes:
        coarse, thorough: Runs in both formats, with a bound for each sample on the sizes of terms;
            and with the size and the value number of each number, for what the first leave open.
    """

    def __init__(
        self, capture: Capture, device: torch.device | str = "cpu", memory: int = _MEMORY
    ) -> None:
        self.coarse = MonitoredPair(capture, device, "coarse")
        self.thorough = MonitoredPair(capture, device, "by number")
        sizes = [math.prod(shape) for shape in capture.shapes.values()]
        self._at_once = max(1, memory // (_BYTES * sum(sizes)))

    def pieces(self, samples: int) -> Iterator[slice]:
        """A batch in pieces that fit into memory."""
        for start in range(0, samples, self._at_once):
            yield slice(start, min(start + self._at_once, samples))

    def gradient(
        self,
        x: Tensor,
        v: Tensor | Cotangents,
        *,
        is_audited: bool = False,
        names: Sequence[int] | None = None,
    ) -> AgreedGradients:
        """J^T v of a batch.

        Samples that the coarse runs leave in doubt are computed again by the thorough ones, and so
        is the rest of a batch where that is most of a piece.

        Args:
            x: (samples, *shape), floating point.
            v: (samples, K), floating point; or a function that computes them from logits.
            is_audited: Whether PyTorch's float64 is compared.
            names: Numbers of the samples, for errors; None: 0, 1, ...

        Raises:
            ContradictedError: PyTorch in float64 computes something else.
        """
        if isinstance(v, Tensor):
            v = functools.partial(_given, v)
        names = range(len(x)) if names is None else names
        pieces, are_most_in_doubt = list[AgreedGradients](), False
        for piece in self.pieces(len(x)):
            positions = list(range(piece.start, piece.stop))
            compute = functools.partial(_gradients, x=x, v=v, names=names, is_audited=is_audited)
            if are_most_in_doubt:
                pieces.append(compute(self.thorough, positions))
                continue
            gradients = compute(self.coarse, positions)
            again = [i for i, doubt in enumerate(gradients.doubts) if doubt is not None]
            if again:
                others = compute(self.thorough, [positions[i] for i in again])
                gradients = gradients.replaced(again, others)
            are_most_in_doubt = len(again) > len(positions) / 2
            pieces.append(gradients)
        return AgreedGradients(
            torch.cat([piece.logits for piece in pieces]),
            torch.cat([piece.gradient for piece in pieces]),
            torch.cat([piece.log2_error for piece in pieces]),
            tuple(doubt for piece in pieces for doubt in piece.doubts),
            tuple(audit for piece in pieces for audit in piece.audits),
        )


def _gradients(
    pair: MonitoredPair,
    positions: list[int],
    *,
    x: Tensor,
    v: Cotangents,
    names: Sequence[int],
    is_audited: bool,
) -> AgreedGradients:
    """J^T v of the samples at these positions, which fit into memory."""
    samples, inputs = torch.tensor(positions, device=x.device), x[positions]
    run = agreed_run(pair, inputs, lambda z, leading: [v(samples, z, leading)])
    (gradient,) = run.leader
    audits: Sequence[SampleAudit | None] = [None] * len(positions)
    if is_audited:
        cotangents = v(samples, run.logits, run.logits).to(torch.float64)
        audits = audits_of(run, inputs, cotangents, gradient, [names[i] for i in positions])
    in_doubt = torch.tensor([fault is not None for fault in run.faults], device=gradient.device)
    error = torch.where(in_doubt, torch.inf, run.log2_errors)
    return AgreedGradients(run.logits, gradient, error, tuple(run.faults), tuple(audits))


def _given(v: Tensor, samples: Tensor, logits: Tensor, leading: Tensor) -> Tensor:
    """The cotangents that do not depend on logits."""
    del logits, leading
    return v[samples]
