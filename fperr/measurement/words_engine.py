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

from fperr.exact import choices
from fperr.exact.batched import BatchedNetwork, BatchRun, of_all, to_mpmath
from fperr.exact.engine import LEAST_BOUND
from fperr.exact.graph import Capture, probe
from fperr.exact.interpreter import ForwardRun, Readings
from fperr.exact.multiword import Words
from fperr.exact.multiword.decided import order_in_doubt
from fperr.exact.multiword.words import euclidean
from fperr.exact.routing import decisions_of
from fperr.exact.value_audit import SampleAudit
from fperr.measurement.engines import BallEngine, CoarserMap, Engine, State, Unknown
from fperr.measurement.maps import LinearMap, Products, WordRows
from fperr.measurement.vectors import Wide, WordVectors

_RUNG = 22  # bits below, where a run must agree if the bound proves too few bits
# Of the rows, whose sum may cancel; and of the logits, beyond: losses amplify their differences.
_GUARD_BITS, _MORE_OF_LOGITS = 4, 12


class CoarserProducts(CoarserMap):
    """J^T at one sample with fewer bits, run when it is asked for."""

    def __init__(self, network: BatchedNetwork, x: Tensor, vectors: WordVectors) -> None:
        self._network, self._x, self._vectors = network, x, vectors

    @property
    def is_open(self) -> bool:
        """See `CoarserMap`."""
        return self._run[1]

    @cached_property
    def _run(self) -> tuple[Readings, bool]:
        self._network.arithmetic.forget_doubts()
        readings = sample_of(self._network.forward(self._x).run.readings, 0)
        return readings, bool(self._network.in_doubt(1))

    def product(self, v: Wide) -> Wide:
        """See `LinearMap`."""
        found: Wide = Products(self._network.interpreter, self._run[0], self._vectors).product(v)
        return found


