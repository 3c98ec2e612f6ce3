"""Assigns to each sample the class that its loss uses, and the scenario that follows."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fperr.measurement.arguments import MeasureRequest
from fperr.theory.scenarios import Scenario, assigned_label, classify


@dataclass(frozen=True, slots=True)
class LabelAssignment:
    """The class that the loss uses at each sample of a batch.

    Attributes:
        label: Classes (batch,): y of an untargeted, y_t of a targeted loss.
        targeted: True if the loss is targeted.
        y: True labels (batch,), or None where they are not known; targeted DLR needs them.
        scenarios: Scenario of each sample: requested, or observed in the order of the exact logits.
    """

    label: Tensor
    targeted: bool
    y: Tensor | None
    scenarios: Sequence[Scenario]


def label_assignments(
    request: MeasureRequest, batch: slice, order: Tensor
) -> list[LabelAssignment]:
    """The assignments of one batch: one for each requested scenario, or the observed one.

    Args:
        request: Checked request.
        batch: Range of the batch in the request's samples.
        order: Classes (batch, K) by descending exact logit.
    """
    if request.scenarios is not None:
        return [_assigned(scenario, order) for scenario in request.scenarios]
    y = None if request.y is None else request.y[batch]
    if request.targets is None:
        assert y is not None
        return [LabelAssignment(y, False, y, classify(order, y, targeted=False))]
    target = request.targets[batch]
    return [LabelAssignment(target, True, y, classify(order, target, targeted=True))]


def _assigned(scenario: Scenario, order: Tensor) -> LabelAssignment:
    """Labels pi_1 or pi_2, the classes with the largest and second largest logit.

    Of a targeted loss, the other one of the two is taken for the true label.
    """
    label = assigned_label(order, scenario)
    other = order[:, 1 if scenario.label_leads else 0]
    y = other if scenario.targeted else label
    return LabelAssignment(label, scenario.targeted, y, [scenario] * len(label))
