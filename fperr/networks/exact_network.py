"""The exact network at the samples of a batch: each sample climbs a ladder of engines."""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fperr import reasons
from fperr.errors import ReferenceNotCertifiedError, SingularGradientError, UndecidedError
from fperr.exact.engines.base import ExactEngine, ExactPoint, NoExactPoint
from fperr.exact.engines.cost import announce_balls
from fperr.exact.engines.gradient import GradientAtSample, LossAtSample
from fperr.exact.engines.ladder import Ladder
from fperr.exact.engines.scaled import Vector
from fperr.exact.engines.vectors import Vectors
from fperr.exact.graph import Capture, called_in, probe
from fperr.exact.precision import Certainty, certainty
from fperr.memory import in_pieces
from fperr.networks.in_format import FormatNetwork
from fperr.vocabulary import EngineName

_FEWEST_CLASSES = 2
_FEWER_BITS = 10  # that the rows of J may have than a gradient needs


@dataclass(frozen=True, slots=True)
class NoExactSample:
    """A sample without an exact network.

    Attributes:
        reason: Reason in words, as `fperr.reasons` has them.
        is_certified: False where a certificate was attempted; None where there was nothing to
            certify.
    """

    reason: str
    is_certified: bool | None = False


class ExactSample:
    """The exact network at one sample, by one engine.

    Args:
        engine: The engine.
        rung: Its rung.
        point: Its result at the sample.

    Attributes:
        z: The K exact logits.
        order: Classes by descending logit.
    """

    def __init__(self, engine: ExactEngine[Any], rung: int, point: ExactPoint[Any, Any]) -> None:
        self.engine, self.rung, self.point, self.z = engine, rung, point, point.z
        self.order = sorted(range(len(self.z)), key=lambda i: -self.z[i])

    @property
    def vectors(self) -> Vectors[Any]:
        """The vectors of its gradients."""
        return self.engine.vectors

    @cached_property
    def logits(self) -> Tensor:
        """The logits (1, K), rounded to float64."""
        return torch.tensor([[float(value) for value in self.z]], dtype=torch.float64)

    @property
    def row_log2_norms(self) -> list[float]:
        """log2 of the norms of the rows of J, all of which must have been computed."""
        norms = self.point.map.log2_norms
        assert norms is not None
        return norms


@dataclass(frozen=True, slots=True)
class ExactProduct:
    """An exact vector J^T v at a sample.

    Attributes:
        vectors: Arithmetic of the product.
        product: (1, entries).
        log2_error: log2 of its relative error in norm, a bound or an estimate.
        is_proved: Whether the error is a proved bound.
    """

    vectors: Vectors[Any]
    product: Vector
    log2_error: float
    is_proved: bool

    def has_bits(self, bits: float) -> bool:
        """Whether the vector is correct to so many bits, in norm."""
        return self.log2_error <= -bits

    def certainty(self, bits: float) -> Certainty:
        """What is known of so many bits of the vector."""
        return certainty(self.log2_error, bits, is_proved=self.is_proved)