class WordsEngine(Engine):
    """Pairs of float64; balls for samples whose decisions or digits they cannot settle.

    Args:
        capture: the network, for one sample.
        vectors: of the measurement.
        bits: correct bits wanted, of logits and rows.
        working_bits: of the products.
        balls: for the other samples.
        by_rows: compute all rows of J.
    """

    def __init__(
        self,
        capture: Capture,
        vectors: WordVectors,
        bits: int,
        working_bits: int,
        balls: BallEngine,
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
        """See `Engine`; for how many samples there was more to do."""
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
        """See `Engine`."""
        return self._network.pieces(samples)

    def states(self, x: Tensor) -> list[State | Unknown]:
        """See `Engine`."""
        run, logits, rows, doubt = self._run(self._network, x)
        doubt |= order_in_doubt(logits)
        errors = [logits, *rows]
        bounds = _worst(errors)
        vacuous = ~(bounds <= LEAST_BOUND + _MORE_OF_LOGITS)
        doubt |= vacuous  # agreement means nothing there
        wide = ~doubt & (bounds > self._largest)
        if wide.any():
            errors, doubtful = self._by_difference(errors, x, wide)
            doubt |= doubtful | (wide & (_worst(errors) > self._largest))
        logits, *rows = errors
        audits = self._audits(run, rows, x, ~doubt)
        doubt |= torch.tensor([audit is None for audit in audits], device=doubt.device)
        self._samples += len(x)
        self._by_balls += int(doubt.sum())
        self._by_agreement += int((wide & ~doubt).sum())
        return [
            self._balls.state_if_known(x[i : i + 1])
            if audit is None
            else self._state(
                sample_of_run(run, i),
                logits.of(i),
                [r.of(i) for r in rows],
                x[i : i + 1],
                wide[i],
                audit,
            )
            for i, audit in enumerate(audits)
        ]

    def _audits(
        self, run: ForwardRun, rows: list[Words], x: Tensor, is_known: Tensor
    ) -> list[SampleAudit | None]:
        """Of the samples whose decisions and digits are settled, for a generic v."""
        A, network = self._network.arithmetic, self._network
        v = probe(x.new_empty((len(x), self._classes), dtype=torch.float64))
        if rows:
            terms = [A.mul(row, A.from_samples(v[:, k, None])) for k, row in enumerate(rows)]
            gradient = functools.reduce(A.add, terms)
        else:
            gradient = network.pullback(run.readings, A.from_samples(v[:, None]))
        gradient = of_all(gradient, len(x))
        # an infinite slope is for the balls to name
        is_known = is_known & gradient.high.flatten(1).isfinite().all(1)
        return network.audits(BatchRun(run, len(x)), x, v, gradient, is_known)

    def maps(self, states: Sequence[State], readings: Sequence[Readings]) -> list[LinearMap]:
        """See `Engine`."""
        mine = [i for i, s in enumerate(states) if s.interpreter is self._network.interpreter]
        found: dict[int, LinearMap] = {}
        if mine and self._by_rows:
            rows = self._jacobians(self._network, stacked([readings[i] for i in mine]), len(mine))
            for place, i in enumerate(mine):
                found[i] = WordRows(_matrix([r.of(place) for r in rows]), self._vectors)
        for i in mine if not self._by_rows else ():
            found[i] = Products(self._network.interpreter, readings[i], self._vectors)
        for i in set(range(len(states))) - set(mine):
            found[i] = self._balls.maps([states[i]], [readings[i]])[0]
        return [found[i] for i in range(len(states))]

    def _run(
        self, network: BatchedNetwork, x: Tensor
    ) -> tuple[ForwardRun, Words, list[Words], Tensor]:
        network.arithmetic.forget_doubts()
        run = network.forward(x).run
        rows = self._jacobians(network, run.readings, len(x)) if self._by_rows else []
        return run, of_all(run.logits, len(x)), rows, network.in_doubt(len(x))

    def _jacobians(self, network: BatchedNetwork, readings: Readings, samples: int) -> list[Words]:
        """Row k of every sample's Jacobian, (samples, entries), for each k."""
        identity = torch.eye(self._classes, dtype=torch.float64)[:, None, None]
        vectors = (network.arithmetic.from_samples(v) for v in identity)
        return [of_all(network.pullback(readings, v), samples) for v in vectors]

    def _by_difference(
        self, errors: list[Words], x: Tensor, wide: Tensor
    ) -> tuple[list[Words], Tensor]:
        """The arrays with the distance to the coarser run as their radius, where that is wide."""
        chosen = torch.nonzero(wide).flatten()
        _, logits, rows, doubt = self._run(self._coarser, x[chosen])
        found = []
        for mine, other in zip(errors, [logits, *rows], strict=True):
            part = mine.moved(lambda t: t[chosen])
            apart = self._coarser.arithmetic.sub(replace(part, radius=mine.radius[chosen]), other)
            radius = mine.radius.clone()
            radius[chosen] = apart.norm()
            found.append(replace(mine, radius=radius))
        doubtful = torch.zeros_like(wide)
        doubtful[chosen] = doubt
        return found, doubtful

    def _state(
        self,
        run: ForwardRun,
        logits: Words,
        rows: list[Words],
        x: Tensor,
        wide: Tensor,
        audit: SampleAudit,
    ) -> State:
        interpreter = self._network.interpreter
        matrix = _matrix(rows) if rows else None
        radius = float(logits.radius)
        decisions = decisions_of(interpreter.capture, run, interpreter.arithmetic)
        self._network.arithmetic.forget_doubts()
        return State(
            _one_for_equal(to_mpmath(logits, self._vectors.context), logits),
            math.log2(radius) if radius else -math.inf,
            run.readings,
            Products(interpreter, run.readings, self._vectors)
            if matrix is None
            else WordRows(matrix, self._vectors),
            interpreter,
            logits,
            matrix,
            decisions,
            not bool(wide),
            audit,
            None if rows else CoarserProducts(self._coarser, x, self._vectors),
        )


def sample_of_run(run: ForwardRun, sample: int) -> ForwardRun:
    """One sample of a batch's run: masks and indices become NumPy arrays."""
    values = {name: sample_of(value, sample) for name, value in run.values.items()}
    return ForwardRun(sample_of(run.logits, sample), sample_of(run.readings, sample), values)


def sample_of(value: Any, sample: int) -> Any:
    """One sample of an array, of a choice, or of several; what has none is left as it is."""
    if isinstance(value, Readings):
        return Readings({key: sample_of(part, sample) for key, part in value.values.items()})
    if isinstance(value, Words):
        return value.of(sample)
    if isinstance(value, Tensor):
        return value[sample if len(value) > 1 else 0].cpu().numpy()
    if isinstance(value, tuple | list):
        return [sample_of(part, sample) for part in value]
    return value


def stacked(readings: Sequence[Readings]) -> Readings:
    """The readings of single samples as those of a batch."""
    first, *others = (r.values for r in readings)
    return Readings({key: _joined([first[key], *(o[key] for o in others)]) for key in first})


def _joined(values: list[Any]) -> Any:
    first = values[0]
    if all(value is first for value in values):
        return first
    if isinstance(first, Words):
        parts = [torch.cat([getattr(v, n) for v in values]) for n in ("high", "low", "radius")]
        return Words(parts[0], parts[1], parts[2], None)
    if choices.is_choice(first):
        return torch.from_numpy(np.stack([np.asarray(v) for v in values]))
    return [_joined(list(parts)) for parts in zip(*values, strict=True)]


def _one_for_equal(numbers: NDArray[np.object_], logits: Words) -> list[Any]:
    """The numbers, with the first of those that are equal by construction for all of them."""
    assert logits.value_number is not None
    first: dict[int, Any] = {}
    identifiers = logits.value_number.identifiers().reshape(-1).tolist()
    pairs = zip(identifiers, numbers.reshape(-1), strict=True)
    return [first.setdefault(identifier, number) for identifier, number in pairs]


def _matrix(rows: list[Words]) -> Words:
    """The rows (entries,) of one sample as (K, entries)."""
    high, low = (torch.stack([getattr(r, n) for r in rows], 1) for n in ("high", "low"))
    return Words(high, low, euclidean(torch.stack([r.radius for r in rows]), 0), None)


def _worst(arrays: list[Words]) -> Tensor:
    """(samples,): log2 of the rows' relative error in all, or of the logits', if that is larger.

    The logits' counts as that many bits more.
    """
    logits, *rows = arrays
    present = replace(logits, high=torch.where(logits.high.isneginf(), 0.0, logits.high))
    found = logits.radius / present.norm() * 2.0**_MORE_OF_LOGITS  # masked classes apart
    if rows:
        radius = euclidean(torch.stack([r.radius for r in rows]), 0)
        size = torch.linalg.vector_norm(torch.stack([r.norm() for r in rows]), dim=0)
        found = torch.maximum(found, radius / size)
    return torch.log2(found.nan_to_num(nan=math.inf, posinf=math.inf))
