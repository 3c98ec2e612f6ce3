"""The papers' table of robust accuracies, drawn again: ours and theirs, every row of theirs."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from fperr import zoo
from fperr.figures import published, table
from fperr.figures.attacks import STEPS, attacked, is_robust, radius_of, withstood
from fperr.figures.study import Study, Subject

LOSSES = ("ce", "cw", "dlr", "gama", "mifpe", "tmifpe", "stable_ce")
NAMES = {
    "clean": "Clean",
    "ce": "CE",
    "cw": "C&W",
    "dlr": "DLR",
    "gama": "GAMA-PG",
    "mifpe": "MIFPE",
    "tmifpe": "T-MIFPE",
    "stable_ce": "stable CE",
}
TITLE = f"Robust accuracy in per cent, PGD, {STEPS} steps, one start, float32"
NOTE = (
    "Published: Yu and Xu, CVPR 2023, MNIST at ℓ∞ 0.3, CIFAR-10 at ℓ∞ 8/255. RobustBench: "
    "github.com/RobustBench/robustbench; the rest of the line is the name of the model there. "
    "† and ‡: the paper's marks.\n"
    "Lines of fperr below a published one: a network that its authors published, not proved to be "
    "the one of the paper: clean accuracies differ. The paper's last column (best of 4,900 steps) "
    "is left out.\n"
    "Where there is no line of fperr, no checkpoint is at hand: the last column says where one is."
)
_DATASETS = {
    "fashion_mnist_1000": "Fashion-MNIST",
    "mnist_test": "MNIST",
    "cifar10_test_800": "CIFAR-10",
}


def frame(study: Study) -> pd.DataFrame:
    """Columns row, data, source, n, where, and an accuracy for each of `NAMES` (or NaN)."""
    ours = {subject.name: _ours(study, subject) for subject in study.subjects}
    rows: list[dict[str, Any]] = []
    for each in published.ROWS:
        numbers = dict(zip(published.COLUMNS, each.accuracies, strict=True))
        label = f"{each.defence}, {each.architecture}"
        theirs = {"row": label, "data": each.dataset, "source": "published", "where": each.source}
        rows.append(theirs | numbers)
        if each.network in ours:
            rows.append(ours.pop(each.network) | {"where": each.remark})
    columns = ["row", "data", "source", "n", *NAMES, "where"]
    return pd.DataFrame([*rows, *ours.values()]).reindex(columns=columns)


def _ours(study: Study, subject: Subject) -> dict[str, Any]:
    """A line: what withstands each of the losses, in per cent."""
    found = {loss: attacked(study, subject, loss=loss) for loss in LOSSES}
    clean = found[LOSSES[0]]["is_clean_correct"]
    shares = {loss: 100 * is_robust(part).mean() for loss, part in found.items()}
    entry = zoo.entry(subject.name)
    dataset = _DATASETS.get(entry.dataset, entry.dataset)
    about = {"row": subject.name, "data": f"{dataset}, ℓ∞ {radius_of(subject):.3g}"}
    unjudged = max(withstood(part)["unjudged"] for part in found.values())
    about["data"] += f" ({unjudged} not judged)" if unjudged else ""
    about |= {"source": "fperr", "where": entry.source}
    return about | {"n": subject.n, "clean": 100 * clean.mean()} | shares


def cells(frame: pd.DataFrame) -> pd.DataFrame:
    """The text of the cells."""
    shown = pd.DataFrame({"defence or network": frame["row"], "data": frame["data"]})
    images = frame["n"].map(lambda n: "" if pd.isna(n) else f", {int(n):,} images")
    shown["from"] = frame["source"] + images
    for column, name in NAMES.items():
        shown[name] = frame[column].map(lambda value: "" if pd.isna(value) else f"{value:.2f}")
    return shown.assign(**{"network": frame["where"]})


def draw(frame: pd.DataFrame) -> Figure:
    """As a picture."""
    return table.picture(cells(frame), TITLE, NOTE)
