"""`make bench-attack`: what attacks, t* and the recorder cost, as ratios measured side by side."""

import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fperr
from fperr import data, zoo
from fperr.theory.scaling import t_star
from tests.bench import seconds, show
from tests.libraries import foolbox, pgd_linf, torchattacks

STEPS, PAIRS = 30, 30
SIZE = 0.01
RADIUS = 0.1


def bare(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """PGD as one writes it: nothing kept but the last point."""
    point = x
    for _ in range(STEPS):
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


def paired(first: Callable[[], object], second: Callable[[], object], pairs: int = PAIRS) -> float:
    """The median of the ratios of neighbouring runs, in turns: a slow minute slows both."""
    ratios = []
    for number in range(pairs):
        times = {}
        for work in (first, second) if number % 2 else (second, first):
            start = time.perf_counter()
            work()
            times[work] = time.perf_counter() - start
        ratios.append(times[first] / times[second])
    return statistics.median(ratios)


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
        show(f"  our PGD, {STEPS} steps ÷ {name}", paired(lambda: ours(model, x, y), other), aim)


def cost_of_t_star(model: nn.Module, x: Tensor, y: Tensor, aim: str) -> None:
    def step() -> None:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(cross_entropy(model(leaf), y, reduction="sum"), leaf)

    with torch.no_grad():
        logits = model(x)
    solve, gradient = seconds(lambda: t_star(logits), step, repeats=PAIRS)
    show(f"  t* ÷ one gradient, batch {len(x)}, K = {logits.shape[1]}", solve / gradient, aim)
    many = torch.randn(len(x), 1000, generator=torch.Generator().manual_seed(0)).to(logits)
    (solve,) = seconds(lambda: t_star(many), repeats=5)
    show(f"  t* for K = 1,000, batch {len(x)}, ms", solve * 1e3)


def cost_of_recording(model: nn.Module, x: Tensor, y: Tensor) -> None:
    def recorded() -> None:
        with fperr.record(model, y, samples=0):
            bare(model, x, y)

    show(
        "  recorded without exact work ÷ alone",
        paired(recorded, lambda: bare(model, x, y)),
        "≤ 1.10",
    )


def cost_of_exact(model: nn.Module, x: Tensor, y: Tensor) -> None:
    start = time.perf_counter()
    ours(model, x, y, arithmetic="exact")
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
        mnist = data.named("mnist_test").first(1000)
        on("mnist_wong_kolter", mnist, 250, "≤ 0.05", device)  # ConvSmall
        on("mnist_levelsets_eps0.4", mnist, 100, "≤ 0.02", device)  # four convolutions


if __name__ == "__main__":
    main()
