"""The public function for exact gradients: J^T v of an unmodified network to a stated accuracy."""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fperr import checks
from fperr.caller_state import in_neutral_state
from fperr.errors import SingularGradientError
from fperr.exact.adaptive_precision import LARGEST_BITS as LARGEST_BALL_BITS
from fperr.exact.audit.function_of_sample import check_function_of_sample, check_repeatable
from fperr.exact.audit.samples import SampleAudit
from fperr.exact.gradient_rungs import Cotangents, RungGradients, climbed
from fperr.exact.graph import called_in, logits_of, probe
from fperr.exact.mp import MpArithmetic
from fperr.exact.precision import (
    MOST_BITS,
    RUNGS,
    Certainty,
    bits_for_delta,
    bits_of,
    certainty,
    digits_of,
    engines_from,
)
from fperr.exact.prepared import PreparedModel
from fperr.formats import FLOAT32
from fperr.kernel_switches import controlled
from fperr.vocabulary import ENGINE_CHOICES, EngineChoice, EngineName

# the most that a caller may ask of an engine
_MOST_BITS: dict[EngineChoice, float] = {"float64": MOST_BITS["float64"], "double_word": 96}
_DEFAULT_BITS: dict[EngineChoice, int] = {
    "mpmath": 128,
    "ball": 128,
    "double_word": 80,
    "float64": 38,
}
SMALLEST_DIGITS = 4


@dataclass(frozen=True, slots=True, repr=False)
class ExactGradient:
    """A gradient in extended precision; it prints as one line.

    Attributes:
        numbers: Gradient (batch, *shape): a float64 tensor where float64 was enough for all
            samples, else a NumPy array of `mpf`.
        radius: Proved error bounds, a NumPy array of `mpf` like `numbers`: each exact number lies
            within its radius of its midpoint. None if the error of any sample is not proved.
        engine: Names and largest working precisions of the arithmetics.
        bits: Correct bits required, relative to the norm of each sample's gradient.
        log2_errors: log2 of each sample's relative error in norm: a bound where the sample is
            proved, else an estimate: the difference to the same gradient at another precision
            (twice the bits for mpmath, 22 bits less for pairs of float64, 2^-19 of the difference
            to float32 for float64).
        certainty: `"proved"` or `"agreed"`, for each sample.
        audits: Comparison of each sample with PyTorch's own float64.

    Example:
        >>> import torch
        >>> from fperr import exact
        >>> x, v = torch.rand(1, 4), torch.eye(3)[:1]
        >>> result = exact.gradient(torch.nn.Linear(4, 3).eval(), x, v, engine="ball")
        >>> result.certainty, result.midpoint.shape, tuple(result.to_torch().shape)
        (('proved',), (1, 4), (1, 4))
    """

    numbers: Tensor | NDArray[np.object_]
    radius: NDArray[np.object_] | None
    engine: str
    bits: int
    log2_errors: tuple[float, ...]
    certainty: tuple[Certainty, ...]
    audits: tuple[SampleAudit, ...]

    @property
    def midpoint(self) -> NDArray[np.object_]:
        """The gradient (batch, *shape), a NumPy array of `mpf`."""
        if isinstance(self.numbers, Tensor):
            return MpArithmetic(53).from_torch(self.numbers)
        return self.numbers

    @property
    def log2_error(self) -> float:
        """The largest of `log2_errors`."""
        return max(self.log2_errors)

    def __repr__(self) -> str:
        if math.isfinite(self.log2_error):
            certain = f"{math.floor(-self.log2_error)} bits"
        else:
            certain = "all bits"
        grades = [g for g in ("proved", "agreed") if g in self.certainty]
        shape = tuple(self.numbers.shape)
        return f"ExactGradient(shape {shape}, {certain} {' or '.join(grades)}, {self.engine})"

    @in_neutral_state
    def to_torch(self) -> Tensor:
        """The nearest float64 tensor, (batch, *shape), on the CPU."""
        if isinstance(self.numbers, Tensor):
            return self.numbers.cpu()
        return MpArithmetic(53).to_torch(self.numbers)


