"""The audit of values: is what was computed exactly true of the function that PyTorch computes?

After an exact run, PyTorch runs the captured graph once more in float64, with the same v. Logits
and gradient are compared, sample by sample. Their difference must stay within the error of float64,
which the run estimates (`float64_run`).
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fperr.errors import ContradictedError, UndecidedError
from fperr.exact.arithmetic import Arithmetic, T
from fperr.exact.audit.exact_run_numbers import ExactRunNumbers
from fperr.exact.audit.first_difference import first_difference
from fperr.exact.audit.float64_error import norm
from fperr.exact.audit.float64_run import float64_run
from fperr.exact.interpreter import ForwardRun, Interpreter

# float64's error up to which it can confirm or contradict, relative to logits or gradient in norm
_USABLE = 2.0**-10
_LARGEST_EXPONENT = 900  # of a gradient for a v of size 1, which float64 can hold on the way

Verdict = Literal["confirmed", "float64 cannot say"]


@dataclass(frozen=True, slots=True)
class SampleAudit:
    """The verdict of PyTorch in float64 on the exact network at one sample.

    Attributes:
        verdict: `"confirmed"`: logits and gradient agree to float64's estimated error there;
            `"float64 cannot say"`: that error is too large, which says nothing against the exact
            network.
        difference: |float64's gradient - exact gradient|_2 / |exact gradient|_2; NaN for 0/0.
        estimate: Estimate of float64's error in the same measure.
    """

    verdict: Verdict
    difference: float
    estimate: float


def audit_sample(
    interpreter: Interpreter[T],
    run: ForwardRun[T],
    x: Tensor,
    v: Tensor,
    gradient: T,
    sample: int = 0,
    *,
    logits_off: float = 0.0,
) -> SampleAudit:
    """`audit_values` at one sample.

    Args:
        interpreter: Exact network, for a single sample.
        run: Its forward run at x.
        x: (1, *shape), taken exactly.
        v: (1, K), floating point, taken exactly.
        gradient: Exact J^T v, an array of the arithmetic.
        sample: Number of the sample, for errors.
        logits_off: Bound on the norm of the error of the exact logits, beyond what their arithmetic
            states.

    Raises:
        ContradictedError: See `audit_values`.
        UndecidedError: The gradient is infinite or undefined at the arithmetic's precision.
    """
    A = interpreter.arithmetic
    if not A.is_finite(gradient):
        raise UndecidedError("the gradient is infinite or undefined: leave the sample out")
    error = float(A.error_norms(gradient)[0])
    values, exponent = A.to_scaled(gradient)
    result = values.reshape(1, -1), torch.tensor([exponent])
    off = [math.ldexp(error, -exponent) if abs(exponent) < _LARGEST_EXPONENT else math.inf]
    (audit,) = audit_values(
        interpreter,
        run,
        x,
        v,
        result,
        off=torch.tensor(off, dtype=torch.float64),
        logits_off=logits_off,
        names=[sample],
    )
    assert audit is not None
    return audit


def audit_values(
    interpreter: Interpreter[T],
    run: ForwardRun[T],
    x: Tensor,
    v: Tensor,
    gradient: tuple[Tensor, Tensor],
    *,
    off: Tensor,
    logits_off: float = 0.0,
    is_usable: Tensor | None = None,
    names: Sequence[int] | None = None,
) -> list[SampleAudit | None]:
    """Compare an exact run at a batch of samples with PyTorch's float64.

    Args:
        interpreter: Exact network, for a single sample.
        run: Its forward run at x: of a single sample, or of a batch for batched arithmetics.
        x: (samples, *shape), taken exactly.
        v: (samples, K), floating point, taken exactly.
        gradient: Exact J^T v as values (samples, entries) float64 and exponents (samples,): its
            numbers are values * 2**exponent.
        off: (samples,), upper bounds on the norm of the error of those values; 0 for mpmath, which
            has no bounds.
        logits_off: See `audit_sample`.
        is_usable: (samples,) bool: samples whose exact run is decided; the audit of the others is
            None. None: all.
        names: Numbers of the samples, for errors; None: 0, 1, ...

    Raises:
        ContradictedError: They differ at a sample by more than float64 is off; names the first
            operation whose value differs, with both values.
    """
    exact = ExactRunNumbers(interpreter, run)
    exponents_of_v = torch.frexp(v.to(torch.float64).abs().amax(1)).exponent
    v = torch.ldexp(v.to(torch.float64), -exponents_of_v[:, None])
    float64 = float64_run(interpreter.capture, x, v, exact)
    logits = _float64(interpreter.arithmetic, run.logits).to(float64.logits.device)
    logits = logits.expand(len(x), -1)
    values, exponents = (tensor.to(float64.logits.device) for tensor in gradient)
    exponents = exponents - exponents_of_v
    scaled = torch.ldexp(values, exponents.clamp(-_LARGEST_EXPONENT, _LARGEST_EXPONENT)[:, None])
    on_logits = _Sizes.of(float64.logits, logits)
    on_gradients = _Sizes.of(float64.gradient, scaled)
    # one copy from the device for the numbers of all samples
    columns = (
        interpreter.arithmetic.error_norms(run.logits).expand(len(x)), float64.logits_error,
        float64.gradient_error, off, exponents,
    )  # fmt: skip
    numbers = torch.stack([column.to(logits.device, torch.float64) for column in columns], 1)
    usable = [True] * len(x) if is_usable is None else is_usable.tolist()
    audits: list[SampleAudit | None] = []
    for i, row in enumerate(numbers.tolist()):
        if not usable[i]:
            audits.append(None)
            continue
        radius, logits_error, gradient_error, values_off, exponent = row
        on_logit = on_logits.at(i, logits_error + radius + logits_off)
        on_gradient = None
        if abs(exponent) <= _LARGEST_EXPONENT:
            error = gradient_error + math.ldexp(values_off, int(exponent))
            on_gradient = on_gradients.at(i, error)
        explain = functools.partial(first_difference, interpreter, run, x, v, exact, i)
        name = i if names is None else names[i]
        audits.append(_judged(on_logit, on_gradient, explain, name))
    return audits


def _judged(
    logits: "_Comparison", gradient: "_Comparison | None", explain: Callable[[], str], sample: int
) -> SampleAudit:
    """The verdict on one sample; no gradient where it is beyond the range of float64."""
    comparisons = [logits] if gradient is None else [logits, gradient]
    for comparison in comparisons:
        if comparison.is_usable and comparison.difference > comparison.error:
            raise ContradictedError(
                f"sample {sample}: PyTorch in float64 and the exact network differ by "
                f"{comparison.difference / comparison.size:.2g} in relative norm, where float64 is "
                f"off by about {comparison.error / comparison.size:.2g}: {explain()}. One of the "
                "two does not compute what the model says: please report it, with the model"
            )
    if gradient is None:
        return SampleAudit("float64 cannot say", math.nan, math.inf)
    can_say = logits.is_usable and gradient.is_usable
    return SampleAudit(
        "confirmed" if can_say else "float64 cannot say",
        gradient.relative(gradient.difference),
        gradient.relative(gradient.error),
    )


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Logits or gradient of one sample, in float64 and exactly.

    Attributes:
        difference: Norm of the difference of the two.
        size: Norm of the larger one.
        exact_size: Norm of the exact numbers.
        error: Estimate of the norm of float64's error, plus a bound on that of the exact numbers.
    """

    difference: float
    size: float
    exact_size: float
    error: float

    @property
    def is_usable(self) -> bool:
        """Whether float64's error is small enough for a verdict, which 0 without an error is."""
        return self.error <= _USABLE * self.size and math.isfinite(self.difference)

    def relative(self, number: float) -> float:
        """A norm relative to the exact one."""
        if self.exact_size:
            return number / self.exact_size
        return math.inf if number else math.nan


def _float64(A: Arithmetic[T], a: T) -> Tensor:
    """(samples or 1, entries): the nearest float64 numbers."""
    numbers = A.to_samples(a)
    return numbers.reshape(len(numbers), -1)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Norms of the logits or gradients of all samples, each a list (samples,) of numbers.

    Attributes:
        differences: Of the differences of float64's numbers and the exact ones.
        computed, exact: Of the numbers, infinities aside.
    """

    differences: list[float]
    computed: list[float]
    exact: list[float]

    @classmethod
    def of(cls, computed: Tensor, exact: Tensor) -> "_Sizes":
        """Compare (samples, entries), except masked logits, which are minus infinity in both."""
        rows = (
            torch.where(computed == exact, 0.0, computed - exact),
            *(torch.where(t.isinf(), 0.0, t) for t in (computed, exact)),
        )
        return cls(*torch.stack([norm(row) for row in rows]).tolist())

    def at(self, i: int, error: float) -> _Comparison:
        """The comparison of sample i, where float64 and the exact numbers are off by `error`."""
        computed, exact = self.computed[i], self.exact[i]
        return _Comparison(self.differences[i], max(computed, exact), exact, error)
