"""A captured network in pairs of float64: batches at once, in pieces that fit into memory."""

import copy
import functools
import math
from collections.abc import Iterator, Sequence
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

MEMORY = 1 << 31  # bytes for a piece of a batch
_MOST_SAMPLES = 64
_BYTES = 32  # of a number: high, low, and both residues of its value number
_WORKING_ARRAYS = 24  # float64 arrays as large as the largest of the network, during a product


@dataclass(frozen=True, slots=True)
class BatchRun:
    """A forward run of a batch.

    Attributes:
        run: The run. Shapes are those of a single sample; every array has a leading dimension of
            samples.
        undecided: (samples,) bool: samples with an undecided comparison, whose results mean
            nothing.
    """

    run: ForwardRun[DoubleWords]
    undecided: Tensor

    @property
    def samples(self) -> int:
        """The number of samples."""
        return len(self.undecided)


class BatchedNetwork:
    """The captured network, for batches.

    A network keeps nothing of a run: what a run leaves undecided is returned with its result, so
    that runs of the same network may follow or interleave in any order.

    Args:
        capture: Network, captured for a single sample.
        bits: Accuracy of matrix products in bits: 32 to 106.
        device: Device to compute on.
        memory: Bytes that a piece of a batch may take.
        is_control: See `DoubleWordArithmetic`.

    Attributes:
        arithmetic: Arithmetic of the network; it raises `UndecidedError` outside of runs.
        interpreter: Interpreter for readers of a result. It reports no undecided comparisons: use
            `forward` and `pullback` for new results.
        at_once: Number of samples in a piece.

    Raises:
        InexactProductError: Float64 products on the device are not plain ones.
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
        undecided = list[Tensor]()
        self.interpreter = Interpreter(capture, self.arithmetic.reporting(undecided.append))
        # constants of the network are the same for every sample: (1,)
        self._undecided_constants = self._any_of(undecided)
        self.interpreter.arithmetic = self.arithmetic.reporting(_ignore)
        self.at_once = samples_at_once(capture, memory)

    def pieces(self, samples: int) -> Iterator[slice]:
        """A batch in pieces that fit into memory."""
        for start in range(0, samples, self.at_once):
            yield slice(start, min(start + self.at_once, samples))

    def forward(self, x: Tensor) -> BatchRun:
        """Run the forward half at x (samples, *shape), taken exactly."""
        interpreter, undecided = self._for_run()
        run = interpreter.forward_from(self.arithmetic.from_samples(x[:, None]))
        samples = self._undecided_constants | self._any_of(undecided)
        return BatchRun(run, samples.expand(len(x)))

    def pullback(
        self, saved_values: SavedValues[DoubleWords], v: DoubleWords
    ) -> tuple[DoubleWords, Tensor]:
        """J^T v, (samples or 1, entries), and (samples or 1,) bool, what is undecided in it.

        What the forward half left undecided is not repeated.

        Args:
            saved_values: Values that the backward half uses.
            v: (samples or 1, 1, K).
        """
        interpreter, undecided = self._for_run()
        gradient: DoubleWords = interpreter.pullback(saved_values, v)
        entries = (math.prod(gradient.shape),)
        return self.arithmetic.reshape(gradient, entries), self._any_of(undecided)

    def gradient(self, x: Tensor, v: Tensor) -> tuple[DoubleWords, Tensor]:
        """J^T v of a batch, (samples, entries), and which samples are undecided, (samples,) bool.

        Args:
            x: (samples, *shape), floating point, taken exactly.
            v: (samples, K), floating point, taken exactly.
        """
        product, undecided, _ = self._gradient(x, v, None)
        return product, undecided

    def audited_gradient(
        self, x: Tensor, v: Tensor, names: Sequence[int] | None = None
    ) -> tuple[DoubleWords, Tensor, list[SampleAudit | None]]:
        """`gradient`, with the audit of every sample that is decided and has a finite radius.

        Args:
            x: See `gradient`.
            v: See `gradient`.
            names: Numbers of the samples, for errors; None: 0, 1, ...

        Raises:
            ContradictedError: PyTorch in float64 computes something else.
        """
        return self._gradient(x, v, range(len(x)) if names is None else names)

    def _gradient(
        self, x: Tensor, v: Tensor, names: Sequence[int] | None
    ) -> tuple[DoubleWords, Tensor, list[SampleAudit | None]]:
        products, undecided_of_pieces, audits = [], [], list[SampleAudit | None]()
        for piece in self.pieces(len(x)):
            forward = self.forward(x[piece])
            product, undecided = self.pullback(
                forward.run.saved_values, self.arithmetic.from_samples(v[piece][:, None])
            )
            product = of_all(product, forward.samples)
            undecided = forward.undecided | undecided
            products.append(product)
            undecided_of_pieces.append(undecided)
            if names is not None:
                is_usable = ~undecided & product.radius.isfinite()
                audits += self.audits(forward, x[piece], v[piece], product, is_usable, names[piece])
        high, low, radius = (
            torch.cat([getattr(product, name) for product in products])
            for name in ("high", "low", "radius")
        )
        return DoubleWords(high, low, radius, None), torch.cat(undecided_of_pieces), audits

    def audits(
        self,
        forward: BatchRun,
        x: Tensor,
        v: Tensor,
        gradient: DoubleWords,
        is_usable: Tensor,
        names: Sequence[int] | None = None,
    ) -> list[SampleAudit | None]:
        """The audit of a run at x: see `audit_values`.

        Args:
            forward: Forward run.
            x: (samples, *shape).
            v: (samples, K).
            gradient: J^T v (samples, entries).
            is_usable: (samples,) bool: samples that are decided and have a finite radius.
            names: Numbers of the samples, for errors; None: 0, 1, ...
        """
        if not bool(is_usable.any()):
            return [None] * len(x)
        values = (gradient.high + gradient.low).flatten(1)
        # the audit compares numbers of all samples where a single one is unclear in float64: what
        # is undecided then says nothing about the run, so `interpreter` does not report it
        return audit_values(
            self.interpreter,
            forward.run,
            x,
            v,
            (values, torch.zeros(len(x), dtype=torch.int64)),
            off=gradient.radius.expand(len(x)),
            is_usable=is_usable,
            names=names,
        )

    def _for_run(self) -> tuple[Interpreter[DoubleWords], list[Tensor]]:
        """An interpreter for a single run, and the list that its undecided samples go to."""
        undecided = list[Tensor]()
        interpreter = copy.copy(self.interpreter)
        interpreter.arithmetic = self.arithmetic.reporting(undecided.append)
        return interpreter, undecided

    def _any_of(self, undecided: list[Tensor]) -> Tensor:
        """(samples or 1,): which samples any of the comparisons leaves undecided."""
        nothing = torch.zeros(1, dtype=torch.bool, device=self.arithmetic.device)
        return functools.reduce(torch.logical_or, undecided, nothing)


def _ignore(undecided: Tensor) -> None:
    """Report nothing."""
    del undecided


def of_all(a: DoubleWords, samples: int) -> DoubleWords:
    """The array with an entry for every sample, also where a single entry stands for all."""
    expanded = a.moved(lambda t: t.expand(samples, *t.shape[1:]))
    return replace(expanded, radius=a.radius.expand(samples))


def log2_relative_errors(a: DoubleWords) -> Tensor:
    """(samples,): log2 of upper bounds on |error|_2/|number|_2; inf where there is none."""
    norm = torch.linalg.vector_norm(a.high.reshape(len(a.high), -1), dim=1)
    # a lower bound on the norm: 2^-20 covers the low words and the rounding of `vector_norm`
    least = norm * (1 - 2.0**-20) - a.radius
    relative = torch.where(least > 0, a.radius / least, torch.inf)
    relative = torch.where(a.radius == 0, 0.0, relative)
    return torch.log2(relative.nan_to_num(nan=math.inf, posinf=math.inf))


def to_mpmath(a: DoubleWords, context: MPContext) -> NDArray[np.object_]:
    """The numbers (samples, *shape) as `mpf` of a context, exactly."""
    pairs = zip(a.high.flatten().tolist(), a.low.flatten().tolist(), strict=True)
    numbers = [context.make_mpf(mpf_add(from_float(h), from_float(low))) for h, low in pairs]
    # filled in two steps, as `np.array` would look into the `mpf` for sequences
    array = np.empty(len(numbers), dtype=object)
    array[:] = numbers
    return array.reshape(tuple(a.high.shape))


def samples_at_once(capture: Capture, memory: int) -> int:
    """How many samples fit: all values of the forward half, and the arrays of a single product."""
    sizes = [int(np.prod(shape)) for shape in capture.shapes.values()]
    bytes_per_sample = _BYTES * sum(sizes) + 8 * _WORKING_ARRAYS * max(sizes)
    return int(min(max(memory // bytes_per_sample, 1), _MOST_SAMPLES))
