"""Cross-entropy's kernel by its list of roundings: each at its largest, or each to nearest.

The list is that of `fperr.bounds.kernels`, for the class dimension last on a CPU. Each step is
computed in float64 and then rounded: float64's own errors are 2^-29 of the narrower formats'
roundings, so neither the order of a CPU's additions nor its exp and log show in the results.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fperr.bounds.kernels import DOCUMENTED, working_format
from fperr.formats import Format
from fperr.validation import logit_gradients
from fperr.validation.trial_logits import TrialLogits


@dataclass(frozen=True)
class Nearest:
    """The most accurate kernel that fits the list: no other has smaller roundings, or fewer.

    Exp and log are correctly rounded, the sum is pairwise (each summand is in log2 K additions
    instead of up to K - 1), and the last product is fused with the subtraction.

    Attributes:
        is_fused: that product is not rounded.
        is_pairwise: otherwise the summands are added one by one, from the first class to the last.
    """

    is_fused: bool = True
    is_pairwise: bool = True

    def opposite(self) -> "Nearest":
        return self

    def difference(self, exact: Tensor, rounding: Tensor) -> Tensor:
        return exact + rounding

    def elementary(self, value: Tensor, fmt: Format) -> Tensor:
        return self.result(value, fmt)

    def result(self, value: Tensor, fmt: Format) -> Tensor:
        # After float64's rounding of the same: for sums and products of 24 bits it changes nothing
        return value.to(fmt.dtype).to(torch.float64)

    def total(self, terms: Tensor, fmt: Format) -> Tensor:
        if not self.is_pairwise:
            return self.one_by_one(terms, fmt)
        while terms.shape[1] > 1:
            if terms.shape[1] % 2:
                terms = torch.cat([terms, torch.zeros_like(terms[:, :1])], 1)
            terms = self.result(terms[:, ::2] + terms[:, 1::2], fmt)
        return terms

    def one_by_one(self, terms: Tensor, fmt: Format) -> Tensor:
        total = terms[:, :1]
        for k in range(1, terms.shape[1]):
            total = self.result(total + terms[:, k : k + 1], fmt)
        return total


@dataclass(frozen=True)
class Largest:
    """Every step as far off as the list allows, in one direction: `sense` is 1 for up, -1 for down.

    Each addition is off by half an ulp of the whole sum, as a bound for any order has it; but by
    no more than the summand, nor than all summands so far that are no ties with the largest: that
    one is 1, and the ties' sum is exact.
    """

    sense: int
    is_fused: bool = False

    def opposite(self) -> "Largest":
        return Largest(-self.sense)

    def difference(self, exact: Tensor, rounding: Tensor) -> Tensor:
        return exact + self.sense * rounding.abs()

    def elementary(self, value: Tensor, fmt: Format) -> Tensor:
        return value + self.sense * DOCUMENTED.exp_ulps * 2 * _half_ulp(value, fmt)

    def result(self, value: Tensor, fmt: Format) -> Tensor:
        return value + self.sense * _half_ulp(value, fmt)

    def total(self, terms: Tensor, fmt: Format) -> Tensor:
        descending = terms.sort(1, descending=True).values
        total = terms.sum(1, keepdim=True)
        below_ties = torch.where(descending == 1, 0.0, descending).cumsum(1)
        off = torch.minimum(torch.minimum(descending, below_ties), _half_ulp(total, fmt))
        return total + self.sense * off[:, 1:].sum(1, keepdim=True)


Roundings = Nearest | Largest


def _half_ulp(value: Tensor, fmt: Format) -> Tensor:
    exponent = torch.frexp(value.abs()).exponent - 1
    unit = torch.full_like(value, fmt.storage_unit_roundoff)
    return torch.ldexp(unit, exponent).clamp_min(fmt.smallest_subnormal / 2)


def gradient(cases: TrialLogits, fmt: Format, up: Roundings) -> Tensor:
    """v_hat (batch, K) in float64, of plain cross-entropy (c = 1, untargeted).

    Args:
        cases: the logits and the rest.
        fmt: of the logits.
        up: the roundings of the steps that raise v_hat; the sum and its logarithm lower it.
    """
    worked, a, down = working_format(fmt), cases.upstream, up.opposite()
    is_half, label = worked != fmt, cases.label[:, None]
    z, wide = cases.z, cases.z.to(torch.float64)
    top = z.argmax(1, keepdim=True)
    exact = wide - wide.gather(1, top)
    if cases.is_shifted:
        z = z - z.gather(1, top)
    z = z.to(worked.dtype)
    rounding = (z - z.gather(1, top)).to(torch.float64) - exact

    d = down.difference(exact, rounding)
    S = down.total(torch.where(exact == 0, 1.0, down.elementary(d.exp(), worked)), worked)
    if is_half:
        S = down.result(S, fmt)
    log_S = down.elementary(S.log(), worked)
    if is_half:
        log_S = down.result(log_S, fmt)
    difference = up.difference(exact, rounding) - log_S
    o = torch.where(exact == 0, difference, up.result(difference, worked))
    if is_half:
        o = up.result(o, fmt)
    p = a * up.elementary(o.exp(), worked)
    product = p if a == 1 else up.result(p, worked)
    minuend = (p if up.is_fused else product).gather(1, label)
    is_exact = (minuend >= a / 2) & (not up.is_fused)  # Sterbenz
    subtracted = torch.where(is_exact, minuend - a, up.result(minuend - a, worked))
    v = product.scatter(1, label, subtracted)
    return up.result(v, fmt) if is_half else v


def largest_error(cases: TrialLogits, fmt: Format) -> Tensor:
    """What the roundings can do at most, (batch, K): the larger of both directions."""
    up, down = (
        logit_gradients.absolute_error(cases, gradient(cases, fmt, Largest(sense)))[0]
        for sense in (1, -1)
    )
    return torch.maximum(up, down)


def nearest_error(
    cases: TrialLogits, fmt: Format, *, is_pairwise: bool = True
) -> tuple[Tensor, Tensor]:
    """|v_hat - v| of the most accurate kernel with that order of additions, and |v|, (batch, K)."""
    roundings = Nearest(is_pairwise=is_pairwise)
    return logit_gradients.absolute_error(cases, gradient(cases, fmt, roundings).to(fmt.dtype))
