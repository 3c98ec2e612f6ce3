"""`make bench-exact`: what exact gradients cost beside plain ones; medians of ratios in one run.

One thread. Every ratio is taken side by side: numerator and denominator in turn, several times, and
the median of the quotients is printed beside the aim and what version 0.6.1 took. Captures are made
before; what a row counts beside the gradients is said in its name.
"""

import contextlib
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fperr
from fperr import data, exact, zoo
from fperr.exact.double_word_network import BatchedNetwork
from fperr.exact.engines.double_word import DoubleWordEngine
from fperr.exact.engines.float64 import Float64Engine
from fperr.exact.monitored_network import MonitoredNetwork
from fperr.networks.in_format import FormatNetwork
from tests.conftest import seeded

ROUNDS = 7
STEPS = 10
LEVELSETS = "mnist_levelsets_eps0.4"


@dataclass(frozen=True)
class Row:
    """A line of the table: what, then (0.6.1), now, and aim."""

    what: str
    before: str
    ratio: float
    aim: str


def median_ratio(work: Callable[[], object], plain: Callable[[], object], rounds: int) -> float:
    """The median of the quotients of two times, taken in turn."""
    work(), plain()
    quotients = []
    for _ in range(rounds):
        times = []
        for run in (work, plain):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        quotients.append(times[0] / times[1])
    return statistics.median(quotients)


def plain_gradient(model: nn.Module, x: Tensor, v: Tensor) -> Callable[[], object]:
    """PyTorch's own gradient in float64."""
    wide, x64 = model.double(), x.double()

    def run() -> object:
        leaf = x64.clone().requires_grad_()
        return torch.autograd.grad(wide(leaf), leaf, v)

    return run


def images(name: str, count: int, radius: float = 0.0) -> Tensor:
    """The first test images of a network, at random starts within a radius."""
    x = data.images_named(zoo.entry(name).dataset).first(count).x
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    return (x + radius * (2 * noise - 1)).clamp(0, 1)


def gradient_rows() -> Iterator[Row]:
    """Gradients of a batch of 64 for a random v."""
    v = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)).double()
    cases = [
        (LEVELSETS, 0.3, "4-conv MNIST net, random starts", "7.4 to 10.3", "2.5"),
        (LEVELSETS, 0.0, "4-conv MNIST net, clean images (ties)", "7.4 to 10.3", "2.5"),
        ("fashion_standard", 0.0, "fashion_standard", "11 to 13", "4"),
    ]
    for name, radius, words, before, aim in cases:
        x, model = images(name, 64, radius), zoo.load(name)
        network = MonitoredNetwork(exact.capture(model, x[:1]))
        share = network.gradient(x, v).are_agreed.double().mean()
        plain = plain_gradient(zoo.load(name), x, v)
        ratio = median_ratio(lambda n=network, x=x: n.gradient(x, v), plain, ROUNDS)
        yield Row(f"float64 rung / float64, {words} ({share:.0%} agreed)", before, ratio, aim)
    x, model = images("fashion_standard", 64), zoo.load("fashion_standard")
    pairs = BatchedNetwork(exact.capture(model, x[:1]), 106)
    plain = plain_gradient(zoo.load("fashion_standard"), x, v)
    yield Row("106 bits / float64, fashion_standard", "10.3",
              median_ratio(lambda: pairs.gradient(x, v), plain, 3), "10")  # fmt: skip


def step_ratio(attack: Callable[[str, int], object], fmt: str, other: str) -> float:
    """A step of an attack in one format, over a step in another.

    What happens once (capture, audits, the check of the model) cancels in a difference.
    """
    for name in (fmt, other):
        attack(name, 1)
    quotients = []
    for _ in range(3):
        seconds = []
        for name in (fmt, other):
            times = []
            for steps in (2, 2 + STEPS):
                started = time.perf_counter()
                attack(name, steps)
                times.append(time.perf_counter() - started)
            seconds.append(times[1] - times[0])
        quotients.append(seconds[0] / seconds[1])
    return statistics.median(quotients)


def attack_rows() -> Iterator[Row]:
    """A step of PGD on cross-entropy."""
    for name, count, radius, fmt, other, before, aim in (
        ("fashion_standard", 250, 8 / 255, "exact", "float32", "24 to 34", "5"),
        ("fashion_standard", 250, 8 / 255, "float64", "float32", "2.1", "-"),
        (LEVELSETS, 100, 0.4, "exact", "float64", "8 to 11", "2"),
    ):
        batch, model = data.images_named(zoo.entry(name).dataset).first(count), zoo.load(name)

        def attack(fmt: str, steps: int, model=model, batch=batch, radius=radius) -> object:
            return fperr.attack(model, batch.x, batch.y, loss="ce", radius=radius, steps=steps,
                                format=fmt)  # fmt: skip

        words = f"a step of PGD, {fmt} / {other}, {name}, {count} images"
        yield Row(words, before, step_ratio(attack, fmt, other), aim)


@contextlib.contextmanager
def counted(*methods: tuple[type, str]) -> Iterator[list[float]]:
    """Count the seconds inside methods."""
    spent, originals = [0.0], [(owner, name, getattr(owner, name)) for owner, name in methods]

    def timed(method: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object, **options: object) -> object:
            started = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                spent[0] += time.perf_counter() - started

        return run

    for owner, name, method in originals:
        setattr(owner, name, timed(method))
    try:
        yield spent
    finally:
        for owner, name, method in originals:
            setattr(owner, name, method)


def measure_row() -> Row:
    """All of `measure`, over the gradients that it computes: formats' and rows of J, audited."""
    x, model, quotients = images("fashion_standard", 64), zoo.load("fashion_standard"), []
    inside = [
        (FormatNetwork, "gradient"), (Float64Engine, "states"), (Float64Engine, "maps"),
        (DoubleWordEngine, "states"), (DoubleWordEngine, "maps"),
    ]  # fmt: skip
    for _ in range(3):
        with counted(*inside) as spent:
            started = time.perf_counter()
            fperr.measure(model, x, progress=False)
            quotients.append((time.perf_counter() - started) / spent[0])
    words = "measure, 4 scenarios, 3 losses, 3 formats / its gradients"
    return Row(words, "4.1", statistics.median(quotients), "2")


def preparation_row() -> Row:
    """The first exact gradient of a wide network, over the second; without the capture."""
    model = seeded(nn.Sequential(nn.Linear(784, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(),
                                 nn.Linear(2048, 10)))  # fmt: skip
    x, v = torch.rand(1, 784), torch.randn(1, 10).double()
    capture, times = exact.capture(model, x), []
    started = time.perf_counter()
    network = BatchedNetwork(capture, 106)
    for _ in range(2):
        network.gradient(x, v)
        times.append(time.perf_counter() - started)
        started = time.perf_counter()
    return Row(
        "first / second gradient at 106 bits, MLP 2,048 wide", "100", times[0] / times[1], "3"
    )


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    processor = platform.processor() or platform.machine()
    print(f"{processor}, {os.cpu_count()} cores, one thread, torch "
          f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}\n")  # fmt: skip
    print("| what | 0.6.1 | now | aim |\n|---|---|---|---|")
    single = (row() for row in (measure_row, preparation_row))
    for rows in (gradient_rows(), attack_rows(), single):
        for row in rows:
            print(f"| {row.what} | {row.before} | {row.ratio:.1f} | {row.aim} |", flush=True)


if __name__ == "__main__":
    main()
