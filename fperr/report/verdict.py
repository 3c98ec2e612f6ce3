"""Judges whether an attack may follow the gradient of a loss in a format, and why it may not.

Three states: a loss is trustworthy if the share of its gradients that are dead or weak is shown to
be small, not to be trusted if it is shown to be large, and else too few images were measured.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import pandas as pd

from fperr.reasons import Tally, counted, reasons, tally
from fperr.shares import clopper_pearson_limit
from fperr.theory.scenarios import SCENARIOS

State = Literal["trustworthy", "do not trust", "cannot tell", "not measured"]
SCENARIO_WORDS = {
    "untargeted_unsuccessful": "while an untargeted attack has not succeeded",
    "untargeted_successful": "once an untargeted attack has succeeded",
    "targeted_unsuccessful": "while a targeted attack has not succeeded",
    "targeted_successful": "once a targeted attack has succeeded",
}
# in which an attack still needs the gradient
_TO_ATTACK = frozenset(s.name for s in SCENARIOS.values() if s.targeted != s.label_leads)
_LARGE_LOGIT_ERROR = 0.1  # from which the loss itself is to blame
_ONE_SIDED = NormalDist().inv_cdf(0.95)
# what makes a gradient dead or weak, and whether another loss mends it
_MENDED, _NOT_MENDED = ("underflow", "cancellation"), ("ties", "other branches", "the network")


@dataclass(frozen=True, slots=True)
class Thresholds:
    """How good a gradient must be to be followed.

    A row fails if the computed gradient is dead (exactly zero while the true one is not), if it is
    weak (a step along its signs gains less than `step_gain` of what the exact step gains, to first
    order), or if it is not finite. A weak gradient may still lead an attack to success:
    `fperr.attribute` measures that.

    Attributes:
        step_gain: Smallest step gain, from -1 to 1.
        delta: Largest relative error of the gradient; None: any.
        sign_error_rate: Largest share of wrong signs; None: any.
        share: Largest share of failing images, in a scenario.

    Example:
        Of 6 images none fails: that shows a share of at most 40 %, and not the default of 5 %. A
        relative error of about 1e-3 fails only if a threshold asks for less.

        >>> import fperr
        >>> from fperr import data, zoo
        >>> images = data.fashion_mnist_1000().first(6)
        >>> report = fperr.measure(
        ...     zoo.load("fashion_standard"), images.x, images.y,
        ...     losses=["mifpe"], formats=["float16"], progress=False,
        ... )
        >>> for limits in ({}, {"share": 0.4}, {"share": 0.4, "delta": 1e-6}):
        ...     report.is_gradient_trustworthy("mifpe", "float16", fperr.Thresholds(**limits))
        False
        True
        False
    """

    step_gain: float = 0.5
    delta: float | None = None
    sign_error_rate: float | None = None
    share: float = 0.05


DEFAULT_THRESHOLDS = Thresholds()


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judgement on one loss in one format.

    It speaks of one scenario: the one in which most fail if that is why the loss is not to be
    trusted, else the one of an attack that has not succeeded whose upper limit is the largest (any
    scenario if none of these was measured).

    Attributes:
        state: `"trustworthy"` if the upper 95 % limit for the share of failing images is below the
            threshold in every scenario of an attack that has not succeeded, `"do not trust"` if the
            lower limit is above it in any scenario, `"not measured"` if no row is judged, else
            `"cannot tell"`.
        scenario: Scenario of the numbers below.
        rows: Number of rows judged in it.
        failing: Number of those that fail.
        images: Number of images judged in it; an image fails if any of its rows does.
        failing_images: Number of those that fail.
        limit: Upper 95 % limit, one-sided, for the share of failing images.
        dead, not_finite, weak, beyond: Numbers of failing rows by kind: exactly zero, not finite,
            with too small a step gain, or beyond the thresholds on error and signs.
        causes: Numbers of failing rows by what made them fail.
        elsewhere: Names of the other scenarios in which rows fail, with how many fail and all.
        needed: About how many images, of any scenario, would tell; None if these do, or none would.
        delta_median, step_gain_median: Medians over the rows judged in the scenario.
        total: Number of rows in all scenarios.
        left_out: Reasons of the rows, in all scenarios, that are not judged.
    """

    state: State
    scenario: str
    rows: int
    failing: int
    images: int
    failing_images: int
    limit: float
    dead: int
    not_finite: int
    weak: int
    beyond: int
    causes: tuple[tuple[str, int], ...]
    elsewhere: tuple[tuple[str, int, int], ...]
    needed: int | None
    delta_median: float
    step_gain_median: float
    total: int
    left_out: tuple[Tally, ...]

    @property
    def is_trustworthy(self) -> bool:
        """Whether the gradient is shown to be good enough."""
        return self.state == "trustworthy"

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
        words: str = self.state
        if self.state == "cannot tell":
            more = "" if self.needed is None else f", about --n {self.needed} would"
            words += f" from {self.images} images{more}"
        elsewhere = "".join(
            f"; {failing} of {rows} {SCENARIO_WORDS[scenario]}"
            for scenario, failing, rows in self.elsewhere
        )
        return f"{words}: {self._count}{elsewhere}; {self._medians}"

    @property
    def _count(self) -> str:
        when = SCENARIO_WORDS[self.scenario]
        if not self.failing:
            return (
                f"none of {self.rows} gradients is dead or weak {when} (at most "
                f"{100 * self.limit:.{0 if self.limit >= 0.1 else 1}f} % of all)"
            )
        kinds = (
            (self.dead, "exactly zero"),
            (self.not_finite, "not finite"),
            (self.weak, "weak"),
            (self.beyond, "beyond the thresholds"),
        )
        counts = ", ".join(f"{count} {words}" for count, words in kinds if count)
        verb = "is" if self.failing == 1 else "are"
        return (
            f"{self.failing} of {self.rows} gradients {verb} dead or weak {when} "
            f"({counts}{self._by_cause})"
        )

    @property
    def _by_cause(self) -> str:
        """What made rows fail, and whether another loss mends it."""
        mended = [f"{n} by {name}" for name, n in self.causes if name in _MENDED]
        rest = [f"{n} by {name}" for name, n in self.causes if name in _NOT_MENDED]
        words = [f"{', '.join(mended)}, which another loss mends"] if mended else []
        words += [f"{', '.join(rest)}, which none mends"] if rest else []
        return f": {'; '.join(words)}" if words else ""

    @property
    def _medians(self) -> str:
        if math.isnan(self.delta_median):
            return "no relative error"  # of rows that are not finite
        gain = (
            "" if math.isnan(self.step_gain_median) else f", step gain {self.step_gain_median:.2g}"
        )
        return f"relative error {self.delta_median:.2g}{gain} (medians)"


