"""The public function for exact gradients: J^T v of an unmodified network to a stated accuracy."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from mpmath import MPContext
from numpy.typing import NDArray
from torch import Tensor, nn

from fperr import checks
from fperr.caller_state import in_neutral_state
from fperr.errors import ReferenceNotCertifiedError, SingularGradientError, UndecidedError
from fperr.exact.adaptive_precision import LARGEST_BITS as LARGEST_BALL_BITS
from fperr.exact.adaptive_precision import AdaptivePrecision
from fperr.exact.audit.function_of_sample import check_function_of_sample, check_repeatable
from fperr.exact.audit.samples import SampleAudit, audit_sample
from fperr.exact.double_word import LARGEST_BITS
from fperr.exact.double_word.numbers import DoubleWords
from fperr.exact.double_word_network import BatchedNetwork, log2_relative_errors, to_mpmath
from fperr.exact.graph import Capture, called_in, capture, logits_of, probe
from fperr.exact.interpreter import ForwardRun, Interpreter
from fperr.exact.mp import MpArithmetic, MpArray
from fperr.exact.singularities import check_regular
from fperr.vocabulary import ENGINES, EngineName

# Pairs of float64: up to this many bits, the coarser of two working precisions is enough on
# ordinary networks.
_FEW_BITS = 44
# Difference in bits to the second run, which must agree where the bound proves too few.
_RUNG = 22
# Largest log2 of the bound on the relative error at which agreement of two runs is accepted.
LEAST_BOUND = -8.0
MOST_DOUBLE_WORD_BITS = 96
_DEFAULT_BITS: dict[EngineName, int] = {"mpmath": 128, "ball": 128, "double_word": 80}
# Working precision above the bits that are claimed. Not a bound: the claim is checked.
GUARD_BITS = 40
SMALLEST_DIGITS = 4


@dataclass(frozen=True, slots=True, repr=False)
class ExactGradient:
    """A gradient in extended precision; it prints as one line.

    Attributes:
        midpoint: Gradient (batch, *shape), a NumPy array of `mpf`.
        radius: Proved error bounds, an array like `midpoint`: each exact number lies within its
            radius of its midpoint. None if the error of any sample is not proved.
        engine: Name and largest working precision of the arithmetic.
        bits: Correct bits required, relative to the norm of each sample's gradient.
        log2_error: Logarithm to base 2 of the largest relative error in norm of all samples. With
            radii, a proved bound; without, the difference to the same gradient at another
            precision: twice the bits for mpmath, 22 bits less for pairs of float64.
        audits: Comparison of each sample with PyTorch's own float64.
    """

    midpoint: NDArray[np.object_]
    radius: NDArray[np.object_] | None
    engine: str
    bits: int
    log2_error: float
    audits: tuple[SampleAudit, ...]

    def __repr__(self) -> str:
        if math.isfinite(self.log2_error):
            certain = f"{math.floor(-self.log2_error)} bits"
        else:
            certain = "all bits"
        how = "agree with another precision" if self.radius is None else "proved"
        return f"ExactGradient(shape {self.midpoint.shape}, {certain} {how}, {self.engine})"

    @in_neutral_state
    def to_torch(self) -> Tensor:
        """The nearest float64 tensor, (batch, *shape), on the CPU."""
        return MpArithmetic(53).to_torch(self.midpoint)


def log2_difference(a: MpArray, b: MpArray, arithmetic: MpArithmetic) -> float:
    """Compute log2(|a - b|_2/|b|_2) in `arithmetic`; -inf if a and b are equal."""
    difference, low = arithmetic.to_scaled(arithmetic.sub(a, b))
    reference, high = arithmetic.to_scaled(b)
    if not difference.any():
        return -math.inf
    if not reference.any():
        return math.inf
    norms = torch.linalg.vector_norm(difference), torch.linalg.vector_norm(reference)
    return math.log2(float(norms[0] / norms[1])) + low - high


@in_neutral_state
def gradient(
    model: nn.Module,
    x: Tensor,
    v: Tensor,
    *,
    engine: EngineName = "ball",
    digits: int | None = None,
    largest_digits: int | None = None,
) -> ExactGradient:
    """Compute J^T v exactly: the vector-Jacobian product, at x, of the network that PyTorch runs.

    J is the Jacobian of the logits with respect to the input. At kinks (of a ReLU at 0, say) the
    derivative is the one that PyTorch takes. Every sample is computed by itself, and every result
    is compared with PyTorch's own in float64 (see `fperr.exact.audit.samples`).

    - `"ball"` proves its result: it raises the working precision until `digits` digits are proved,
      relative to the norm.
    - `"mpmath"` works at 40 bits more than `digits` and again at twice that; the two results must
      agree to `digits`.
    - `"double_word"` computes whole batches in pairs of float64, on x's device, with an upper bound
      on each sample's error. If the bound proves fewer than `digits`, a run at 22 bits less must
      agree to `digits`. Samples for which it does not, and samples with a comparison closer than
      the bound, are computed by balls.

    Args:
        model: Module in evaluation mode that maps (batch, *shape) to logits (batch, K).
        x: Inputs (batch, *shape), in the model's dtype; taken exactly.
        v: Cotangents (batch, K), any floating-point dtype; taken exactly.
        engine: `"ball"`, `"mpmath"` or `"double_word"`.
        digits: Correct decimal digits required, relative to the norm of each sample's gradient: 4
            or more. By default 38 (128 bits); for pairs of float64 24 (80 bits), and 28 at most.
        largest_digits: Working precision at which `"ball"` gives up, in decimal digits; by default
            2,466.

    Returns:
        The gradients (batch, *shape) with bounds on their errors.

    Raises:
        TypeError, ValueError: Unknown engine, too few digits, or v does not fit the logits.
        ModelError, UnsupportedOperationError, CaptureAuditError: As `capture`.
        ReferenceNotCertifiedError: The digits cannot be reached: a comparison of a ReLU or of a
            pooling is too close, or too many bits are lost; says where.
        SingularGradientError: The gradient is infinite or undefined at a sample; says where.
        ContradictedError: PyTorch in float64 computes something else than the exact network.
        InexactProductError: Float64 products on x's device are not exact.

    Example:
        The Jacobian of a linear layer is its weight, and row i of the identity selects row i of it.

        >>> import torch
        >>> from fperr import exact
        >>> model = torch.nn.Linear(4, 3).eval()
        >>> result = exact.gradient(model, torch.rand(2, 4), torch.eye(3)[:2])
        >>> result
        ExactGradient(shape (2, 4), all bits proved, Arb balls, ... bits)
        >>> torch.equal(result.to_torch(), model.weight[:2].double())
        True
    """
    checks.choice("engine", engine, ENGINES)
    bits, largest_bits = _required_bits(engine, digits, largest_digits)
    x, v = checks.inputs("x", x), checks.inputs("v", v)
    for name, values in (("x", x), ("v", v)):
        if not bool(values.isfinite().all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity: leave those samples out")
    model = checks.model("model", model)
    logits = functools.partial(logits_of, model)
    check_repeatable(logits, x)
    captured = capture(model, x[:1])
    classes = captured.shapes[captured.results[0].name][1]
    if v.shape != (len(x), classes) or not v.is_floating_point():
        raise ValueError(
            f"v must be floating point of shape ({len(x)}, {classes}), like the logits; "
            f"got {v.dtype} of shape {tuple(v.shape)}: give one row a sample"
        )
    check_function_of_sample(logits, x, captured.depth, torch.finfo(x.dtype).eps / 2)
    for i in range(len(x)):
        captured.audit(model, x[i : i + 1], probe(logits(x[i : i + 1])))
    try:
        return _by_engine(engine, captured, x, v, bits, largest_bits)
    except SingularGradientError as fault:
        raise fault.within(called_in(fault.operation, model, x[:1])) from None


def _required_bits(
    engine: EngineName, digits: int | None, largest_digits: int | None
) -> tuple[int, int]:
    """Correct bits, and the largest working precision in bits."""
    bits, largest_bits = _DEFAULT_BITS[engine], LARGEST_BALL_BITS
    if digits is not None:
        bits = _bits(checks.whole_number("digits", digits, SMALLEST_DIGITS))
    if largest_digits is not None:
        least = SMALLEST_DIGITS if digits is None else digits
        largest_bits = _bits(checks.whole_number("largest_digits", largest_digits, least))
    if engine == "double_word" and bits > MOST_DOUBLE_WORD_BITS:
        most = math.floor(MOST_DOUBLE_WORD_BITS * math.log10(2))
        raise ValueError(
            f"engine='double_word' gives at most {most} digits, got digits={digits}: use "
            "engine='ball' for more"
        )
    return bits, largest_bits


def _bits(digits: int) -> int:
    """The least number of bits that hold so many decimal digits."""
    return math.ceil(digits * math.log2(10))


def _by_engine(
    engine: str, captured: Capture, x: Tensor, v: Tensor, bits: int, largest_bits: int
) -> ExactGradient:
    if engine == "mpmath":
        return _by_two_precisions(captured, x, v, bits)
    certifier = AdaptivePrecision(captured, bits, largest_bits)
    if engine == "double_word":
        return _in_double_words(captured, x, v, bits, certifier)
    enclosures = [certifier.product(x[i : i + 1], v[i : i + 1], i) for i in range(len(x))]
    return ExactGradient(
        np.stack([enclosure.midpoint.reshape(x.shape[1:]) for enclosure in enclosures]),
        np.stack([enclosure.radius.reshape(x.shape[1:]) for enclosure in enclosures]),
        f"Arb balls, {max(enclosure.bits for enclosure in enclosures)} bits",
        bits,
        max(enclosure.log2_error for enclosure in enclosures),
        _all_audited([enclosure.audit for enclosure in enclosures]),
    )


def _all_audited(audits: Sequence[SampleAudit | None]) -> tuple[SampleAudit, ...]:
    audited = tuple(audit for audit in audits if audit is not None)
    assert len(audited) == len(audits)
    return audited


def _by_two_precisions(captured: Capture, x: Tensor, v: Tensor, bits: int) -> ExactGradient:
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
    agreement = max(log2_difference(a.gradient, b.gradient, control) for a, b in pairs)
    if agreement > -bits:
        raise ReferenceNotCertifiedError(
            f"{working.name} and {control.name} agree to {-agreement:.1f} bits only, {bits} were "
            "asked for. Ask for more bits: a decision of a ReLU or of a pooling may be close"
        )
    # The run at the higher precision is audited: the error of its logits is smaller than the
    # difference of the two runs' logits.
    audits = [
        b.audit(x[i : i + 1], v[i : i + 1], i, control.distance(a.logits, b.logits))
        for i, (a, b) in enumerate(pairs)
    ]
    midpoint = np.concatenate([run.gradient for run in runs], 0).reshape(x.shape)
    return ExactGradient(midpoint, None, working.name, bits, agreement, tuple(audits))


def _in_double_words(
    captured: Capture, x: Tensor, v: Tensor, bits: int, certifier: AdaptivePrecision
) -> ExactGradient:
    working = 63 if bits <= _FEW_BITS else LARGEST_BITS
    network = BatchedNetwork(captured, working, x.device)
    double_words, doubt, audits = network.audited_gradient(x, v)
    bounds = torch.where(doubt, math.inf, log2_relative_errors(double_words))
    unproved = (bounds > -bits) & (bounds <= LEAST_BOUND)
    errors = bounds.clone()
    if unproved.any():
        coarser = BatchedNetwork(captured, working - _RUNG, x.device, is_control=True)
        errors[unproved] = _agreement(double_words, coarser, x, v, unproved)
    context = MPContext()
    context.prec = 2 * LARGEST_BITS
    midpoint = to_mpmath(double_words, context).reshape(x.shape)
    radius = [
        np.full(x.shape[1:], context.mpf(float(r)), dtype=object) for r in double_words.radius
    ]
    by_balls = torch.nonzero(~(errors <= -bits)).flatten().tolist()
    for i in by_balls:
        proved = certifier.product(x[i : i + 1], v[i : i + 1], i)
        audits[i] = proved.audit
        midpoint[i] = proved.midpoint.reshape(x.shape[1:])
        radius[i] = proved.radius.reshape(x.shape[1:])
        errors[i], unproved[i] = proved.log2_error, False
    name = network.arithmetic.name
    if by_balls:
        name += f", and balls for {len(by_balls)} of {len(x)} samples"
    radii = None if bool(unproved.any()) else np.stack(radius)
    return ExactGradient(midpoint, radii, name, bits, float(errors.max()), _all_audited(audits))


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
    log2_differences = torch.log2(difference.norm() / selected.norm()).nan_to_num(nan=math.inf)
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
