"""Attacks with another loss inside: (T-)MIFPE in FGSM, PGD, APGD and AutoAttack.

APGD also looks at the values of its loss. A line of the table says how much it owes to them.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from fperr.figures import table
from fperr.figures.attacks import SEED, STEPS, attack_outcomes, radius_of, robust_counts
from fperr.figures.study import Study, Subject
from fperr.losses import Context, loss_named

LIBRARY = "pyautoattack"
_FURTHER_ATTACKS = ["apgd-t", "fab-t", "square"]  # the attacks of AutoAttack besides APGD-CE
_TARGETS = 9  # target classes of its targeted attacks, as in its standard version
_BATCH = 250
TITLE = "Robust accuracy in per cent with another loss inside (float32)"
NOTE = (
    f"FGSM takes one step, PGD and APGD {STEPS}. APGD looks at its loss's value: it is given the "
    "margin as value and (T-)MIFPE for the gradient alone; 'without the split' it gets MIFPE's own "
    f"value.\nAutoAttack is {LIBRARY}'s: its APGD-CE, and apart from it its other attacks, one "
    "after the other; with another loss APGD with that loss takes the place of its APGD-CE.\n"
    "A dash: does not apply, is the line above (APGD-DLR), or the library is not installed."
)


@dataclass(frozen=True, slots=True)
class AttackLine:
    """An attack: a line of the table for each network.

    Attributes:
        name: Name of the attack.
        default_loss: Loss that the attack has by itself.
        options: Options of `fperr.attack`.
        is_split: Whether values and gradients may come from different losses.
        has_default_only: Whether the line shows the default loss only: with any other loss the
            attack would be that of the line above.
    """

    name: str
    default_loss: str
    options: dict[str, Any]
    is_split: bool = True
    has_default_only: bool = False


LINES = (
    AttackLine("FGSM", "ce", {"method": "fgsm"}),
    AttackLine("PGD", "ce", {}),
    AttackLine("APGD-CE", "ce", {"method": "apgd"}),
    AttackLine("APGD-DLR", "dlr", {"method": "apgd"}, has_default_only=True),
    AttackLine("APGD, without the split", "ce", {"method": "apgd"}, is_split=False),
)
LOSSES = ("own", "mifpe", "tmifpe", "stable_ce")


class Rescaled(nn.Module):
    """A network whose logits are multiplied by (T-)MIFPE's c: its cross-entropy is that loss.

    Args:
        model: Network that returns logits.
        loss: Name of the loss, "mifpe" or "tmifpe".
    """

    def __init__(self, model: nn.Module, loss: str) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def extra_repr(self) -> str:
        """The name of the loss, as the text of the module shows it."""
        return self.loss

    def forward(self, x: Tensor) -> Tensor:
        """The scaled logits c z; c is a constant.

        c is that of the predicted class. Attacks that freeze samples once they have succeeded need
        no other.
        """
        z: Tensor = self.model(x)
        logits = z.detach()
        return (
            loss_named(self.loss).scale(logits, logits.argmax(1), Context()).c[:, None].to(z.dtype)
            * z
        )


def frame(study: Study) -> pd.DataFrame:
    """Count robust images by attack and loss: columns network, attack, loss, n, robust.

    `n` and `robust` are missing where the loss does not apply to the attack.
    """
    rows: list[dict[str, Any]] = []
    for subject in study.subjects:
        for line in LINES:
            for loss in LOSSES:
                rows.append({"network": subject.name, "attack": line.name, "loss": loss})
                if line.has_default_only and loss != "own":
                    continue
                if line.is_split:
                    attack_loss = line.default_loss if loss == "own" else loss
                    rows[-1] |= robust_counts(
                        attack_outcomes(study, subject, loss=attack_loss, **line.options)
                    )
                elif loss in ("mifpe", "tmifpe"):
                    model = Rescaled(subject.model, loss).eval()
                    outcome = attack_outcomes(
                        study, subject, model=model, loss="ce", **line.options
                    )
                    rows[-1] |= robust_counts(outcome)
        for loss in LOSSES:
            rows.append({"network": subject.name, "attack": "AutoAttack", "loss": loss})
            if importlib.util.find_spec(LIBRARY):
                rows[-1] |= robust_counts(_ensemble(study, subject, loss))
    return pd.DataFrame(rows)


def _ensemble(study: Study, subject: Subject, loss: str) -> pd.DataFrame:
    """Success of any of AutoAttack's attacks (column success), with `loss` in its APGD-CE."""
    outcome = _library_outcome(study, subject, _FURTHER_ATTACKS)
    if loss == "own":
        return outcome | _library_outcome(study, subject, ["apgd-ce"])
    return outcome | attack_outcomes(study, subject, loss=loss, method="apgd")[["success"]]


def _library_outcome(study: Study, subject: Subject, attacks: list[str]) -> pd.DataFrame:
    """Success of any of the library's attacks (column success), judged by the prediction."""
    radius = radius_of(subject)

    def compute() -> pd.DataFrame:
        library: Callable[..., Any] = importlib.import_module(LIBRARY).AutoAttack
        model, images = subject.model, subject.images
        ensemble = library(
            model, norm="Linf", eps=radius, seed=SEED, device=subject.device, version="custom",
            attacks=attacks,
        )  # fmt: skip
        ensemble.verbose = False
        for component in (ensemble.apgd, ensemble.fab):  # as in its standard version
            component.n_restarts = 1
        ensemble.fab.n_target_classes = ensemble.apgd_targeted.n_target_classes = _TARGETS
        cards = [subject.device] if subject.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cards):
            adversarial, _ = ensemble.run_standard_evaluation(images.x, images.y, batch_size=_BATCH)
        with torch.no_grad():
            predicted = torch.cat([model(x) for x in torch.split(adversarial, _BATCH)]).argmax(1)
        return pd.DataFrame({"success": (predicted != images.y).cpu().numpy()})

    settings = {"attacks": attacks, "radius": radius, "seed": SEED, "library": version(LIBRARY)}
    return study.cached("autoattack", settings, compute, subject)


def cells(frame: pd.DataFrame) -> pd.DataFrame:
    """The cells of the table as text: one line for each network and attack."""
    share = (100 * frame["robust"] / frame["n"]).map(lambda v: "–" if pd.isna(v) else f"{v:.1f}")
    keys = ["network", "attack"]
    wide = frame.assign(share=share).pivot(index=keys, columns="loss", values="share")
    order = pd.MultiIndex.from_frame(frame[keys].drop_duplicates())
    wide = wide.loc[order, list(LOSSES)].reset_index()
    counts = frame.groupby("network")["n"].max()
    wide["network"] = wide["network"].map(lambda name: f"{name}, {int(counts[name])} images")
    names = {"own": "its own loss", "mifpe": "MIFPE", "tmifpe": "T-MIFPE", "stable_ce": "stable CE"}
    return wide.rename(columns=names).rename_axis(columns=None)


def draw(frame: pd.DataFrame) -> Figure:
    """Draw the table as a picture."""
    return table.picture(cells(frame), TITLE, NOTE)
