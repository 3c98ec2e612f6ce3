"""One row of the report: one sample, scenario, loss and format."""

import json
import math
from dataclasses import dataclass
from typing import Any

import torch

from fperr.bounds.cross_entropy import Bound
from fperr.bounds.papers import log2_delta_sup_input, log2_delta_sup_logit
from fperr.exact.ball.arithmetic import BallArithmetic
from fperr.exact.engines.scaled import scaled
from fperr.exact.engines.vectors import Vector, Vectors
from fperr.exact.logit_gradient import logit_gradient
from fperr.formats import Format, of_dtype
from fperr.gradient_error.interval import delta_interval
from fperr.gradient_error.loss_bound import bound_columns
from fperr.gradient_error.metrics import error_metrics
from fperr.gradient_error.stages import (
    STAGES,
    LogitGradients,
    Split,
    compared,
    product,
    shares,
    split,
)
from fperr.losses.registry import Loss
from fperr.measurement.exact_in_format import ExactSampleInFormat
from fperr.measurement.labels_by_scenario import LabelsOfScenario
from fperr.networks.exactly import ExactGradientAt, ExactNetwork, ExactSample, LossAtSample
from fperr.networks.in_format import FloatGradient
from fperr.reasons import FLAT, UNDEFINED, not_finite, too_few_digits, unusable_scale
from fperr.theory.scaling import log2_G
from fperr.theory.scenarios import SCENARIOS, Scenario, classify, ranked

Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class RowRequest:
    """What a row is about.

    Attributes:
        sample: index in x.
        i: index in the batch.
        loss, format, case: the rest of the row's identity.
        float_gradient: what the format computed for the batch.
        frozen: the same with the exact network's decisions, (batch, *shape); None where they could
            not be put in place; the gradient itself where none differ.
        bound: on the error of the batch's logit gradients; None where there is none.
    """

    sample: int
    i: int
    loss: Loss
    format: Format
    case: LabelsOfScenario
    float_gradient: FloatGradient
    frozen: torch.Tensor | None
    bound: Bound | None

    @property
    def label(self) -> int:
        """The class that the loss uses."""
        return int(self.case.label[self.i])

    @property
    def y(self) -> int | None:
        """The true label, where it is known."""
        return None if self.case.y is None else int(self.case.y[self.i])

    @property
    def part_not_finite(self) -> str | None:
        """The first of (unmasked) logits, logit gradient and gradient not finite, if any."""
        f, i = self.float_gradient, self.i
        logits = torch.where(f.logits.isneginf(), 0.0, f.logits)
        parts = {"logits": logits, "logit gradient": f.logit_gradient, "gradient": f.gradient}
        broken = (name for name, part in parts.items() if not bool(part[i].isfinite().all()))
        return next(broken, None)

    @property
    def is_finite(self) -> bool:
        """Logits, logit gradient and gradient of this sample are finite."""
        return self.part_not_finite is None

    @property
    def is_scale_degenerate(self) -> bool:
        """The scale c is 0, infinite or NaN: no statement about the gradient can be made."""
        c = float(self.float_gradient.scale.c[self.i])
        return not 0 < c < math.inf


@dataclass(frozen=True, slots=True)
class RowContext:
    """What all rows of a sample have in common.

    Attributes:
        reference: the exact network.
        row_log2_norms: log2 of the norms of the K rows of J.
        certify: prove an interval for delta.
    """

    reference: ExactNetwork
    row_log2_norms: list[float]
    certify: bool


def measured_row(
    situation: RowRequest, exact: ExactSample, cast: ExactSampleInFormat, context: RowContext
) -> Row:
    """The row of a sample whose reference is known."""
    result = _identity(situation)
    result |= _scale_columns(situation, exact)
    result |= _routing_columns(cast)
    result["value_audit"] = exact.state.audit.verdict
    asked = _loss_at(situation, context.reference.vectors)
    found = None if asked is None else exact.gradient(asked)
    # DLR has no gradient where its denominator is 0
    result["is_defined"] = found is not None or situation.loss.kind != "dlr"
    if asked is None:
        return result | {"reason": _reason_of_scale(situation)}
    if found is None:
        return result | {"reason": UNDEFINED}
    result["log2_reference_error"] = found.log2_error
    result["is_proved"] = found.is_proved and found.log2_error < math.inf
    result["is_certified"] = context.reference.certifies(found)
    if not result["is_certified"]:
        missed = too_few_digits(found.log2_error, context.reference.digits)
        return result | {"reason": _reason_of_format(situation) or missed}
    arithmetic = context.reference.vectors
    v = _logit_gradients(situation, asked, found, cast, arithmetic)
    computed = _computed(situation, arithmetic, situation.float_gradient.gradient)
    # where the format holds weights and input, its cast network is the exact one
    is_exact = cast.cast is exact.state.map and cast.z is exact.z
    cast_gradient = found.gradient if is_exact else product(v.cast, cast.cast)
    if found.resolves_stages(situation.format.unit_roundoff):
        parts = split(arithmetic, computed, found.gradient, v, cast.data, cast_gradient)
    else:
        parts = compared(arithmetic, computed, found.gradient)
    result["truly_flat"] = not bool(parts.signs.any())
    if result["truly_flat"]:
        return result | {"reason": _reason_of_format(situation) or FLAT}
    if computed is None:
        result["reason"] = _reason_of_format(situation)
    result |= _error_columns(situation, parts)
    result |= _reference_columns(situation, context.row_log2_norms, parts)
    result |= _frozen_columns(situation, found, arithmetic)
    if context.certify:
        result |= _certified_columns(situation, exact, found, result["delta"])
    result["p_underflow_rate"] = _underflow_rate(situation, v, arithmetic)
    result["logit_delta"] = _logit_delta(v, arithmetic)
    result |= bound_columns(situation.bound, situation.i, cast.data, parts.gradient.log2_norm)
    return result