def judge(frame: pd.DataFrame, thresholds: Thresholds) -> Verdict:
    """The verdict on the rows of one loss in one format.

    Rows are left out if their scale was capped, if their exact gradient is zero or undefined, or if
    there is no certified exact gradient (there is none at an input that is not finite).

    Args:
        frame: Rows of one loss in one format.
        thresholds: How good gradients must be, and how many of them.
    """
    judged = is_judged(frame)
    dead, broken = _flag(frame, "is_dead") & judged, ~_flag(frame, "is_finite") & judged
    weak = judged & ~dead & ~broken & (_numbers(frame, "step_gain") < thresholds.step_gain)
    beyond = judged & ~dead & ~broken & ~weak & _are_beyond(frame, thresholds)
    failing = dead | broken | weak | beyond
    state, scenario, needed = _decided(frame[judged], failing[judged], thresholds.share)
    in_scenario = judged & (frame["scenario"] == scenario)
    rows, count = int(in_scenario.sum()), int((failing & in_scenario).sum())
    by_image = _failing_images(frame[in_scenario], failing[in_scenario])
    images, failing_images = len(by_image), int(by_image.sum())
    return Verdict(
        state=state,
        scenario=scenario,
        rows=rows,
        failing=count,
        images=images,
        failing_images=failing_images,
        limit=clopper_pearson_limit(failing_images, images),
        dead=int((dead & in_scenario).sum()),
        not_finite=int((broken & in_scenario).sum()),
        weak=int((weak & in_scenario).sum()),
        beyond=int((beyond & in_scenario).sum()),
        causes=_causes(frame[(dead | weak) & in_scenario]),
        elsewhere=_counts_elsewhere(frame[judged], failing[judged], scenario),
        needed=needed,
        delta_median=float(frame["delta"][in_scenario].dropna().median()),
        step_gain_median=float(_numbers(frame, "step_gain")[in_scenario].dropna().median()),
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


def only_ties(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Rows in which a format broke exact equalities of two numbers, and took no other branch."""
    flips = _numbers(frame, "activation_flips") + _numbers(frame, "pooling_flips")
    return (_numbers(frame, "tie_flips") > 0) & ~(flips > 0)


def _decided(
    frame: pd.DataFrame, failing: "pd.Series[bool]", share: float
) -> tuple[State, str, int | None]:
    """The state, the scenario that it rests on, and how many images would tell.

    An attack is about the samples that it has still to move: those that it has moved, or that are
    misclassified from the start, cannot speak for a loss; they can speak against it.

    Args:
        frame: The judged rows.
        failing: Which of them fail.
        share: Largest share of failing images.
    """
    if not len(frame):
        return "not measured", "", None
    by_scenario = {}
    for name in frame["scenario"].unique():
        inside = frame["scenario"] == name
        images = _failing_images(frame[inside], failing[inside])
        by_scenario[str(name)] = (int(images.sum()), len(images))

    def worst_first(scenario: str) -> tuple[float, int]:
        count, size = by_scenario[scenario]
        return -count / size, -size

    for name in sorted(by_scenario, key=worst_first):
        count, size = by_scenario[name]
        if 1 - clopper_pearson_limit(size - count, size) > share:
            return "do not trust", name, None
    deciding = [name for name in by_scenario if name in _TO_ATTACK] or list(by_scenario)
    scenario = max(deciding, key=lambda name: clopper_pearson_limit(*by_scenario[name]))
    count, size = by_scenario[scenario]
    if clopper_pearson_limit(count, size) < share:
        return "trustworthy", scenario, None
    needed = _images_needed(count, size, share)
    # where labels are given, only some of the images are in the scenario
    total = len(_failing_images(frame, failing))
    return "cannot tell", scenario, None if needed is None else math.ceil(needed * total / size)


def _failing_images(frame: pd.DataFrame, failing: "pd.Series[bool]") -> "pd.Series[bool]":
    """Which images have a row that fails, where `frame` says to which image a row belongs."""
    names = [name for name in ("network", "sample") if name in frame]
    return failing.groupby([frame[name] for name in names]).any() if names else failing


def _counts_elsewhere(
    frame: pd.DataFrame, failing: "pd.Series[bool]", scenario: str
) -> tuple[tuple[str, int, int], ...]:
    """The scenarios but `scenario` in which rows fail: name, number of failing ones, and of all."""
    counts = failing.groupby(frame["scenario"], sort=False).agg(["sum", "size"])
    return tuple(
        (str(name), int(count), int(size))
        for name, count, size in counts.itertuples()
        if count and name != scenario
    )


def _images_needed(failing: int, rows: int, share: float) -> int | None:
    """About how many images would tell, if as many of them fail; None if none would."""
    if not failing:
        return math.ceil(math.log(0.05) / math.log1p(-share))
    rate = failing / rows
    if rate == share:
        return None
    estimate = math.ceil(_ONE_SIDED**2 * rate * (1 - rate) / (rate - share) ** 2) + 1
    needed = max(estimate, rows + 1)  # these rows do not tell
    # the estimate is that of a normal distribution: too small where few fail
    while rate < share <= clopper_pearson_limit(math.ceil(rate * needed), needed):
        needed = math.ceil(1.05 * needed)
    return needed


def _are_beyond(frame: pd.DataFrame, thresholds: Thresholds) -> "pd.Series[bool]":
    """Which rows are beyond the thresholds that are not set by default."""
    beyond = pd.Series(False, index=frame.index)
    for name, most in (
        ("delta", thresholds.delta),
        ("sign_error_rate", thresholds.sign_error_rate),
    ):
        if most is not None:
            beyond |= _numbers(frame, name) > most
    return beyond


def _causes(failing: pd.DataFrame) -> tuple[tuple[str, int], ...]:
    """What made dead and weak gradients so, by the first that applies.

    Underflow and cancellation happen in the loss. Ties are exact equalities that rounding broke;
    other branches are further ReLUs and poolings that went another way.
    """
    if not len(failing):
        return ()
    is_loss = _flag(failing, "is_dead") | (_numbers(failing, "logit_delta") > _LARGE_LOGIT_ERROR)
    underflows = is_loss & (_flag(failing, "is_dead") | (_numbers(failing, "p_underflow_rate") > 0))
    flips = _numbers(failing, "activation_flips") + _numbers(failing, "pooling_flips")
    ties = ~is_loss & only_ties(failing)
    other = ~is_loss & (flips > 0)
    counts = {
        "underflow": underflows,
        "cancellation": is_loss & ~underflows,
        "ties": ties,
        "other branches": other,
        "the network": ~is_loss & ~ties & ~other,
    }
    return tuple((name, int(which.sum())) for name, which in counts.items() if which.any())


def _numbers(frame: pd.DataFrame, name: str) -> "pd.Series[float]":
    """A column of numbers; NaN where it, or a value, is missing."""
    if name not in frame:
        return pd.Series(math.nan, index=frame.index)
    return frame[name].astype("Float64").astype("float64")


def _flag(frame: pd.DataFrame, name: str) -> "pd.Series[bool]":
    """A column of flags; a missing flag counts as False."""
    return frame[name].fillna(False).astype(bool)
