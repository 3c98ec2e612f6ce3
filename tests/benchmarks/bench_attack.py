"""`make bench-attack`: what attacks, t* and the recorder cost, as ratios measured side by side.

The Makefile lets glibc keep the memory that tensors leave: else it is given back and taken anew at
every step of whichever loop frees the most at a time, and page faults are what is measured.
"""

import os
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fperr
from fperr import data, zoo
from fperr.theory.scaling import t_star
from tests.benchmarks.bench import seconds, show
from tests.makers.libraries import foolbox, pgd_linf, torchattacks

STEPS, PAIRS = 30, 30
SIZE = 0.01
RADIUS = 0.1


def bare(model: nn.Module, x: Tensor, y: Tensor, steps: int = STEPS) -> Tensor:
    """PGD as one writes it: nothing kept but the last point."""
    point = x
    for _ in range(steps):
        point = point.detach().requires_grad_()
        (g,) = torch.autograd.grad(cross_entropy(model(point), y, reduction="sum"), point)
        point = (point + SIZE * g.sign()).detach()
        point = (x + (point - x).clamp(-RADIUS, RADIUS)).clamp(0, 1)
    return point


def ours(model: nn.Module, x: Tensor, y: Tensor, loss: str = "ce", **options: object) -> object:
    return fperr.attack(
        model, x, y, radius=RADIUS, loss=loss, steps=STEPS, step_size=SIZE, schedule="constant",
        momentum=0.0, random_start=False, freeze=False, **options,
    )  # fmt: skip


def timed(model: nn.Module, work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a step, from one differentiable call of the model to the next, and of the whole.

    The step is the median of the attack's own: what happens once is not in it.
    """
    calls = []

    def called(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled() and inputs[0].requires_grad:
            calls.append(now())

    handle = model.register_forward_pre_hook(called)
    try:
        start = now()
        work()
        end = now()
    finally:
        handle.remove()
    return statistics.median(b - a for a, b in pairwise(calls)), end - start


def now() -> float:
    """The time when everything asked for is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def compared(
    model: nn.Module, first: Callable[[], object], second: Callable[[], object]
) -> tuple[float, float]:
    """The medians over interleaved pairs of the ratios of a step and of the whole."""
    ratios = []
    for number in range(PAIRS):
        works = (first, second) if number % 2 else (second, first)
        times = {work: timed(model, work) for work in works}
        ratios.append([a / b for a, b in zip(times[first], times[second], strict=True)])
    step, whole = (statistics.median(part) for part in zip(*ratios, strict=True))
    return step, whole


def attacks_of_others(model: nn.Module, x: Tensor, y: Tensor) -> None:
    def torchattacks_() -> object:
        attack = torchattacks.PGD(model, eps=RADIUS, alpha=SIZE, steps=STEPS, random_start=False)
        return attack(x, y)

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
    by_foolbox = foolbox.attacks.LinfPGD(abs_stepsize=SIZE, steps=STEPS, random_start=False)
    others = {
        "a bare loop": (lambda: bare(model, x, y), "≤ 1.05"),
        "torchattacks' PGD": (torchattacks_, "≤ 1.03"),
        "foolbox's LinfPGD": (lambda: by_foolbox(wrapped, x, y, epsilons=RADIUS), "≤ 1.03"),
        "adv_lib's pgd_linf": (
            lambda: pgd_linf(
                model, x, y, ε=RADIUS, steps=STEPS, random_init=False, absolute_step_size=SIZE
            ),
            "≤ 1.03",
        ),
    }
    for name, (other, aim) in others.items():
        step, whole = compared(model, lambda: ours(model, x, y), other)
        show(f"  our PGD ÷ {name}, a step", step, aim)
        show(f"    the whole attack, {STEPS} steps", whole)
    step, _ = compared(model, lambda: ours(model, x, y, "tmifpe"), lambda: ours(model, x, y))
    show("  our PGD with T-MIFPE ÷ with cross-entropy, a step", step)


def cost_of_t_star(model: nn.Module, x: Tensor, y: Tensor, aim: str) -> None:
    with torch.no_grad():
        logits = model(x)
    works = (lambda: (t_star(logits), now()), lambda: (bare(model, x, y, 1), now()))
    solve, step = seconds(*works, repeats=PAIRS)
    show(f"  t* ÷ a step of the bare loop, batch {len(x)}", solve / step, aim)
    show(f"  t* for K = {logits.shape[1]}, batch {len(x)}, ms", solve * 1e3)
    many = torch.randn(len(x), 1000, generator=torch.Generator().manual_seed(0)).to(logits)
    (solve,) = seconds(lambda: t_star(many), repeats=5)
    show(f"  t* for K = 1,000, batch {len(x)}, ms", solve * 1e3)


def cost_of_recording(model: nn.Module, x: Tensor, y: Tensor) -> None:
    def recorded() -> None:
        with fperr.record(model, None, y, samples=0):
            bare(model, x, y)

    _, whole = compared(model, recorded, lambda: bare(model, x, y))
    show(f"  {STEPS} steps recorded without exact work ÷ alone", whole, "≤ 1.10")


def cost_of_exact(model: nn.Module, x: Tensor, y: Tensor) -> None:
    start = time.perf_counter()
    ours(model, x, y, format="exact")
    each = (time.perf_counter() - start) / (STEPS * len(x))
    show(f"  PGD on exact gradients, batch {len(x)}, ms a sample and step", each * 1e3)


def on(name: str, images: data.Images, batch: int, aim: str, device: str) -> None:
    model = zoo.load(name).to(device)
    print(f"{name}, attacks in batches of {batch}")
    x, y = images.x.to(device), images.y.to(device)
    attacks_of_others(model, x[:batch], y[:batch])
    cost_of_t_star(model, x, y, aim)
    cost_of_recording(model, x[:batch], y[:batch])
    cost_of_exact(model, x[:32], y[:32])


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads")
    on("fashion_standard", data.fashion_mnist_1000(), 250, "≤ 0.05", device)
    if os.environ.get("FPERR_DATA"):
        mnist = data.images_named("mnist_test").first(1000)
        on("mnist_wong_kolter", mnist, 250, "≤ 0.05", device)  # ConvSmall
        on("mnist_levelsets_eps0.4", mnist, 100, "≤ 0.02", device)  # four convolutions


if __name__ == "__main__":
    main()
