"""The multiword part of `make bench-exact`: medians of ratios measured in turns, in one run."""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fperr import exact
from fperr.exact.double_word import DoubleWordArithmetic
from fperr.exact.double_word_network import BatchedNetwork, log2_relative_errors
from tests.benchmarks.bench import show
from tests.conftest import normal, seeded
from tests.makers.networks import BasicBlock, PreActivation

BATCH, REPEATS, SIDE = 64, 5, 1024


def ratio(slow: Callable[[], object], fast: Callable[[], object]) -> tuple[float, float]:
    """The median of slow ÷ fast, run in turns, and the median seconds of slow."""
    ratios, seconds = [], []
    slow(), fast()
    for _ in range(REPEATS):
        times = []
        for work in (slow, fast):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        ratios.append(times[0] / times[1])
        seconds.append(times[0])
    return statistics.median(ratios), statistics.median(seconds)


def plain_gradient(model: nn.Module, x: Tensor, v: Tensor) -> Callable[[], object]:
    """The float64 gradient of a batch, as anybody would compute it."""
    wide = model.double()

    def work() -> object:
        leaf = x.double().requires_grad_()
        return torch.autograd.grad(wide(leaf), leaf, v)

    return work


def against_plain(make: Callable[[], nn.Module], x: Tensor, fdot_seconds: float | None) -> None:
    """Pairs of float64 against the plain float64 gradient, for a batch."""
    capture = exact.capture(make(), x[:1])
    classes = capture.shapes[capture.results[0].name][1]
    v = normal(len(x), classes).double()
    plain = plain_gradient(make(), x, v)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for bits, aim in ((106, 14), (63, 8)):
            network = BatchedNetwork(capture, bits)
            found, seconds = ratio(lambda n=network: n.gradient(x, v), plain)
            where = f"{threads} thread{'s'[: threads != 1]}, batch {len(x)}"
            show(f"multiword {bits} bits ÷ float64 gradient, {where}", found, f"≤ {aim}")
            show("  s per gradient", seconds / len(x))
            if bits == 106:
                errors = log2_relative_errors(network.gradient(x, v)[0])
                show("  bits proved, fewest", -float(errors.max()))
                if fdot_seconds and threads == 1:
                    show("  mpmath fdot ÷ multiword", fdot_seconds / (seconds / len(x)), "≥ 250")
    torch.set_num_threads(1)


def products() -> None:
    """A product of square matrices of pairs, one thread, against float64's own."""
    a, b = (normal(SIDE, SIDE, seed=i).double() for i in range(2))
    A = DoubleWordArithmetic(106)
    pair = A.div(A.from_torch(a), 3.0)
    for name, other in (
        ("pairs x float32", A.from_torch(b.float())),
        ("pairs x pairs", A.div(A.from_torch(b), 7.0)),
    ):
        found, _ = ratio(lambda o=other: A.matmul(pair, o), lambda: a @ b)
        show(f"matrix product, {name}, n = {SIDE}, ÷ float64's", found, "≤ 20")


class ResNet18(nn.Sequential):
    """For CIFAR: 0.56 G multiply-adds, random weights."""

    def __init__(self) -> None:
        widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
        blocks = [BasicBlock(a, b, 1 + (a != b)) for a, b in pairwise(widths)]
        stem = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()
        super().__init__(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class WRN28x10(nn.Module):
    """The wide ResNet for CIFAR: 5.2 G multiply-adds, random weights."""

    def __init__(self) -> None:
        super().__init__()
        widths = [16, *[160] * 4, *[320] * 4, *[640] * 4]
        self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.blocks = nn.Sequential(
            *(PreActivation(a, b, 1 + (a != b and a > 16)) for a, b in pairwise(widths))
        )
        self.bn, self.linear = nn.BatchNorm2d(640), nn.Linear(640, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn(self.blocks(self.conv(x))))
        return self.linear(F.adaptive_avg_pool2d(y, 1).flatten(1))


LARGE = {"resnet18": (ResNet18, 2, "≤ 3", "≤ 4"), "wrn28x10": (WRN28x10, 1, "≤ 30", "≤ 8")}


def large(name: str) -> None:
    """A large network, in a process of its own: time for a sample and peak memory."""
    make, samples, time_aim, memory_aim = LARGE[name]
    torch.set_num_threads(2)
    model = seeded(make())
    x = torch.rand(samples, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network = BatchedNetwork(exact.capture(model, x[:1]), 106)
    v = normal(samples, 10).double()
    network.gradient(x[:1], v[:1])  # cuts the weights
    started = time.perf_counter()
    found, undecided = network.gradient(x, v)
    elapsed = (time.perf_counter() - started) / samples
    show(f"{name}, 106 bits, 2 threads, s per gradient", elapsed, time_aim)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    show("  GiB of the process at most", peak, memory_aim)
    show("  bits proved, fewest", -float(log2_relative_errors(found).max()))
    show("  samples with an undecided comparison", int(undecided.sum()))


def on_cuda() -> None:
    """WRN-28-10 on a CUDA device, for a batch."""
    device, samples = torch.device("cuda"), 32
    model = seeded(WRN28x10()).to(device)
    x = torch.rand(samples, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
    memory = torch.cuda.mem_get_info()[0] // 2
    network = BatchedNetwork(exact.capture(model, x[:1]), 106, device, memory)
    v = normal(samples, 10).double()
    network.gradient(x, v)
    torch.cuda.synchronize()
    started = time.perf_counter()
    network.gradient(x, v)
    torch.cuda.synchronize()
    elapsed = (time.perf_counter() - started) / samples
    show(f"wrn28x10, 106 bits, {torch.cuda.get_device_name()}, s per gradient", elapsed, "≤ 0.1")


def all_large() -> None:
    """Every large network in turn."""
    for name in LARGE:
        subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.bench_double_word", name], check=True
        )
    if torch.cuda.is_available():
        on_cuda()


if __name__ == "__main__":
    large(sys.argv[1])
