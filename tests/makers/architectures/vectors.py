"""Networks of vectors, sequences, points and graphs: recurrent nets, policies, heads, experts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.makers.architectures.settled import CLASSES, settled


class LastStep(nn.Module):
    """A recurrent network, and a linear layer on its last output."""

    def __init__(self, recurrent: nn.Module, width: int) -> None:
        super().__init__()
        self.recurrent, self.head = recurrent, nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


class Cells(nn.Module):
    """A cell, called in a loop over the steps."""

    def __init__(self, cell: nn.LSTMCell | nn.GRUCell) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class GroupSort(nn.Module):
    """The 1-Lipschitz activation: each group of entries in order."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1, 3).sort(-1)[0].view(x.shape)


class MaxMin(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], 1)


class Maxout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1, 2).max(-1)[0]


class Activations(nn.Module):
    """Each activation on two entries of its own."""

    def __init__(self, *activations: nn.Module) -> None:
        super().__init__()
        self.activations, width = nn.ModuleList(activations), 2 * len(activations)
        self.first, self.last = nn.Linear(6, width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        parts = (3 * self.first(x)).split(2, 1)
        values = [f(part) for f, part in zip(self.activations, parts, strict=True)]
        return self.last(torch.cat(values, 1))


SMOOTH = (
    nn.ELU, nn.CELU, nn.SELU, nn.GELU, lambda: nn.GELU("tanh"), nn.SiLU, nn.Mish, nn.Softplus,
    nn.LogSigmoid, nn.Softsign, nn.Tanhshrink, nn.Sigmoid, nn.Tanh,
)  # fmt: skip
PIECEWISE = (
    nn.Hardshrink, nn.Softshrink, lambda: nn.Threshold(0.3, -1.0), nn.Hardtanh, nn.ReLU6,
    nn.Hardsigmoid, nn.Hardswish, nn.LeakyReLU, nn.PReLU, nn.ReLU,
)  # fmt: skip


class NormsOfChannels(nn.Module):
    """RMS norm, local response norm, PReLU and GLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.local, self.prelu = nn.Conv2d(3, 8, 3), nn.LocalResponseNorm(3), nn.PReLU(8)
        self.rms, self.head = nn.RMSNorm(4, eps=2.0**-20), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = F.glu(self.prelu(self.local(self.conv(x))), 1)
        return self.head(self.rms(y.mean((2, 3))))


class ArcFace(nn.Module):
    """Cosines of features and class weights, times 16."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.weight = nn.Linear(6, 5), nn.Parameter(torch.randn(CLASSES, 5))

    def forward(self, x: Tensor) -> Tensor:
        return 16 * F.linear(F.normalize(self.features(x)), F.normalize(self.weight))


class Prototypes(nn.Module):
    """Minus the distance, or its square, to each class's prototype."""

    def __init__(self, *, is_squared: bool) -> None:
        super().__init__()
        self.features, self.prototypes = nn.Linear(6, 5), nn.Parameter(torch.randn(CLASSES, 5))
        self.is_squared = is_squared

    def forward(self, x: Tensor) -> Tensor:
        distances = torch.cdist(self.features(x), self.prototypes)
        return -distances.square() if self.is_squared else -distances


class MatchingNetwork(nn.Module):
    """Cosine similarity to each example of a support set, summed by class."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(6, 5)
        self.register_buffer("support", torch.randn(8, 6))
        self.register_buffer("labels", torch.arange(8) % CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.features(x), self.features(self.support)
        similarity = F.cosine_similarity(a.unsqueeze(1), b.unsqueeze(0), dim=-1)
        return similarity.exp() @ F.one_hot(self.labels, CLASSES).to(x.dtype)


class RadialBasis(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.centres, self.head = nn.Parameter(torch.rand(7, 6)), nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((-(x.unsqueeze(1) - self.centres).square().sum(-1)).exp())


class Experts(nn.Module):
    """The two experts with the largest gates, weighted by a softmax of these."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, CLASSES)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        values, index = self.gate(x).topk(2, -1)
        weights = torch.zeros(len(x), 3, dtype=x.dtype).scatter(1, index, values.softmax(-1))
        outputs = torch.stack([expert(x) for expert in self.experts], 1)
        return (weights.unsqueeze(-1) * outputs).sum(1)


class NeuralODE(nn.Module):
    """Four steps of the midpoint rule."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 6))
        self.head = nn.Linear(6, CLASSES)

    def at(self, t: float, x: Tensor) -> Tensor:
        return self.slope(torch.cat([torch.full_like(x[:, :1], t), x], 1))

    def forward(self, x: Tensor) -> Tensor:
        for t in (0.0, 0.25, 0.5, 0.75):
            x = x + 0.25 * self.at(t + 0.125, x + 0.125 * self.at(t, x))
        return self.head(x)


class Equilibrium(nn.Module):
    """A deep equilibrium network with a fixed number of iterations."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.head = nn.Linear(5, 5), nn.Linear(6, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        driven = self.outer(x)
        z = torch.zeros_like(driven)
        for _ in range(6):
            z = torch.tanh(self.inner(z) / 2 + driven)
        return self.head(z)


class SparseCode(nn.Module):
    """Unrolled ISTA: a gradient step on a dictionary, then soft thresholding."""

    def __init__(self) -> None:
        super().__init__()
        self.dictionary, self.head = nn.Parameter(torch.randn(6, 9) / 3), nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        code = x.new_zeros(len(x), 9)
        for _ in range(4):
            missing = x - code @ self.dictionary.T
            code = F.softshrink(code + 0.3 * missing @ self.dictionary, 0.02)
        return self.head(code)


class DuelingDQN(nn.Module):
    """Atari's: frames, a value, and advantages minus their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(2, 4, 4, 2), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.ReLU(), nn.Flatten()
        )
        self.value, self.advantage = nn.Linear(16, 1), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        advantage = self.advantage(y)
        return self.value(y) + advantage - advantage.mean(1, keepdim=True)


class Policy(nn.Module):
    """Observations normalised and clipped as by VecNormalize, and a mean times a learned scale."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(6))
        self.register_buffer("var", torch.rand(6) + 0.5)
        self.layers = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, CLASSES))
        self.log_std = nn.Parameter(torch.randn(CLASSES) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = ((x - self.mean) / torch.sqrt(self.var + 1e-8)).clamp(-10, 10)
        return torch.tanh(self.layers(x)) * self.log_std.exp()


class Splines(nn.Module):
    """A Kolmogorov-Arnold layer: learned B-splines of degree 2, and SiLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("knots", torch.arange(-3, 6) * 0.5)
        self.spline, self.base = nn.Linear(6 * inputs, outputs), nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        t, knots = x.unsqueeze(-1), self.knots
        bases = ((t >= knots[:-1]) & (t < knots[1:])).to(x.dtype)
        for k in (1, 2):
            rising = (t - knots[: -(k + 1)]) / (knots[k:-1] - knots[: -(k + 1)])
            falling = (knots[k + 1 :] - t) / (knots[k + 1 :] - knots[1:-k])
            bases = rising * bases[..., :-1] + falling * bases[..., 1:]
        return self.base(F.silu(x)) + self.spline(bases.flatten(1))


class Sine(nn.Module):
    """SIREN's activation."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * x)


class Factorised(nn.Module):
    """A factorisation machine beside a deep network, for tables."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.factors = nn.Linear(6, CLASSES), nn.Parameter(torch.randn(CLASSES, 6, 2))
        self.deep = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        sums = torch.einsum("ni,cif->ncf", x, self.factors).pow(2)
        squares = torch.einsum("ni,cif->ncf", x.pow(2), self.factors.pow(2))
        return self.wide(x) + 0.5 * (sums - squares).sum(-1) + self.deep(x)


class Variational(nn.Module):
    """A classifier of a VAE's means, and of its divergence from the prior."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.mean, self.log_var, self.head = nn.Linear(8, 3), nn.Linear(8, 3), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        mean, log_var = self.mean(h), self.log_var(h)
        divergence = -0.5 * (1 + log_var - mean.pow(2) - log_var.exp()).sum(1, keepdim=True)
        return self.head(torch.cat([mean, divergence], 1))


class Codebook(nn.Module):
    """VQ-VAE's: the nearest code in forward, the identity in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.codes = nn.Linear(6, 3), nn.Embedding(8, 3)
        self.head = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        z = self.features(x)
        code = self.codes(torch.cdist(z, self.codes.weight).argmin(1))
        return self.head(z + (code - z).detach())


class Critic(nn.Module):
    """WGAN's critic, one number, as two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 4, 2, 1), nn.LayerNorm([4, 4, 4]), nn.LeakyReLU(0.2),
            nn.Conv2d(4, 1, 4), nn.Flatten(0),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        z = self.layers(x)
        return torch.stack([0 * z, z], 1)


class Hypernetwork(nn.Module):
    """Weights that another network makes of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.maker, self.head = nn.Linear(6, 30), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.maker(x).view(-1, 5, 6)
        return self.head(torch.bmm(weights, x.unsqueeze(2)).squeeze(2).tanh())


def mlp(activation: nn.Module, features: int = 12) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), activation, nn.Linear(features, CLASSES))


SEQUENCE = (4, 3)
VECTORS = {
    "GroupSort MLP": settled(lambda: mlp(GroupSort()), 6),
    "MaxMin MLP": settled(lambda: mlp(MaxMin()), 6),
    "Maxout": settled(lambda: mlp(Maxout(), 6), 6),
    "SIREN": settled(lambda: mlp(Sine()), 6),
    "smooth activations": settled(lambda: Activations(*(make() for make in SMOOTH)), 6),
    "piecewise activations": settled(lambda: Activations(*(make() for make in PIECEWISE)), 6),
    "RMS norm, LRN, PReLU, GLU": settled(NormsOfChannels),
    "ArcFace head": settled(ArcFace, 6),
    "prototypical net, distance": settled(lambda: Prototypes(is_squared=False), 6),
    "prototypical net, square": settled(lambda: Prototypes(is_squared=True), 6),
    "radial basis functions": settled(RadialBasis, 6),
    "mixture of experts": settled(Experts, 6),
    "neural ODE": settled(NeuralODE, 6),
    "deep equilibrium": settled(Equilibrium, 6),
    "sparse code, ISTA": settled(SparseCode, 6),
    "dueling DQN": settled(DuelingDQN, 2, 8, 8),
    "normalised policy": settled(Policy, 6),
    "policy, tanh": settled(lambda: mlp(nn.Tanh()), 6),
    "Kolmogorov-Arnold": settled(
        lambda: nn.Sequential(Splines(4, 5), Splines(5, CLASSES)), 4
    ),
    "factorisation machine": settled(Factorised, 6),
    "VAE encoder": settled(Variational, 6),
    "WGAN critic": settled(Critic),
    "hypernetwork": settled(Hypernetwork, 6),
    "RNN, tanh": settled(lambda: LastStep(nn.RNN(3, 5, batch_first=True), 5), *SEQUENCE),
    "GRU": settled(lambda: LastStep(nn.GRU(3, 5, batch_first=True), 5), *SEQUENCE),
    "LSTM cells": settled(lambda: Cells(nn.LSTMCell(3, 5)), *SEQUENCE),
    "GRU cells": settled(lambda: Cells(nn.GRUCell(3, 5)), *SEQUENCE),
}  # fmt: skip