@in_neutral_state
@controlled(FLOAT32)  # on a card PyTorch's defaults are TF32, and kernels that no run repeats
def gradient(
    model: nn.Module | PreparedModel,
    x: Tensor,
    v: Tensor,
    *,
    engine: EngineChoice = "auto",
    digits: int | None = None,
    largest_digits: int | None = None,
) -> ExactGradient:
    """Compute J^T v exactly: the vector-Jacobian product, at x, of the network that PyTorch runs.

    J is the Jacobian of the logits with respect to the input. At kinks (of a ReLU at 0, say) the
    derivative is the one that PyTorch takes. Every sample is computed by itself, and every result
    is compared with PyTorch's own in float64 (see `fperr.exact.audit.samples`).

    A ladder of engines, each of which passes on the samples that it does not settle:

    - `"float64"` computes whole batches in plain float64, beside float32. The samples of which
      their agreement, watched by rules, shows `digits` are *agreed*: a tested estimate, no proof.
    - `"double_word"` computes whole batches in pairs of float64, on x's device, with an upper bound
      on each sample's error. If the bound proves fewer than `digits`, a run at 22 bits less must
      agree to `digits`.
    - `"ball"` proves its result: it raises the working precision until `digits` digits are proved,
      relative to the norm. It is slow: a `SlowReferenceWarning` says so where samples climb to it.
    - `"mpmath"`, which stands beside the ladder, works at 40 bits more than `digits` and again at
      twice that; the two results must agree to `digits`.

    Args:
        model: Module in evaluation mode that maps (batch, *shape) to logits (batch, K); or such a
            module, prepared for many calls by `fperr.exact.prepare`.
        x: Inputs (batch, *shape), in the model's dtype; taken exactly.
        v: Cotangents (batch, K), any floating-point dtype; taken exactly.
        engine: Engine to begin with; `"auto"`: the cheapest that may give `digits`.
        digits: Correct decimal digits required, relative to the norm of each sample's gradient: 4
            or more. By default, for `"auto"`, what four digits of the relative error of a gradient
            in x's dtype need (11 for float32, 20 for float64); 11 for `"float64"` (38 bits; 13 at
            most), 24 for `"double_word"` (80 bits; 28 at most), 38 for the others (128 bits).
        largest_digits: Working precision at which `"ball"` gives up, in decimal digits; by default
            2,466.

    Returns:
        The gradients (batch, *shape) with bounds on their errors.

    Raises:
        TypeError, ValueError: Unknown engine, too few digits or more than the engine gives, or v
            does not fit the logits.
        ModelError, UnsupportedOperationError, CaptureAuditError: As `capture`.
        ReferenceNotCertifiedError: The digits cannot be reached: a comparison of a ReLU or of a
            pooling is too close, or too many bits are lost; says where.
        SingularGradientError: The gradient is infinite or undefined at a sample; says where.
        ContradictedError: PyTorch in float64 computes something else than the exact network.
        InexactProductError: Float64 products on x's device are not exact.
        StaleCaptureError: The model was changed after it was prepared.

    Example:
        The Jacobian of a linear layer is its weight, and row i of the identity selects row i of it.

        >>> import torch
        >>> from fperr import exact
        >>> model = torch.nn.Linear(4, 3).eval()
        >>> result = exact.gradient(model, torch.rand(2, 4), torch.eye(3)[:2])
        >>> result
        ExactGradient(shape (2, 4), ... bits agreed, float64, errors by agreement with float32)
        >>> torch.equal(result.to_torch(), model.weight[:2].double())
        True
    """
    checks.choice("engine", engine, ENGINE_CHOICES)
    x, v = checks.inputs("x", x), checks.inputs("v", v)
    bits, largest_bits = _required_bits(engine, digits, largest_digits, x.dtype)
    for name, values in (("x", x), ("v", v)):
        if not bool(values.isfinite().all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity: leave those samples out")
    if not isinstance(model, PreparedModel):
        model = PreparedModel(checks.model("model", model))
    prepared, model = model, checks.model("model", model.model)
    logits = functools.partial(logits_of, model)
    check_repeatable(logits, x)
    network = prepared.network_for(x)
    captured = network.capture
    classes = captured.shapes[captured.results[0].name][1]
    if v.shape != (len(x), classes) or not v.is_floating_point():
        raise ValueError(
            f"v must be floating point of shape ({len(x)}, {classes}), like the logits; "
            f"got {v.dtype} of shape {tuple(v.shape)}: give one row a sample"
        )
    check_function_of_sample(logits, x, captured.depth, torch.finfo(x.dtype).eps / 2)
    singles = torch.split(x, 1)
    captured.audit_each(model, ((single, probe(logits(single))) for single in singles))
    try:
        asked = Cotangents(network, x, v, list(range(len(x))), bits, largest_bits)
        return _joined(climbed(asked, _engines(engine, bits)), x.shape, bits)
    except SingularGradientError as fault:
        raise fault.within(called_in(fault.operation, model, x[:1])) from None


def _required_bits(
    engine: EngineChoice, digits: int | None, largest_digits: int | None, dtype: torch.dtype
) -> tuple[int, int]:
    """Correct bits, and the largest working precision in bits."""
    bits = _DEFAULT_BITS.get(engine, bits_for_delta(torch.finfo(dtype).eps / 2))
    largest_bits = LARGEST_BALL_BITS
    if digits is not None:
        bits = bits_of(checks.whole_number("digits", digits, SMALLEST_DIGITS))
    if largest_digits is not None:
        least = SMALLEST_DIGITS if digits is None else digits
        largest_bits = bits_of(checks.whole_number("largest_digits", largest_digits, least))
    most_bits = _MOST_BITS.get(engine, math.inf)
    if bits > most_bits:
        raise ValueError(
            f"engine={engine!r} gives at most {math.floor(digits_of(most_bits))} digits, got "
            f"digits={digits}: use engine='ball' for more"
        )
    return bits, largest_bits


def _engines(engine: EngineChoice, bits: int) -> tuple[EngineName, ...]:
    """The engines that may give so many bits, from the cheapest."""
    if engine == "mpmath":
        return ("mpmath",)  # what it does not settle is an error
    if engine == "double_word":
        return engines_from(engine)
    names = RUNGS if engine == "auto" else engines_from(engine)
    return tuple(name for name in names if bits <= MOST_BITS[name])


def _joined(
    found: list[tuple[list[int], RungGradients]], shape: torch.Size, bits: int
) -> ExactGradient:
    """The results of all engines as one; a later engine's result replaces an earlier one's."""
    first = found[0][1]
    names, samples = [first.name], shape[0]
    numbers, radii = first.numbers, first.radii
    errors, are_proved, audits = (
        list(first.log2_errors), list(first.are_proved), list(first.audits)
    )  # fmt: skip
    if len(found) > 1 and isinstance(numbers, Tensor):
        numbers = MpArithmetic(53).from_torch(numbers)
    if radii is None:
        radii = np.full((samples, math.prod(shape[1:])), None, dtype=object)
    for positions, gradients in found[1:]:
        assert not isinstance(numbers, Tensor)
        numbers[positions], radii[positions] = gradients.numbers, gradients.radii
        for i, position in enumerate(positions):
            errors[position], audits[position] = gradients.log2_errors[i], gradients.audits[i]
            are_proved[position] = gradients.are_proved[i]
        names.append(f"{gradients.name} for {len(positions)} of {samples} samples")
    audited = tuple(audit for audit in audits if audit is not None)
    assert len(audited) == samples
    return ExactGradient(
        numbers.reshape(shape),
        radii.reshape(shape) if all(are_proved) else None,
        ", and ".join(names),
        bits,
        tuple(errors),
        tuple(
            certainty(error, bits, is_proved=is_proved)
            for error, is_proved in zip(errors, are_proved, strict=True)
        ),
        audited,
    )
