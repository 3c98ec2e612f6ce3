"""Networks with random weights and sane statistics, each beside a batch of two inputs."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

CLASSES = 4
IMAGE = (3, 8, 8)

Architecture = Callable[[], tuple[nn.Module, Tensor]]

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def settled(make: Callable[[], nn.Module], *shape: int) -> Architecture:
    """The architecture of `make`, for inputs of that shape (images by default).

    Weights are those of PyTorch's own initialisation, scales and shifts of norms are uneven,
    nothing is zero, and what training keeps (statistics of batch norms, the vectors of spectral
    norms) comes from random inputs.
    """
    shape = shape or IMAGE

    def build() -> tuple[nn.Module, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = make()
            _make_uneven(model)
            _take_statistics(model, shape)
            return model.eval(), torch.rand(2, *shape)

    return build


@torch.no_grad()
def _make_uneven(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, _NORMS) and module.weight is not None:
            module.weight.uniform_(0.5, 1.5)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.normal_(0, 0.1)


@torch.no_grad()
def _take_statistics(model: nn.Module, shape: tuple[int, ...]) -> None:
    model.train()
    if any(True for _ in model.buffers()):
        for _ in range(10):
            model(torch.rand(8, *shape))


def head(channels: int) -> nn.Module:
    """The mean of each channel, and a linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def small_cnn(inputs: int = 3) -> nn.Module:
    """Two convolutions, batch norm, ReLU and pooling: what most defences stand before."""
    return nn.Sequential(
        nn.Conv2d(inputs, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
        head(6),
    )


class Before(nn.Module):
    """A network behind a function of its input."""

    def __init__(self, function: Callable[[Tensor], Tensor], network: nn.Module) -> None:
        super().__init__()
        self.function, self.network = function, network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.function(x))
