"""J^T v of a batch by each engine, and the climb from the cheapest to the one that proves it."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from mpmath import MPContext
from numpy.typing import NDArray
from torch import Tensor

from fperr.errors import ReferenceNotCertifiedError, UndecidedError
from fperr.exact.audit.samples import SampleAudit, audit_sample
from fperr.exact.double_word import LARGEST_BITS
from fperr.exact.double_word.numbers import DoubleWords
from fperr.exact.double_word_network import BatchedNetwork, log2_relative_errors, to_mpmath
from fperr.exact.engines.cost import announce_balls
from fperr.exact.interpreter import ForwardRun, Interpreter
from fperr.exact.mp import MpArithmetic, MpArray
from fperr.exact.precision import GUARD_BITS, LEAST_BOUND, log2_difference
from fperr.exact.prepared import PreparedNetwork
from fperr.exact.singularities import check_regular
from fperr.vocabulary import EngineName

# Pairs of float64: up to this many bits, the coarser of two working precisions is enough on
# ordinary networks; where it is not, the finer one is still far cheaper than balls.
_FEW_BITS = 44
# Difference in bits to the second run, which must agree where the bound proves too few.
_RUNG = 22


@dataclass(frozen=True, slots=True)
class RungGradients:
    """J^T v of some samples by one engine.

    Attributes:
        name: Name and working precision of the engine.
        numbers: (samples, entries): float64, or `mpf`.
        radii: (samples, entries) `mpf`, upper bounds on the errors; None where nothing is proved.
        log2_errors: log2 of each sample's relative error in norm; inf where there is no result.
        are_proved: For each sample, whether that is a proved bound.
        audits: What PyTorch's float64 says of each sample; None where there is no result.
    """

    name: str
    numbers: Tensor | NDArray[np.object_]
    radii: NDArray[np.object_] | None
    log2_errors: list[float]
    are_proved: list[bool]
    audits: list[SampleAudit | None]


@dataclass(frozen=True, slots=True)
class Cotangents:
    """The products that are asked for.

    Attributes:
        network: The network, with its arithmetics.
        x: (samples, *shape), taken exactly.
        v: (samples, K), taken exactly.
        samples: Numbers of the samples, for errors.
        bits: Correct bits required.
        largest_bits: Working precision at which balls give up.
    """

    network: PreparedNetwork
    x: Tensor
    v: Tensor
    samples: list[int]
    bits: int
    largest_bits: int

    def of(self, positions: list[int]) -> "Cotangents":
        """Some of the samples, by their positions."""
        numbers = [self.samples[i] for i in positions]
        return replace(self, x=self.x[positions], v=self.v[positions], samples=numbers)


def climbed(
    asked: Cotangents, engines: Sequence[EngineName]
) -> list[tuple[list[int], RungGradients]]:
    """The products, from the cheapest engine that gives each sample the bits.

    Args:
        asked: Products that are asked for.
        engines: Engines, from the cheapest.

    Returns:
        For each engine that settled some samples, the positions of all that it computed and its
        results; a later one holds for a sample that several have computed.

    Raises:
        ReferenceNotCertifiedError: The last engine does not give the bits.
        SingularGradientError: A gradient is infinite or undefined.
        ContradictedError: PyTorch in float64 computes something else.
    """
    found, pending = list[tuple[list[int], RungGradients]](), list(range(len(asked.x)))
    for engine in engines:
        if engine == "ball" and found:
            announce_balls(asked.network.capture, len(pending), 1)
        for run, most_bits in _RUNS[engine]:
            if asked.bits > most_bits:
                continue
            gradients = run(asked.of(pending))
            found.append((pending, gradients))
            errors = zip(pending, gradients.log2_errors, strict=True)
            pending = [i for i, error in errors if not error <= -asked.bits]
            if not pending:
                return found
    return found


def _in_float64(asked: Cotangents) -> RungGradients:
    """Plain float64, with float32 beside it."""
    agreed = asked.network.monitored.gradient(
        asked.x, asked.v.to(torch.float64), is_audited=True, names=asked.samples
    )
    return RungGradients(
        "float64, errors by agreement with float32",
        agreed.gradient,
        None,
        agreed.log2_error.tolist(),
        [False] * len(asked.x),
        list(agreed.audits),
    )


def _in_pairs(asked: Cotangents, working: int) -> RungGradients:
    """Pairs of float64; a run with fewer bits where the bound shows too few."""
    x, v, bits = asked.x, asked.v, asked.bits
    network = asked.network.double_words(working)
    double_words, doubt, audits = network.audited_gradient(x, v, asked.samples)
    bounds = torch.where(doubt, math.inf, log2_relative_errors(double_words))
    unproved = (bounds > -bits) & (bounds <= LEAST_BOUND)
    errors = bounds.clone()
    if unproved.any():
        coarser = asked.network.double_words(working - _RUNG, is_control=True)
        errors[unproved] = _agreement(double_words, coarser, x, v, unproved)
    context = MPContext()
    context.prec = 2 * LARGEST_BITS
    midpoints = to_mpmath(double_words, context).reshape(len(x), -1)
    radii = [
        np.full(midpoints.shape[1], context.mpf(radius), dtype=object)
        for radius in double_words.radius.tolist()
    ]
    are_proved = (~unproved).tolist()
    return RungGradients(
        network.arithmetic.name, midpoints, np.stack(radii), errors.tolist(), are_proved, audits
    )


def _in_balls(asked: Cotangents) -> RungGradients:
    """Balls, at the precision that proves the bits."""
    certifier = asked.network.balls(asked.bits, asked.largest_bits)
    enclosures = [
        certifier.product(asked.x[i : i + 1], asked.v[i : i + 1], number)
        for i, number in enumerate(asked.samples)
    ]
    return RungGradients(
        f"Arb balls, {max(enclosure.bits for enclosure in enclosures)} bits",
        np.stack([enclosure.midpoint.reshape(-1) for enclosure in enclosures]),
        np.stack([enclosure.radius.reshape(-1) for enclosure in enclosures]),
        [enclosure.log2_error for enclosure in enclosures],
        [True] * len(enclosures),
        [enclosure.audit for enclosure in enclosures],
    )


def _in_mpmath(asked: Cotangents) -> RungGradients:
    """mpmath at two precisions, which must agree."""
    captured, x, v, bits = asked.network.capture, asked.x, asked.v, asked.bits
    working, control = MpArithmetic(bits + GUARD_BITS), MpArithmetic(2 * (bits + GUARD_BITS))
    try:
        runs = _samples(Interpreter(captured, working), x, v)
        control_runs = _samples(Interpreter(captured, control), x, v)
    except UndecidedError as fault:
        raise ReferenceNotCertifiedError(f"{fault}: use engine='ball'") from fault
    if control.has_absorbed:
        raise ReferenceNotCertifiedError(
            f"a number vanishes beside a constant at {control.bits} bits, so that agreement with "
            f"{working.bits} proves nothing (a function is saturated): use engine='ball'"
        )
    pairs = list(zip(runs, control_runs, strict=True))
    errors = [log2_difference(a.gradient, b.gradient, control) for a, b in pairs]
    agreement = max(errors)
    if agreement > -bits:
        raise ReferenceNotCertifiedError(
            f"{working.name} and {control.name} agree to {-agreement:.1f} bits only, {bits} were "
            "asked for. Ask for more bits: a decision of a ReLU or of a pooling may be close"
        )
    # The run at the higher precision is audited: the error of its logits is smaller than the
    # difference of the two runs' logits.
    audits = list[SampleAudit | None]()
    for i, (a, b) in enumerate(pairs):
        off = control.distance(a.logits, b.logits)
        audits.append(b.audit(x[i : i + 1], v[i : i + 1], asked.samples[i], off))
    numbers = np.concatenate([run.gradient for run in runs], 0).reshape(len(x), -1)
    return RungGradients(working.name, numbers, None, errors, [False] * len(x), audits)


def _agreement(
    double_words: DoubleWords, coarser: BatchedNetwork, x: Tensor, v: Tensor, is_unproved: Tensor
) -> Tensor:
    """Compute log2 of the relative differences of the unproved gradients to those of another run.

    Args:
        double_words: Gradients of all samples.
        coarser: Network of the other run.
        x: Inputs of all samples.
        v: Cotangents of all samples.
        is_unproved: Mask (batch,) of the samples to compare.

    Returns:
        A value for each unproved sample; inf where a branch is undecided.
    """
    other, doubt = coarser.gradient(x[is_unproved], v[is_unproved])
    selected = replace(
        double_words.moved(lambda t: t[is_unproved]), radius=double_words.radius[is_unproved]
    )
    difference = coarser.arithmetic.sub(selected, other)
    log2_differences = torch.log2(difference.norm() / selected.norm())
    log2_differences[log2_differences.isnan()] = math.inf
    return torch.where(doubt, math.inf, log2_differences)


@dataclass(frozen=True, slots=True)
class _MpRun:
    """A run of a sample in mpmath, and its gradient."""

    interpreter: Interpreter[MpArray]
    run: ForwardRun[MpArray]
    gradient: MpArray

    @property
    def logits(self) -> MpArray:
        """The logits (1, K)."""
        return self.run.logits

    def audit(self, x: Tensor, v: Tensor, sample: int, logits_off: float) -> SampleAudit:
        """See `audit_sample`."""
        return audit_sample(
            self.interpreter, self.run, x, v, self.gradient, sample, logits_off=logits_off
        )


def _samples(interpreter: Interpreter[MpArray], x: Tensor, v: Tensor) -> list[_MpRun]:
    """Run every sample by itself.

    Raises:
        SingularGradientError, ReferenceNotCertifiedError: a gradient is infinite or undefined.
    """
    A = interpreter.arithmetic
    runs = []
    for i in range(len(x)):
        run = interpreter.forward(x[i : i + 1])
        entering = A.from_torch(v[i : i + 1])
        gradient = interpreter.products(run.saved_values, entering)
        check_regular(interpreter, run, entering, gradient, i)
        if not A.is_finite(gradient):
            raise ReferenceNotCertifiedError(
                f"the gradient at sample {i} is infinite or undefined: leave the sample out"
            )
        runs.append(_MpRun(interpreter, run, gradient))
    return runs


# what an engine tries, one after the other, and the most bits that each is asked for
_RUNS: dict[EngineName, list[tuple[Callable[[Cotangents], RungGradients], float]]] = {
    "float64": [(_in_float64, math.inf)],
    "double_word": [
        (functools.partial(_in_pairs, working=63), _FEW_BITS),
        (functools.partial(_in_pairs, working=LARGEST_BITS), math.inf),
    ],
    "ball": [(_in_balls, math.inf)],
    "mpmath": [(_in_mpmath, math.inf)],
}
