"""Accurate cross-entropy beside PyTorch's, forward and backward, float32, one thread."""

from collections.abc import Callable

import torch
from timed.turns import median_ratio
from torch import Tensor
from torch.nn import functional

from fperr import losses

ROUNDS = 21
SHAPES = {"64 x 32,000": (64, 32_000, 10), "1,024 x 10": (1024, 10, 100)}  # ..., repeats
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


class AccurateCrossEntropy:
    """Over PyTorch's; aims: 1.1 for many classes, 2.2 for ten."""

    params = list(SHAPES)
    param_names = ("logits",)
    unit = "ratio"

    def setup(self, shape: str) -> None:
        torch.set_num_threads(1)
        batch, classes, self.repeats = SHAPES[shape]
        generator = torch.Generator().manual_seed(0)
        self.z = torch.randn(batch, classes, generator=generator)
        self.y = torch.randint(classes, (batch,), generator=generator)

    def _gradients(self, loss: Loss) -> Callable[[], None]:
        def work() -> None:
            for _ in range(self.repeats):
                leaf = self.z.detach().requires_grad_()
                loss(leaf, self.y).backward()

        return work

    def _ratio(self, loss: Loss, other: Loss) -> float:
        return median_ratio(self._gradients(loss), self._gradients(other), ROUNDS)

    def track_value_and_gradient(self, shape: str) -> float:
        return self._ratio(losses.cross_entropy, functional.cross_entropy)

    def track_an_empty_function(self, shape: str) -> float:
        """What an `autograd.Function` that does nothing costs, as a share of PyTorch's."""

        def empty(z: Tensor, y: Tensor) -> Tensor:
            return functional.cross_entropy(_Identity.apply(z), y)

        return self._ratio(empty, functional.cross_entropy) - 1

    def track_compiled(self, shape: str) -> float:
        """Both compiled; that needs a C++ compiler."""
        return self._ratio(
            torch.compile(losses.cross_entropy), torch.compile(functional.cross_entropy)
        )