class SampleLadder:
    """The exact network at one sample, on the rungs that it has reached.

    Args:
        network: The exact network.
        x: Input (1, *shape).
    """

    def __init__(self, network: "ExactNetwork", x: Tensor) -> None:
        self._network, self._x = network, x
        self._by_rung: dict[int, ExactSample | NoExactSample] = {}

    def add(self, rung: int, sample: ExactSample | NoExactSample) -> None:
        """The result of a rung."""
        self._by_rung[rung] = sample

    def reaches(self, bits: float) -> bool:
        """Whether a computed rung gives the rows of J so many bits, or says that none can."""
        samples = self._samples(bits)
        if any(isinstance(s, NoExactSample) and s.is_certified is None for s in samples):
            return True
        return any(_has_bits(sample, bits) for sample in samples)

    @property
    def lowest(self) -> ExactSample | NoExactSample:
        """The cheapest rung with a result; or why the last one has none."""
        samples = [self._by_rung[rung] for rung in sorted(self._by_rung)]
        found = (sample for sample in samples if isinstance(sample, ExactSample))
        return next(found, samples[-1])

    def first(self, bits: float) -> ExactSample | NoExactSample:
        """The cheapest rung with so many bits, or the last one."""
        samples = self._samples(bits)
        enough = (sample for sample in samples if _has_bits(sample, bits))
        # a rung without so many bits is better than none
        fallback = next((s for s in reversed(samples) if isinstance(s, ExactSample)), self.lowest)
        return next(enough, fallback)

    def gradient(
        self,
        loss: LossAtSample,
        bits: float,
        needed: Callable[[Vectors[Any], Vector], float] | None = None,
    ) -> tuple[ExactSample, GradientAtSample | None]:
        """The gradient of a loss, from the cheapest rung that gives it so many bits.

        Args:
            loss: The loss.
            bits: The most bits that are needed.
            needed: Function that says how many bits of a gradient are needed; None: all of them.

        Returns:
            The sample on the last rung that was tried, and its gradient, which may have fewer bits;
            None where it is undefined or undecided.
        """
        sample = self.first(bits)
        assert isinstance(sample, ExactSample)
        found: tuple[ExactSample, GradientAtSample | None] = sample, None
        climbing: ExactSample | None = sample
        while climbing is not None:
            if not loss.is_defined_at(climbing.vectors.context, climbing.z):
                return climbing, None
            try:
                gradient = climbing.engine.gradient(climbing.point, loss, bits)
                found = climbing, gradient
                enough = bits if needed is None else needed(climbing.vectors, gradient.gradient)
                if gradient.has_bits(enough):
                    return found
            except (UndecidedError, ReferenceNotCertifiedError):
                pass  # the next rung may decide it
            climbing = self._above(climbing.rung)
        return found

    def product(self, v: Tensor, bits: float) -> ExactProduct | None:
        """J^T v of a floating-point v (K,), taken exactly; None where it is undecided."""
        climbing, found = self.first(bits), None
        while isinstance(climbing, ExactSample):
            try:
                product, error, is_proved = climbing.engine.product(climbing.point, v)
                found = ExactProduct(climbing.vectors, product, error, is_proved)
                if error <= -bits:
                    return found
            except (UndecidedError, ReferenceNotCertifiedError):
                pass  # the next rung may decide it
            above = self._above(climbing.rung)
            if above is None:
                break
            climbing = above
        return found

    def _samples(self, bits: float) -> list[ExactSample | NoExactSample]:
        """The results of the rungs that may give so many bits, from the cheapest."""
        least = self._network.ladder.first(bits)
        return [self._by_rung[rung] for rung in sorted(self._by_rung) if rung >= least]

    def _above(self, rung: int) -> ExactSample | None:
        """The sample on the next rung above that has a result; computed where it was not."""
        for above in range(rung + 1, len(self._network.ladder.names)):
            if above not in self._by_rung:
                self._network.climb([self], [self._x], above)
            sample = self._by_rung[above]
            if isinstance(sample, ExactSample):
                return sample
        return None