def unmeasured_row(situation: RowRequest, reason: str, *, is_certified: bool | None) -> Row:
    """The row of a sample without a reference: its input is not finite, or nothing is proved.

    Args:
        situation: what it is about.
        reason: why, in words, as `fperr.reasons` has them.
        is_certified: None where there was nothing to certify.
    """
    return _identity(situation) | {"is_certified": is_certified, "reason": reason}


def failed_row(
    sample: int, i: int, loss: Loss, fmt: Format, case: LabelsOfScenario, reason: str
) -> Row:
    """The row of a format in which the network cannot be run.

    Args:
        sample: index in x.
        i: index in the batch.
        loss: what was to be differentiated.
        fmt: the format.
        case: the labels.
        reason: why, in words.
    """
    return {
        "sample": sample,
        "scenario": case.scenarios[i].name,
        "loss": loss.name,
        "format": fmt.name,
        "label": int(case.label[i]),
        "is_sign_twin": False,
        "reason": reason,
    }


def negated_row(twin: Row, scenario: Scenario) -> Row:
    """The row of `scenario` from that of its twin: only the sign of the gradient differs."""
    row = {**twin, "scenario": scenario.name, "is_sign_twin": True}
    if "format_scenario" in twin:
        row["format_scenario"] = SCENARIOS[str(twin["format_scenario"])].twin.name
    return row


def _reason_of_format(s: RowRequest) -> str | None:
    """That the format's own numbers are not finite: the row fails, whatever the reference is."""
    part = s.part_not_finite
    return None if part is None else not_finite(s.format, part)


def _reason_of_scale(s: RowRequest) -> str:
    """Why the scale is unusable: logits that are not finite leave it undefined."""
    if s.part_not_finite == "logits":
        return not_finite(s.format, "logits")
    return unusable_scale(float(s.float_gradient.scale.c[s.i]))


def _identity(s: RowRequest) -> Row:
    f = s.float_gradient
    z = f.logits[s.i : s.i + 1]
    seen = classify(ranked(z), s.case.label[s.i : s.i + 1], targeted=s.case.targeted)[0]
    return {
        "sample": s.sample,
        "scenario": s.case.scenarios[s.i].name,
        "format_scenario": seen.name,
        "loss": s.loss.name,
        "format": s.format.name,
        "label": s.label,
        "is_finite": s.is_finite,
        "scale_capped": bool(f.scale.is_capped[s.i]),
        "scale_degenerate": s.is_scale_degenerate,
        "is_sign_twin": False,
    }


def _scale_columns(s: RowRequest, exact: ExactSample) -> Row:
    f, i = s.float_gradient, s.i
    margin = float(exact.z[exact.order[0]] - exact.z[exact.order[1]])
    result: Row = {
        "margin": margin,
        "prediction_differs": int(ranked(f.logits[i : i + 1])[0, 0]) != exact.order[0],
    }
    if not s.loss.has_scale:
        return result
    label = torch.tensor([s.label])
    c = f.scale.c[i : i + 1].detach().cpu()
    log2_g = log2_G(exact.logits, label, c)
    result |= {
        "T": float(f.scale.T[i]),
        "c": float(c),
        "c_error": 0.0,
        "log2_G": float(log2_g),
        "log2_delta_sup_logit": float(log2_delta_sup_logit(log2_g, s.format.unit_roundoff)),
    }
    if s.loss.is_scaled:
        stored_in = of_dtype(f.logits.dtype)
        wanted = s.loss.temperature(exact.logits, label, stored_in, f.factor[0])
        exact_c = float(wanted) / margin if margin else math.inf
        result["c_error"] = abs(float(c) / exact_c - 1) if exact_c < math.inf else math.nan
    return result


def _loss_at(s: RowRequest, A: Vectors[Any]) -> LossAtSample | None:
    """The loss with the scale that the format computed; None where that scale is unusable."""
    if s.is_scale_degenerate:
        return None
    c = A.context.mpf(float(s.float_gradient.scale.c[s.i]))
    return LossAtSample(s.loss.kind, s.label, c, s.case.targeted, s.y)


