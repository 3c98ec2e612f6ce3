"""Projected gradient descent, FGSM among it, and APGD (Croce and Hein, ICML 2020)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fperr.attacks.goal import Goal
from fperr.attacks.gradient_source import GradientSource
from fperr.attacks.progress import Progress, gradient_size
from fperr.attacks.region import Region, per_sample, where_by_sample
from fperr.vocabulary import Schedule

OnStep = Callable[[int, Tensor, Tensor, Tensor], object]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The number of steps, their sizes and their momentum.

    Attributes:
        count: Number of steps.
        schedule: How the sizes fall: `"cosine"`, `"linear"` or `"constant"`.
        size: Size of the first step, in the norm of the region.
        momentum: Weight m of the last move: x + (1 - m)(w - x) + m (x - x_last) for the stepped
            point w. The first step has none.
    """

    count: int
    schedule: Schedule
    size: float
    momentum: float

    def size_at(self, i: int) -> float:
        """The size of step i = 0, 1, ..."""
        if self.schedule == "cosine":
            return self.size * math.cos(math.pi * i / (2 * self.count))
        return self.size * (1 - i / self.count) if self.schedule == "linear" else self.size


@dataclass(frozen=True, slots=True)
class AttackRun:
    """The settings of an attack at work.

    Attributes:
        source: Source of logits and gradients.
        region: Region in which the points stay.
        goal: Goal to reach.
        plan: Number and sizes of the steps.
        on_step: Function called with the step's number, points, logits and gradients; or None.
        is_freezing: Whether samples that have succeeded stay where they are.
    """

    source: GradientSource
    region: Region
    goal: Goal
    plan: StepPlan
    on_step: OnStep | None
    is_freezing: bool

    def unless_frozen(self, success: Tensor, x: Tensor, moved: Tensor) -> Tensor:
        """The points `moved`, but `x` for the samples that stay where they are."""
        return where_by_sample(success, x, moved) if self.is_freezing else moved

    def call_on_step(self, number: int, x: Tensor, logits: Tensor, gradient: Tensor) -> None:
        """Call `on_step` with copies, so that it cannot change the attack."""
        if self.on_step is not None:
            self.on_step(number, x.clone(), logits.clone(), gradient.clone())

    def progress_at(
        self, progress: Progress, x: Tensor, logits: Tensor, size: Tensor | None
    ) -> Progress:
        """The progress with the points x, and gradients of that size there."""
        return progress.after_point(x, logits, self.goal, size, is_frozen=self.is_freezing)


def run_pgd(run: AttackRun, start: Tensor, progress: Progress, offset: int) -> Progress:
    """Run PGD from `start`.

    Args:
        run: Settings of the attack.
        start: (batch, *shape), the first points.
        progress: Progress before this run.
        offset: Number of the start, for `on_step`.
    """
    source, region, goal, plan = run.source, run.region, run.goal, run.plan
    x = last = start
    for i in range(plan.count):
        logits, gradient = source.logits_and_gradient(x, goal.at_fraction(i / plan.count))
        size = gradient_size(gradient)
        is_usable = size < torch.inf
        progress = run.progress_at(progress, x, logits, size)
        run.call_on_step(offset + i, x, logits, gradient)
        moved = region.after_step(x, gradient, is_usable.to(x.dtype) * plan.size_at(i))
        if i and plan.momentum:
            moved = region.with_momentum(x, moved, last, plan.momentum)
        x, last = run.unless_frozen(progress.success, x, moved), x
    return run.progress_at(progress, x, source.logits(x), None)


def run_apgd(run: AttackRun, start: Tensor, progress: Progress, offset: int) -> Progress:
    """Run APGD from `start`: steps halve, and points return to the best, where progress stalls.

    As in the authors' code: the last move has weight 0.25; checkpoints after 22 % of the steps,
    then windows that shrink by 3 % to 6 %; a step is halved where at most 75 % of a window's steps
    raised the value, or where the window before did not halve it and the best value has not changed
    since. Unlike it, the first window counts its own steps only, and frozen samples do not step. A
    point that returns keeps its last move as momentum, as there. The schedule is not used.

    Args:
        run: Settings of the attack.
        start: (batch, *shape), the first points.
        progress: Progress before this run.
        offset: Number of the start, for `on_step`.
    """
    source, region, goal, plan = run.source, run.region, run.goal, run.plan
    count = plan.count
    step_size = torch.full_like(progress.best_margin, plan.size)
    # the fractions 0.22, 0.06 and 0.03 are those of the authors' code
    window, shortest = max(int(0.22 * count), 1), max(int(0.06 * count), 1)
    shrink = max(int(0.03 * count), 1)
    x = last = best = start
    logits, gradient = source.logits_and_gradient(x, goal.at_fraction(0.0))
    size = gradient_size(gradient)
    is_usable = size < torch.inf
    progress = run.progress_at(progress, x, logits, size)
    value = best_value = value_at_checkpoint = goal.value(logits)
    best_gradient, is_best_usable = gradient, is_usable
    rises = torch.zeros_like(value)
    # true at first, so that the first window is judged by its rises alone
    was_halved = torch.ones_like(progress.success)
    steps_in_window = 0
    for i in range(count):
        run.call_on_step(offset + i, x, logits, gradient)
        moved = region.after_step(x, gradient, is_usable * step_size)
        if i and plan.momentum:
            moved = region.with_momentum(x, moved, last, plan.momentum)
        x, last = run.unless_frozen(progress.success, x, moved), x
        logits, gradient = source.logits_and_gradient(x, goal.at_fraction((i + 1) / count))
        size = gradient_size(gradient)
        is_usable = size < torch.inf
        progress = run.progress_at(progress, x, logits, size)
        previous_value, value = value, goal.value(logits)
        rises = rises + (value > previous_value)
        is_better = value > best_value
        best_value = torch.where(is_better, value, best_value)
        best = where_by_sample(is_better, x, best)
        best_gradient = torch.where(per_sample(is_better, x), gradient, best_gradient)
        is_best_usable = torch.where(is_better, is_usable, is_best_usable)
        steps_in_window += 1
        if steps_in_window == window:
            has_not_improved = value_at_checkpoint >= best_value
            is_stalled = (rises <= 0.75 * window) | (~was_halved & has_not_improved)
            step_size = torch.where(is_stalled, step_size / 2, step_size)
            x = where_by_sample(is_stalled, best, x)
            gradient = torch.where(per_sample(is_stalled, x), best_gradient, gradient)
            is_usable = torch.where(is_stalled, is_best_usable, is_usable)
            value = torch.where(is_stalled, best_value, value)
            was_halved, value_at_checkpoint = is_stalled, best_value
            rises = torch.zeros_like(rises)
            steps_in_window, window = 0, max(window - shrink, shortest)
    return progress
