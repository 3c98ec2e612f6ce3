"""`make bench`: what a measurement costs, as ratios measured side by side in one run."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import fperr
from fperr import data, exact, zoo
from fperr.exact.interpreter import Interpreter
from fperr.exact.mp import MpArithmetic
from fperr.formats import FLOAT16, FLOAT32, FLOAT64
from fperr.losses import Context, loss_named
from fperr.measurement.rounded_network import ExactFormatNetwork
from fperr.networks.exact_network import ExactNetwork
from fperr.networks.in_format import FormatNetwork

LOSSES = ("ce", "mifpe", "tmifpe")
# of one forward pass of ConvSmall, layer by layer
MULTIPLY_ADDS = 16 * 14**2 * 16 + 32 * 7**2 * 256 + 1568 * 100 + 100 * 10


def seconds(*works: Callable[[], object], repeats: int) -> list[float]:
    """The median time of each work, taken in turns."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for work, record in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            record.append(time.perf_counter() - start)
    return [statistics.median(record) for record in times]


class CountingArithmetic(MpArithmetic):
    """Counts the multiply-adds that products execute: those with a nonzero left factor."""

    executed = 0

    def matmul(self, a, b):
        self.executed += sum(x != 0 for x in a.reshape(-1)) * b.shape[1]
        return super().matmul(a, b)


def mpmath_cost(model: nn.Module, x: Tensor) -> None:
    capture = exact.capture(model, x)
    counting = Interpreter(capture, CountingArithmetic(207))
    counting.jacobian(counting.forward(x).saved_values)
    executed, nominal = counting.arithmetic.executed, 11 * MULTIPLY_ADDS
    plain = Interpreter(capture, MpArithmetic(207))
    (elapsed,) = seconds(lambda: plain.jacobian(plain.forward(x).saved_values), repeats=3)
    show("mpmath at 50 digits, µs per executed multiply-add", elapsed / executed * 1e6, "≤ 0.6")
    show("  of the nominal multiply-adds executed (zeros are skipped)", executed / nominal)
    show("  µs per nominal multiply-add", elapsed / nominal * 1e6)


def overhead_of_measure(model: nn.Module, x: Tensor) -> None:
    """`measure` against nothing but its gradients: in floating point, and exact Jacobian rows."""
    own = FormatNetwork(model, FLOAT32, autocast=False)
    networks = [FormatNetwork(model, f, autocast=False) for f in (FLOAT16, FLOAT32, FLOAT64)]

    def gradients_only() -> None:
        reference = ExactNetwork(own, x, 20, "double_word", by_rows=True)
        label = model(x).argmax(1)
        samples = reference.samples(x, lambda: None)
        for network in networks:
            fmt = ExactFormatNetwork(reference, network, x)
            for _ in range(2):  # two labels; the other two scenarios are their sign twins
                for name in LOSSES:
                    g = network.gradient(x, label, loss_named(name), Context(), mean=False)
            run = fmt.run(x, g.logit_gradient)
            list(fmt.samples(x, run, samples))

    whole, bare = seconds(
        lambda: fperr.measure(model, x, progress=False), gradients_only, repeats=2
    )
    rows = len(x) * 4 * len(LOSSES) * len(networks)
    show("measure, ms per row", whole / rows * 1e3)
    show("measure ÷ the bare sum of its gradient computations", whole / bare)


def show(what: str, value: float, aim: str = "") -> None:
    print(f"{what:62} {value:10.3g}   {aim}")


def main() -> None:
    model, images = zoo.load("fashion_standard"), data.fashion_mnist_1000()
    print(f"fashion_standard, torch {torch.__version__}, {torch.get_num_threads()} threads")
    mpmath_cost(model, images.x[:1])
    overhead_of_measure(model, images.x[:32])


if __name__ == "__main__":
    main()
