"""What an attack has reached so far, sample by sample; nothing here waits for the device."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fperr.attacks.goal import Goal
from fperr.attacks.region import either

NEVER = -1


@dataclass(frozen=True, slots=True)
class Progress:
    """The best of what an attack has met.

    Attributes:
        x: (batch, *shape): the first point at which the goal was reached, else the one with the
            smallest margin.
        best: (batch, *shape): the point with the smallest margin, before or after success; x
            itself where samples are frozen then.
        success: (batch,) bool.
        seen_before: (batch,) int64: the number of points before the first success.
        best_margin: (batch,) float64, the smallest seen.
        is_finite: (batch,) bool: all logits and gradients so far were.
        is_judged: (batch,) bool: it has succeeded, or all logits so far were finite.
        gradient_steps, zero_gradient_steps, broken_gradient_steps: (batch,) int64: how many
            gradients were taken before the first success, and how many of them were exactly zero,
            and not finite.
    """

    x: Tensor
    best: Tensor
    success: Tensor
    seen_before: Tensor
    best_margin: Tensor
    is_finite: Tensor
    is_judged: Tensor
    gradient_steps: Tensor
    zero_gradient_steps: Tensor
    broken_gradient_steps: Tensor

    @classmethod
    def at(cls, x: Tensor, logits: Tensor, goal: Goal) -> "Progress":
        """Of the clean inputs."""
        success, margin, finite = goal.reached(logits)
        none = torch.zeros_like(success, dtype=torch.int64)
        seen = torch.where(success, 0, 1)
        return cls(x, x, success, seen, margin, finite, finite, none, none, none)

    @property
    def first_success_step(self) -> Tensor:
        """(batch,) int64: 0 the clean input, 1 the start, 1 + i after step i; -1 never.

        Steps of later restarts count on.
        """
        return torch.where(self.success, self.seen_before, NEVER)

    def seen(
        self, x: Tensor, logits: Tensor, goal: Goal, size: Tensor | None, *, frozen: bool
    ) -> "Progress":
        """After one more point for each sample.

        Args:
            x: (batch, *shape).
            logits: (batch, K), there.
            goal: of the attack.
            size: (batch,) of the gradient there, see `gradient_size`; None: none was taken.
            frozen: samples stay where they are after success.
        """
        success, margin, finite = goal.reached(logits)
        open, is_better = ~self.success, margin < self.best_margin
        fallen = self.success | success
        gradients, zeros, broken = (
            self.gradient_steps, self.zero_gradient_steps, self.broken_gradient_steps
        )  # fmt: skip
        usable = finite
        if size is not None:
            still_open, is_number = ~fallen, size < torch.inf
            gradients, zeros = gradients + still_open, zeros + (still_open & (size == 0))
            broken = broken + (still_open & ~is_number)
            usable = finite & is_number
        taken = either(open & (success | is_better), x, self.x)
        best = taken if frozen else either(is_better, x, self.best)
        return replace(
            self,
            x=taken,
            best=best,
            success=fallen,
            seen_before=self.seen_before + ~fallen,
            best_margin=torch.minimum(margin, self.best_margin),
            is_finite=self.is_finite & usable,
            is_judged=fallen | (self.is_judged & finite),
            gradient_steps=gradients,
            zero_gradient_steps=zeros,
            broken_gradient_steps=broken,
        )

    def confirmed(self, logits: Tensor, goal: Goal) -> "Progress":
        """After the points `x` have been predicted once more.

        A sample whose prediction is another one now, or none, is not judged, and is no success.

        Args:
            logits: (batch, K), at `x`.
            goal: of the attack.
        """
        success, _, finite = goal.reached(logits)
        agrees = (success == self.success) & finite
        return replace(self, success=self.success & agrees, is_judged=self.is_judged & agrees)


def gradient_size(gradient: Tensor) -> Tensor:
    """(batch,): the largest entry of each sample's gradient (batch, *shape) in absolute value.

    0 where all entries are, NaN or infinite where an entry is.
    """
    return gradient.flatten(1).abs().amax(1)
