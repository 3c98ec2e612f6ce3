"""Is the gradient of a loss in a format trustworthy, and if not, why?"""

import math
from dataclasses import dataclass

import pandas as pd

from fperr.reasons import Tally, counted, reasons, tally
from fperr.shares import wilson_interval

_PLAIN = {
    "untargeted_unsuccessful": "while an untargeted attack has not succeeded",
    "untargeted_successful": "once an untargeted attack has succeeded",
    "targeted_unsuccessful": "while a targeted attack has not succeeded",
    "targeted_successful": "once a targeted attack has succeeded",
}


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a gradient may have wrong and still be followed.

    A row fails if its relative error or its share of wrong signs is above its threshold, if the
    computed gradient is exactly zero while the true one is not, or if it is not finite.

    Attributes:
        delta: largest relative error of the gradient.
        sign_error_rate: largest share of wrong signs.
        share: largest share of failing rows, in every scenario that was measured.
    """

    delta: float = 0.1
    sign_error_rate: float = 0.05
    share: float = 0.05


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judgement on one loss in one format, in its worst scenario.

    Attributes:
        is_trustworthy: few enough rows fail.
        scenario: where most rows fail.
        rows: rows judged there; failing: those that fail.
        dead, not_finite, wrong_direction, wrong_signs: why; each failing row is counted once.
        delta_median, sign_error_median: over the rows judged there.
        total: rows in all scenarios.
        left_out: why, of those, the ones that are not judged are not.
    """

    is_trustworthy: bool
    scenario: str
    rows: int
    failing: int
    dead: int
    not_finite: int
    wrong_direction: int
    wrong_signs: int
    delta_median: float
    sign_error_median: float
    total: int
    left_out: tuple[Tally, ...]

    @property
    def sentence(self) -> str:
        """The judgement in words, with what was left out, and why."""
        if not self.rows:
            return self._nothing
        if not self.left_out:
            return self._judgement
        number = sum(t.rows for t in self.left_out)
        return f"{self._judgement}; left out: {number} of {self.total} ({counted(self.left_out)})"

    @property
    def _nothing(self) -> str:
        """Why no row is judged: the most frequent reason, and what to do."""
        if not self.left_out:
            return "not measured: there are no rows"
        first = self.left_out[0]
        share = "" if first.rows == self.total else f" ({first.rows} of {self.total} rows)"
        return f"not measured: {first.words}{share}, {first.remedy}"

    @property
    def _judgement(self) -> str:
        medians = (
            "no relative error"  # of rows that are not finite
            if math.isnan(self.delta_median)
            else f"relative error {self.delta_median:.2g}, wrong signs "
            f"{self.sign_error_median:.1%} (medians)"
        )
        if not self.failing:
            unseen = wilson_interval(0, self.rows)[1]
            return (
                f"trustworthy: none of {self.rows} gradients fails (95 % interval of the "
                f"failing share: 0 to {unseen:.{0 if unseen >= 0.01 else 1}%}); {medians}"
            )
        causes = (
            (self.dead, "exactly zero"),
            (self.not_finite, "not finite"),
            (self.wrong_direction, "off by more than allowed"),
            (self.wrong_signs, "have too many wrong signs"),
        )
        listed = ", ".join(f"{count} {words}" for count, words in causes if count)
        verb = "fails" if self.failing == 1 else "fail"
        word = "trustworthy" if self.is_trustworthy else "do not trust"
        return (
            f"{word}: {self.failing} of {self.rows} gradients {verb} {_PLAIN[self.scenario]} "
            f"({listed}); {medians}"
        )


def judge(frame: pd.DataFrame, thresholds: Thresholds) -> Verdict:
    """The verdict on the rows of one loss in one format.

    Rows whose scale was capped, whose true gradient is exactly zero or undefined, or which have
    no certified reference (an input that is not finite has none) are left out.
    """
    judged = is_judged(frame)
    dead, broken = _flag(frame, "is_dead") & judged, ~_flag(frame, "is_finite") & judged
    direction = judged & ~dead & ~broken & (frame["delta"] > thresholds.delta)
    signs = judged & ~dead & ~broken & ~direction
    signs &= frame["sign_error_rate"] > thresholds.sign_error_rate
    failing = dead | broken | direction | signs
    groups = failing[judged].groupby(frame["scenario"][judged], sort=False)
    shares = groups.mean()
    worst = groups.size()[shares == shares.max()]  # of those that fail as often, the largest
    scenario = str(worst.idxmax()) if len(shares) else ""
    here = judged & (frame["scenario"] == scenario)
    return Verdict(
        is_trustworthy=bool(len(shares) and shares.max() <= thresholds.share),
        scenario=scenario,
        rows=int(here.sum()),
        failing=int((failing & here).sum()),
        dead=int((dead & here).sum()),
        not_finite=int((broken & here).sum()),
        wrong_direction=int((direction & here).sum()),
        wrong_signs=int((signs & here).sum()),
        delta_median=float(frame["delta"][here].dropna().median()),
        sign_error_median=float(frame["sign_error_rate"][here].dropna().median()),
        total=len(frame),
        left_out=tally(reasons(frame[~judged])),
    )


def is_judged(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Which rows count for or against a loss: a relative error, or a format that is not finite."""
    has_reference, is_finite = _flag(frame, "is_defined"), _flag(frame, "is_finite")
    speaks = has_reference & (frame["delta"].notna() | ~is_finite)
    return speaks & ~_flag(frame, "scale_capped")


def is_unmeasured(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Which rows have no relative error and are not judged either: nothing is said of them."""
    return frame["delta"].isna() & ~is_judged(frame)


def _flag(frame: pd.DataFrame, name: str) -> "pd.Series[bool]":
    """A column of flags, a missing one taken for False."""
    return frame[name].fillna(False).astype(bool)
