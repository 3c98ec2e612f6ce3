"""Projected gradient descent, FGSM among it, and APGD (Croce and Hein, ICML 2020)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fperr.attacks.goal import Goal
from fperr.attacks.gradient_source import Source
from fperr.attacks.progress import Progress, gradient_size
from fperr.attacks.region import Region, by_sample, either
from fperr.vocabulary import Schedule

OnStep = Callable[[int, Tensor, Tensor, Tensor], object]


@dataclass(frozen=True, slots=True)
class Steps:
    """How far an attack goes in each step.

    Attributes:
        count: how many.
        schedule: of the sizes.
        size: the first one.
        momentum: weight of the last move: x + (1 - m)(w - x) + m (x - x_last), 0 in step 1.
    """

    count: int
    schedule: Schedule
    size: float
    momentum: float

    def at(self, i: int) -> float:
        """The size of step i = 0, 1, ..."""
        if self.schedule == "cosine":
            return self.size * math.cos(math.pi * i / (2 * self.count))
        return self.size * (1 - i / self.count) if self.schedule == "linear" else self.size


@dataclass(frozen=True, slots=True)
class Run:
    """An attack at work.

    Attributes:
        source: of logits and gradients.
        region: where to stay.
        goal: what to reach.
        steps: how far to go.
        on_step: called with the step's number, points, logits and gradients.
        freeze: samples that have succeeded stay where they are.
    """

    source: Source
    region: Region
    goal: Goal
    steps: Steps
    on_step: OnStep | None
    freeze: bool

    def kept(self, success: Tensor, x: Tensor, moved: Tensor) -> Tensor:
        """`moved`, and x for the samples that stay put."""
        return either(success, x, moved) if self.freeze else moved

    def tell(self, number: int, x: Tensor, logits: Tensor, gradient: Tensor) -> None:
        """Call `on_step` with copies: what it does to them is nothing to the attack."""
        if self.on_step is not None:
            self.on_step(number, x.clone(), logits.clone(), gradient.clone())

    def seen(self, progress: Progress, x: Tensor, logits: Tensor, size: Tensor | None) -> Progress:
        """The progress with the points x, and gradients of that size there."""
        return progress.seen(x, logits, self.goal, size, frozen=self.freeze)


def descend(run: Run, start: Tensor, progress: Progress, offset: int) -> Progress:
    """PGD from `start`.

    Args:
        run: the attack.
        start: (batch, *shape).
        progress: so far.
        offset: the number of the start, for `on_step`.
    """
    source, region, goal, steps = run.source, run.region, run.goal, run.steps
    x = last = start
    for i in range(steps.count):
        logits, gradient = source.both(x, goal.at(i / steps.count))
        size = gradient_size(gradient)
        usable = size < torch.inf
        progress = run.seen(progress, x, logits, size)
        run.tell(offset + i, x, logits, gradient)
        moved = region.moved(x, gradient, usable.to(x.dtype) * steps.at(i))
        if i and steps.momentum:
            moved = region.carried_on(x, moved, last, steps.momentum)
        x, last = run.kept(progress.success, x, moved), x
    return run.seen(progress, x, source.logits(x), None)


def descend_adaptively(run: Run, start: Tensor, progress: Progress, offset: int) -> Progress:
    """APGD from `start`: step sizes halve, and points return to the best, where progress stalls.

    As in the authors' code: the last move has weight 0.25; checkpoints after 22 % of the steps,
    then windows that shrink by 3 % to 6 %; a step is halved where at most 75 % of a window's steps
    raised the value, or where the window before did not halve it and the best value has not changed
    since. Unlike it, the first window counts its own steps only, and frozen samples do not step. A
    point that returns keeps its last move as momentum, as there. The schedule is not used.
    """
    source, region, goal, steps = run.source, run.region, run.goal, run.steps
    count = steps.count
    step_size = torch.full_like(progress.best_margin, steps.size)
    window, least = max(int(0.22 * count), 1), max(int(0.06 * count), 1)
    shrink = max(int(0.03 * count), 1)
    x = last = best = start
    logits, gradient = source.both(x, goal.at(0.0))
    size = gradient_size(gradient)
    usable = size < torch.inf
    progress = run.seen(progress, x, logits, size)
    value = best_value = at_checkpoint = goal.value(logits)
    best_gradient, best_usable = gradient, usable
    rises = torch.zeros_like(value)
    was_halved = torch.ones_like(progress.success)
    since = 0
    for i in range(count):
        run.tell(offset + i, x, logits, gradient)
        moved = region.moved(x, gradient, usable * step_size)
        if i and steps.momentum:
            moved = region.carried_on(x, moved, last, steps.momentum)
        x, last = run.kept(progress.success, x, moved), x
        logits, gradient = source.both(x, goal.at((i + 1) / count))
        size = gradient_size(gradient)
        usable = size < torch.inf
        progress = run.seen(progress, x, logits, size)
        before, value = value, goal.value(logits)
        rises = rises + (value > before)
        is_better = value > best_value
        best_value = torch.where(is_better, value, best_value)
        best = either(is_better, x, best)
        best_gradient = torch.where(by_sample(is_better, x), gradient, best_gradient)
        best_usable = torch.where(is_better, usable, best_usable)
        since += 1
        if since == window:
            stalls = (rises <= 0.75 * window) | (~was_halved & (at_checkpoint >= best_value))
            step_size = torch.where(stalls, step_size / 2, step_size)
            x = either(stalls, best, x)
            gradient = torch.where(by_sample(stalls, x), best_gradient, gradient)
            usable = torch.where(stalls, best_usable, usable)
            value = torch.where(stalls, best_value, value)
            was_halved, at_checkpoint, rises = stalls, best_value, torch.zeros_like(rises)
            since, window = 0, max(window - shrink, least)
    return progress
