"""The choice of an exact engine: the cheapest for a network, by short timings on this machine."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fperr.exact.arithmetic import Arithmetic
from fperr.exact.ball.arithmetic import BallArithmetic
from fperr.exact.double_word import DoubleWordArithmetic
from fperr.exact.mp import MpArithmetic

_BITS = 200
_ROWS, _TERMS, _COLUMNS = 16, 64, 16
_SAMPLES = 64
_REPEATS = 3
_OPERATIONS_OF_A_MODULE = 6  # forward and backward, with what moves numbers


@dataclass(frozen=True, slots=True)
class EngineCosts:
    """The costs of one engine.

    Attributes:
        product: Seconds for a multiply-add of a matrix product, for a single sample.
        operation: Seconds for an operation on a batch, whatever its size.
        batch: Number of samples that share an operation.
    """

    product: float
    operation: float
    batch: int

    def seconds(self, multiply_adds: int, operations: int, samples: int) -> float:
        """Seconds for a gradient (a forward run and a pullback) at one sample of a batch."""
        shared = operations * self.operation / min(self.batch, samples)
        return 2 * multiply_adds * self.product + shared


@functools.cache
def measured_costs(device: str = "cpu") -> dict[str, EngineCosts]:
    """The costs of each engine on this machine, by its name: timed once, in under a second."""
    systems: dict[str, tuple[Arithmetic[Any], int]] = {
        "mpmath": (MpArithmetic(_BITS), 1),
        "ball": (BallArithmetic(_BITS), 1),
        "double_word": (DoubleWordArithmetic(device=device), _SAMPLES),
    }
    return {name: _rates(A, batch) for name, (A, batch) in systems.items()}


def _rates(A: Arithmetic[Any], batch: int) -> EngineCosts:
    generator = torch.Generator().manual_seed(0)
    rows, terms, columns = _ROWS, _TERMS, _COLUMNS
    if batch > 1:  # one matrix for all samples: as large as it takes to be fast
        rows, terms, columns = batch * _ROWS, 4 * _TERMS, 4 * _COLUMNS
    left = A.from_torch(torch.rand(rows, terms, generator=generator) - 0.5)
    right = A.from_torch(torch.rand(terms, columns, generator=generator) - 0.5)
    left, small = A.div(left, 3.0), A.div(A.from_torch(torch.ones(1, 2)), 3.0)
    product = _shortest(lambda: A.matmul(left, right)) / (rows * terms * columns)
    return EngineCosts(product, _shortest(lambda: A.add(A.mul(small, small), small)), batch)


def _shortest(run: Callable[[], object]) -> float:
    run()  # prepares constants
    durations = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        durations.append(time.perf_counter() - start)
    return min(durations)


def cheapest_engine(
    model: nn.Module, multiply_adds: int, samples: int, device: str, candidates: tuple[str, ...]
) -> tuple[str, str]:
    """The engine with the least estimated cost, and the reason in words.

    Args:
        model: Network.
        multiply_adds: Number of multiply-adds in a forward pass of a single sample.
        samples: Number of samples.
        device: Device of pairs of float64.
        candidates: Names of the engines to choose from.
    """
    operations = _OPERATIONS_OF_A_MODULE * sum(1 for _ in model.modules())
    rates = measured_costs(device)
    seconds = {name: rates[name].seconds(multiply_adds, operations, samples) for name in candidates}
    best = min(seconds, key=seconds.__getitem__)
    estimates = ", ".join(f"{name} {1000 * cost:.2g} ms" for name, cost in seconds.items())
    return best, (
        f"the cheapest by short timings on this machine, for {multiply_adds:,} multiply-adds in "
        f"a forward pass: {estimates} a gradient"
    )
