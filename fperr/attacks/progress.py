"""What an attack has reached so far, sample by sample; nothing here waits for the device."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fperr.attacks.goal import Goal
from fperr.attacks.region import where_by_sample

NEVER = -1


@dataclass(frozen=True, slots=True)
class Progress:
    """The best points that an attack has met, and counts of what it met.

    Attributes:
        x: (batch, *shape), the first point at which the goal was reached, else the one with the
            smallest margin.
        best: (batch, *shape), the point with the smallest margin, before or after success; x
            itself where samples are frozen after success.
        success: (batch,) bool, whether the goal was reached.
        points_before_success: (batch,) int64, the number of points before the first success.
        best_margin: (batch,) float64, the smallest margin so far.
        is_finite: (batch,) bool, whether all logits and gradients so far were finite.
        is_judged: (batch,) bool, whether the attack has succeeded, or all logits so far were
            finite.
        gradient_steps, zero_gradient_steps, broken_gradient_steps: (batch,) int64, how many
            gradients were taken before the first success, how many of them were exactly zero, and
            how many were not finite.
    """

    x: Tensor
    best: Tensor
    success: Tensor
    points_before_success: Tensor
    best_margin: Tensor
    is_finite: Tensor
    is_judged: Tensor
    gradient_steps: Tensor
    zero_gradient_steps: Tensor
    broken_gradient_steps: Tensor

    @classmethod
    def at_clean_inputs(cls, x: Tensor, logits: Tensor, goal: Goal) -> "Progress":
        """The progress before the first step: the clean inputs x are the only points so far."""
        success, margin, is_finite = goal.verdict(logits)
        zeros = torch.zeros_like(success, dtype=torch.int64)
        points = torch.where(success, 0, 1)
        return cls(x, x, success, points, margin, is_finite, is_finite, zeros, zeros, zeros)

    @property
    def first_success_step(self) -> Tensor:
        """The step of the first success, (batch,) int64.

        0 is the clean input, 1 the start, 1 + i the point after step i, -1 never. Later restarts
        continue the count.
        """
        return torch.where(self.success, self.points_before_success, NEVER)

    def after_point(
        self, x: Tensor, logits: Tensor, goal: Goal, size: Tensor | None, *, is_frozen: bool
    ) -> "Progress":
        """The progress after one more point for each sample.

        Args:
            x: (batch, *shape), the points.
            logits: (batch, K), the logits at x.
            goal: Goal of the attack.
            size: (batch,), the largest component of the gradient at x, see `gradient_size`; None:
                no gradient was taken.
            is_frozen: Whether samples stay where they are after success.
        """
        is_hit, margin, is_finite = goal.verdict(logits)
        was_open, is_better = ~self.success, margin < self.best_margin
        success = self.success | is_hit
        gradients, zeros, broken = (
            self.gradient_steps, self.zero_gradient_steps, self.broken_gradient_steps
        )  # fmt: skip
        is_all_finite = is_finite
        if size is not None:
            is_still_open, is_number = ~success, size < torch.inf
            gradients, zeros = gradients + is_still_open, zeros + (is_still_open & (size == 0))
            broken = broken + (is_still_open & ~is_number)
            is_all_finite = is_finite & is_number
        best_or_first_hit = where_by_sample(was_open & (is_hit | is_better), x, self.x)
        best = best_or_first_hit if is_frozen else where_by_sample(is_better, x, self.best)
        return replace(
            self,
            x=best_or_first_hit,
            best=best,
            success=success,
            points_before_success=self.points_before_success + ~success,
            best_margin=torch.minimum(margin, self.best_margin),
            is_finite=self.is_finite & is_all_finite,
            is_judged=success | (self.is_judged & is_finite),
            gradient_steps=gradients,
            zero_gradient_steps=zeros,
            broken_gradient_steps=broken,
        )

    def confirmed(self, logits: Tensor, goal: Goal) -> "Progress":
        """The progress after the points `x` have been predicted once more.

        A sample whose prediction differs now, or whose logits are not finite, is not judged, and is
        no success.

        Args:
            logits: (batch, K), the second prediction at `x`.
            goal: Goal of the attack.
        """
        is_hit, _, is_finite = goal.verdict(logits)
        agrees = (is_hit == self.success) & is_finite
        return replace(self, success=self.success & agrees, is_judged=self.is_judged & agrees)

    def judged_with_all_gradients(self) -> "Progress":
        """The progress where a sample without one of its gradients is only judged by success."""
        return replace(
            self, is_judged=self.is_judged & (self.success | (self.broken_gradient_steps == 0))
        )


def gradient_size(gradient: Tensor) -> Tensor:
    """The largest component of each sample's gradient (batch, *shape) in absolute value, (batch,).

    0 where all components are 0, NaN or infinite where a component is.
    """
    return gradient.flatten(1).abs().amax(1)
