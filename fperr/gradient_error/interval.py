"""The proved interval for the relative error of a gradient."""

from torch import Tensor

from fperr.exact.engines.gradient import EnclosedGradient
from fperr.exact.error_bound import relative_error


def delta_interval(
    gradient: Tensor, factor: tuple[float, int], exact: EnclosedGradient
) -> tuple[float, float]:
    """A lower and an upper bound on |g_hat - g|_2/|g|_2, both proved.

    Args:
        gradient: Gradient g_hat of one sample, in the format, finite.
        factor: Loss scale, and number of samples that a mean divided by; g_hat contains their
            quotient.
        exact: Gradient g, as balls.
    """
    A = exact.arithmetic
    loss_scale, count = factor
    computed = A.from_torch(gradient.reshape(1, -1))
    if loss_scale != 1.0:
        computed = A.div(computed, loss_scale)
    if count != 1:
        computed = A.mul(computed, float(count))
    return relative_error(A, computed, exact.balls)
