"""The time that balls take, forecast from a short timing on this machine."""

import functools
import math
import time
import warnings
from collections.abc import Callable

import torch

from fperr.errors import SlowReferenceWarning
from fperr.exact.ball.arithmetic import BallArithmetic
from fperr.exact.graph import Capture

_BITS = 200
_ROWS, _TERMS, _COLUMNS = 16, 64, 16
_REPEATS = 3
_MOMENT = 2.0  # seconds: what is shorter is not announced
# products -> position of the argument whose rows are summed over
_PRODUCTS = {
    "aten.mm.default": 0,
    "aten.addmm.default": 1,
    "aten.bmm.default": 0,
    "aten.baddbmm.default": 1,
}


def announce_balls(
    capture: Capture,
    samples: int,
    products: int,
    remedy: str = "`fperr.measure(max_seconds=...)` leaves them uncertified instead",
) -> None:
    """Say how long samples take in balls, where that is longer than a moment.

    Args:
        capture: Network, captured for a single sample.
        samples: Number of samples.
        products: Number of vector-Jacobian products at each of them.
        remedy: What the caller can do instead.
    """
    seconds = seconds_in_balls(capture, samples, products)
    if seconds > _MOMENT:
        warnings.warn(
            f"{samples} {'sample needs' if samples == 1 else 'samples need'} balls, as no cheaper "
            f"arithmetic settles {'it' if samples == 1 else 'them'}: about "
            f"{seconds:.0f} s. {remedy}",
            SlowReferenceWarning,
            stacklevel=3,
        )


def seconds_in_balls(capture: Capture, samples: int, products: int) -> float:
    """Seconds for the exact network at some samples, in balls; within a factor of 3 or so."""
    # nodes with several results have no shape of their own; their parts have
    numbers = sum(math.prod(capture.shapes.get(node.name, ())) for node in capture.forward)
    of_a_multiply_add, of_a_number = _seconds()
    of_a_pass = multiply_adds(capture) * of_a_multiply_add + numbers * of_a_number
    return samples * (1 + products) * of_a_pass


def multiply_adds(capture: Capture) -> int:
    """The multiply-adds of matrix products and convolutions in a forward pass of one sample."""
    total = 0
    for node in capture.forward:
        size = math.prod(capture.shapes.get(node.name, ()))
        target = str(node.target)
        if target == "aten.convolution.default":
            total += size * math.prod(capture.shapes[str(node.args[1])][1:])
        elif target in _PRODUCTS:
            total += size * capture.shapes[str(node.args[_PRODUCTS[target]])][-1]
    return total


@functools.cache
def _seconds() -> tuple[float, float]:
    """Seconds for a multiply-add of a product of matrices, and for any operation on a number."""
    A, generator = BallArithmetic(_BITS), torch.Generator().manual_seed(0)
    left, right = (
        A.div(A.from_torch(torch.rand(shape, generator=generator) - 0.5), 3.0)
        for shape in ((_ROWS, _TERMS), (_TERMS, _COLUMNS))
    )
    product = _shortest(lambda: A.matmul(left, right)) / (_ROWS * _TERMS * _COLUMNS)
    return product, _shortest(lambda: A.mul(left, left)) / (_ROWS * _TERMS)


def _shortest(run: Callable[[], object]) -> float:
    run()  # prepares constants
    durations = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        durations.append(time.perf_counter() - start)
    return min(durations)
