"""`fperr.measure` beside the gradients that it computes, one thread."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from timed.subjects import images, network

import fperr
from fperr.exact.engines.double_word import DoubleWordEngine
from fperr.exact.engines.float64 import Float64Engine
from fperr.networks.in_format import FormatNetwork

GRADIENTS = (
    (FormatNetwork, "gradient"),
    (Float64Engine, "states"),
    (Float64Engine, "maps"),
    (DoubleWordEngine, "states"),
    (DoubleWordEngine, "maps"),
)
ROWS = 4 * 3 * 3  # of a sample: scenarios, losses, formats


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


class Measure:
    """Four scenarios, three losses, three formats, 64 images of `fashion_standard`."""

    timeout = 3600

    def setup(self) -> None:
        torch.set_num_threads(1)
        self.x, self.model = images("fashion_standard", 64).x, network("fashion_standard")

    def _measured(self) -> None:
        fperr.measure(self.model, self.x, progress=False)

    def track_over_its_gradients(self) -> float:
        """Formats' gradients and rows of J, audited, are 1; aim: 2."""
        quotients = []
        for _ in range(3):
            with counted(*GRADIENTS) as spent:
                started = time.perf_counter()
                self._measured()
                quotients.append((time.perf_counter() - started) / spent[0])
        return statistics.median(quotients)

    track_over_its_gradients.unit = "ratio"

    def track_milliseconds_a_row(self) -> float:
        self._measured()
        started = time.perf_counter()
        self._measured()
        return 1e3 * (time.perf_counter() - started) / (len(self.x) * ROWS)

    track_milliseconds_a_row.unit = "ms"
