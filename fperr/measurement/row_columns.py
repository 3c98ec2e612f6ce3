"""The columns of a measured row, one function for each group of columns."""

import json
import math
from typing import Any

import torch

from fperr.bounds.papers import log2_delta_sup_input, log2_delta_sup_logit
from fperr.exact.engines.gradient import GradientAtSample
from fperr.exact.engines.scaled import scaled
from fperr.exact.engines.vectors import Vectors
from fperr.formats import of_dtype
from fperr.gradient_error.interval import delta_interval
from fperr.gradient_error.metrics import error_metrics
from fperr.gradient_error.stages import STAGES, LogitGradients, Split, shares
from fperr.measurement.format_result import FormatResult
from fperr.measurement.rounded_network import ExactSampleInFormat
from fperr.networks.exact_network import ExactSample
from fperr.theory.scaling import log2_G
from fperr.theory.scenarios import classify, ranked

Columns = dict[str, object]
_LOG2_OVERFLOW = 1024  # 2.0**1024 is no float64


def identity_columns(result: FormatResult) -> Columns:
    """Sample, scenario, loss, format and label, and whether the format's numbers are usable."""
    f, i, assignment = result.float_gradient, result.i, result.assignment
    ranking = ranked(f.logits[i : i + 1])
    format_scenario = classify(ranking, assignment.label[i : i + 1], targeted=assignment.targeted)[
        0
    ]
    return {
        "sample": result.sample,
        "scenario": assignment.scenarios[i].name,
        "format_scenario": format_scenario.name,
        "loss": result.loss.name,
        "format": result.format.name,
        "label": result.label,
        "is_finite": result.is_finite,
        "scale_capped": bool(f.scale.is_capped[i]),
        "scale_degenerate": result.is_scale_degenerate,
        "is_sign_twin": False,
    }


def scale_columns(result: FormatResult, exact: ExactSample) -> Columns:
    """The margin, and for losses with a scale T, c, the error of c, and the bounds of the papers.

    `c_error` is the relative difference to the scale T/margin at the exact logits.
    """
    f, i = result.float_gradient, result.i
    margin = float(exact.z[exact.order[0]] - exact.z[exact.order[1]])
    columns: Columns = {
        "margin": margin,
        "prediction_differs": int(ranked(f.logits[i : i + 1])[0, 0]) != exact.order[0],
    }
    if not result.loss.has_scale:
        return columns
    label = torch.tensor([result.label])
    c = f.scale.c[i : i + 1].detach().cpu()
    log2_g = log2_G(exact.logits, label, c)
    columns |= {
        "T": float(f.scale.T[i]),
        "c": float(c),
        "c_error": 0.0,
        "log2_G": float(log2_g),
        "log2_delta_sup_logit": float(log2_delta_sup_logit(log2_g, result.format.unit_roundoff)),
    }
    if result.loss.is_scaled:
        stored_in = of_dtype(f.logits.dtype)
        T = result.loss.temperature(exact.logits, label, stored_in, f.factor[0])
        exact_c = float(T) / margin if margin else math.inf
        columns["c_error"] = abs(float(c) / exact_c - 1) if exact_c < math.inf else math.nan
    return columns


def flip_columns(cast: ExactSampleInFormat) -> Columns:
    """How many branches differ from the exact network's, in total and by layer."""
    if cast.flips is None:
        return {}
    by_layer = {f.layer: [f.flips, f.tie_flips] for f in cast.flips if f.flips or f.tie_flips}
    return {
        "activation_flips": sum(f.flips for f in cast.flips if f.kind == "activation"),
        "pooling_flips": sum(f.flips for f in cast.flips if f.kind == "pooling"),
        "tie_flips": sum(f.tie_flips for f in cast.flips),
        "flips_by_layer": json.dumps(by_layer),
    }


def error_columns(result: FormatResult, errors: Split) -> Columns:
    """The measures of the gradient's error, the sizes of its stages, and their shares in it."""
    columns: Columns = {"is_dead": not bool(result.float_gradient.gradient[result.i].any())}
    columns |= error_metrics(errors)
    for name in STAGES:
        stage = errors.stages.get(name)
        columns[f"stage_{name}"] = math.nan if stage is None else stage.ratio(errors.gradient)
    return columns | {f"share_{name}": share for name, share in shares(errors).items()}


def jacobian_columns(result: FormatResult, row_log2_norms: list[float], errors: Split) -> Columns:
    """The columns that compare the gradient with the rows of J.

    Args:
        result: What the format computed.
        row_log2_norms: log2 of the norms of the K rows of J.
        errors: Exact gradient, and its error.
    """
    log2_norm = errors.gradient.log2_norm
    log2_factor = row_log2_norms[result.label] - log2_norm
    columns: Columns = {
        "common_mode_factor": 2.0**log2_factor if log2_factor < _LOG2_OVERFLOW else math.inf
    }
    if result.loss.has_scale:
        columns["log2_delta_sup_input"] = log2_delta_sup_input(
            row_log2_norms, log2_norm, result.format.unit_roundoff
        )
    return columns


def frozen_columns(result: FormatResult, exact: GradientAtSample, A: Vectors[Any]) -> Columns:
    """The relative error that remains when the format uses the exact network's branches."""
    frozen = None if result.frozen is None else result.unscaled_if_finite(A, result.frozen)
    if frozen is None:
        return {}
    error = scaled(A, A.sub(frozen, exact.gradient))
    return {"delta_frozen": error.ratio(scaled(A, exact.gradient))}


def certified_columns(result: FormatResult, gradient: GradientAtSample, delta: object) -> Columns:
    """The proved interval for delta, and delta clipped to it.

    delta is computed in float64, whose rounding can move it out of a narrow interval.

    Args:
        result: What the format computed.
        gradient: The exact gradient, with its balls.
        delta: The relative error, a float.
    """
    g = result.float_gradient.gradient[result.i]
    if not bool(g.isfinite().all()) or gradient.enclosed is None:
        return {}
    assert isinstance(delta, float)
    low, high = delta_interval(g, result.float_gradient.factor, gradient.enclosed)
    return {"delta_lo": low, "delta_hi": high, "delta": min(max(delta, low), high)}


def logit_columns(result: FormatResult, v: LogitGradients, A: Vectors[Any]) -> Columns:
    """The errors of the logit gradient, at the format's own logits.

    `p_underflow_rate` is the share of the classes other than the label with v_i != 0 that the
    format computed as 0. `logit_delta` is |v_hat - v|_1/|v|_1, which the papers' bound limits.
    """
    if v.format is None or v.computed is None:
        return {"p_underflow_rate": math.nan, "logit_delta": math.nan}
    is_nonzero, is_computed_nonzero = A.sign(v.format) != 0, A.sign(v.computed) != 0
    is_nonzero[result.label] = False
    lost, total = int((is_nonzero & ~is_computed_nonzero).sum()), int(is_nonzero.sum())
    exact = scaled(A, v.format)
    return {
        "p_underflow_rate": lost / total if total else math.nan,
        "logit_delta": scaled(A, A.sub(v.computed, v.format)).ratio(exact, 1)
        if bool(exact.values.any())
        else math.nan,
    }
