"""Exact gradients beside plain ones, one thread; captures are made before."""

import time

import torch
from timed.subjects import LEVELSETS, cotangents, images, network, plain_gradient
from timed.turns import Work, median_ratio
from torch import nn

from fperr import data, exact
from fperr.exact.double_word_network import BatchedNetwork
from fperr.exact.monitored_network import MonitoredNetwork
from fperr.formats import EMULATED, FLOAT8_TENSORWISE, FLOAT32, format_named
from fperr.losses import Context, loss_named
from fperr.networks.in_format import FormatNetwork
from tests.conftest import seeded

BATCH = 64


class Float64Rung:
    """The float64 rung of the ladder over a float64 gradient; aims: 2.5, and 4 for Fashion-MNIST.

    Clean images have ties on their constant background, random starts have none.
    """

    CASES = {
        "4-conv MNIST net, random starts": (LEVELSETS, 0.3),
        "4-conv MNIST net, clean images": (LEVELSETS, 0.0),
        "fashion_standard": ("fashion_standard", 0.0),
    }
    params = list(CASES)
    param_names = ("images",)
    unit = "ratio"

    def setup(self, case: str) -> None:
        torch.set_num_threads(1)
        name, radius = self.CASES[case]
        model = network(name)
        self.x, self.v = images(name, BATCH, radius).x, cotangents(BATCH)
        self.network = MonitoredNetwork(exact.capture(model, self.x[:1]))
        self.plain = plain_gradient(network(name), self.x, self.v)

    def track_over_plain(self, case: str) -> float:
        return median_ratio(lambda: self.network.gradient(self.x, self.v), self.plain, 7)

    def track_samples_agreed(self, case: str) -> float:
        return float(self.network.gradient(self.x, self.v).are_agreed.double().mean())


class PairsOfFloat64:
    """Double-word gradients over a float64 gradient; aims: 10 at 106 bits, 8 at 63."""

    params = (["fashion_standard", LEVELSETS], [106, 63])
    param_names = ("network", "bits")
    unit = "ratio"

    def setup(self, name: str, bits: int) -> None:
        torch.set_num_threads(1)
        model = network(name)
        self.x, self.v = images(name, BATCH).x, cotangents(BATCH)
        self.network = BatchedNetwork(exact.capture(model, self.x[:1]), bits)
        self.plain = plain_gradient(network(name), self.x, self.v)

    def track_over_plain(self, name: str, bits: int) -> float:
        return median_ratio(lambda: self.network.gradient(self.x, self.v), self.plain, 5)


def track_first_over_second_gradient() -> float:
    """At 106 bits, of an MLP of width 2,048, without the capture; aim: 3."""
    torch.set_num_threads(1)
    model = seeded(
        nn.Sequential(
            nn.Linear(784, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10)
        )
    )
    x, v = torch.rand(1, 784), cotangents(1)
    capture, times = exact.capture(model, x), []
    started = time.perf_counter()
    network = BatchedNetwork(capture, 106)
    for _ in range(2):
        network.gradient(x, v)
        times.append(time.perf_counter() - started)
        started = time.perf_counter()
    return times[0] / times[1]


track_first_over_second_gradient.unit = "ratio"


class EmulatedKernels:
    """A gradient in an emulated format over float32's; aims: 2, and 3 for Fashion-MNIST."""

    params = ([LEVELSETS, "fashion_standard"], [fmt.name for fmt in EMULATED[:6]])
    param_names = ("network", "format")
    unit = "ratio"

    def setup(self, name: str, format: str) -> None:
        torch.set_num_threads(1)
        model, given = network(name), images(name, BATCH)
        self.works = [
            gradient_in(FormatNetwork(model, fmt, autocast=False), given)
            for fmt in (format_named(format), FLOAT32)
        ]

    def track_over_float32(self, name: str, format: str) -> float:
        return median_ratio(*self.works, 15)


class Float8:
    """The same for float8, on an MLP whose layers it changes."""

    unit = "ratio"

    def setup(self) -> None:
        torch.set_num_threads(1)
        model = seeded(nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 16))).eval()
        given = data.Images("random", torch.rand(BATCH, 784), torch.arange(BATCH) % 16)
        self.works = [
            gradient_in(FormatNetwork(model, fmt, autocast=False), given)
            for fmt in (FLOAT8_TENSORWISE, FLOAT32)
        ]

    def track_over_float32(self) -> float:
        return median_ratio(*self.works, 31)


def gradient_in(network: FormatNetwork, given: data.Images) -> Work:
    """The gradient of cross-entropy in a format, as an attack computes it in every step."""
    loss, context = loss_named("ce"), Context()
    return lambda: network.gradient(given.x, given.y, loss, context, mean=False)
