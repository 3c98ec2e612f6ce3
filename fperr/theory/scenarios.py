"""The four scenarios of an attack: untargeted or targeted, unsuccessful or successful."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Scenario:
    """One of the four situations in which an attack takes a gradient.

    Attributes:
        name: e.g. `"untargeted_unsuccessful"`.
        targeted: the loss uses a target class y_t instead of the label y.
        label_leads: the class that the loss uses is the prediction (y = pi_1 or y_t = pi_1).
    """

    name: str
    targeted: bool
    label_leads: bool

    @property
    def twin(self) -> "Scenario":
        """The scenario with the same label and the other sign: i and iv, ii and iii."""
        return next(
            s
            for s in SCENARIOS.values()
            if s.label_leads == self.label_leads and s.targeted != self.targeted
        )


# i, ii, iii and iv of Yu and Xu, CVPR 2023, and of arXiv 2507.22428
UNTARGETED_UNSUCCESSFUL = Scenario("untargeted_unsuccessful", targeted=False, label_leads=True)
UNTARGETED_SUCCESSFUL = Scenario("untargeted_successful", targeted=False, label_leads=False)
TARGETED_UNSUCCESSFUL = Scenario("targeted_unsuccessful", targeted=True, label_leads=False)
TARGETED_SUCCESSFUL = Scenario("targeted_successful", targeted=True, label_leads=True)

SCENARIOS = {
    s.name: s
    for s in (
        UNTARGETED_UNSUCCESSFUL,
        UNTARGETED_SUCCESSFUL,
        TARGETED_UNSUCCESSFUL,
        TARGETED_SUCCESSFUL,
    )
}


def ranked(logits: Tensor) -> Tensor:
    """The classes (batch, K), int64, by descending logit; ties keep the lower index first.

    Args:
        logits: (batch, K), any floating-point dtype.
    """
    return torch.sort(logits.detach(), dim=1, descending=True, stable=True).indices


def assigned_label(order: Tensor, scenario: Scenario) -> Tensor:
    """The label or target (batch,) that puts every sample into `scenario`: pi_1 or pi_2.

    Args:
        order: (batch, K), from `ranked`.
        scenario: where the samples shall be.
    """
    return order[:, 0 if scenario.label_leads else 1]


def classify(order: Tensor, label: Tensor, *, targeted: bool) -> list[Scenario]:
    """The scenario of each sample.

    Args:
        order: (batch, K), from `ranked`.
        label: (batch,), y of an untargeted or y_t of a targeted attack.
        targeted: which of the two `label` is.
    """
    leads = (order[:, 0] == label).tolist()
    by_lead = {s.label_leads: s for s in SCENARIOS.values() if s.targeted == targeted}
    return [by_lead[lead] for lead in leads]
