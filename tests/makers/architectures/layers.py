"""Small networks with one kind of convolution, padding or pooling each."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.makers.architectures.settled import CLASSES, head, settled, small_cnn


class DynamicConv(nn.Module):
    """CondConv: each sample mixes its own kernel, and a grouped convolution runs them all."""

    def __init__(self) -> None:
        super().__init__()
        self.route = nn.Linear(3, 2)
        self.experts = nn.Parameter(0.3 * torch.randn(2, 4 * 3 * 9))

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        kernels = self.route(x.mean((2, 3))).sigmoid() @ self.experts
        y = F.conv2d(
            x.reshape(1, n * channels, height, width),
            kernels.view(n * 4, channels, 3, 3), padding=1, groups=n,
        )  # fmt: skip
        return y.view(n, 4, height, width)


class Involution(nn.Module):
    """A kernel for each pixel, made from that pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.Conv2d(3, 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        patches = F.unfold(x, 3, padding=1).view(n, channels, 9, height, width)
        return (patches * self.kernels(x).unsqueeze(1)).sum(2)


class RotationEquivariant(nn.Module):
    """A convolution over the four rotations of its kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(3, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.cat([torch.rot90(self.weight, k, (2, 3)) for k in range(4)])
        y = F.conv2d(x, weight, padding=1)
        return y.view(len(x), 4, 3, *x.shape[2:]).amax(1)


class Capsules(nn.Module):
    """Capsules with the squashing function and two rounds of routing by agreement."""

    def __init__(self) -> None:
        super().__init__()
        self.primary = nn.Conv2d(3, 8, 4, 4)
        self.weight = nn.Parameter(0.5 * torch.randn(8, CLASSES, 4, 4))

    def squashed(self, s: Tensor) -> Tensor:
        squared = s.pow(2).sum(-1, keepdim=True)
        return squared / (1 + squared) * s / (squared + 1e-8).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        capsules = self.squashed(self.primary(x).view(len(x), 8, 4))
        votes = torch.einsum("nid,icde->nice", capsules, self.weight)
        routes = torch.zeros(*votes.shape[:3], dtype=x.dtype)
        for _ in range(2):
            v = self.squashed((routes.softmax(2).unsqueeze(-1) * votes).sum(1))
            routes = routes + (votes * v.unsqueeze(1)).sum(-1)
        return v.norm(dim=-1)


class GeM(nn.Module):
    """Generalised mean pooling with a learned power."""

    def __init__(self) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=1e-6).pow(self.power).mean((2, 3)).pow(1 / self.power)


class FixedGeM(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x.clamp(min=1e-6).pow(3), x.shape[-2:]).pow(1 / 3).flatten(1)


def pooled(pooling: nn.Module, features: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), pooling, nn.Flatten(),
        nn.Linear(features, CLASSES),
    )  # fmt: skip


def padded(mode: str) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=2, padding_mode=mode), nn.ReLU(), head(4))


def all_convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=2, dilation=2, groups=3),
        nn.Mish(),
        nn.Conv2d(6, 6, 3, 2, 1, groups=6),
        nn.Mish(),
        nn.ConvTranspose2d(6, 4, 3, 2, 1, output_padding=1),
        nn.Mish(),
        head(4),
    )


def video() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 3, 3, padding=1), nn.BatchNorm3d(3), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(3, 4, (1, 3, 3), padding=(0, 1, 1)), nn.ReLU(), nn.AvgPool3d((2, 1, 1)),
        nn.Flatten(), nn.Linear(36, CLASSES),
    )  # fmt: skip


def ecg() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(1, 4, 5, 2, 2), nn.BatchNorm1d(4), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(4, 6, 3), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(18, CLASSES),
    )  # fmt: skip


LAYERS = {
    "involution": settled(lambda: nn.Sequential(Involution(), nn.Tanh(), head(3))),
    "rotation-equivariant": settled(
        lambda: nn.Sequential(RotationEquivariant(), nn.ReLU(), head(3))
    ),
    "capsules": settled(Capsules),
    "GeM pooling": settled(lambda: pooled(FixedGeM(), 4)),
    "adaptive pooling, mean": settled(lambda: pooled(nn.AdaptiveAvgPool2d((5, 3)), 60)),
    "adaptive pooling, maximum": settled(lambda: pooled(nn.AdaptiveMaxPool2d(3), 36)),
    "Lp pooling": settled(lambda: pooled(nn.LPPool2d(2, 2), 64)),
    "circular padding": settled(lambda: padded("circular")),
    "reflected padding": settled(lambda: padded("reflect")),
    "replicated padding": settled(lambda: padded("replicate")),
    "grouped, dilated, transposed": settled(all_convolutions),
    "video, Conv3d": settled(video, 1, 4, 6, 6),
    "ECG, Conv1d": settled(ecg, 1, 32),
    "instance norm": settled(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.ReLU(), head(4)
        )
    ),
    "pixel shuffle": settled(
        lambda: nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 3, padding=1), nn.PixelShuffle(2), nn.ReLU(),
            small_cnn(2),
        )
    ),
}  # fmt: skip
