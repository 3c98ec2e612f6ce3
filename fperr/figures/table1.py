"""The published table of robust accuracies, with fperr's numbers below the published ones.

Below a network's line in float32 stand its lines in the arithmetic of a GPU, emulated.
"""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from fperr import zoo
from fperr.errors import FperrError
from fperr.figures import published, table
from fperr.figures.attacks import (
    ARITHMETICS,
    ATTACKED,
    IN_FLOAT8,
    STEPS,
    attack_outcomes,
    check_arithmetic,
    is_robust,
    radius_of,
    robust_counts,
)
from fperr.figures.study import MissingResultError, Study, Subject
from fperr.vocabulary import FormatName

LOSSES = ("ce", "cw", "dlr", "gama", "mifpe", "tmifpe", "stable_ce")
# the losses, and the most images, of the lines in other arithmetics: they take three times as long
FEWER_LOSSES = ("ce", "mifpe", "tmifpe", "stable_ce")
_MOST = 1000
IN_ARITHMETICS = (*ATTACKED, *IN_FLOAT8)  # networks that have these lines
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
TITLE = f"Robust accuracy in per cent, PGD, {STEPS} steps, one start, float32 unless said"
NOTE = (
    "Published: Yu and Xu, CVPR 2023, MNIST at ℓ∞ 0.3, CIFAR-10 at ℓ∞ 8/255. RobustBench: "
    "github.com/RobustBench/robustbench; the rest of the line is the name of the model there. "
    "† and ‡: the paper's marks.\n"
    "Lines of fperr below a published one: a network that its authors published, not proved to be "
    "the one of the paper: clean accuracies differ. The paper's last column (best of 4,900 steps) "
    "is left out.\n"
    f"Lines with an @: a GPU's arithmetic, emulated, on {_MOST:,} images at most, and some of the "
    "losses.\n"
    "Where there is no line of fperr, no checkpoint is at hand: the last column says where one is."
)
_DATASETS = {
    "fashion_mnist_1000": "Fashion-MNIST",
    "mnist_test": "MNIST",
    "cifar10_test_800": "CIFAR-10",
}


def frame(study: Study) -> pd.DataFrame:
    """Attack the networks, and put their accuracies below the published ones.

    Columns row, data, source, arithmetic, n, where, and an accuracy in per cent, or NaN, for each
    of `NAMES`.
    """
    rows_by_network = {subject.name: _network_rows(study, subject) for subject in study.subjects}
    rows: list[dict[str, Any]] = []
    for row in published.ROWS:
        numbers = dict(zip(published.COLUMNS, row.accuracies, strict=True))
        label = f"{row.defence}, {row.architecture}"
        published_row = {
            "row": label,
            "data": row.dataset,
            "source": "published",
            "where": row.source,
        }
        rows.append(published_row | numbers)
        if row.network in rows_by_network:
            first, *others = rows_by_network.pop(row.network)
            rows += [first | {"where": row.remark}, *others]
    columns = ["row", "data", "source", "arithmetic", "n", *NAMES, "where"]
    rows += [row for of_network in rows_by_network.values() for row in of_network]
    return pd.DataFrame(rows).reindex(columns=columns)


def _network_rows(study: Study, subject: Subject) -> list[dict[str, Any]]:
    """The row of a network in float32, and those in other arithmetics.

    If these are of fewer images, there is a second row in float32, of the same images.
    """
    rows = [_row(study, subject, "float32", LOSSES)]
    if subject.name not in IN_ARITHMETICS:
        return rows
    fewer = subject.at_most(_MOST)
    for arithmetic in ARITHMETICS:
        if arithmetic != "float32" or fewer.n < subject.n:
            try:
                check_arithmetic(subject, arithmetic)
                rows.append(_row(study, fewer, arithmetic, FEWER_LOSSES) | {"where": ""})
            except MissingResultError:
                raise
            except FperrError as fault:
                refused = {"row": subject.name, "source": "fperr", "arithmetic": arithmetic}
                # the rest of the sentence, which names layers, would be as wide as the table
                why, _, _ = str(fault).partition(": ")
                rows.append(refused | {"data": "", "where": f"refused: {why}"})
    return rows


def _row(
    study: Study, subject: Subject, arithmetic: FormatName, losses: tuple[str, ...]
) -> dict[str, Any]:
    """The row of a network: robust accuracy under each of the losses, in per cent."""
    outcomes = {
        loss: attack_outcomes(study, subject, loss=loss, format=arithmetic) for loss in losses
    }
    clean = outcomes[losses[0]]["is_clean_correct"]
    shares = {loss: 100 * is_robust(outcome).mean() for loss, outcome in outcomes.items()}
    entry = zoo.entry(subject.name)
    dataset = _DATASETS.get(entry.dataset, entry.dataset)
    line = {"row": subject.name, "data": f"{dataset}, ℓ∞ {radius_of(subject):.3g}"}
    unjudged = max(robust_counts(outcome)["unjudged"] for outcome in outcomes.values())
    line["data"] += f" ({unjudged} not judged)" if unjudged else ""
    line |= {"source": "fperr", "arithmetic": arithmetic, "where": entry.source}
    return line | {"n": subject.n, "clean": 100 * clean.mean()} | shares


def cells(frame: pd.DataFrame) -> pd.DataFrame:
    """The cells of the table as text."""
    text = pd.DataFrame({"defence or network": frame["row"], "data": frame["data"]})
    images = frame["n"].map(lambda n: "" if pd.isna(n) else f", {int(n):,} images")
    arithmetics = frame["arithmetic"].map(
        lambda name: "" if pd.isna(name) or name == "float32" else f", {name}"
    )
    text["from"] = frame["source"] + arithmetics + images
    for column, name in NAMES.items():
        text[name] = frame[column].map(lambda value: "" if pd.isna(value) else f"{value:.2f}")
    return text.assign(**{"network": frame["where"]})


def draw(frame: pd.DataFrame) -> Figure:
    """Draw the table as a picture."""
    return table.picture(cells(frame), TITLE, NOTE)