def _logit_gradients(
    s: RowRequest,
    asked: LossAtSample,
    exact: ExactGradientAt,
    cast: ExactSampleInFormat,
    A: Vectors[Any],
) -> LogitGradients:
    """The four logit gradients with the same c."""
    f, i = s.float_gradient, s.i

    def exact_v(z: list[object]) -> Vector | None:
        v = logit_gradient(
            asked.kind, A.context, z, asked.label, c=asked.c, targeted=asked.targeted, y=asked.y
        )
        return None if v is None else A.array(v)

    finite_logits = bool((f.logits[i].isfinite() | f.logits[i].isneginf()).all())
    finite_v = bool(f.logit_gradient[i].isfinite().all())
    return LogitGradients(
        computed=_unscaled(s, A, f.logit_gradient[i]) if finite_v and finite_logits else None,
        format=exact_v([A.context.mpf(value) for value in f.logits[i].tolist()])
        if finite_logits
        else None,
        cast=None if cast.z is None else exact_v(cast.z),
        exact=exact.v,
    )


def _unscaled(s: RowRequest, A: Vectors[Any], values: torch.Tensor) -> Vector:
    """A gradient (1, entries) of the format, with loss scale and averaging divided out."""
    loss_scale, count = s.float_gradient.factor
    flat: Vector = A.from_torch(values.reshape(1, -1))
    flat = flat if loss_scale == 1.0 else A.div(flat, loss_scale)
    return flat if count == 1 else A.mul(flat, float(count))


def _computed(s: RowRequest, A: Vectors[Any], gradients: torch.Tensor) -> Vector | None:
    g = gradients[s.i]
    return _unscaled(s, A, g) if bool(g.isfinite().all()) else None


def _error_columns(s: RowRequest, parts: Split) -> Row:
    result: Row = {"is_dead": not bool(s.float_gradient.gradient[s.i].any())}
    result |= error_metrics(parts)
    for name in STAGES:
        stage = parts.stages.get(name)
        result[f"stage_{name}"] = math.nan if stage is None else stage.ratio(parts.gradient)
    return result | {f"share_{name}": share for name, share in shares(parts).items()}


def _reference_columns(s: RowRequest, row_log2_norms: list[float], parts: Split) -> Row:
    log2_norm = parts.gradient.log2_norm
    result: Row = {"common_mode_factor": _power_of_two(row_log2_norms[s.label] - log2_norm)}
    if s.loss.has_scale:
        result["log2_delta_sup_input"] = log2_delta_sup_input(
            row_log2_norms, log2_norm, s.format.unit_roundoff
        )
    return result


def _power_of_two(exponent: float) -> float:
    return 2.0**exponent if exponent < 1024 else math.inf


def _routing_columns(cast: ExactSampleInFormat) -> Row:
    """How many decisions differ from the exact network's, and where."""
    if cast.flips is None:
        return {}
    by_layer = {f.layer: [f.flips, f.tie_flips] for f in cast.flips if f.flips or f.tie_flips}
    return {
        "activation_flips": sum(f.flips for f in cast.flips if f.kind == "activation"),
        "pooling_flips": sum(f.flips for f in cast.flips if f.kind == "pooling"),
        "tie_flips": sum(f.tie_flips for f in cast.flips),
        "flips_by_layer": json.dumps(by_layer),
    }


def _frozen_columns(s: RowRequest, exact: ExactGradientAt, A: Vectors[Any]) -> Row:
    """The relative error with the exact network's decisions in place of the format's own."""
    frozen = None if s.frozen is None else _computed(s, A, s.frozen)
    if frozen is None:
        return {}
    error = scaled(A, A.sub(frozen, exact.gradient))
    return {"delta_frozen": error.ratio(scaled(A, exact.gradient))}


def _certified_columns(
    s: RowRequest, exact: ExactSample, found: ExactGradientAt, delta: object
) -> Row:
    """The proved interval, and delta where float64's rounding took it out of that."""
    g = s.float_gradient.gradient[s.i]
    B = exact.state.interpreter.arithmetic
    if not bool(g.isfinite().all()) or not isinstance(B, BallArithmetic):
        return {}
    assert found.enclosure is not None
    assert isinstance(delta, float)
    low, high = delta_interval(B, g, s.float_gradient.factor, found.enclosure)
    return {"delta_lo": low, "delta_hi": high, "delta": min(max(delta, low), high)}


def _logit_delta(v: LogitGradients, A: Vectors[Any]) -> float:
    """|v_hat - v|_1/|v|_1 at the format's own logits: what the papers' bound speaks of."""
    if v.format is None or v.computed is None:
        return math.nan
    reference = scaled(A, v.format)
    if not bool(reference.values.any()):
        return math.nan
    return scaled(A, A.sub(v.computed, v.format)).ratio(reference, 1)


def _underflow_rate(s: RowRequest, v: LogitGradients, A: Vectors[Any]) -> float:
    """The share of classes other than the label with a nonzero v_i that was computed as 0."""
    if v.format is None or v.computed is None:
        return math.nan
    wanted, found = A.sign(v.format) != 0, A.sign(v.computed) != 0
    wanted[s.label] = False
    lost, others = int((wanted & ~found).sum()), int(wanted.sum())
    return lost / others if others else math.nan
