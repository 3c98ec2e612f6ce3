"""Attacks, t* and the recorder beside what they add to; on a CUDA device where there is one.

glibc should keep the memory that tensors leave (`make bench` tells it to): else it is given back
and taken anew at every step of whichever loop frees the most at a time, and page faults are what is
measured.
"""

import statistics
from collections.abc import Callable
from itertools import pairwise

import torch
from timed.subjects import LEVELSETS, images, network
from timed.turns import median_ratio, median_seconds, now
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fperr
from fperr.theory.scaling import t_star
from tests.makers.libraries import foolbox, pgd_linf, torchattacks

STEPS, PAIRS = 30, 30
SIZE = 0.01
RADIUS = 0.1
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def bare(model: nn.Module, x: Tensor, y: Tensor, steps: int = STEPS) -> Tensor:
    """PGD as one writes it: nothing kept but the last point."""
    point = x
    for _ in range(steps):
        point = point.detach().requires_grad_()
        (g,) = torch.autograd.grad(cross_entropy(model(point), y, reduction="sum"), point)
        point = (point + SIZE * g.sign()).detach()
        point = (x + (point - x).clamp(-RADIUS, RADIUS)).clamp(0, 1)
    return point


def by_torchattacks(model: nn.Module, x: Tensor, y: Tensor) -> object:
    attack = torchattacks.PGD(model, eps=RADIUS, alpha=SIZE, steps=STEPS, random_start=False)
    return attack(x, y)


def by_foolbox(model: nn.Module, x: Tensor, y: Tensor) -> object:
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=SIZE, steps=STEPS, random_start=False)
    return attack(wrapped, x, y, epsilons=RADIUS)


def by_adv_lib(model: nn.Module, x: Tensor, y: Tensor) -> object:
    return pgd_linf(model, x, y, ε=RADIUS, steps=STEPS, random_init=False, absolute_step_size=SIZE)


def ours(model: nn.Module, x: Tensor, y: Tensor, loss: str = "ce", **options: object) -> object:
    return fperr.attack(
        model, x, y, radius=RADIUS, loss=loss, steps=STEPS, step_size=SIZE, schedule="constant",
        momentum=0.0, random_start=False, freeze=False, **options,
    )  # fmt: skip


def seconds_of_a_step(model: nn.Module, work: Callable[[], object]) -> float:
    """From one differentiable call of the model to the next: the median of the attack's own."""
    calls = []

    def called(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled() and inputs[0].requires_grad:
            calls.append(now())

    handle = model.register_forward_pre_hook(called)
    try:
        work()
    finally:
        handle.remove()
    return statistics.median(b - a for a, b in pairwise(calls))


class OnNetwork:
    """A network, and a batch of images."""

    BATCHES = {"fashion_standard": 250, "mnist_wong_kolter": 250, LEVELSETS: 100}
    params = list(BATCHES)
    param_names = ("network",)
    timeout = 3600

    def setup(self, name: str, *_: object) -> None:
        self.model = network(name).to(DEVICE)
        batch = images(name, self.BATCHES[name])
        self.x, self.y = batch.x.to(DEVICE), batch.y.to(DEVICE)

    def _step_ratio(self, first: Callable[[], object], second: Callable[[], object]) -> float:
        ratios = []
        for number in range(PAIRS):
            works = (first, second) if number % 2 else (second, first)
            times = {work: seconds_of_a_step(self.model, work) for work in works}
            ratios.append(times[first] / times[second])
        return statistics.median(ratios)


class OurStep(OnNetwork):
    """A step of our PGD over one of another; aims: 1.05 of a bare loop, 1.03 of a library's."""

    OTHERS = {
        "a bare loop": bare,
        "torchattacks": by_torchattacks,
        "foolbox": by_foolbox,
        "adv_lib": by_adv_lib,
    }
    params = (list(OnNetwork.BATCHES), list(OTHERS))
    param_names = ("network", "other")
    unit = "ratio"

    def track_over_another(self, name: str, other: str) -> float:
        of_others = self.OTHERS[other]
        return self._step_ratio(
            lambda: ours(self.model, self.x, self.y), lambda: of_others(self.model, self.x, self.y)
        )


class Additions(OnNetwork):
    """What T-MIFPE, t*, the recorder and exact gradients add."""

    def track_step_of_tmifpe_over_ce(self, name: str) -> float:
        return self._step_ratio(
            lambda: ours(self.model, self.x, self.y, "tmifpe"),
            lambda: ours(self.model, self.x, self.y),
        )

    track_step_of_tmifpe_over_ce.unit = "ratio"

    def track_t_star_over_a_step(self, name: str) -> float:
        """Aim: 0.05; 0.02 on the 4-conv net."""
        with torch.no_grad():
            logits = self.model(self.x)
        return median_ratio(
            lambda: t_star(logits), lambda: bare(self.model, self.x, self.y, 1), PAIRS
        )

    track_t_star_over_a_step.unit = "ratio"

    def track_recorded_over_alone(self, name: str) -> float:
        """Without exact work; aim: 1.10."""

        def recorded() -> None:
            with fperr.record(self.model, None, self.y, samples=0):
                bare(self.model, self.x, self.y)

        return median_ratio(recorded, lambda: bare(self.model, self.x, self.y), PAIRS)

    track_recorded_over_alone.unit = "ratio"

    def track_step_on_exact_gradients_over_float32(self, name: str) -> float:
        """What happens once (capture, audits, the check of the model) cancels; aim: 5."""
        return self._difference("exact", "float32")

    track_step_on_exact_gradients_over_float32.unit = "ratio"

    def track_step_on_exact_gradients_over_float64(self, name: str) -> float:
        """Aim: 2 on the 4-conv net."""
        return self._difference("exact", "float64")

    track_step_on_exact_gradients_over_float64.unit = "ratio"

    def _difference(self, format: str, other: str) -> float:
        def attack(of: str, steps: int) -> Callable[[], object]:
            return lambda: fperr.attack(
                self.model, self.x, self.y, loss="ce", radius=RADIUS, steps=steps, format=of
            )

        quotients = []
        for _ in range(3):
            few, many, few_other, many_other = median_seconds(
                attack(format, 2), attack(format, 12), attack(other, 2), attack(other, 12), rounds=1
            )
            quotients.append((many - few) / (many_other - few_other))
        return statistics.median(quotients)


class TStar:
    """Milliseconds of t* for a batch of 1,000."""

    params = [10, 1000]
    param_names = ("classes",)

    def setup(self, classes: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.logits = torch.randn(1000, classes, generator=generator).to(DEVICE)

    def track_milliseconds(self, classes: int) -> float:
        return 1e3 * median_seconds(lambda: t_star(self.logits), rounds=5)[0]

    track_milliseconds.unit = "ms"
