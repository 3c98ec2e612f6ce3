"""Each exact engine alone: one gradient of one sample, weights prepared, one thread.

mpmath is measured as this package runs it, on common grids of integers, and with its own products
and sums (`fdot`) on the entries that are not zero.
"""

from collections.abc import Callable
from operator import itemgetter

import torch
from mpmath.libmp import mpf_mul
from timed.subjects import LEVELSETS, cotangents, images, network
from timed.turns import median_ratio, median_seconds
from torch import Tensor, nn

from fperr import exact
from fperr.exact import BallArithmetic, Capture, Interpreter, MpArithmetic
from fperr.exact.adaptive_precision import AdaptivePrecision
from fperr.exact.arithmetic import Arithmetic
from fperr.exact.double_word import DoubleWordArithmetic
from tests.conftest import normal, seeded

BITS, SIDE = 128, 1024


class Fdot(MpArithmetic):
    """Products as mpmath's `fdot` computes them."""

    def matmul(self, a, b):
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
        return self.array(numbers, (a.shape[0], b.shape[1]))


def lenet() -> nn.Module:
    """The classical one, 6 and 16 channels, random weights: 0.42 million multiply-adds."""
    return seeded(
        nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
        )
    )  # fmt: skip


def gradient(capture: Capture, A: Arithmetic, x: Tensor, v: Tensor) -> Callable[[], object]:
    """One exact gradient, weights prepared."""
    interpreter = Interpreter(capture, A)

    def work() -> object:
        return interpreter.products(interpreter.forward(x).saved_values, A.from_torch(v))

    work()
    return work


class OneGradient:
    """Seconds, and the ratio of mpmath's `fdot` to balls (aim: at least 15 on the 4-conv net)."""

    params = ["LeNet, random weights", "fashion_standard", "mnist_lenet5_clntrained", LEVELSETS]
    param_names = ("network",)
    timeout = 3600

    def setup(self, name: str) -> None:
        torch.set_num_threads(1)
        is_random = name.startswith("LeNet")
        model = lenet() if is_random else network(name)
        x, v = images("fashion_standard" if is_random else name, 1).x, cotangents(1)
        capture = exact.capture(model, x)
        certifier = AdaptivePrecision(capture, BITS)
        certifier.product(x, v)  # finds the precision that proves the bits
        self.works = [
            gradient(capture, A, x, v)
            for A in (Fdot(BITS + 40), MpArithmetic(BITS + 40), BallArithmetic(certifier.start))
        ]

    def track_seconds_of_balls(self, name: str) -> float:
        return median_seconds(self.works[2], rounds=3)[0]

    track_seconds_of_balls.unit = "s"

    def track_fdot_over_balls(self, name: str) -> float:
        return median_ratio(self.works[0], self.works[2], 3)

    track_fdot_over_balls.unit = "ratio"

    def track_integer_grids_over_balls(self, name: str) -> float:
        return median_ratio(self.works[1], self.works[2], 3)

    track_integer_grids_over_balls.unit = "ratio"


class ProductOfMatrices:
    """Pairs of float64, n = 1,024, over float64's own product; aim: 20."""

    params = ["float32", "pairs"]
    param_names = ("second factor",)
    unit = "ratio"

    def setup(self, factor: str) -> None:
        torch.set_num_threads(1)
        self.a, self.b = (normal(SIDE, SIDE, seed=i).double() for i in range(2))
        self.arithmetic = DoubleWordArithmetic(106)
        self.pair = self.arithmetic.div(self.arithmetic.from_torch(self.a), 3.0)
        self.other = (
            self.arithmetic.from_torch(self.b.float())
            if factor == "float32"
            else self.arithmetic.div(self.arithmetic.from_torch(self.b), 7.0)
        )

    def track_over_float64(self, factor: str) -> float:
        return median_ratio(
            lambda: self.arithmetic.matmul(self.pair, self.other), lambda: self.a @ self.b, 5
        )
