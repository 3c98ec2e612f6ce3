"""Measures of a gradient's error, by norm, direction and sign.

None of them changes if the computed and the exact gradient are multiplied by the same number.
"""

import math

import torch

from fperr.exact.engines.scaled import Scaled
from fperr.gradient_error.stages import Split

NAMES = (
    "delta",
    "max_norm_delta",
    "cosine_distance",
    "sign_error_rate",
    "flip_rate",
    "zero_rate",
    "step_gain",
)


def error_metrics(errors: Split) -> dict[str, float]:
    """Measures of the error of a computed gradient, by name.

    Args:
        errors: The exact gradient g, the computed one g_hat, and their difference.

    Returns:
        `delta`: |g_hat - g|_2/|g|_2. `max_norm_delta`: the same in the maximum norm.
        `cosine_distance`: 1 - cos of the angle between g_hat and g (1 for g_hat = 0).
        `sign_error_rate`: share of the components with g_j != 0 whose sign is wrong; it is the sum
        of `flip_rate` (opposite sign) and `zero_rate` (computed as zero). `step_gain`:
        <g, sign g_hat>/|g|_1, the first-order gain of a step along the signs of g_hat, relative to
        one along those of g: 1 at best, 0 for g_hat = 0. (Of a step along g_hat itself it is the
        cosine.) All are NaN if g_hat is not finite or g is zero.
    """
    gradient, error, computed = errors.gradient, errors.error, errors.computed
    computed_signs = errors.computed_signs
    if error is None or computed is None or computed_signs is None or not errors.signs.any():
        return dict.fromkeys(NAMES, math.nan)
    is_nonzero = errors.signs != 0
    signs = computed_signs[is_nonzero]
    wrong, zero = signs != errors.signs[is_nonzero], signs == 0
    sizes = gradient.values[is_nonzero].double().abs()
    gains = 1 - wrong.double() * (2 - zero.double())  # of each sign: 1, 0 or -1
    return {
        "delta": error.ratio(gradient),
        "max_norm_delta": error.ratio(gradient, math.inf),
        "cosine_distance": _cosine_distance(gradient, error, computed),
        "sign_error_rate": float(wrong.double().mean()),
        "flip_rate": float((wrong & ~zero).double().mean()),
        "zero_rate": float(zero.double().mean()),
        "step_gain": float((sizes * gains).sum() / sizes.sum()),
    }


def _cosine_distance(gradient: Scaled, error: Scaled, computed: Scaled) -> float:
    """1 - cos of the angle between g_hat and g, accurate for the smallest angles, too.

    1 - cos = sin**2/(1 + cos), and sin is the component of the error orthogonal to g, over |g_hat|.
    """
    if not computed.values.any():
        return 1.0
    if not error.values.any():
        return 0.0
    cosine = gradient.cosine(computed)
    if cosine <= 0:
        return 1.0 - cosine
    g = gradient.values / torch.linalg.vector_norm(gradient.values)
    orthogonal = Scaled(error.values - g * (g @ error.values), error.exponent)
    return orthogonal.ratio(computed) ** 2 / (1.0 + cosine)
