"""A captured network in pairs of float64: batches at once, in pieces that fit into memory."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from mpmath import MPContext
from mpmath.libmp import from_float, mpf_add
from numpy.typing import NDArray
from torch import Tensor

from fperr.exact.audit.samples import SampleAudit, audit_values
from fperr.exact.double_word import LARGEST_BITS, DoubleWordArithmetic
from fperr.exact.double_word.device_checks import check_device
from fperr.exact.double_word.numbers import DoubleWords
from fperr.exact.graph import Capture
from fperr.exact.interpreter import ForwardRun, Interpreter, SavedValues

MEMORY = 1 << 31  # bytes that a piece of a batch may take
_MOST_SAMPLES = 64
_BYTES = 32  # of a number: high, low, both residues of its value number
_WORKING_ARRAYS = 24  # float64 arrays as large as the largest of the network, during a product


@dataclass(frozen=True, slots=True)
class BatchRun:
    """A forward run of a batch.

    Attributes:
        run: shapes are those of one sample; every array has a leading dimension of samples.
        samples: how many.
    """

    run: ForwardRun
    samples: int


class BatchedNetwork:
    """The captured network, for batches.

    Args:
        capture: the network, for one sample.
        bits: accuracy of the products of matrices: 32 to 106.
        device: where to compute.
        memory: bytes that a piece of a batch may take.
        is_control: see `DoubleWordArithmetic`.

    Raises:
        InexactProductError: float64 products on the device are not plain ones.
    """

    def __init__(
        self,
        capture: Capture,
        bits: int = LARGEST_BITS,
        device: torch.device | str = "cpu",
        memory: int = MEMORY,
        *,
        is_control: bool = False,
    ) -> None:
        self.arithmetic = DoubleWordArithmetic(bits, device, is_control=is_control)
        check_device(self.arithmetic.device)
        self.interpreter = Interpreter(capture, self.arithmetic)
        # what the constants of the network leave open concerns every sample
        self._is_open = bool(self.arithmetic.in_doubt(1))
        self.at_once = samples_at_once(capture, memory)

    def pieces(self, samples: int) -> Iterator[slice]:
        """A batch in pieces that fit into memory."""
        for start in range(0, samples, self.at_once):
            yield slice(start, min(start + self.at_once, samples))

    def forward(self, x: Tensor) -> BatchRun:
        """Logits and readings at x (samples, *shape)."""
        run = self.interpreter.forward_from(self.arithmetic.from_samples(x[:, None]))
        return BatchRun(run, len(x))

    def in_doubt(self, samples: int) -> Tensor:
        """(samples,): where a decision has been left open since the last call."""
        return self.arithmetic.in_doubt(samples) | self._is_open

    def pullback(self, saved_values: SavedValues, v: DoubleWords) -> DoubleWords:
        """J^T v of every sample: (entries,) for v (1, K)."""
        g: DoubleWords = self.interpreter.pullback(saved_values, v)
        return self.arithmetic.reshape(g, (math.prod(g.shape),))

    def gradient(self, x: Tensor, v: Tensor) -> tuple[DoubleWords, Tensor]:
        """J^T v of a batch, (samples, entries), and which samples have a decision left open.

        Args:
            x: (samples, *shape), floating point, taken exactly.
            v: (samples, K), the same.
        """
        product, doubt, _ = self._gradient(x, v, is_audited=False)
        return product, doubt

    def audited_gradient(
        self, x: Tensor, v: Tensor
    ) -> tuple[DoubleWords, Tensor, list[SampleAudit | None]]:
        """`gradient`, with the audit of every sample that has no decision left open, and a bound.

        Raises:
            ContradictedError: PyTorch in float64 computes something else.
        """
        return self._gradient(x, v, is_audited=True)

    def _gradient(
        self, x: Tensor, v: Tensor, *, is_audited: bool
    ) -> tuple[DoubleWords, Tensor, list[SampleAudit | None]]:
        parts, doubts, audits = [], [], list[SampleAudit | None]()
        for piece in self.pieces(len(x)):
            self.arithmetic.forget_doubts()
            found = self.forward(x[piece])
            product = self.pullback(
                found.run.saved_values, self.arithmetic.from_samples(v[piece][:, None])
            )
            product = of_all(product, found.samples)
            doubt = self.in_doubt(found.samples)
            parts.append(product)
            doubts.append(doubt)
            if is_audited:
                is_known = ~doubt & product.radius.isfinite()
                audits += self.audits(found, x[piece], v[piece], product, is_known, piece.start)
        whole = [torch.cat([getattr(p, n) for p in parts]) for n in ("high", "low", "radius")]
        return DoubleWords(whole[0], whole[1], whole[2], None), torch.cat(doubts), audits

    def audits(
        self,
        batch: BatchRun,
        x: Tensor,
        v: Tensor,
        gradient: DoubleWords,
        is_known: Tensor,
        first: int = 0,
    ) -> list[SampleAudit | None]:
        """The audit of a run at x: see `audit_values`.

        Args:
            batch: the run.
            x: (samples, *shape).
            v: (samples, K).
            gradient: J^T v (samples, entries).
            is_known: (samples,), which samples have no decision left open, and a bound.
            first: the number of the first sample, for the error.
        """
        if not bool(is_known.any()):
            return [None] * len(x)
        values = (gradient.high + gradient.low).flatten(1)
        audits = audit_values(
            self.interpreter,
            batch.run,
            x,
            v,
            (values, torch.zeros(len(x), dtype=torch.int64)),
            off=gradient.radius.expand(len(x)),
            is_known=is_known,
            names=range(first, first + len(x)),
        )
        self.arithmetic.forget_doubts()  # those of what the audit asked
        return audits


def of_all(a: DoubleWords, samples: int) -> DoubleWords:
    """The array with one entry for each sample, where it may be the same for all."""
    wide = a.moved(lambda t: t.expand(samples, *t.shape[1:]))
    return replace(wide, radius=a.radius.expand(samples))


def log2_relative_errors(a: DoubleWords) -> Tensor:
    """(samples,): log2 of bounds on |error|/|number|; inf where there is none."""
    norm = torch.linalg.vector_norm(a.high.reshape(len(a.high), -1), dim=1)
    least = norm * (1 - 2.0**-20) - a.radius
    relative = torch.where(least > 0, a.radius / least, torch.inf)
    relative = torch.where(a.radius == 0, 0.0, relative)
    return torch.log2(relative.nan_to_num(nan=math.inf, posinf=math.inf))


def to_mpmath(a: DoubleWords, context: MPContext) -> NDArray[np.object_]:
    """The numbers (samples, *shape) as `mpf` of a context, exactly."""
    pairs = zip(a.high.flatten().tolist(), a.low.flatten().tolist(), strict=True)
    numbers = [context.make_mpf(mpf_add(from_float(h), from_float(low))) for h, low in pairs]
    found = np.empty(len(numbers), dtype=object)
    found[:] = numbers
    return found.reshape(tuple(a.high.shape))


def samples_at_once(capture: Capture, memory: int) -> int:
    """How many samples fit: all values of the forward half, and the arrays of one product."""
    sizes = [int(np.prod(shape)) for shape in capture.shapes.values()]
    each = _BYTES * sum(sizes) + 8 * _WORKING_ARRAYS * max(sizes)
    return int(min(max(memory // each, 1), _MOST_SAMPLES))
