"""Counts of an attack's samples, in numbers and in a sentence, alike from Python and the shell."""

import warnings
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from fperr.shares import wilson_interval

COLUMNS = (
    "success",
    "is_judged",
    "is_clean_correct",
    "is_finite",
    "gradient_steps",
    "zero_gradient_steps",
    "broken_gradient_steps",
)


class AttackWarning(UserWarning):
    """A warning that an attack's result says less than it seems to."""


class UnjudgedWarning(AttackWarning):
    """A warning that samples of an attack could not be judged."""


class NoGradientWarning(AttackWarning):
    """A warning that samples of an attack never had a gradient that is finite and not zero."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Counts of an attack's samples; each sample is robust, fooled or unjudged.

    Attributes:
        samples: Number of all samples.
        robust: Number of samples that were judged and withstood.
        fooled: Number of samples at which the attack succeeded, clean errors among them.
        unjudged: Number of samples that are neither: NaN or overflowing logits, a prediction that
            differed when it was computed again, or an exact gradient that could not be had.
        clean_correct: Number of samples whose clean input is classified as y.
        without_gradient: Number of samples at which the attack took gradients, none of them finite
            and not zero.
        only_zeros: Number of samples at which every gradient was exactly zero.
        attacked: Number of samples at which a gradient was taken.
        not_finite: Number of judged samples that met a gradient (or, after success, logits) that
            is not finite.
    """

    samples: int
    robust: int
    fooled: int
    unjudged: int
    clean_correct: int
    without_gradient: int
    only_zeros: int
    attacked: int
    not_finite: int

    @classmethod
    def from_columns(
        cls,
        *,
        success: Tensor,
        is_judged: Tensor,
        is_clean_correct: Tensor,
        is_finite: Tensor,
        gradient_steps: Tensor,
        zero_gradient_steps: Tensor,
        broken_gradient_steps: Tensor,
    ) -> "Outcome":
        """Count the columns of an `AttackResult`, each (batch,)."""
        attacked = gradient_steps > 0
        masks = (
            is_judged & ~success,
            success,
            ~is_judged,
            is_clean_correct,
            attacked & (zero_gradient_steps + broken_gradient_steps == gradient_steps),
            attacked & (zero_gradient_steps == gradient_steps),
            attacked,
            is_judged & ~is_finite,
        )
        return cls(len(success), *(int(count) for count in torch.stack(masks).sum(1).tolist()))

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> "Outcome":
        """Count the rows of a frame of `attack_in_batches`."""
        return cls.from_columns(**{name: torch.tensor(frame[name].to_numpy()) for name in COLUMNS})

    @property
    def robust_accuracy(self) -> float:
        """The share of all samples that were judged and withstood."""
        return self.robust / self.samples

    @property
    def robust_interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval for `robust_accuracy`."""
        return wilson_interval(self.robust, self.samples)

    @property
    def brief(self) -> str:
        """`84 of 100 withstand, 84.0 % [75.6, 89.9]`, and how many could not be judged."""
        low, high = self.robust_interval
        unjudged = f", {self.unjudged} not judged" if self.unjudged else ""
        return (
            f"{self.robust} of {self.samples} withstand, {100 * self.robust_accuracy:.1f} % "
            f"[{100 * low:.1f}, {100 * high:.1f}]{unjudged}"
        )

    @property
    def clean_accuracy(self) -> float:
        """The share of all samples whose clean input is classified as y."""
        return self.clean_correct / self.samples

    @property
    def remarks(self) -> tuple[str, ...]:
        """Caveats that a reader of the robust accuracy must know; empty where all is well."""
        remarks = []
        if self.unjudged:
            remarks.append(
                f"{self.unjudged} of {self.samples} could not be judged (logits that are NaN, "
                "overflow or leave no second class, a prediction that did not come again, or an "
                "exact gradient that could not be certified): they are counted neither as robust "
                "nor as fooled; try a wider format"
            )
        if self.without_gradient:
            gradients = "exactly zero"
            gradients += "" if self.only_zeros == self.without_gradient else " or not finite"
            remarks.append(
                f"{self.without_gradient} of {self.samples} never had a gradient: each was "
                f"{gradients}, so that withstanding says nothing about them"
            )
        if self.not_finite:
            remarks.append(f"{self.not_finite} of {self.samples} met gradients that are not finite")
        return tuple(remarks)

    @property
    def sentence(self) -> str:
        """A sentence: how many withstood, and the remarks."""
        return "; ".join((f"{self.robust} of {self.samples} withstood", *self.remarks))

    def warn(self, stacklevel: int) -> None:
        """Warn of unjudged samples (`UnjudgedWarning`), or else of missing gradients."""
        if self.unjudged:
            warnings.warn(self.sentence, UnjudgedWarning, stacklevel=stacklevel)
        elif self.without_gradient:
            warnings.warn(self.sentence, NoGradientWarning, stacklevel=stacklevel)
