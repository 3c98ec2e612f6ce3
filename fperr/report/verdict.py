"""Whether an attack may follow the gradient of a loss in a format: thresholds, state and sentence.

Three states: a loss is trustworthy if the share of its gradients that are dead or weak is shown to
be small, not to be trusted if it is shown to be large, and else too few images were measured.
"""

import math
from dataclasses import dataclass
from typing import Literal

from fperr.reasons import Tally, counted

State = Literal["trustworthy", "do not trust", "cannot tell", "not measured"]
SCENARIO_WORDS = {
    "untargeted_unsuccessful": "while an untargeted attack has not succeeded",
    "untargeted_successful": "once an untargeted attack has succeeded",
    "targeted_unsuccessful": "while a targeted attack has not succeeded",
    "targeted_successful": "once a targeted attack has succeeded",
}
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
