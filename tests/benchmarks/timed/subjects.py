"""Networks and images that the benchmarks share."""

import torch
from torch import Tensor, nn

from fperr import data, zoo

LEVELSETS = "mnist_levelsets_eps0.4"


def network(name: str) -> nn.Module:
    """A network of the zoo; asv leaves out what a file is missing for."""
    if not zoo.is_at_hand(name):
        raise NotImplementedError(f"{name}: `fperr fetch {name}`")
    return zoo.load(name)


def images(name: str, count: int, radius: float = 0.0) -> data.Images:
    """The first test images of a network, at random starts within a radius."""
    clean = data.images_named(zoo.entry(name).dataset).first(count)
    noise = torch.rand(clean.x.shape, generator=torch.Generator().manual_seed(0))
    x = (clean.x + radius * (2 * noise - 1)).clamp(0, 1)
    return data.Images(clean.name, x, clean.y)


def cotangents(count: int, classes: int = 10) -> Tensor:
    """A random direction in logits for each sample, float64."""
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(0)).double()


def plain_gradient(model: nn.Module, x: Tensor, v: Tensor):
    """PyTorch's own gradient in float64, as anybody would compute it."""
    wide, x64 = model.double(), x.double()

    def work() -> object:
        leaf = x64.clone().requires_grad_()
        return torch.autograd.grad(wide(leaf), leaf, v)

    return work
