"""Checks that float64 products are what slices need: plain, in float64, nothing flushed to zero."""

import math
import secrets
from collections.abc import Callable

import torch
from torch import Tensor

from fperr.errors import InexactProductError

_SIDE = 48
_LARGEST = 2**23  # with sums of 48 products of 2^46 below 2^53


def check_device(device: torch.device) -> None:
    """Check the device's products of large integers, and that small numbers survive.

    Raises:
        InexactProductError: a product is rounded where it need not be, as emulated or reduced
            float64 does, or numbers below 2^-1022 become zero.
    """
    generator = torch.Generator().manual_seed(0)
    bounds = -_LARGEST, _LARGEST
    a, b = (torch.randint(*bounds, (_SIDE, _SIDE), generator=generator) for _ in range(2))
    exact = (a[:, :, None] * b[None]).sum(1)
    found = a.to(device, torch.float64) @ b.to(device, torch.float64)
    if not torch.equal(found.cpu(), exact.to(torch.float64)):
        raise InexactProductError(
            f"a float64 product of integer matrices on {device} is rounded although its sums are "
            "below 2^53: turn off emulated or reduced-precision float64 matrix products"
        )
    small = torch.tensor(2.0**-1000, dtype=torch.float64, device=device)
    if not bool(small * 2.0**-60):
        raise InexactProductError(
            f"numbers below 2^-1022 become zero on {device}: call torch.set_flush_denormal(False)"
        )


def spot_check(multiply: Callable[[Tensor, Tensor], Tensor], part: Tensor, right: Tensor) -> None:
    """Check one entry of a product of slices against an exact sum.

    Args:
        multiply: the product, linear and differentiable in its first argument.
        part: left slices (samples, ...), of which the first sample is looked at.
        right: the right slices.

    Raises:
        InexactProductError: the entry is off.
    """
    first = part[:1].detach().clone().requires_grad_(True)
    with torch.enable_grad():
        product = multiply(first, right)
        entry = product.flatten()[secrets.randbelow(product.numel())]  # nobody's seed is used up
        (coefficients,) = torch.autograd.grad(entry, first)
    exact = math.fsum((first.detach() * coefficients).flatten().tolist())
    found = float(entry.detach())
    if math.isfinite(found) and found != exact:
        raise InexactProductError(
            f"an entry of a float64 product is {found!r} and should be {exact!r}, which "
            "needs no rounding: products on this device are not plain float64"
        )
