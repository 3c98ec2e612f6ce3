"""The errors of computed gradients beside exact ones, as cells of a table's row."""

import math
from typing import Any

from torch import Tensor

from fperr.errors import ReferenceNotCertifiedError, UndecidedError
from fperr.exact.engines.vectors import Vector, Vectors
from fperr.exact.logit_gradient import logit_gradient
from fperr.gradient_error.metrics import error_metrics
from fperr.gradient_error.stages import compared
from fperr.networks.exact_gradient import LossAtSample
from fperr.networks.exact_network import ExactSample

Cells = dict[str, object]  # by the name of the column


def gradient_state(computed: Tensor | None) -> Cells:
    """The cells that a computed gradient fills by itself: is it finite, is it zero."""
    cells: Cells = {"is_certified": False}
    if computed is not None:
        cells["is_finite"] = bool(computed.isfinite().all())
        cells["is_dead"] = not bool(computed.any())
    return cells


def exact_gradient(exact: ExactSample, loss: LossAtSample | None) -> tuple[Vector, float] | None:
    """The exact gradient of a loss, and log2 of its error.

    None where the gradient is undefined, or there is no loss.
    """
    gradient = None if loss is None else exact.gradient(loss)
    return None if gradient is None else (gradient.gradient, gradient.log2_error)


def gradient_errors(
    A: Vectors[Any],
    digits: int,
    computed: Tensor | None,
    factor: float,
    exact: tuple[Vector, float] | None,
) -> Cells:
    """The errors of a computed gradient beside the exact one.

    Args:
        A: Arithmetic of the vectors.
        digits: Number of digits that the exact gradient must have.
        computed: (*shape), the computed gradient; None: there is none.
        factor: Factor by which its loss was multiplied.
        exact: The exact gradient without the factor, and log2 of its relative error; None: there is
            none.
    """
    if exact is None:
        return {}
    gradient, log2_error = exact
    is_certified = log2_error <= -digits * math.log2(10)
    cells: Cells = {"log2_reference_error": log2_error, "is_certified": is_certified}
    if computed is None or not is_certified or not bool(computed.isfinite().all()):
        return cells
    without_factor = _divided(A, A.from_torch(computed.reshape(1, -1)), factor)
    return cells | error_metrics(compared(A, without_factor, gradient))


def logit_gradient_delta(
    A: Vectors[Any], digits: int, z: Tensor, v: Tensor, factor: float, loss: LossAtSample | None
) -> float | None:
    """The relative error of dL/dz beside the exact logit gradient at the same logits.

    Args:
        A: Arithmetic of the vectors.
        digits: Number of digits of the exact logit gradient of a loss given as a function.
        z: (K,), the logits.
        v: (K,), dL/dz.
        factor: Factor by which the loss was multiplied.
        loss: Loss of the attack; None: it is unknown.

    Returns:
        The error in norm; None where the exact logit gradient is undefined or not certified.
    """
    if loss is None:
        return None
    if loss.function is not None:
        try:
            enclosure = loss.function.enclosed(z[None], digits)
        except (ReferenceNotCertifiedError, UndecidedError):
            return None
        exact_numbers = list(enclosure.midpoint.reshape(-1))
    else:
        logits = [A.context.mpf(value) for value in z.double().tolist()]
        exact = logit_gradient(
            loss.kind,
            A.context,
            logits,
            loss.label,
            c=loss.c,
            targeted=loss.targeted,
            y=loss.y,
        )
        if exact is None:
            return None
        exact_numbers = exact
    without_factor = _divided(A, A.from_torch(v[None]), factor)
    return error_metrics(compared(A, without_factor, A.array(exact_numbers)))["delta"]


def _divided(A: Vectors[Any], computed: Vector, factor: float) -> Vector:
    """The computed vector divided by the factor on its loss."""
    if factor == 1.0:
        return computed
    # 1/batch may not be a number of the format: its inverse is one
    inverse = round(1 / factor)
    is_integer = abs(1 / factor - inverse) < 1e-9 * abs(inverse)
    divided: Vector = A.mul(computed, float(inverse)) if is_integer else A.div(computed, factor)
    return divided
