"""Steps of cross-entropy and stable cross-entropy: shifted logits, exponentials, their sum."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fperr.bounds import kernels
from fperr.bounds.kernels import Accuracy, Kernel
from fperr.bounds.roundings import half_ulp, known_rounding
from fperr.formats import FLOAT64, Format, of_dtype
from fperr.theory.scaling import present_classes


@dataclass(frozen=True, slots=True)
class Shifted:
    """The shifted logits d = c z - max c z, with a bound on their error.

    Attributes:
        exact: Values d (batch, K), float64, to 2^-52 of each; -inf, without an error, for absent
            classes.
        error: Upper bound (batch, K), float64, on |d_hat - d|.
        top: Index (batch, 1) of the largest logit, at which d is 0.
    """

    exact: Tensor
    error: Tensor
    top: Tensor


def shifted_logits(
    z: Tensor, c: Tensor, stored: Format, k: Kernel, *, is_shifted: bool = False
) -> Shifted:
    """Scale and shift the logits; both roundings are known exactly, not only bounded.

    Args:
        z: Logits (batch, K), in the format; -inf if a class is absent.
        c: Scale (batch, 1), float64.
        stored: Format of z.
        k: Kernel.
        is_shifted: Whether max z is subtracted before scaling, too.
    """
    top = z.argmax(1, keepdim=True)
    is_absent = z == -math.inf
    z = torch.where(is_absent, z.gather(1, top), z)  # a number to compute with
    wide = z.to(torch.float64)
    exact = c * (wide - wide.gather(1, top))
    error = torch.zeros_like(wide)
    if is_shifted:
        moved = z - z.gather(1, top)
        error = k.shift * c * known_rounding(moved, wide - wide.gather(1, top), stored)
        z, wide = moved, moved.to(torch.float64)
    x = c.to(z.dtype) * z
    rounding = k.scale * known_rounding(x, c * wide, stored)
    if stored == FLOAT64:  # its own roundings are only bounded, but for these products
        is_exact = _is_power_of_two(c) & ((x.abs() >= stored.smallest_normal) | (z == 0))
        rounding = torch.where(is_exact, 0.0, rounding)
    error = error + rounding
    working = x.to(kernels.working_format(stored).dtype)
    difference = working - working.gather(1, top)
    wide = x.to(torch.float64)
    shift = known_rounding(difference, wide - wide.gather(1, top), of_dtype(working.dtype))
    error = error + error.gather(1, top) + k.shift * shift
    error = torch.where(exact == 0, 0.0, error)
    return Shifted(exact.masked_fill(is_absent, -math.inf), error.masked_fill(is_absent, 0.0), top)


def sum_of_exponentials(
    d: Shifted, worked: Format, k: Kernel, accuracy: Accuracy
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute e^d and S = sum e^d, each with a bound on the error.

    The rounding error of a sum a + b is at most half an ulp of it. It is also at most a and at most
    b, because both are numbers of the format. In the tree of additions, each of the other summands
    is added once on the path from the largest summand to the root. Among themselves the others are
    added K - 2 times. Summands that tie for the largest are all exactly 1, and their sum is exact:
    an addition is never off by more than the sum of all summands below the ties. An absent class
    adds exp(-inf) = 0, and an addition of 0 is exact, so that K counts the present classes.

    Args:
        d: Shifted logits.
        worked: Format in which the kernel computes.
        k: Kernel.
        accuracy: Accuracy of exp and log.

    Returns:
        e^d (batch, K) and the bound on its error, S (batch, 1) and the bound on its error.
    """
    classes = present_classes(d.exact)[:, None].to(torch.float64)
    e = d.exact.exp()
    error = exponential_error(e, d.exact, d.error)
    exp_rounding = half_ulp(e + error, worked, underflow=k.underflow)
    error = error + 2 * k.exp * accuracy.exp_ulps * exp_rounding
    error = torch.where((d.exact == 0) | (d.exact == -math.inf), 0.0, error)  # exp(0) = 1
    grown = 1 + 2 * classes * worked.unit_roundoff
    largest = (e + error) * grown
    not_largest = largest.scatter(1, d.top, 0.0)
    total = largest.sum(1, keepdim=True) * grown
    spacing = half_ulp(total, worked)
    inner = half_ulp(not_largest.sum(1, keepdim=True) * grown, worked)
    onto_top = torch.minimum(not_largest, spacing).sum(1, keepdim=True)
    among = (classes - 2).clamp_min(0)
    added = torch.minimum((classes - 1) * spacing, onto_top + among * inner)
    below_ties = torch.where(d.exact == 0, 0.0, largest).sum(1, keepdim=True) * grown
    added = torch.minimum(added, (classes - 1) * below_ties)
    S_error = error.sum(1, keepdim=True) + k.add * added
    return e, error, e.sum(1, keepdim=True), S_error


def _is_power_of_two(c: Tensor) -> Tensor:
    return torch.frexp(c).mantissa == 0.5


def exponential_error(value: Tensor, exponent: Tensor, error: Tensor) -> Tensor:
    """Bound |e^(x + t) - e^x| for all |t| <= error with x + t <= 0, where e^x may underflow.

    Args:
        value: Exponential e^x.
        exponent: Exponent x, not positive.
        error: Upper bound on |t|; may be infinite.
    """
    near = value * torch.expm1(error.clamp(max=1.0))
    return torch.where(error <= 1, near, (exponent + error).clamp(max=0.0).exp())
