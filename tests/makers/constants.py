"""Networks that compute with their parameters and buffers alone, for inputs of 4 and 3 classes."""

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations


def mlp(change: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(change(nn.Linear(4, 6)), nn.GELU(), change(nn.Linear(6, 3)))


class StdConv(nn.Conv2d):
    """A convolution whose weight is standardised by a batch norm in training mode, as in BiT."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias)


class PositionEmbedding(nn.Module):
    """Tokens of one number each, with an embedding of their positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(4, 5), nn.Linear(5, 3)
        self.register_buffer("positions", torch.arange(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.gelu(x[:, :, None] + self.embedding(self.positions)).mean(1))


class PositionCode(nn.Module):
    """Tokens of one number each, with sines and cosines of their positions."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.arange(4)[:, None] / 10.0 ** (torch.arange(3) / 3)
        code = torch.zeros(4, 6)
        code[:, 0::2], code[:, 1::2] = angles.sin(), angles.cos()
        return self.linear(F.gelu(x[:, :, None] + code.to(x.dtype)).mean(1))


class CausalAttention(nn.Module):
    """Attention of two tokens with a mask that is made in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.linear = nn.Linear(2, 6), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.reshape(len(x), 2, 2)).chunk(3, -1)
        mask = torch.full((2, 2), -torch.inf).triu(1).to(x.dtype)
        return self.linear(((q @ k.mT + mask).softmax(-1) @ v).mean(1))


class Rotary(nn.Module):
    """Angles in a buffer, as complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("angles", torch.tensor([0.3, 2.1]))

    def forward(self, x: Tensor) -> Tensor:
        turns = torch.view_as_real(torch.polar(torch.ones_like(self.angles), self.angles))
        return self.linear(F.gelu(x * turns.reshape(-1)))


class Threshold(nn.Module):
    """A condition on a buffer, as in MeanSparse."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("threshold", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.threshold == 0:
            return self.linear(x)
        return self.linear(torch.where(x.abs() > self.threshold, x, 0.0))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: mlp(parametrizations.weight_norm),
    "old weight norm": lambda: mlp(nn.utils.weight_norm),
    "spectral norm": lambda: mlp(parametrizations.spectral_norm),
    "old spectral norm": lambda: mlp(nn.utils.spectral_norm),
    "StdConv": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), StdConv(1, 5, 2), nn.Flatten(), nn.GELU(), nn.Linear(5, 3)
    ),
    "householder": lambda: mlp(parametrizations.orthogonal),
    "matrix exponential": lambda: mlp(
        lambda linear: parametrizations.orthogonal(linear, orthogonal_map="matrix_exp")
    ),
    "Cayley": lambda: mlp(
        lambda linear: parametrizations.orthogonal(linear, orthogonal_map="cayley")
    ),
    "embedding of positions": PositionEmbedding,
    "sines of positions": PositionCode,
    "causal mask": CausalAttention,
    "complex numbers": Rotary,
    "condition on a buffer": Threshold,
}


def build(name: str, seed: int = 0) -> nn.Module:
    """The network, its parameters moved away from where they start: an orthogonal one is I there.

    Spectral norms have made some steps, so that their vectors are singular ones.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the old weight norm
        torch.manual_seed(seed)
        network = NETWORKS[name]()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            for _ in range(20):
                network(torch.rand(1, 4))
    return network.eval()
