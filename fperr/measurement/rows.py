"""One row of the report: one sample, scenario, loss and format."""

import math
from dataclasses import dataclass

import torch

from fperr.exact.arithmetic import Array
from fperr.exact.logit_gradient import logit_gradient
from fperr.exact.mp import MpArithmetic
from fperr.formats import Format, of_dtype
from fperr.measurement.cases import Case
from fperr.measurement.metrics import error_metrics
from fperr.measurement.network import FloatGradient
from fperr.measurement.reference import ExactSample, FormatSample
from fperr.measurement.stages import (
    STAGES,
    LogitGradients,
    Split,
    row,
    scaled,
    shares,
    split,
)
from fperr.theory.bounds import log2_delta_sup_input, log2_delta_sup_logit
from fperr.theory.losses import Loss
from fperr.theory.scaling import log2_G, temperature
from fperr.theory.scenarios import SCENARIOS, Scenario, classify, ranked

Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Situation:
    """What a row is about.

    Attributes:
        sample: index in x.
        i: index in the batch.
        loss, format, case: the rest of the row's identity.
        float_gradient: what the format computed for the batch.
    """

    sample: int
    i: int
    loss: Loss
    format: Format
    case: Case
    float_gradient: FloatGradient

    @property
    def label(self) -> int:
        """The class that the loss uses."""
        return int(self.case.label[self.i])

    @property
    def y(self) -> int | None:
        """The true label, where it is known."""
        return None if self.case.y is None else int(self.case.y[self.i])

    @property
    def is_finite(self) -> bool:
        """Logits, logit gradient and gradient of this sample are finite."""
        f, i = self.float_gradient, self.i
        parts = f.logits[i], f.logit_gradient[i], f.gradient[i]
        return all(bool(part.isfinite().all()) for part in parts)

    @property
    def is_scale_degenerate(self) -> bool:
        """The scale c is 0, infinite or NaN: no statement about the gradient can be made."""
        c = float(self.float_gradient.scale.c[self.i])
        return not 0 < c < math.inf


def measured_row(
    situation: Situation,
    exact: ExactSample,
    cast: FormatSample,
    arithmetic: MpArithmetic,
    *,
    is_certified: bool,
) -> Row:
    """The row of a sample whose reference is known."""
    result = _identity(situation)
    result |= _scale_columns(situation, exact)
    result["log2_reference_disagreement"] = exact.log2_disagreement
    result["is_certified"] = is_certified
    v = _logit_gradients(situation, exact, cast, arithmetic)
    # DLR has no gradient where its denominator is 0
    result["is_defined"] = v is not None or situation.loss.kind != "dlr"
    if v is None or not is_certified:
        return result
    parts = split(arithmetic, _computed(situation, arithmetic), v, cast.maps)
    result["truly_flat"] = not bool(parts.signs.any())
    if result["truly_flat"]:
        return result
    result |= _error_columns(situation, parts)
    result |= _reference_columns(situation, exact, parts)
    result["p_underflow_rate"] = _underflow_rate(situation, v)
    result["logit_delta"] = _logit_delta(v, arithmetic)
    return result


def unmeasured_row(situation: Situation) -> Row:
    """The row of a sample that has no reference, because its input is not finite."""
    return _identity(situation)


def negated_row(twin: Row, scenario: Scenario) -> Row:
    """The row of `scenario` from that of its twin: only the sign of the gradient differs."""
    seen = SCENARIOS[str(twin["format_scenario"])].twin
    return {
        **twin,
        "scenario": scenario.name,
        "format_scenario": seen.name,
        "is_sign_twin": True,
    }


def _identity(s: Situation) -> Row:
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


def _scale_columns(s: Situation, exact: ExactSample) -> Row:
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
        stored_in = of_dtype(f.logits.dtype).storage_unit_roundoff
        wanted = temperature(exact.logits, label, s.loss.T, stored_in)
        exact_c = float(wanted) / margin if margin else math.inf
        result["c_error"] = abs(float(c) / exact_c - 1) if exact_c < math.inf else math.nan
    return result


def _logit_gradients(
    s: Situation, exact: ExactSample, cast: FormatSample, A: MpArithmetic
) -> LogitGradients | None:
    """The four logit gradients with the same c; None where the exact one is undefined."""
    f, i = s.float_gradient, s.i
    if s.is_scale_degenerate:
        return None
    c = A.from_torch(f.scale.c[i : i + 1])[0]

    def exact_v(z: list[object]) -> Array | None:
        v = logit_gradient(s.loss.kind, A.context, z, s.label, c=c, targeted=s.case.targeted, y=s.y)
        return None if v is None else row(A, v)

    v = exact_v(exact.z)
    if v is None:
        return None
    finite_logits = bool(f.logits[i].isfinite().all())
    finite_v = bool(f.logit_gradient[i].isfinite().all())
    return LogitGradients(
        computed=_unscaled(s, A, f.logit_gradient[i]) if finite_v and finite_logits else None,
        format=exact_v(list(A.from_torch(f.logits[i]))) if finite_logits else None,
        cast=None if cast.z is None else exact_v(cast.z),
        exact=v,
    )


def _unscaled(s: Situation, A: MpArithmetic, values: torch.Tensor) -> Array:
    """A gradient (1, entries) of the format, with loss scale and averaging divided out."""
    loss_scale, count = s.float_gradient.factor
    flat = A.from_torch(values.reshape(1, -1))
    flat = flat if loss_scale == 1.0 else A.div(flat, loss_scale)
    return flat if count == 1 else A.mul(flat, float(count))


def _computed(s: Situation, A: MpArithmetic) -> Array | None:
    g = s.float_gradient.gradient[s.i]
    return _unscaled(s, A, g) if bool(g.isfinite().all()) else None


def _error_columns(s: Situation, parts: Split) -> Row:
    result: Row = {"is_dead": not bool(s.float_gradient.gradient[s.i].any())}
    result |= error_metrics(parts)
    for name in STAGES:
        stage = parts.stages[name]
        result[f"stage_{name}"] = math.nan if stage is None else stage.ratio(parts.gradient)
    return result | {f"share_{name}": share for name, share in shares(parts).items()}


def _reference_columns(s: Situation, exact: ExactSample, parts: Split) -> Row:
    log2_norm = parts.gradient.log2_norm
    result: Row = {"common_mode_factor": exact.rows[s.label].ratio(parts.gradient)}
    if s.loss.has_scale:
        result["log2_delta_sup_input"] = log2_delta_sup_input(
            [r.log2_norm for r in exact.rows], log2_norm, s.format.unit_roundoff
        )
    return result


def _logit_delta(v: LogitGradients, A: MpArithmetic) -> float:
    """|v_hat - v|_1/|v|_1 at the format's own logits: what the papers' bound speaks of."""
    if v.format is None or v.computed is None:
        return math.nan
    reference = scaled(A, v.format)
    if not bool(reference.values.any()):
        return math.nan
    return scaled(A, A.sub(v.computed, v.format)).ratio(reference, 1)


def _underflow_rate(s: Situation, v: LogitGradients) -> float:
    """The share of classes other than the label with a nonzero v_i that was computed as 0."""
    if v.format is None or v.computed is None:
        return math.nan
    others = [k for k in range(v.format.shape[1]) if k != s.label and v.format[0, k] != 0]
    lost = sum(v.computed[0, k] == 0 for k in others)
    return lost / len(others) if others else math.nan
