"""The faults of a recorded attack, in sentences: counted step by step, from the tables' rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fperr.recording.missing_delta import NO_RERUN, NOT_THE_NETWORK, OTHER_LOGITS, OTHER_POINT
from fperr.repair.words import how_to_use

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
_MOST_RUNS = 4  # runs of steps in a sentence
_TEXT_OF_REASON = {
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
_NO_LOSS = ("zero", "unknown")  # entries of the column `loss` that name no loss


@dataclass(slots=True)
class Diagnosis:
    """Counts what was recorded; `sentences` tells which of it is a fault of the attack or model.

    Steps are told by their number, and each `_..._steps` lists the steps of that kind.

    Args:
        samples: Number of samples of the attack.
        user_loss: Name of the loss that the user gave as a function; None: none.
        is_compared: Whether some gradients are compared with exact ones.
    """

    samples: int
    user_loss: str | None
    is_compared: bool
    _steps: set[int] = field(default_factory=set)
    _training_steps: list[int] = field(default_factory=list)
    _zero_rows: dict[int, int] = field(default_factory=dict)  # by step, as the next two
    _rows: dict[int, int] = field(default_factory=dict)
    _not_finite_rows: dict[int, int] = field(default_factory=dict)
    _unknown_steps: list[int] = field(default_factory=list)
    _unknown_rows: int = 0  # in steps whose other rows have a loss
    _other_loss_steps: list[int] = field(default_factory=list)
    _by_sample_steps: list[int] = field(default_factory=list)
    _falling_steps: list[int] = field(default_factory=list)
    _first_margin: NDArray[np.float64] = field(init=False)  # by sample, as the next
    _latest_margin: NDArray[np.float64] = field(init=False)
    _compared_rows: int = 0
    _steps_by_reason: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin without margins."""
        self._first_margin, self._latest_margin = (np.full(self.samples, np.nan) for _ in range(2))

    def add_steps(self, rows: pa.Table) -> None:
        """Count rows of the table of steps; the rows of a step are neighbours."""
        step = rows["step"].to_numpy()
        starts = np.flatnonzero(np.r_[True, step[1:] != step[:-1]])  # the first row of each step
        numbers = step[starts].tolist()
        factor, margin = (rows[name].to_numpy() for name in ("factor", "label_margin"))
        loss, scenario = (_decoded(rows[name]) for name in ("loss", "scenario"))
        is_targeted = np.char.startswith(scenario.astype(str), "targeted")
        is_named = ~np.isin(loss, (*_NO_LOSS, "logit"))
        falls = is_named & (factor < 0) & ~is_targeted
        is_zero, is_finite = (_flags(rows[n]) for n in ("is_logit_gradient_zero", "is_finite"))
        resists = np.char.endswith(scenario.astype(str), "_unsuccessful")  # others need no gradient
        flags = {
            "rows": np.ones(len(step), dtype=bool),
            "zero": is_zero,
            "lost": is_zero & resists,
            "lost_by_a_loss": is_zero & resists & is_named,
            "not_finite": ~is_finite,
            "training": _flags(rows["is_training"]),
            "unknown": (loss == "unknown") & ~is_zero & is_finite,
            "named": is_named,
            "user_loss": loss == self.user_loss,
            "by_sample": (_decoded(rows["reduction"]) == "by sample") & is_named,
            "falls": falls,
        }
        # reduceat sums from each start to the next: a count for each step
        sums = {
            name: np.add.reduceat(flag.astype(np.int64), starts) for name, flag in flags.items()
        }
        self._steps.update(numbers)
        for i, number in enumerate(numbers):
            self._count_step(number, {name: int(total[i]) for name, total in sums.items()})
        if self._falling_steps:
            self._follow_margins(rows["sample"].to_numpy(), falls, margin)

    def _count_step(self, step: int, n: dict[str, int]) -> None:
        """Count a step by its numbers n of rows of each kind."""
        self._rows[step] = n["rows"]
        if n["training"]:
            self._training_steps.append(step)
        # zero rows among others may be masked on purpose, where no loss is known to do it
        if n["zero"] == n["rows"] and n["lost"]:
            self._zero_rows[step] = n["zero"]
        elif n["lost_by_a_loss"]:
            self._zero_rows[step] = n["lost_by_a_loss"]
        if n["not_finite"]:
            self._not_finite_rows[step] = n["not_finite"]
        if n["unknown"] and not n["named"]:
            self._unknown_steps.append(step)
        else:
            self._unknown_rows += n["unknown"]
        if self.user_loss is not None and not n["user_loss"] and n["zero"] < n["rows"]:
            self._other_loss_steps.append(step)
        if n["by_sample"]:
            self._by_sample_steps.append(step)
        if n["falls"]:
            self._falling_steps.append(step)

    def _follow_margins(
        self, sample: NDArray[np.int64], falls: NDArray[np.bool_], margin: NDArray[np.float64]
    ) -> None:
        """Keep the first and the latest margin of the rows whose loss the attack lowers."""
        is_counted = falls & np.isfinite(margin)
        samples, margins = sample[is_counted], margin[is_counted]
        # of several rows of a sample, an assignment by index keeps the last one: the latest, and
        # the first where the order is turned round
        self._latest_margin[samples] = margins
        backwards = np.arange(len(samples))[::-1]
        first = np.full(self.samples, np.nan)
        first[samples[backwards]] = margins[backwards]
        self._first_margin = np.where(np.isnan(self._first_margin), first, self._first_margin)

    def add_errors(self, rows: pa.Table) -> None:
        """Count rows of the table of errors."""
        attack_rows = rows.filter(rows["is_own"])
        self._compared_rows += attack_rows.num_rows
        steps, reasons = (attack_rows[name].to_pylist() for name in ("step", "reason"))
        for step, reason in zip(steps, reasons, strict=True):
            if reason in _TEXT_OF_REASON:
                self._steps_by_reason.setdefault(reason, []).append(step)

    def sentences(self) -> list[str]:
        """The faults, each in a sentence with counts; empty for an attack that has none."""
        sentences = (
            self._training_sentence(),
            self._not_finite_sentence(),
            *self._zero_sentences(),
            self._direction_sentence(),
            *self._reason_sentences(),
            self._unknown_loss_sentence(),
            self._user_loss_sentence(),
            self._factor_sentence(),
        )
        return [sentence for sentence in sentences if sentence is not None]

    def _steps_and_share(self, steps: Sequence[int]) -> str:
        """The steps in words, and how many of all steps they are."""
        return f"{_in_words(steps)} ({len(steps)} of {len(self._steps)} steps)"

    def _training_sentence(self) -> str | None:
        if not self._training_steps:
            return None
        return (
            f"the model was in training mode in {self._steps_and_share(self._training_steps)}: "
            "the attack saw another network than the one in evaluation mode, and its gradients "
            "there are compared with nothing. Call model.eval(), or take set_model_training_mode "
            "back, before the attack"
        )

    def _not_finite_sentence(self) -> str | None:
        if not self._not_finite_rows:
            return None
        total, rows = sum(self._not_finite_rows.values()), sum(self._rows.values())
        return (
            f"logits or dL/dx were not finite in {_in_words(list(self._not_finite_rows))} "
            f"({total} of {rows} rows): what the attack did there is no result"
        )

    def _zero_sentences(self) -> list[str]:
        """A sentence for each count of zero rows, with the steps that have it."""
        by_count: dict[tuple[int, int], list[int]] = {}
        for step, count in self._zero_rows.items():
            by_count.setdefault((count, self._rows[step]), []).append(step)
        return [
            f"dL/dz was exactly 0 at {_in_words(steps)} for {count} of {rows} samples: the loss, "
            f"not the network, lost the gradient. Use stable_ce: {how_to_use('stable_ce')}"
            for (count, rows), steps in by_count.items()
        ]

    def _direction_sentence(self) -> str | None:
        if not self._falling_steps:
            return None
        change = self._latest_margin - self._first_margin
        rose, fell = int((change > 0).sum()), int((change < 0).sum())
        if fell > rose:
            return None  # it subtracts its gradient, as a minimiser does
        steps = self._steps_and_share(self._falling_steps)
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

    def _reason_sentences(self) -> list[str]:
        """A sentence for each reason why rows have no `delta` though their loss is known."""
        return [
            f"in {len(steps)} of {self._compared_rows} compared rows ({_in_words(steps)}) {text}"
            for reason, text in _TEXT_OF_REASON.items()
            if (steps := self._steps_by_reason.get(reason))
        ]

    def _unknown_loss_sentence(self) -> str | None:
        if not self._unknown_steps or not self.is_compared:
            return None
        return (
            f"the loss of {len(self._unknown_steps)} of {len(self._steps)} gradient steps is none "
            "of those tried: their error is that of the network alone, with the attack's own dL/dz "
            "taken as data, and stands in network_delta; if its name is one of fperr's, give it in "
            "losses=, else the function itself, loss=function(logits, y, targets)"
        )

    def _user_loss_sentence(self) -> str | None:
        if not self._other_loss_steps:
            return None
        steps = self._steps_and_share(self._other_loss_steps)
        return (
            f"the loss that was given does not explain dL/dz in {steps}: the attack follows "
            "another one there"
        )

    def _factor_sentence(self) -> str | None:
        if not self._by_sample_steps or not self.is_compared:
            return None
        unfitted = self._unknown_rows
        unknown = f", and of {unfitted} rows they could not be told" if unfitted else ""
        steps = self._steps_and_share(self._by_sample_steps)
        return (
            f"each sample has a factor of its own on its loss in {steps}: they were "
            f"fitted{unknown}. What they are off themselves is left out of delta; if the loss "
            "makes them, give it as a function"
        )


def _flags(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    flags: NDArray[np.bool_] = pc.fill_null(column, False).to_numpy().astype(bool)
    return flags


def _decoded(column: pa.ChunkedArray) -> NDArray[np.object_]:
    decoded: NDArray[np.object_] = column.to_numpy()
    return decoded


def _in_words(steps: Sequence[int]) -> str:
    """The steps in words, as `step 0 to 3 and 7`; the first runs of many, `and more`."""
    runs: list[list[int]] = []
    for step in sorted(set(steps)):
        if runs and step == runs[-1][1] + 1:
            runs[-1][1] = step
        else:
            runs.append([step, step])
    texts = [str(a) if a == b else f"{a} to {b}" for a, b in runs[:_MOST_RUNS]]
    if len(runs) > _MOST_RUNS:
        return f"step {', '.join(texts)} and more"
    return f"step {' and '.join((', '.join(texts[:-1]), texts[-1])) if texts[1:] else texts[0]}"
