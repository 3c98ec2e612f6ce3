"""How wrong a gradient is: norms, direction, signs. All invariant to a common scale of both."""

import math

import torch
from torch import Tensor

from fperr.measurement.stages import Scaled

NAMES = (
    "delta",
    "max_norm_delta",
    "cosine_distance",
    "sign_error_rate",
    "flip_rate",
    "zero_rate",
)


def error_metrics(gradient: Scaled, error: Scaled, computed: Tensor) -> dict[str, float]:
    """The measures of a finite computed gradient; all NaN if the exact one is zero.

    Args:
        gradient: the exact g, not zero for a number to come out.
        error: g_hat - g, formed at the reference's precision.
        computed: g_hat, in its format, flattened; its signs are used.

    Returns:
        delta = |error|_2/|g|_2; max_norm_delta, the same in the maximum norm; cosine_distance,
        1 - cos of the angle between g_hat and g (1 for g_hat = 0); and over the components with
        g_j != 0 the share whose sign is wrong, in two parts: flipped, or computed as zero.
    """
    if not gradient.values.any():
        return dict.fromkeys(NAMES, math.nan)
    signs = computed.detach().cpu().to(torch.float64).sign()
    counted = gradient.values != 0
    wrong = signs[counted] != gradient.values[counted].sign()
    zero = signs[counted] == 0
    zero_rate, wrong_rate = float(zero.double().mean()), float(wrong.double().mean())
    return {
        "delta": error.ratio(gradient),
        "max_norm_delta": error.ratio(gradient, math.inf),
        "cosine_distance": _cosine_distance(gradient, error, computed),
        "sign_error_rate": wrong_rate,
        "flip_rate": float((wrong & (signs[counted] != 0)).double().mean()),
        "zero_rate": zero_rate,
    }


def _cosine_distance(gradient: Scaled, error: Scaled, computed: Tensor) -> float:
    """1 - cos, through the part of the error across g: accurate for the smallest errors too."""
    if not computed.any():
        return 1.0
    if not error.values.any():
        return 0.0
    g = gradient.values / torch.linalg.vector_norm(gradient.values)
    across = error.values - g * (g @ error.values)
    # g_hat = g + error, in units of the larger of the two
    top = max(gradient.exponent, error.exponent)
    unit_g, unit_error = 2.0 ** (gradient.exponent - top), 2.0 ** (error.exponent - top)
    whole = gradient.values * unit_g + error.values * unit_error
    norm = torch.linalg.vector_norm(whole)
    cosine = float(whole @ g / norm)
    sine = float(torch.linalg.vector_norm(across) * unit_error / norm)
    return 1.0 - cosine if cosine <= 0 else sine**2 / (1.0 + cosine)
