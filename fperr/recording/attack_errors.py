"""The errors of the attack's own gradient at a sample, under the names that they deserve."""

from dataclasses import dataclass

from torch import Tensor

from fperr.exact.engines.gradient import LossAtSample
from fperr.gradient_error.metrics import NAMES
from fperr.networks.exact_network import ExactSample, NoExactSample, SampleLadder
from fperr.recording.exact_errors import (
    Cells,
    bits_needed,
    exact_gradient,
    gradient_errors,
    logit_gradient_delta,
)
from fperr.recording.loss_fit import RecognisedLoss
from fperr.recording.missing_delta import (
    DIFFERENTIATED_TOGETHER,
    LOGIT_GRADIENT_NOT_FINITE,
    NO_EXACT_LOSS,
    NO_RERUN,
    NOT_COMPARABLE,
    NOT_THE_NETWORK,
    OTHER_LOGITS,
    OTHER_POINT,
    UNKNOWN_LOSS,
)

LOGIT = "logit"  # the name of the "loss" that is a single logit
_COMPARED = {"scaled": "loss, factor fitted", "by sample": "loss, factor fitted by sample"}


@dataclass(frozen=True, slots=True)
class AttackGradient:
    """The attack's own gradient at one sample.

    Attributes:
        z: (K,), the logits.
        v: (K,), dL/dz.
        gradient: (*shape), dL/dx; None where it belongs to several forward passes.
        is_point_held: Whether the point is a number of the model's dtype.
        is_rerun_equal: Whether the network alone gives the gradient, bit by bit; None: unknown.
        is_logit_rerun_equal: Whether the network gives the logits, bit by bit; None: unknown.
    """

    z: Tensor
    v: Tensor
    gradient: Tensor | None
    is_point_held: bool
    is_rerun_equal: bool | None
    is_logit_rerun_equal: bool | None


def attack_errors(
    bits: float,
    attack: AttackGradient,
    exact: SampleLadder | NoExactSample,
    recognised: RecognisedLoss,
    row: int,
    loss: LossAtSample | None,
) -> Cells:
    """The errors of the attack's gradient, and the reason where `delta` is left empty.

    Compared with the exact gradient of the recognised loss. Where that loss does not explain the
    row, with J^T v for the attack's own v: that is the network's error alone.

    Args:
        bits: Bits that the exact gradient must have.
        attack: Gradient of the attack.
        exact: Exact network at the sample, or why there is none.
        recognised: Loss of the attack's backward pass.
        row: Number of the row of the batch.
        loss: The recognised loss at this sample; None: its exact gradient cannot be computed.
    """
    if attack.is_logit_rerun_equal is False:
        return {"reason": OTHER_LOGITS}
    if isinstance(exact, NoExactSample):
        return {"reason": exact.reason}
    if not bool(attack.v.isfinite().all()):
        return {"reason": LOGIT_GRADIENT_NOT_FINITE}
    is_explained = recognised.explains(row)
    factor = float(recognised.factor[row]) if is_explained else 1.0
    cells: Cells = {}
    # the gradient of a single logit is a constant: dL/dz as data has no error of its own
    if is_explained or recognised.name == LOGIT:
        cells["compared_with"] = _COMPARED.get(recognised.reduction, "loss")
    else:
        cells["compared_with"] = "logit gradient"
    needed = bits_needed(bits, attack.gradient, factor)
    if is_explained:
        truth = exact_gradient(exact, loss, bits, needed)
        sample = exact.first(bits)
        assert isinstance(sample, ExactSample)
        cells["logit_gradient_delta"] = logit_gradient_delta(
            sample.vectors, bits, attack.z, attack.v, factor, loss
        )
    else:
        truth = exact.product(attack.v, bits)
    if truth is None:
        return cells | {"reason": NO_EXACT_LOSS}
    errors = gradient_errors(needed, attack.gradient, factor, truth)
    metrics = {name: errors.pop(name) for name in NAMES if name in errors}
    cells |= errors
    if attack.gradient is None:
        cells["reason"] = DIFFERENTIATED_TOGETHER
    elif not metrics:
        cells["reason"] = NOT_COMPARABLE
    elif not attack.is_point_held:
        cells |= {"relative_difference": metrics["delta"], "reason": OTHER_POINT}
    elif attack.is_rerun_equal is None:
        cells |= {"relative_difference": metrics["delta"], "reason": NO_RERUN}
    elif attack.is_rerun_equal is False:
        cells |= {"relative_difference": metrics["delta"], "reason": NOT_THE_NETWORK}
    elif cells["compared_with"] == "logit gradient":
        cells |= {"network_delta": metrics["delta"], "reason": UNKNOWN_LOSS}
    else:
        cells |= metrics
    return cells
