"""Errors of computed gradients beside exact ones, as rows of a table."""

import math
from typing import Any

from torch import Tensor

from fperr.errors import ReferenceNotCertifiedError, UndecidedError
from fperr.exact.engines.vectors import Vector, Vectors
from fperr.exact.logit_gradient import logit_gradient
from fperr.gradient_error.metrics import error_metrics
from fperr.gradient_error.stages import compared
from fperr.networks.exactly import ExactSample, LossAtSample

Row = dict[str, object]


def state_of(computed: Tensor | None) -> Row:
    """What a computed gradient shows by itself."""
    row: Row = {"is_certified": False}
    if computed is not None:
        row["is_finite"] = bool(computed.isfinite().all())
        row["is_dead"] = not bool(computed.any())
    return row


def exact_gradient(exact: ExactSample, asked: LossAtSample | None) -> tuple[Vector, float] | None:
    """The gradient, and log2 of its error; None where it is undefined, or nothing is asked."""
    found = None if asked is None else exact.gradient(asked)
    return None if found is None else (found.gradient, found.log2_error)


def errors_of(
    A: Vectors[Any],
    digits: int,
    computed: Tensor | None,
    factor: float,
    exact: tuple[Vector, float] | None,
) -> Row:
    """The errors of a gradient whose loss was multiplied by `factor`."""
    if exact is None:
        return {}
    gradient, log2_error = exact
    is_certified = log2_error <= -digits * math.log2(10)
    row: Row = {"log2_reference_error": log2_error, "is_certified": is_certified}
    if computed is None or not is_certified or not bool(computed.isfinite().all()):
        return row
    mine = _divided(A, A.from_torch(computed.reshape(1, -1)), factor)
    return row | error_metrics(compared(A, mine, gradient))


def logit_gradient_delta(
    A: Vectors[Any], digits: int, z: Tensor, v: Tensor, factor: float, asked: LossAtSample | None
) -> float | None:
    """The relative error of dL/dz: the exact one is that of the same logits z (K,)."""
    if asked is None:
        return None
    if asked.function is not None:
        try:
            enclosure = asked.function.enclosed(z[None], digits)
        except (ReferenceNotCertifiedError, UndecidedError):
            return None
        numbers = list(enclosure.midpoint.reshape(-1))
    else:
        logits = [A.context.mpf(value) for value in z.double().tolist()]
        exact = logit_gradient(
            asked.kind,
            A.context,
            logits,
            asked.label,
            c=asked.c,
            targeted=asked.targeted,
            y=asked.y,
        )
        if exact is None:
            return None
        numbers = exact
    mine = _divided(A, A.from_torch(v[None]), factor)
    return error_metrics(compared(A, mine, A.array(numbers)))["delta"]


def _divided(A: Vectors[Any], computed: Vector, factor: float) -> Vector:
    """What was computed, without the factor on its loss."""
    if factor == 1.0:
        return computed
    # 1/batch may not be a number of the format: its inverse is one
    inverse = round(1 / factor)
    is_whole = abs(1 / factor - inverse) < 1e-9 * abs(inverse)
    quotient: Vector = A.mul(computed, float(inverse)) if is_whole else A.div(computed, factor)
    return quotient
