"""Rows of the report: one for each sample, scenario, loss and format."""

from dataclasses import dataclass

from fperr.exact.engines.gradient import GradientAtSample, LossAtSample
from fperr.formats import Format
from fperr.gradient_error.loss_bound import bound_columns
from fperr.gradient_error.stages import compared, product, split
from fperr.losses import Loss
from fperr.measurement.format_result import FormatResult, logit_gradients
from fperr.measurement.labels_by_scenario import LabelAssignment
from fperr.measurement.rounded_network import ExactSampleInFormat
from fperr.measurement.row_columns import (
    certified_columns,
    error_columns,
    flip_columns,
    frozen_columns,
    identity_columns,
    jacobian_columns,
    logit_columns,
    scale_columns,
)
from fperr.networks.exact_network import ExactSample
from fperr.reasons import FLAT, UNDEFINED, not_certified, not_finite, too_few_bits, unusable_scale
from fperr.theory.scenarios import SCENARIOS, Scenario

Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class ExactResult:
    """The exact network and the exact gradient that a row is compared with.

    Attributes:
        sample: The exact network at the sample, on the rung that the gradient comes from.
        gradient: Exact gradient of the row's loss; None where it is undefined or undecided.
        cast: The sample through the network with weights and input rounded to the format.
        row_log2_norms: log2 of the norms of the K rows of J.
        bits: Bits of the gradient that the format's delta needs.
        certify: Prove an interval for delta.
    """

    sample: ExactSample
    gradient: GradientAtSample | None
    cast: ExactSampleInFormat
    row_log2_norms: list[float]
    bits: float
    certify: bool


def measured_row(result: FormatResult, loss: LossAtSample | None, exact: ExactResult) -> Row:
    """The row of a sample at which the exact network is known.

    Args:
        result: What the format computed.
        loss: The loss with the scale that the format computed; None where that is unusable.
        exact: The exact network, and its gradient.
    """
    sample, gradient, cast = exact.sample, exact.gradient, exact.cast
    row: Row = identity_columns(result)
    row |= scale_columns(result, sample)
    row |= flip_columns(cast)
    row["value_audit"] = sample.point.audit.verdict
    A = sample.vectors
    # DLR has no gradient where its denominator is 0
    row["is_defined"] = loss is None or loss.is_defined_at(A.context, sample.z)
    if loss is None:
        return row | {"reason": _reason_of_scale(result)}
    if not row["is_defined"]:
        return row | {"reason": UNDEFINED}
    if gradient is None:
        undecided = not_certified("no arithmetic decides the gradient of this loss")
        return row | {"certainty": "uncertified", "is_certified": False, "reason": undecided}
    row["log2_reference_error"] = gradient.log2_error
    row["certainty"] = gradient.certainty(exact.bits)
    row["is_certified"] = gradient.has_bits(exact.bits)
    if not row["is_certified"]:
        missed = too_few_bits(gradient.log2_error, exact.bits)
        return row | {"reason": _reason_of_format(result) or missed}
    v = logit_gradients(result, loss, gradient, cast, A)
    computed = result.unscaled_if_finite(A, result.float_gradient.gradient)
    # where the format holds weights and input exactly, its cast network is the exact one
    is_exact = cast.cast is sample.point.map and cast.z is sample.z
    cast_gradient = gradient.gradient if is_exact else product(v.cast, cast.cast)
    constants_gradient = (
        cast_gradient if cast.has_exact_constants else product(v.constants, cast.constants)
    )
    if gradient.resolves_stages(result.format.unit_roundoff):
        errors = split(
            A, computed, gradient.gradient, v, cast.data, constants_gradient, cast_gradient
        )
    else:
        errors = compared(A, computed, gradient.gradient)
    row["truly_flat"] = not bool(errors.signs.any())
    if row["truly_flat"]:
        return row | {"reason": _reason_of_format(result) or FLAT}
    if computed is None:
        row["reason"] = _reason_of_format(result)
    row |= error_columns(result, errors)
    row |= jacobian_columns(result, exact.row_log2_norms, errors)
    row |= frozen_columns(result, gradient, A)
    if exact.certify:
        row |= certified_columns(result, gradient, row["delta"])
    row |= logit_columns(result, v, A)
    return row | bound_columns(result.bound, result.i, cast.data, errors.gradient.log2_norm)


def unmeasured_row(result: FormatResult, reason: str, *, is_certified: bool | None) -> Row:
    """The row of a sample at which there is no exact network.

    Args:
        result: What the format computed.
        reason: Reason in words, as `fperr.reasons` has them.
        is_certified: False where a certificate was attempted; None where there was nothing to
            certify.
    """
    certainty = None if is_certified is None else "uncertified"
    return identity_columns(result) | {
        "certainty": certainty,
        "is_certified": is_certified,
        "reason": reason,
    }


def failed_row(
    sample: int, i: int, loss: Loss, fmt: Format, assignment: LabelAssignment, reason: str
) -> Row:
    """The row of a format in which the network cannot be run.

    Args:
        sample: Index of the sample in x.
        i: Index of the sample in its batch.
        loss: Loss that was to be differentiated.
        fmt: The format.
        assignment: Labels of the batch.
        reason: Reason in words, as `fperr.reasons` has them.
    """
    return {
        "sample": sample,
        "scenario": assignment.scenarios[i].name,
        "loss": loss.name,
        "format": fmt.name,
        "label": int(assignment.label[i]),
        "is_sign_twin": False,
        "reason": reason,
    }


def negated_row(twin: Row, scenario: Scenario) -> Row:
    """The row of `scenario`, copied from its twin's: only the sign of the gradient differs."""
    row = {**twin, "scenario": scenario.name, "is_sign_twin": True}
    if "format_scenario" in twin:
        row["format_scenario"] = SCENARIOS[str(twin["format_scenario"])].twin.name
    return row


def _reason_of_format(result: FormatResult) -> str | None:
    """The reason if the format's own numbers are not finite: then the exact network is no cause."""
    quantity = result.quantity_not_finite
    return None if quantity is None else not_finite(result.format, quantity)


def _reason_of_scale(result: FormatResult) -> str:
    """Why the scale is unusable: the logits are not finite, or the scale itself is not."""
    if result.quantity_not_finite == "logits":
        return not_finite(result.format, "logits")
    return unusable_scale(float(result.float_gradient.scale.c[result.i]))
