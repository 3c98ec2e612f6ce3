"""Networks whose weights are functions of others: quantised, orthogonal, of bounded norm."""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.makers.architectures.settled import CLASSES, head, settled


class Quantised(nn.Module):
    """Quantisation-aware training: activations and weights on grids of eight bits."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.conv, self.head, self.step = nn.Conv2d(3, 4, 3), head(4), step

    def quantised_weight(self) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(self.conv.weight, self.step / 2, 0, -128, 127)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fake_quantize_per_tensor_affine(x, self.step / 4, 0, 0, 255)
        y = F.relu(F.conv2d(x, self.quantised_weight(), self.conv.bias))
        return self.head(torch.fake_quantize_per_tensor_affine(y, self.step, 0, 0, 255))


class QuantisedByChannel(Quantised):
    """As PyTorch's default: a scale for each channel of the weights."""

    def __init__(self) -> None:
        super().__init__(2.0**-6)
        self.register_buffer("scales", torch.full((4,), 2.0**-7))
        self.register_buffer("zeros", torch.zeros(4, dtype=torch.int32))

    def quantised_weight(self) -> Tensor:
        weight = self.conv.weight
        return torch.fake_quantize_per_channel_affine(weight, self.scales, self.zeros, 0, -128, 127)


class AlmostOrthogonal(nn.Linear):
    """An AOL layer: columns scaled so that the map is 1-Lipschitz."""

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.weight.T @ self.weight).abs().sum(1).rsqrt()
        return F.linear(x, self.weight * scale, self.bias)


class Cayley(nn.Linear):
    """An orthogonal layer by the Cayley transform of a skew matrix."""

    def forward(self, x: Tensor) -> Tensor:
        skew = self.weight - self.weight.T
        identity = torch.eye(len(skew), dtype=x.dtype, device=x.device)
        return F.linear(x, torch.linalg.solve(identity + skew, identity - skew), self.bias)


def parametrised(parametrise) -> nn.Module:
    return nn.Sequential(
        parametrise(nn.Linear(6, 6)), nn.ReLU(), parametrise(nn.Linear(6, 6)), nn.ReLU(),
        nn.Linear(6, CLASSES),
    )  # fmt: skip


def old(name: str):
    """A parametrisation by a hook, which PyTorch calls deprecated."""

    def parametrise(layer: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return getattr(nn.utils, name)(layer)

    return parametrise


WEIGHTS = {
    "quantisation-aware training": settled(lambda: Quantised(2.0**-6)),
    "AOL": settled(lambda: parametrised(lambda layer: AlmostOrthogonal(6, 6)), 6),
    "Cayley": settled(lambda: parametrised(lambda layer: Cayley(6, 6)), 6),
    "orthogonal": settled(lambda: parametrised(nn.utils.parametrizations.orthogonal), 6),
    "spectral norm": settled(lambda: parametrised(nn.utils.parametrizations.spectral_norm), 6),
    "spectral norm, old": settled(lambda: parametrised(nn.utils.spectral_norm), 6),
    "weight norm": settled(lambda: parametrised(nn.utils.parametrizations.weight_norm), 6),
    "weight norm, old": settled(lambda: parametrised(old("weight_norm")), 6),
}  # fmt: skip
