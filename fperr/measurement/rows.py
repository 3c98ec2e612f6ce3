"""Rows of the report: one for each sample, scenario, loss and format."""

import math
from dataclasses import dataclass

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
from fperr.networks.exact_network import ExactNetwork, ExactSample
from fperr.reasons import FLAT, UNDEFINED, not_finite, too_few_digits, unusable_scale
from fperr.theory.scenarios import SCENARIOS, Scenario

Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class RowContext:
    """What all rows of a sample have in common.

    Attributes:
        reference: The exact network.
        row_log2_norms: log2 of the norms of the K rows of J.
        certify: Prove an interval for delta.
    """

    reference: ExactNetwork
    row_log2_norms: list[float]
    certify: bool


def measured_row(
    result: FormatResult, exact: ExactSample, cast: ExactSampleInFormat, context: RowContext
) -> Row:
    """The row of a sample at which the exact network is known.

    Args:
        result: What the format computed.
        exact: The exact network at the sample.
        cast: The sample through the network with weights and input rounded to the format.
        context: What the sample's rows have in common.
    """
    row: Row = identity_columns(result)
    row |= scale_columns(result, exact)
    row |= flip_columns(cast)
    row["value_audit"] = exact.state.audit.verdict
    A = context.reference.vectors
    loss = result.loss_at_sample(A)
    gradient = None if loss is None else exact.gradient(loss)
    # DLR has no gradient where its denominator is 0
    row["is_defined"] = gradient is not None or result.loss.kind != "dlr"
    if loss is None:
        return row | {"reason": _reason_of_scale(result)}
    if gradient is None:
        return row | {"reason": UNDEFINED}
    row["log2_reference_error"] = gradient.log2_error
    row["is_proved"] = gradient.is_proved and gradient.log2_error < math.inf
    row["is_certified"] = context.reference.certifies(gradient)
    if not row["is_certified"]:
        missed = too_few_digits(gradient.log2_error, context.reference.digits)
        return row | {"reason": _reason_of_format(result) or missed}
    v = logit_gradients(result, loss, gradient, cast, A)
    computed = result.unscaled_if_finite(A, result.float_gradient.gradient)
    # where the format holds weights and input exactly, its cast network is the exact one
    is_exact = cast.cast is exact.state.map and cast.z is exact.z
    cast_gradient = gradient.gradient if is_exact else product(v.cast, cast.cast)
    if gradient.resolves_stages(result.format.unit_roundoff):
        errors = split(A, computed, gradient.gradient, v, cast.data, cast_gradient)
    else:
        errors = compared(A, computed, gradient.gradient)
    row["truly_flat"] = not bool(errors.signs.any())
    if row["truly_flat"]:
        return row | {"reason": _reason_of_format(result) or FLAT}
    if computed is None:
        row["reason"] = _reason_of_format(result)
    row |= error_columns(result, errors)
    row |= jacobian_columns(result, context.row_log2_norms, errors)
    row |= frozen_columns(result, gradient, A)
    if context.certify:
        row |= certified_columns(result, exact, gradient, row["delta"])
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
    return identity_columns(result) | {"is_certified": is_certified, "reason": reason}


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
