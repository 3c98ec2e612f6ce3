"""What (T-)MIFPE adds to FGSM, PGD, APGD and AutoAttack, and what APGD owes to its values."""

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
from fperr.figures.attacks import SEED, STEPS, attacked, radius_of, withstood
from fperr.figures.study import Study, Subject
from fperr.losses import Context, loss_named

LIBRARY = "pyautoattack"
_OTHERS = ["apgd-t", "fab-t", "square"]  # of AutoAttack, besides APGD-CE
_TARGETS = 9  # of its targeted attacks, as in its standard version
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
class Line:
    """A line of the table.

    Attributes:
        name: of the attack.
        own: loss that it has by itself.
        options: of `fperr.attack`.
        is_split: values and gradients may come from different losses.
        is_own: with other losses it is the line above.
    """

    name: str
    own: str
    options: dict[str, Any]
    is_split: bool = True
    is_own: bool = False


LINES = (
    Line("FGSM", "ce", {"method": "fgsm"}),
    Line("PGD", "ce", {}),
    Line("APGD-CE", "ce", {"method": "apgd"}),
    Line("APGD-DLR", "dlr", {"method": "apgd"}, is_own=True),
    Line("APGD, without the split", "ce", {"method": "apgd"}, is_split=False),
)
LOSSES = ("own", "mifpe", "tmifpe", "stable_ce")


class Rescaled(nn.Module):
    """A network whose logits are multiplied by (T-)MIFPE's c: its cross-entropy is that loss.

    Args:
        model: to logits.
        loss: "mifpe" or "tmifpe".
    """

    def __init__(self, model: nn.Module, loss: str) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def extra_repr(self) -> str:
        """The loss."""
        return self.loss

    def forward(self, x: Tensor) -> Tensor:
        """c z, c detached, for the class that leads: attacks that freeze ask for no other."""
        z: Tensor = self.model(x)
        known = z.detach()
        return (
            loss_named(self.loss).scale(known, known.argmax(1), Context()).c[:, None].to(z.dtype)
            * z
        )


def frame(study: Study) -> pd.DataFrame:
    """Columns network, attack, loss, n, robust (missing where it does not apply)."""
    rows: list[dict[str, Any]] = []
    for subject in study.subjects:
        for line in LINES:
            for loss in LOSSES:
                rows.append({"network": subject.name, "attack": line.name, "loss": loss})
                if line.is_own and loss != "own":
                    continue
                if line.is_split:
                    chosen = line.own if loss == "own" else loss
                    rows[-1] |= withstood(attacked(study, subject, loss=chosen, **line.options))
                elif loss in ("mifpe", "tmifpe"):
                    model = Rescaled(subject.model, loss).eval()
                    found = attacked(study, subject, model=model, loss="ce", **line.options)
                    rows[-1] |= withstood(found)
        for loss in LOSSES:
            rows.append({"network": subject.name, "attack": "AutoAttack", "loss": loss})
            if importlib.util.find_spec(LIBRARY):
                rows[-1] |= withstood(_ensemble(study, subject, loss))
    return pd.DataFrame(rows)


def _ensemble(study: Study, subject: Subject, loss: str) -> pd.DataFrame:
    """Column success: that of any of AutoAttack's attacks, its APGD-CE with the loss instead."""
    found = _theirs(study, subject, _OTHERS)
    if loss == "own":
        return found | _theirs(study, subject, ["apgd-ce"])
    return found | attacked(study, subject, loss=loss, method="apgd")[["success"]]


def _theirs(study: Study, subject: Subject, attacks: list[str]) -> pd.DataFrame:
    """Column success: that of any of the library's attacks, as the network predicts."""
    radius = radius_of(subject)

    def compute() -> pd.DataFrame:
        library: Callable[..., Any] = importlib.import_module(LIBRARY).AutoAttack
        model, images = subject.model, subject.images
        ensemble = library(
            model, norm="Linf", eps=radius, seed=SEED, device="cpu", version="custom",
            attacks=attacks,
        )  # fmt: skip
        ensemble.verbose = False
        for part in (ensemble.apgd, ensemble.fab):  # as in its standard version
            part.n_restarts = 1
        ensemble.fab.n_target_classes = ensemble.apgd_targeted.n_target_classes = _TARGETS
        with torch.random.fork_rng(devices=[]):
            found, _ = ensemble.run_standard_evaluation(images.x, images.y, batch_size=_BATCH)
        with torch.no_grad():
            predicted = torch.cat([model(x) for x in torch.split(found, _BATCH)]).argmax(1)
        return pd.DataFrame({"success": (predicted != images.y).numpy()})

    about = {"attacks": attacks, "radius": radius, "seed": SEED, "library": version(LIBRARY)}
    return study.cached("autoattack", about, compute, subject)


def cells(frame: pd.DataFrame) -> pd.DataFrame:
    """The text of the cells: one line for each network and attack."""
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
    """As a picture."""
    return table.picture(cells(frame), TITLE, NOTE)
