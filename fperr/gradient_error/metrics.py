"""How wrong a gradient is: norms, direction, signs. All invariant to a common scale of both."""

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
)


def error_metrics(parts: Split) -> dict[str, float]:
    """The measures of a finite computed gradient; all NaN if the exact one is zero.

    Args:
        parts: the exact gradient, the computed one and the error between them.

    Returns:
        delta = |error|_2/|g|_2; max_norm_delta, the same in the maximum norm; cosine_distance,
        1 - cos of the angle between g_hat and g (1 for g_hat = 0); and over the components with
        g_j != 0 the share whose sign is wrong, in two parts: flipped, or computed as zero.
    """
    gradient, error, computed = parts.gradient, parts.error, parts.computed
    hats = parts.computed_signs
    if error is None or computed is None or hats is None or not parts.signs.any():
        return dict.fromkeys(NAMES, math.nan)
    counted = parts.signs != 0
    signs = hats[counted]
    wrong, zero = signs != parts.signs[counted], signs == 0
    return {
        "delta": error.ratio(gradient),
        "max_norm_delta": error.ratio(gradient, math.inf),
        "cosine_distance": _cosine_distance(gradient, error, computed),
        "sign_error_rate": float(wrong.double().mean()),
        "flip_rate": float((wrong & ~zero).double().mean()),
        "zero_rate": float(zero.double().mean()),
    }


def _cosine_distance(gradient: Scaled, error: Scaled, computed: Scaled) -> float:
    """1 - cos, through the part of the error across g: accurate for the smallest errors too."""
    if not computed.values.any():
        return 1.0
    if not error.values.any():
        return 0.0
    cosine = gradient.cosine(computed)
    if cosine <= 0:
        return 1.0 - cosine
    g = gradient.values / torch.linalg.vector_norm(gradient.values)
    across = Scaled(error.values - g * (g @ error.values), error.exponent)
    return across.ratio(computed) ** 2 / (1.0 + cosine)
