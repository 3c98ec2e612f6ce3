"""Which class the loss of each sample uses, and in which scenario that puts it."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fperr.measurement.arguments import MeasureRequest
from fperr.theory.scenarios import Scenario, assigned_label, classify


@dataclass(frozen=True, slots=True)
class LabelsOfScenario:
    """One class for each sample of a batch.

    Attributes:
        label: (batch,), y of an untargeted, y_t of a targeted loss.
        targeted: which of the two.
        y: (batch,), the true label where it is known (targeted DLR needs it).
        scenarios: of each sample, by the reference's logits.
    """

    label: Tensor
    targeted: bool
    y: Tensor | None
    scenarios: Sequence[Scenario]


def labels_by_scenario(job: MeasureRequest, batch: slice, order: Tensor) -> list[LabelsOfScenario]:
    """The cases of one batch: one for each assigned scenario, or the observed one.

    Args:
        job: the request.
        batch: which samples.
        order: (batch, K), classes by the reference's logits.
    """
    if job.scenarios is not None:
        return [_assigned(scenario, order) for scenario in job.scenarios]
    y = None if job.y is None else job.y[batch]
    if job.targets is None:
        assert y is not None
        return [LabelsOfScenario(y, False, y, classify(order, y, targeted=False))]
    target = job.targets[batch]
    return [LabelsOfScenario(target, True, y, classify(order, target, targeted=True))]


def _assigned(scenario: Scenario, order: Tensor) -> LabelsOfScenario:
    """Labels pi_1 or pi_2; the true label of a targeted case is the other one of the two."""
    label = assigned_label(order, scenario)
    other = order[:, 1 if scenario.label_leads else 0]
    y = other if scenario.targeted else label
    return LabelsOfScenario(label, scenario.targeted, y, [scenario] * len(label))