class ExactNetwork:
    """The exact network, on a ladder of engines.

    Args:
        network: The model in its own dtype.
        x: Inputs, of which the first gives the shape.
        engines: Names of the engines, from the cheapest.
        bits: The most bits that are required of a gradient.
        by_rows: Compute every row of J, instead of one product for each gradient.
        max_seconds: Seconds from now after which no more balls are computed; None: no limit.
    """

    def __init__(
        self,
        network: FormatNetwork,
        x: Tensor,
        engines: Sequence[EngineName],
        bits: int,
        *,
        by_rows: bool,
        max_seconds: float | None = None,
    ) -> None:
        self.network = network
        self.capture: Capture = network.capture(x[:1])
        self.ladder = Ladder(self.capture, engines, bits, x.device, by_rows=by_rows)
        self._max_seconds = max_seconds
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self.time_is_up = False  # for a sample that needed balls
        self._uses = Counter[int]()
        self._samples = 0

    @property
    def description(self) -> str:
        """The engines that were used, and for how many samples."""
        parts = [
            f"{self.ladder.engine(rung).name} for {count} of {self._samples} samples"
            for rung, count in sorted(self._uses.items())
            if count
        ]
        return "; ".join(parts) or self.ladder.engine(0).name

    def pieces(self, samples: int) -> Iterator[slice]:
        """A batch in pieces that are computed together."""
        return self.ladder.engine(0).pieces(samples)

    def samples(
        self, x: Tensor, needs: Sequence[int], advance: Callable[[], object]
    ) -> list[SampleLadder | NoExactSample]:
        """The exact network at each sample of x (batch, *shape).

        Args:
            x: Inputs (batch, *shape).
            needs: Bits that are needed, each of which a sample climbs for.
            advance: Function that is called once for each sample.

        Raises:
            CaptureAuditError: eager run and graph differ at a sample.
            ContradictedError: PyTorch in float64 computes something else than the exact network.
        """
        samples: list[SampleLadder | NoExactSample] = []
        for piece in self.pieces(len(x)):
            found = in_pieces(lambda part: self._ladders(x[part], needs), _bounded(piece, len(x)))
            for ladder in itertools.chain.from_iterable(found):
                # why there is no result on any rung is said once, instead of the ladder
                lowest = ladder.lowest if isinstance(ladder, SampleLadder) else ladder
                samples.append(lowest if isinstance(lowest, NoExactSample) else ladder)
                advance()
        return samples

    def _ladders(self, x: Tensor, needs: Sequence[int]) -> list[SampleLadder | NoExactSample]:
        """The ladders of samples that are computed together, climbed as far as is needed."""
        model, singles = self.network.model, torch.split(x, 1)
        are_finite = x.isfinite().flatten(1).all(1).tolist()
        finite = [single for single, flag in zip(singles, are_finite, strict=True) if flag]
        with self.network.running():
            self.capture.audit_each(model, ((s, probe(model(s))) for s in finite))
        ladders: list[SampleLadder | NoExactSample] = [
            SampleLadder(self, single) if flag else NoExactSample(reasons.INPUT_NOT_FINITE, None)
            for single, flag in zip(singles, are_finite, strict=True)
        ]
        counts = self._samples, self._uses.copy()
        try:
            self._climb_all(ladders, x, needs)
        except torch.OutOfMemoryError:  # its halves are counted
            self._samples, self._uses = counts
            raise
        return ladders

    def _climb_all(
        self, ladders: Sequence[SampleLadder | NoExactSample], x: Tensor, needs: Sequence[int]
    ) -> None:
        """Climb, a rung at a time and together, until each sample has the bits that are needed."""
        self._samples += len(ladders)
        for rung in range(len(self.ladder.names)):
            wanted = [bits for bits in needs if self.ladder.first(bits) <= rung]
            climbing = [
                (ladder, x[i : i + 1])
                for i, ladder in enumerate(ladders)
                if isinstance(ladder, SampleLadder)
                and not all(ladder.reaches(bits) for bits in wanted)
            ]
            if climbing:
                self.climb([ladder for ladder, _ in climbing], [x for _, x in climbing], rung)

    def climb(self, ladders: Sequence[SampleLadder], x: Sequence[Tensor], rung: int) -> None:
        """Add the results of a rung.

        Args:
            ladders: Samples.
            x: Their inputs, (1, *shape) each.
            rung: Number of the rung.

        Raises:
            ContradictedError: PyTorch in float64 computes something else than the exact network.
        """
        engine = self.ladder.engine(rung)
        if self.ladder.names[rung] == "ball":
            if rung:
                classes = self.capture.shapes[self.capture.results[0].name][1]
                announce_balls(self.capture, len(ladders), classes if self.ladder.by_rows else 1)
            points = [self._in_time(engine, single) for single in x]
        else:
            points = engine.states(torch.cat(list(x)))
        for ladder, single, point in zip(ladders, x, points, strict=True):
            sample = self._sample(engine, rung, point, single)
            self._uses[rung] += isinstance(sample, ExactSample)
            ladder.add(rung, sample)

    def _in_time(self, engine: ExactEngine[Any], x: Tensor) -> ExactPoint[Any, Any] | NoExactPoint:
        """The point at x (1, *shape), or none where the time is up."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            self.time_is_up = True
            fault = f"balls were not computed, as max_seconds={self._max_seconds:g} were over"
            return NoExactPoint(ReferenceNotCertifiedError(fault))
        (point,) = engine.states(x)
        return point

    def _sample(
        self,
        engine: ExactEngine[Any],
        rung: int,
        point: ExactPoint[Any, Any] | NoExactPoint,
        x: Tensor,
    ) -> ExactSample | NoExactSample:
        """The sample x (1, *shape), from the point that the engine computed there."""
        if isinstance(point, ExactPoint):
            context = engine.vectors.context
            # a logit of -infinity is a class that the model masks
            present = [z for z in point.z if z != context.ninf]
            if not all(map(context.isfinite, present)):
                return NoExactSample(reasons.LOGITS_NOT_FINITE, None)
            if len(present) < _FEWEST_CLASSES:
                return NoExactSample(reasons.TOO_FEW_CLASSES, None)
            return ExactSample(engine, rung, point)
        fault = point.fault
        if isinstance(fault, SingularGradientError):
            with self.network.running():
                modules = called_in(fault.operation, self.network.model, x)
            return NoExactSample(reasons.infinite_slope(f"{fault.operation}{modules}"))
        return NoExactSample(reasons.not_certified(str(fault)))


def _has_bits(sample: ExactSample | NoExactSample, bits: float) -> bool:
    """Whether a sample is worth starting at: single gradients may need fewer bits, or climb."""
    return isinstance(sample, ExactSample) and sample.point.log2_error <= _FEWER_BITS - bits


def _bounded(piece: slice, samples: int) -> slice:
    """The piece with an end that is no further than the samples."""
    start, stop, _ = piece.indices(samples)
    return slice(start, stop)
