"""`make bench-exact`: what an exact gradient costs, by engine; ratios measured in one run.

One thread where nothing else is said. A gradient is one forward run and one vector-Jacobian
product of one sample, weights prepared. mpmath is measured twice: with its own products and sums
(what its `fdot` does) on the entries that are not zero, and as this package runs it, on common
grids of integers. Pairs of float64 are measured on batches, against the plain float64 gradient.
"""

import os
import platform
import time
from collections.abc import Callable
from functools import partial
from operator import itemgetter

import torch
from mpmath.libmp import mpf_mul
from torch import Tensor, nn

from fperr import data, exact, zoo
from fperr.exact import BallArithmetic, Capture, Interpreter, MpArithmetic
from fperr.exact.adaptive_precision import AdaptivePrecision
from fperr.exact.arithmetic import Arithmetic
from tests.benchmarks.bench import seconds, show
from tests.benchmarks.bench_double_word import BATCH, against_plain, all_large, products
from tests.conftest import normal, seeded

BITS = 128


class Fdot(MpArithmetic):
    """Products as mpmath's `fdot` computes them; counts and times the multiply-adds."""

    executed = 0
    elapsed = 0.0

    def matmul(self, a, b):
        started = time.perf_counter()
        columns = [column.raw for column in self._columns(b)]  # prepared once for each weight
        numbers = []
        for row in a:
            raw = self._raw(row)
            support = [k for k, number in enumerate(raw) if number[1]]
            if not support:
                numbers += [self.context.zero] * len(columns)
                continue
            many = len(support) > 1
            pick = itemgetter(*support) if many else lambda c, k=support[0]: (c[k],)
            mine = pick(raw)
            numbers += [self._total(map(mpf_mul, mine, pick(column))) for column in columns]
            self.executed += len(support) * len(columns)
        self.elapsed += time.perf_counter() - started
        return self.array(numbers, (a.shape[0], b.shape[1]))


def gradient(capture: Capture, A: Arithmetic, x: Tensor, v: Tensor) -> Callable[[], object]:
    """One exact gradient, weights prepared."""
    interpreter = Interpreter(capture, A)

    def work() -> object:
        return interpreter.products(interpreter.forward(x).saved_values, A.from_torch(v))

    work()
    return work


def engines(name: str, model: nn.Module, x: Tensor) -> float:
    """Each engine's time for a gradient at each of the samples x, and ratios to balls.

    Returns:
        Seconds of mpmath's `fdot` for a gradient.
    """
    capture = exact.capture(model, x[:1])
    v = normal(1, capture.shapes[capture.results[0].name][1]).double()
    certifier = AdaptivePrecision(capture, BITS)
    fdot, mp = Fdot(BITS + 40), MpArithmetic(BITS + 40)
    totals = [0.0, 0.0, 0.0]
    proved = []
    for i in range(len(x)):
        one = x[i : i + 1]
        proved.append(-certifier.product(one, v).log2_error)
        works = [gradient(capture, A, one, v) for A in (fdot, mp, BallArithmetic(certifier.start))]
        fdot.executed, fdot.elapsed = 0, 0.0
        for place, elapsed in enumerate(seconds(*works, repeats=3)):
            totals[place] += elapsed / len(x)
    by_fdot, by_grids, by_balls = totals
    print(f"\n{name}, {len(x)} samples, {BITS} bits")
    show(
        "mpmath fdot on nonzeros, µs per multiply-add", fdot.elapsed / fdot.executed * 1e6, "≤ 0.4"
    )
    show("mpmath fdot, s per gradient", by_fdot)
    show("mpmath on integer grids, s per gradient", by_grids)
    show("balls, s per gradient", by_balls, "≤ 0.07 (LeNet-size)")
    show("  bits proved, fewest", min(proved))
    show("mpmath fdot ÷ balls", by_fdot / by_balls, "≥ 15 (4-conv net)")
    show("mpmath on integer grids ÷ balls", by_grids / by_balls)
    return by_fdot


def lenet() -> nn.Module:
    """The classical one, 6 and 16 channels, random weights: 0.42 million multiply-adds."""
    return seeded(
        nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(400, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, 10),
        )
    )


def main() -> None:
    torch.set_num_threads(1)
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"{platform.machine()}, {capability}, one thread, torch {torch.__version__}")
    fashion = data.fashion_mnist_1000().x
    engines("LeNet, random weights, Fashion-MNIST", lenet(), fashion[:3])
    by_fdot = engines("fashion_standard", zoo.load("fashion_standard"), fashion[:3])
    against_plain(lambda: zoo.load("fashion_standard"), fashion[:BATCH], by_fdot)
    print()
    products()
    all_large()
    if not os.environ.get("FPERR_DATA"):
        print("\nleft out: published MNIST networks, which FPERR_DATA would hold")
        return
    mnist = data.mnist_test().x
    for name in ("mnist_lenet5_clntrained", "mnist_levelsets_eps0.4"):
        by_fdot = engines(name, zoo.load(name), mnist[:5])
        against_plain(partial(zoo.load, name), mnist[:BATCH], by_fdot)


if __name__ == "__main__":
    main()
