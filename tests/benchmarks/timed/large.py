"""Large networks with random weights in pairs of float64: seconds and memory, two threads."""

import resource
from itertools import pairwise

import torch
from timed.subjects import cotangents
from timed.turns import median_seconds
from torch import Tensor, nn
from torch.nn import functional as F

from fperr import exact
from fperr.exact.double_word_network import BatchedNetwork
from tests.conftest import seeded
from tests.makers.networks import BasicBlock, PreActivation


class ResNet18(nn.Sequential):
    """For CIFAR: 0.56 G multiply-adds."""

    def __init__(self) -> None:
        widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
        blocks = [BasicBlock(a, b, 1 + (a != b)) for a, b in pairwise(widths)]
        stem = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()
        super().__init__(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class WRN28x10(nn.Module):
    """The wide ResNet for CIFAR: 5.2 G multiply-adds."""

    def __init__(self) -> None:
        super().__init__()
        widths = [16, *[160] * 4, *[320] * 4, *[640] * 4]
        self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.blocks = nn.Sequential(
            *(PreActivation(a, b, 1 + (a != b and a > 16)) for a, b in pairwise(widths))
        )
        self.bn, self.linear = nn.BatchNorm2d(640), nn.Linear(640, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn(self.blocks(self.conv(x))))
        return self.linear(F.adaptive_avg_pool2d(y, 1).flatten(1))


class Large:
    """106 bits; a process each, whose memory is told. Aims: 3 s and 4 GiB, 30 s and 8 GiB."""

    NETWORKS = {"ResNet-18": ResNet18, "WRN-28-10": WRN28x10}
    params = list(NETWORKS)
    param_names = ("network",)
    timeout = 3600

    def setup(self, name: str) -> None:
        torch.set_num_threads(2)
        x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        network = BatchedNetwork(exact.capture(seeded(self.NETWORKS[name]()), x), 106)
        self.work = lambda: network.gradient(x, cotangents(1))
        self.work()  # cuts the weights

    def track_seconds(self, name: str) -> float:
        return median_seconds(self.work, rounds=1)[0]

    track_seconds.unit = "s"

    def track_peak_memory(self, name: str) -> float:
        """Of the whole process, after one more gradient."""
        self.work()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    track_peak_memory.unit = "GiB"
