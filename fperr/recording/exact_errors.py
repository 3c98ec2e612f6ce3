"""The errors of computed gradients beside exact ones, as cells of a table's row."""

from typing import Any

from torch import Tensor

from fperr.errors import ReferenceNotCertifiedError, UndecidedError
from fperr.exact.engines.gradient import LossAtSample
from fperr.exact.engines.scaled import Vector
from fperr.exact.engines.vectors import Vectors
from fperr.gradient_error.metrics import error_metrics
from fperr.gradient_error.needed_bits import NeededBits, needed_bits
from fperr.gradient_error.stages import compared
from fperr.networks.exact_network import ExactProduct, SampleLadder

Cells = dict[str, object]  # by the name of the column


def gradient_state(computed: Tensor | None) -> Cells:
    """The cells that a computed gradient fills by itself: is it finite, is it zero."""
    cells: Cells = {"is_certified": False}
    if computed is not None:
        cells["is_finite"] = bool(computed.isfinite().all())
        cells["is_dead"] = not bool(computed.any())
    return cells


def exact_gradient(
    exact: SampleLadder, loss: LossAtSample | None, bits: float, needed: NeededBits
) -> ExactProduct | None:
    """The exact gradient of a loss, from the cheapest rung that gives it the bits it needs.

    None where the gradient is undefined, or there is no loss.
    """
    if loss is None:
        return None
    sample, gradient = exact.gradient(loss, bits, needed)
    if gradient is None:
        return None
    return ExactProduct(sample.vectors, gradient.gradient, gradient.log2_error, gradient.is_proved)


def bits_needed(bits: float, computed: Tensor | None, factor: float) -> NeededBits:
    """How many bits of an exact gradient a computed one needs.

    Args:
        bits: Bits that delta near the format's unit roundoff needs.
        computed: (*shape), the computed gradient; None: there is none.
        factor: Factor by which its loss was multiplied.
    """

    def without_factor(A: Vectors[Any]) -> Vector | None:
        if computed is None or not bool(computed.isfinite().all()):
            return None
        return _divided(A, A.from_torch(computed.reshape(1, -1)), factor)

    return needed_bits(bits, without_factor)


def gradient_errors(
    needed: NeededBits, computed: Tensor | None, factor: float, exact: ExactProduct | None
) -> Cells:
    """The errors of a computed gradient beside the exact one.

    Args:
        needed: How many bits of the exact gradient are needed.
        computed: (*shape), the computed gradient; None: there is none.
        factor: Factor by which its loss was multiplied.
        exact: The exact gradient without the factor; None: there is none.
    """
    if exact is None:
        return {}
    bits = needed(exact.vectors, exact.product)
    cells: Cells = {
        "log2_reference_error": exact.log2_error,
        "certainty": exact.certainty(bits),
        "is_certified": exact.has_bits(bits),
    }
    if computed is None or not exact.has_bits(bits) or not bool(computed.isfinite().all()):
        return cells
    A = exact.vectors
    without_factor = _divided(A, A.from_torch(computed.reshape(1, -1)), factor)
    return cells | error_metrics(compared(A, without_factor, exact.product))


def logit_gradient_delta(
    A: Vectors[Any], bits: float, z: Tensor, v: Tensor, factor: float, loss: LossAtSample | None
) -> float | None:
    """The relative error of dL/dz beside the exact logit gradient at the same logits.

    Args:
        A: Arithmetic of the vectors.
        bits: Bits of the exact logit gradient of a loss given as a function.
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
            enclosure = loss.function.enclosed(z[None], bits)
        except (ReferenceNotCertifiedError, UndecidedError):
            return None
        exact_numbers = list(enclosure.midpoint.reshape(-1))
    else:
        logits = [A.context.mpf(value) for value in z.double().tolist()]
        exact = loss.logit_gradient(A.context, logits)
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
