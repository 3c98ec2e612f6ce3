"""`make bench-losses`: accurate cross-entropy beside PyTorch's, forward and backward, float32.

One thread. Numerator and denominator in turn; the median of the quotients is printed. Compiled are
both; that needs a C++ compiler.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fperr import losses

ROUNDS = 21
SHAPES = {(64, 32_000): (10, "<= 1.1"), (1024, 10): (100, "<= 2.2")}  # repeats, and the aim
Loss = Callable[[Tensor, Tensor], Tensor]


class _Identity(torch.autograd.Function):
    """An empty `autograd.Function`: what any of them costs."""

    @staticmethod
    def forward(context: object, z: Tensor) -> Tensor:
        del context
        return z.view_as(z)

    @staticmethod
    def backward(context: object, upstream: Tensor) -> Tensor:
        del context
        return upstream


def seconds(loss: Loss, z: Tensor, y: Tensor, repeats: int) -> float:
    """The time of a value and its gradient."""
    start = time.perf_counter()
    for _ in range(repeats):
        leaf = z.detach().requires_grad_()
        loss(leaf, y).backward()
    return (time.perf_counter() - start) / repeats


def ratio(loss: Loss, other: Loss, shape: tuple[int, int], repeats: int) -> tuple[float, float]:
    """The median ratio of their times, and the median time of the other."""
    z, y = torch.randn(shape), torch.randint(shape[1], shape[:1])
    seconds(loss, z, y, 2), seconds(other, z, y, 2)
    pairs = [(seconds(loss, z, y, repeats), seconds(other, z, y, repeats)) for _ in range(ROUNDS)]
    return statistics.median(a / b for a, b in pairs), statistics.median(b for _, b in pairs)


def main() -> None:
    """Print a line for each shape."""
    torch.set_num_threads(1)

    def empty(z: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(_Identity.apply(z), y)

    ours, theirs = losses.cross_entropy, functional.cross_entropy
    for shape, (repeats, aim) in SHAPES.items():
        found, usual = ratio(ours, theirs, shape, repeats)
        more = ratio(empty, theirs, shape, repeats)[0] - 1
        try:
            compiled = f"{ratio(torch.compile(ours), torch.compile(theirs), shape, repeats)[0]:.2f}"
        except Exception as fault:  # no compiler
            compiled = f"no ({type(fault).__name__})"
        print(f"{shape}: {found:.2f} of PyTorch's {1e6 * usual:.0f} us (aim {aim})")
        print(f"    an empty autograd.Function: {more:.2f} more; both compiled: {compiled}")


if __name__ == "__main__":
    main()
