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
        scenarios: Scenario of each sample, by the exact logits.
    """

    label: Tensor
    targeted: bool
    y: Tensor | None
    scenarios: Sequence[Scenario]


def label_assignments(job: MeasureRequest, batch: slice, order: Tensor) -> list[LabelAssignment]:
    """The assignments of one batch: one for each requested scenario, or the observed one.

    Args:
        job: Checked request.
        batch: Samples of the batch.
        order: Classes (batch, K) by descending exact logit.
    """
    if job.scenarios is not None:
        return [_assigned(scenario, order) for scenario in job.scenarios]
    y = None if job.y is None else job.y[batch]
    if job.targets is None:
        assert y is not None
        return [LabelAssignment(y, False, y, classify(order, y, targeted=False))]
    target = job.targets[batch]
    return [LabelAssignment(target, True, y, classify(order, target, targeted=True))]


def _assigned(scenario: Scenario, order: Tensor) -> LabelAssignment:
    """Labels pi_1 or pi_2, the classes with the largest and second largest logit.

    The true label of a targeted loss is the class that is not its target.
    """
    label = assigned_label(order, scenario)
    other = order[:, 1 if scenario.label_leads else 0]
    y = other if scenario.targeted else label
    return LabelAssignment(label, scenario.targeted, y, [scenario] * len(label))
