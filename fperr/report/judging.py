"""Judges the rows of a loss in a format; see `Verdict`."""

import math
from statistics import NormalDist

import pandas as pd

from fperr.reasons import reasons, tally
from fperr.report.verdict import State, Thresholds, Verdict
from fperr.shares import clopper_pearson_limit
from fperr.theory.scenarios import SCENARIOS

# in which an attack still needs the gradient
_TO_ATTACK = frozenset(s.name for s in SCENARIOS.values() if s.targeted != s.label_leads)
_LARGE_LOGIT_ERROR = 0.1  # from which the loss itself is to blame
_ONE_SIDED = NormalDist().inv_cdf(0.95)


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
