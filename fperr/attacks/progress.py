"""What an attack has reached so far, sample by sample; nothing here waits for the device."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fperr.attacks.goal import Goal
from fperr.attacks.region import by_sample

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
        first_success_step: (batch,) int64: 0 the clean input, 1 the start, 1 + i after step i; -1
            never. Steps of later restarts count on.
        best_margin: (batch,) float64, the smallest seen.
        is_finite: (batch,) bool: all logits and gradients so far were.
    """

    x: Tensor
    best: Tensor
    success: Tensor
    first_success_step: Tensor
    best_margin: Tensor
    is_finite: Tensor

    @classmethod
    def at(cls, x: Tensor, logits: Tensor, goal: Goal) -> "Progress":
        """Of the clean inputs."""
        success, margin, finite = goal.reached(logits)
        step = torch.where(success, 0, NEVER)
        return cls(x, x, success, step, margin, finite)

    def seen(self, x: Tensor, logits: Tensor, goal: Goal, step: int, *, frozen: bool) -> "Progress":
        """After the points x (batch, *shape) with these logits; frozen after success, or not."""
        success, margin, finite = goal.reached(logits)
        open, is_better = ~self.success, margin < self.best_margin
        is_new = success & open
        taken = torch.where(by_sample(is_new | (open & is_better), x), x, self.x)
        best = taken
        if not frozen:
            best = torch.where(by_sample(is_better, x), x, self.best)
        return replace(
            self,
            x=taken,
            best=best,
            success=self.success | success,
            first_success_step=torch.where(is_new, step, self.first_success_step),
            best_margin=torch.minimum(margin, self.best_margin),
            is_finite=self.is_finite & finite,
        )

    def checked(self, gradient: Tensor) -> "tuple[Progress, Tensor]":
        """With what the gradient shows, and (batch,) whether it is finite."""
        flat = gradient.flatten(1)
        finite = (flat.amax(1) < torch.inf) & (flat.amin(1) > -torch.inf)  # false for NaN
        return replace(self, is_finite=self.is_finite & finite), finite
