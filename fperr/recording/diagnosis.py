"""What a recorded attack did wrong, in sentences: counted step by step, from the tables' rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fperr.recording.reasons import NO_RERUN, NOT_THE_NETWORK, OTHER_LOGITS, OTHER_POINT

STEP_COLUMNS = [
    "step",
    "sample",
    "scenario",
    "label_margin",
    "loss",
    "reduction",
    "factor",
    "is_finite",
    "is_logit_gradient_zero",
    "is_training",
]
ERROR_COLUMNS = ["step", "sample", "is_own", "is_rerun_equal", "reason"]
_MOST_LISTED = 4  # runs of steps in a sentence
_OF_REASONS = {
    OTHER_LOGITS: "the network, run again at the same input, gave other logits: the model is "
    "random, was changed on the way, or its kernels vary. Nothing is compared there",
    NOT_THE_NETWORK: "more than the network is in dL/dx (a penalty on the distance, another model "
    "state, kernels that vary): the difference is in relative_difference, and is no error",
    NO_RERUN: "the network could not be run again as the attack ran it, so that dL/dx may hold "
    "more than the network: the difference is in relative_difference. Record the model in the "
    "dtype that the attack runs it in",
    OTHER_POINT: "the attack's point is no number of the model's dtype, and the exact gradient is "
    "that of the rounded point: the difference is in relative_difference. Record the model in the "
    "attack's dtype, record(model.double(), ...)",
}
_NOTHING = ("zero", "unknown")  # names of what is no loss


@dataclass(slots=True)
class Diagnosis:
    """Counts what was recorded; `sentences` says what of it is a fault of the attack or model.

    Args:
        samples: how many the attack has.
        given: name of the loss that the user gave as a function.
        is_compared: some gradients are compared with exact ones.
    """

    samples: int
    given: str | None
    is_compared: bool
    _steps: set[int] = field(default_factory=set)
    _training: list[int] = field(default_factory=list)
    _zero: dict[int, int] = field(default_factory=dict)
    _rows: dict[int, int] = field(default_factory=dict)
    _not_finite: dict[int, int] = field(default_factory=dict)
    _unknown: list[int] = field(default_factory=list)
    _unknown_rows: int = 0
    _not_given: list[int] = field(default_factory=list)
    _by_sample: list[int] = field(default_factory=list)
    _falling: list[int] = field(default_factory=list)
    _first: NDArray[np.float64] = field(init=False)
    _latest: NDArray[np.float64] = field(init=False)
    _compared: int = 0
    _by_reason: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """No margins are known at first."""
        self._first, self._latest = (np.full(self.samples, np.nan) for _ in range(2))

    def add_steps(self, rows: pa.Table) -> None:
        """Count rows of the table of steps; those of a step come together."""
        step = rows["step"].to_numpy()
        starts = np.flatnonzero(np.r_[True, step[1:] != step[:-1]])
        numbers = step[starts].tolist()
        factor, margin = (rows[name].to_numpy() for name in ("factor", "label_margin"))
        loss, scenario = (_decoded(rows[name]) for name in ("loss", "scenario"))
        is_targeted = np.char.startswith(scenario.astype(str), "targeted")
        is_named = ~np.isin(loss, (*_NOTHING, "logit"))
        falls = is_named & (factor < 0) & ~is_targeted
        zero, is_finite = (_flags(rows[n]) for n in ("is_logit_gradient_zero", "is_finite"))
        resists = np.char.endswith(scenario.astype(str), "_unsuccessful")  # others need none
        flags = {
            "rows": np.ones(len(step), dtype=bool),
            "zero": zero,
            "lost": zero & resists,
            "lost_by_a_loss": zero & resists & is_named,
            "not_finite": ~is_finite,
            "training": _flags(rows["is_training"]),
            "unknown": (loss == "unknown") & ~zero & is_finite,
            "named": is_named,
            "given": loss == self.given,
            "by_sample": (_decoded(rows["reduction"]) == "by sample") & is_named,
            "falls": falls,
        }
        sums = {
            name: np.add.reduceat(flag.astype(np.int64), starts) for name, flag in flags.items()
        }
        self._steps.update(numbers)
        for i, number in enumerate(numbers):
            n = {name: int(total[i]) for name, total in sums.items()}
            self._rows[number] = n["rows"]
            if n["training"]:
                self._training.append(number)
            # zero rows among others may be masked on purpose, where no loss is known to do it
            if n["zero"] == n["rows"] and n["lost"]:
                self._zero[number] = n["zero"]
            elif n["lost_by_a_loss"]:
                self._zero[number] = n["lost_by_a_loss"]
            if n["not_finite"]:
                self._not_finite[number] = n["not_finite"]
            if n["unknown"] and not n["named"]:
                self._unknown.append(number)
            else:
                self._unknown_rows += n["unknown"]
            if self.given is not None and not n["given"] and n["zero"] < n["rows"]:
                self._not_given.append(number)
            if n["by_sample"]:
                self._by_sample.append(number)
            if n["falls"]:
                self._falling.append(number)
        if self._falling:
            self._follow(rows["sample"].to_numpy(), falls, margin)

    def _follow(
        self, sample: NDArray[np.int64], falls: NDArray[np.bool_], margin: NDArray[np.float64]
    ) -> None:
        """The first and the latest margin of the labels whose loss the attack lowers, it seems."""
        seen = falls & np.isfinite(margin)
        samples, margins = sample[seen], margin[seen]
        self._latest[samples] = margins  # of several, the last one
        order = np.arange(len(samples))[::-1]
        first = np.full(self.samples, np.nan)
        first[samples[order]] = margins[order]
        self._first = np.where(np.isnan(self._first), first, self._first)

    def add_errors(self, rows: pa.Table) -> None:
        """Count rows of the table of errors."""
        own = rows.filter(rows["is_own"])
        self._compared += own.num_rows
        for step, reason in zip(own["step"].to_pylist(), own["reason"].to_pylist(), strict=True):
            if reason in _OF_REASONS:
                self._by_reason.setdefault(reason, []).append(step)

    def sentences(self) -> list[str]:
        """What went wrong, each in words with counts; empty for an attack that is as it should."""
        found = (
            self._of_training(),
            self._of_numbers(),
            *self._of_zeros(),
            self._of_direction(),
            *self._of_reasons(),
            self._of_unknown_losses(),
            self._of_given_loss(),
            self._of_factors(),
        )
        return [sentence for sentence in found if sentence is not None]

    @property
    def _count(self) -> int:
        return len(self._steps)

    def _of_training(self) -> str | None:
        if not self._training:
            return None
        return (
            f"the model was in training mode in {_listed(self._training)} "
            f"({len(self._training)} of {self._count} steps): the attack saw another network than "
            "the one in evaluation mode, and its gradients there are compared with nothing. Call "
            "model.eval(), or take set_model_training_mode back, before the attack"
        )

    def _of_numbers(self) -> str | None:
        if not self._not_finite:
            return None
        total, rows = sum(self._not_finite.values()), sum(self._rows.values())
        return (
            f"logits or dL/dx were not finite in {_listed(list(self._not_finite))} ({total} of "
            f"{rows} rows): what the attack did there is no result"
        )

    def _of_zeros(self) -> list[str]:
        """One sentence for each run of steps with the same count."""
        by_count: dict[tuple[int, int], list[int]] = {}
        for step, count in self._zero.items():
            by_count.setdefault((count, self._rows[step]), []).append(step)
        return [
            f"dL/dz was exactly 0 at {_listed(steps)} for {count} of {rows} samples: the loss, not "
            "the network, lost the gradient"
            for (count, rows), steps in by_count.items()
        ]

    def _of_direction(self) -> str | None:
        if not self._falling:
            return None
        change = self._latest - self._first
        rose, fell = int((change > 0).sum()), int((change < 0).sum())
        if fell > rose:
            return None  # it subtracts its gradient, as a minimiser does
        steps = f"{_listed(self._falling)} ({len(self._falling)} of {self._count} steps)"
        if rose:
            return (
                f"factor is negative: the attack lowers the loss of y in {steps}, and no target "
                f"explains it: z_y - max z_i rose along it for {rose} of {rose + fell} samples. "
                "Change the sign of the loss or of the steps"
            )
        return (
            f"factor is negative: the attack lowers the loss of y in {steps}, and no target "
            "explains it, if it moves along its dL/dx: right only where it subtracts that"
        )

    def _of_reasons(self) -> list[str]:
        """Why rows have no `delta` though their loss is known."""
        return [
            f"in {len(steps)} of {self._compared} compared rows ({_listed(steps)}) {text}"
            for reason, text in _OF_REASONS.items()
            if (steps := self._by_reason.get(reason))
        ]

    def _of_unknown_losses(self) -> str | None:
        if not self._unknown or not self.is_compared:
            return None
        return (
            f"the loss of {len(self._unknown)} of {self._count} gradient steps is none of those "
            "tried: their error is that of the network alone, with the attack's own dL/dz taken "
            "as data, and stands in network_delta; if its name is one of fperr's, give it in "
            "losses=, else the function itself, loss=function(logits, y, targets)"
        )

    def _of_given_loss(self) -> str | None:
        if not self._not_given:
            return None
        return (
            f"the loss that was given does not explain dL/dz in {_listed(self._not_given)} "
            f"({len(self._not_given)} of {self._count} steps): the attack follows another one there"
        )

    def _of_factors(self) -> str | None:
        if not self._by_sample or not self.is_compared:
            return None
        left = self._unknown_rows
        unknown = f", and of {left} rows they could not be told" if left else ""
        return (
            f"each sample has a factor of its own on its loss in {_listed(self._by_sample)} "
            f"({len(self._by_sample)} of {self._count} steps): they were fitted{unknown}. What "
            "they are off themselves is left out of delta; if the loss makes them, give it as a "
            "function"
        )


def _flags(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    flags: NDArray[np.bool_] = pc.fill_null(column, False).to_numpy().astype(bool)
    return flags


def _decoded(column: pa.ChunkedArray) -> NDArray[np.object_]:
    decoded: NDArray[np.object_] = column.to_numpy()
    return decoded


def _listed(steps: Sequence[int]) -> str:
    """`step 0 to 3 and 7`; of many runs the first ones."""
    runs: list[list[int]] = []
    for step in sorted(set(steps)):
        if runs and step == runs[-1][1] + 1:
            runs[-1][1] = step
        else:
            runs.append([step, step])
    texts = [str(a) if a == b else f"{a} to {b}" for a, b in runs[:_MOST_LISTED]]
    if len(runs) > _MOST_LISTED:
        return f"step {', '.join(texts)} and more"
    return f"step {' and '.join((', '.join(texts[:-1]), texts[-1])) if texts[1:] else texts[0]}"
