"""Check that float64 products are plain, as slices need them: no emulation, no flushing to 0."""

import math
import secrets
from collections.abc import Callable

import torch
from torch import Tensor

from fperr.errors import InexactProductError

_SIDE = 48
_LARGEST = 2**23  # sums of 48 products of up to 2^46 stay below 2^53


def check_device(device: torch.device) -> None:
    """Check the device's products of large integers, and that small numbers survive.

    Raises:
        InexactProductError: A product is rounded where it need not be, as emulated or reduced
            float64 does, or numbers below 2^-1022 become zero.
    """
    generator = torch.Generator().manual_seed(0)
    bounds = -_LARGEST, _LARGEST
    a, b = (torch.randint(*bounds, (_SIDE, _SIDE), generator=generator) for _ in range(2))
    exact = (a[:, :, None] * b[None]).sum(1)
    computed = a.to(device, torch.float64) @ b.to(device, torch.float64)
    if not torch.equal(computed.cpu(), exact.to(torch.float64)):
        raise InexactProductError(
            f"a float64 product of integer matrices on {device} is rounded although its sums are "
            "below 2^53: turn off emulated or reduced-precision float64 matrix products"
        )
    small = torch.tensor(2.0**-1000, dtype=torch.float64, device=device)
    if not bool(small * 2.0**-60):
        raise InexactProductError(
            f"numbers below 2^-1022 become zero on {device}: call torch.set_flush_denormal(False)"
        )


def spot_check(multiply: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> None:
    """Check a random entry of a product of slices against an exact sum.

    Args:
        multiply: Product, linear and differentiable in its first argument.
        left: Left slices (samples, ...), of which the first sample is checked.
        right: Right slices.

    Raises:
        InexactProductError: The entry is off.
    """
    # an entry is linear in the left operand: its gradient holds the coefficients of the sum
    first = left[:1].detach().clone().requires_grad_(True)
    with torch.enable_grad():
        product = multiply(first, right)
        entry = product.flatten()[
            secrets.randbelow(product.numel())
        ]  # leaves torch's generator alone
        (coefficients,) = torch.autograd.grad(entry, first)
    exact = math.fsum((first.detach() * coefficients).flatten().tolist())
    computed = float(entry.detach())
    if math.isfinite(computed) and computed != exact:
        raise InexactProductError(
            f"an entry of a float64 product is {computed!r} and should be {exact!r}, which "
            "needs no rounding: products on this device are not plain float64"
        )
