"""Judges whether the gradient of a loss in a format is trustworthy, and why it is not."""

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
    """The largest errors with which a gradient may still be followed.

    A row fails if its relative error or its share of wrong signs is above its threshold, if the
    computed gradient is exactly zero while the true one is not, or if it is not finite.

    Attributes:
        delta: Largest relative error of the gradient.
        sign_error_rate: Largest share of wrong signs.
        share: Largest share of failing rows, in every scenario that was measured.

    Example:
        A relative error of about 5e-4 fails only if the threshold is stricter than that.

        >>> import fperr
        >>> from fperr import data, zoo
        >>> images = data.fashion_mnist_1000().first(1)
        >>> report = fperr.measure(
        ...     zoo.load("fashion_standard"), images.x, images.y,
        ...     losses=["mifpe"], formats=["float16"], engine="double_word", progress=False,
        ... )
        >>> report.is_gradient_trustworthy("mifpe", "float16")
        True
        >>> report.is_gradient_trustworthy("mifpe", "float16", fperr.Thresholds(delta=1e-6))
        False
    """

    delta: float = 0.1
    sign_error_rate: float = 0.05
    share: float = 0.05


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judgement on one loss in one format, in its worst scenario.

    Attributes:
        is_trustworthy: True if the share of failing rows is at most its threshold.
        scenario: Worst scenario, in which the largest share of rows fails.
        rows: Number of rows judged in the worst scenario.
        failing: Number of those that fail.
        dead, not_finite, wrong_direction, wrong_signs: Numbers of failing rows by cause; each row
            is counted once, for the first cause that applies.
        delta_median, sign_error_median: Medians over the rows judged in the worst scenario.
        total: Number of rows in all scenarios.
        left_out: Reasons of the rows, in all scenarios, that are not judged.
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
        """The judgement in words, and the rows that were left out, with their reasons."""
        if not self.rows:
            return self._nothing
        if not self.left_out:
            return self._judgement
        number = sum(t.rows for t in self.left_out)
        return f"{self._judgement}; left out: {number} of {self.total} ({counted(self.left_out)})"

    @property
    def _nothing(self) -> str:
        """The sentence if no row is judged: the most frequent reason, and what to do about it."""
        if not self.left_out:
            return "not measured: there are no rows"
        first = self.left_out[0]
        share = "" if first.rows == self.total else f" ({first.rows} of {self.total} rows)"
        return f"not measured: {first.words}{share}, {first.remedy}"

    @property
    def _judgement(self) -> str:
        """The sentence about the rows that are judged."""
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
        counts = ", ".join(f"{count} {words}" for count, words in causes if count)
        verb = "fails" if self.failing == 1 else "fail"
        word = "trustworthy" if self.is_trustworthy else "do not trust"
        return (
            f"{word}: {self.failing} of {self.rows} gradients {verb} {_PLAIN[self.scenario]} "
            f"({counts}); {medians}"
        )


def judge(frame: pd.DataFrame, thresholds: Thresholds) -> Verdict:
    """The verdict on the rows of one loss in one format.

    Rows are left out if their scale was capped, if their exact gradient is zero or undefined, or if
    there is no certified exact gradient (there is none at an input that is not finite).

    Args:
        frame: Rows of one loss in one format.
        thresholds: Largest errors and shares of failures that the verdict allows.
    """
    judged = is_judged(frame)
    dead, broken = _flag(frame, "is_dead") & judged, ~_flag(frame, "is_finite") & judged
    direction = judged & ~dead & ~broken & (frame["delta"] > thresholds.delta)
    signs = judged & ~dead & ~broken & ~direction
    signs &= frame["sign_error_rate"] > thresholds.sign_error_rate
    failing = dead | broken | direction | signs
    groups = failing[judged].groupby(frame["scenario"][judged], sort=False)
    shares = groups.mean()
    worst = groups.size()[
        shares == shares.max()
    ]  # of equal shares, the scenario with the most rows
    scenario = str(worst.idxmax()) if len(shares) else ""
    in_worst = judged & (frame["scenario"] == scenario)
    return Verdict(
        is_trustworthy=bool(len(shares) and shares.max() <= thresholds.share),
        scenario=scenario,
        rows=int(in_worst.sum()),
        failing=int((failing & in_worst).sum()),
        dead=int((dead & in_worst).sum()),
        not_finite=int((broken & in_worst).sum()),
        wrong_direction=int((direction & in_worst).sum()),
        wrong_signs=int((signs & in_worst).sum()),
        delta_median=float(frame["delta"][in_worst].dropna().median()),
        sign_error_median=float(frame["sign_error_rate"][in_worst].dropna().median()),
        total=len(frame),
        left_out=tally(reasons(frame[~judged])),
    )


def is_judged(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Which rows count for or against a loss: they have an error, or are not finite."""
    has_reference, is_finite = _flag(frame, "is_defined"), _flag(frame, "is_finite")
    speaks = has_reference & (frame["delta"].notna() | ~is_finite)
    return speaks & ~_flag(frame, "scale_capped")


def is_unmeasured(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Which rows have no relative error and do not count as failing either."""
    return frame["delta"].isna() & ~is_judged(frame)


def _flag(frame: pd.DataFrame, name: str) -> "pd.Series[bool]":
    """A column of flags; a missing flag counts as False."""
    return frame[name].fillna(False).astype(bool)
