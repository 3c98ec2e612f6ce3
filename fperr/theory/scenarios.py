"""The four scenarios of an attack: untargeted or targeted, unsuccessful or successful."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Scenario:
    """A situation in which an attack takes a gradient: one of four.

    Attributes:
        name: Name, e.g. `"untargeted_unsuccessful"`.
        targeted: Whether the loss uses a target class y_t instead of the label y.
        label_leads: Whether the class that the loss uses is the prediction (y = pi_1 or
            y_t = pi_1).
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
    """The classes (batch, K), int64, by descending logit; of equal logits, the lower index first.

    Args:
        logits: Logits (batch, K) of any floating-point dtype.

    Example:
        >>> ranked(torch.tensor([[1.0, 3.0, 1.0]]))
        tensor([[1, 0, 2]])
    """
    return torch.sort(logits.detach(), dim=1, descending=True, stable=True).indices


def assigned_label(order: Tensor, scenario: Scenario) -> Tensor:
    """The label or target (batch,) that puts every sample into `scenario`: pi_1 or pi_2.

    Args:
        order: Classes (batch, K) by descending logit, from `ranked`.
        scenario: Scenario that every sample shall be in.
    """
    return order[:, 0 if scenario.label_leads else 1]


def classify(order: Tensor, label: Tensor, *, targeted: bool) -> list[Scenario]:
    """The scenario of each sample.

    Args:
        order: Classes (batch, K) by descending logit, from `ranked`.
        label: Labels y of an untargeted attack or targets y_t of a targeted one, (batch,).
        targeted: Whether `label` holds targets.
    """
    leads = (order[:, 0] == label).tolist()
    by_lead = {s.label_leads: s for s in SCENARIOS.values() if s.targeted == targeted}
    return [by_lead[lead] for lead in leads]
