"""The answer of a report in sentences: which losses can be followed, by groups of formats."""

from dataclasses import dataclass
from typing import get_args

import pandas as pd

from fperr.report.judging import judge
from fperr.report.numbers import joined
from fperr.report.summary import remedy
from fperr.report.verdict import State, Thresholds, Verdict

Verdicts = dict[str, dict[str, Verdict]]  # by loss, then by format


@dataclass(frozen=True, slots=True)
class Answer:
    """What the page says first about a network.

    Attributes:
        sentences: A sentence for each group of formats in which the same losses can be followed.
        remedy: How to use a loss that can be followed where another cannot; empty if none is.
    """

    sentences: tuple[str, ...]
    remedy: str


def verdicts(frame: pd.DataFrame, thresholds: Thresholds) -> Verdicts:
    """The verdict on each loss in each format.

    Args:
        frame: Rows of one network.
        thresholds: How good gradients must be, and how many of them.
    """
    return {
        str(loss): {
            str(fmt): judge(cell, thresholds) for fmt, cell in rows.groupby("format", sort=False)
        }
        for loss, rows in frame.groupby("loss", sort=False)
    }


def answer(by_loss: Verdicts) -> Answer:
    """The answer in sentences, from the verdicts of one network."""
    formats = dict.fromkeys(fmt for by_format in by_loss.values() for fmt in by_format)
    groups: dict[tuple[tuple[str, State], ...], list[str]] = {}
    for fmt in formats:
        states = tuple((loss, cells[fmt].state) for loss, cells in by_loss.items() if fmt in cells)
        groups.setdefault(states, []).append(fmt)
    good = {loss: _formats_of(cells, "trustworthy") for loss, cells in by_loss.items()}
    bad = {loss: _formats_of(cells, "do not trust") for loss, cells in by_loss.items()}
    return Answer(
        sentences=tuple(_sentence(by_loss, dict(key), names) for key, names in groups.items()),
        remedy=remedy(good, bad) if any(bad.values()) else "",
    )


def losses_by_state(by_loss: Verdicts, fmt: str) -> dict[State, list[str]]:
    """The losses in each state in one format; states without a loss are left out."""
    return {
        state: names
        for state in get_args(State)
        if (names := [loss for loss, cells in by_loss.items() if _state(cells, fmt) == state])
    }


def _state(by_format: dict[str, Verdict], fmt: str) -> State | None:
    return by_format[fmt].state if fmt in by_format else None


def _formats_of(by_format: dict[str, Verdict], state: State) -> list[str]:
    return [fmt for fmt, verdict in by_format.items() if verdict.state == state]


def _sentence(by_loss: Verdicts, states: dict[str, State], formats: list[str]) -> str:
    """What holds in all of the formats."""
    sets = {s: [loss for loss, own in states.items() if own == s] for s in get_args(State)}
    good, bad = sets["trustworthy"], sets["do not trust"]
    open_, unmeasured = sets["cannot tell"], sets["not measured"]
    clauses = []
    if len(good) == len(states):
        clauses.append(
            "every loss can be followed" if len(good) > 1 else f"{good[0]} can be followed"
        )
    elif len(bad) == len(states):
        clauses.append(
            "no loss can be followed" if len(bad) > 1 else f"{bad[0]} cannot be followed"
        )
    elif good:
        only = "" if open_ or unmeasured else "only "
        clauses.append(f"{only}{joined(good)} can be followed")
    if bad and len(bad) < len(states):
        clauses.append(f"{joined(bad)} cannot{'' if good else ' be followed'}")
    if open_:
        verdict_list = [by_loss[loss][fmt] for loss in open_ for fmt in formats]
        clauses.append(_too_few(open_, verdict_list, len(open_) == len(states)))
    if unmeasured:
        every = len(unmeasured) == len(states) > 1
        what = "no loss was" if every else f"{joined(unmeasured)} {_was(unmeasured)}"
        clauses.append(f"{what} measured" if every else f"{what} not measured")
    return f"In {joined(formats)}, {'; '.join(clauses)}."


def _was(names: list[str]) -> str:
    return "was" if len(names) == 1 else "were"


def _too_few(losses: list[str], open_verdicts: list[Verdict], is_every: bool) -> str:
    """That too few images were measured, and how many would tell."""
    counts = sorted({verdict.images for verdict in open_verdicts})
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    needed = [verdict.needed for verdict in open_verdicts if verdict.needed is not None]
    more = f" (measure about {max(needed)})" if needed else ""
    about = "any loss" if is_every and len(losses) > 1 else joined(losses)
    images = "image is" if counts == [1] else "images are"
    return f"{number} {images} too few to tell about {about}{more}"
