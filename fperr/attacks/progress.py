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
    """

    x: Tensor
    best: Tensor
    success: Tensor
    seen_before: Tensor
    best_margin: Tensor
    is_finite: Tensor

    @classmethod
    def at(cls, x: Tensor, logits: Tensor, goal: Goal) -> "Progress":
        """Of the clean inputs."""
        success, margin, finite = goal.reached(logits)
        return cls(x, x, success, torch.where(success, 0, 1), margin, finite)

    @property
    def first_success_step(self) -> Tensor:
        """(batch,) int64: 0 the clean input, 1 the start, 1 + i after step i; -1 never.

        Steps of later restarts count on.
        """
        return torch.where(self.success, self.seen_before, NEVER)

    def seen(
        self, x: Tensor, logits: Tensor, goal: Goal, usable: Tensor | None, *, frozen: bool
    ) -> "Progress":
        """After one more point for each sample.

        Args:
            x: (batch, *shape).
            logits: (batch, K), there.
            goal: of the attack.
            usable: (batch,) whether the gradient there is finite; None: there is none.
            frozen: samples stay where they are after success.
        """
        success, margin, finite = goal.reached(logits)
        open, is_better = ~self.success, margin < self.best_margin
        fallen = self.success | success
        taken = either(open & (success | is_better), x, self.x)
        best = taken if frozen else either(is_better, x, self.best)
        return replace(
            self,
            x=taken,
            best=best,
            success=fallen,
            seen_before=self.seen_before + ~fallen,
            best_margin=torch.minimum(margin, self.best_margin),
            is_finite=self.is_finite & (finite if usable is None else finite & usable),
        )


def is_finite(gradient: Tensor) -> Tensor:
    """(batch,) bool: all numbers of a sample's gradient are finite, seen in one sum of them."""
    flat = gradient.flatten(1)
    # of finite numbers it cannot overflow: each rounding at most doubles what it adds
    # (a product of matrices would be formed in half formats under autocast)
    return (flat * (0.25 / flat.shape[1])).sum(1).abs() < torch.inf  # false for NaN
