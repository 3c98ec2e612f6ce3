"""Nine small networks of the kinds that people attack, for inputs of 3 x 8 x 8 and 4 classes."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 4
SIDE = 8


class LeNet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(6, 8),
            nn.ReLU(),
            nn.Linear(8, CLASSES),
        )


class BasicBlock(nn.Module):
    """The block of ResNet: convolution, batch norm and ReLU in place."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.downsample(x)
        return self.relu(y)


class ResNet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 3, 3, 2, 1, bias=False),
            nn.BatchNorm2d(3),
            nn.ReLU(inplace=True),
            BasicBlock(3, 4, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, CLASSES),
        )


class PreActivation(nn.Module):
    """The block of a wide ResNet: batch norm and ReLU before each convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        return torch.add(self.shortcut(y), self.conv2(F.relu(self.bn2(self.conv1(y)))))


class WRN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, 2, 1, bias=False)
        self.block = PreActivation(3, 4, 2)
        self.bn = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = F.avg_pool2d(F.relu(self.bn(self.block(self.conv(x)))), 2)
        return self.linear(y.view(-1, 4))


class VGG(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2, 2),
            nn.AdaptiveAvgPool2d((1, 1)),
            nn.Flatten(),
            nn.Linear(6, CLASSES),
        )


class PointNet(nn.Module):
    """64 points in three dimensions, a learned transformation, and a maximum over the points."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = nn.Conv1d(3, 4, 1)
        self.matrix = nn.Linear(4, 9)
        self.features = nn.Sequential(nn.Conv1d(3, 6, 1), nn.BatchNorm1d(6), nn.ReLU())
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        points = x.flatten(2)
        matrix = self.matrix(torch.max(F.relu(self.transform(points)), 2)[0])
        identity = torch.eye(3, dtype=x.dtype, device=x.device).flatten().repeat(len(x), 1)
        matrix = (matrix + identity).view(-1, 3, 3)
        moved = torch.bmm(points.transpose(2, 1), matrix).transpose(2, 1)
        return self.head(torch.max(self.features(moved), 2, keepdim=True)[0].view(-1, 6))


Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def attention_by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
    return scores.softmax(-1) @ v


class SelfAttention(nn.Module):
    def __init__(self, attention: Attention, width: int = 4, heads: int = 2) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attention, self.heads = attention, heads

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return self.out(self.attention(q, k, v).transpose(1, 2).reshape(n, tokens, width))


class TorchAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Block(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(4), nn.LayerNorm(4)
        self.attention = attention
        self.mlp = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches of 4 x 4, a class token, a position embedding, blocks, and a linear head."""

    def __init__(self, blocks: nn.Module) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.position = nn.Parameter(torch.zeros(1, 5, 4))
        self.blocks, self.norm = blocks, nn.LayerNorm(4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.position
        return self.head(self.norm(self.blocks(tokens))[:, 0])


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lenet": LeNet,
    "resnet": ResNet,
    "wrn": WRN,
    "vgg_bn": VGG,
    "pointnet": PointNet,
    "vit_by_hand": lambda: ViT(Block(SelfAttention(attention_by_hand))),
    "vit_sdpa": lambda: ViT(Block(SelfAttention(F.scaled_dot_product_attention))),
    "vit_mha": lambda: ViT(Block(TorchAttention())),
    "transformer_encoder": lambda: ViT(encoder()),
}
KINDS = ("resnet", "pointnet", "vit_sdpa")  # one of each kind, where all take long


def build(name: str, seed: int = 0) -> nn.Module:
    """The network with PyTorch's own initialisation, its statistics and scales made uneven."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NETWORKS[name]()
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.1)
                    module.running_var.uniform_(0.5, 2)
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_(0, 0.1)
            for parameter in network.parameters():
                if not parameter.any():
                    parameter.normal_(0, 0.1)
    return network.eval()
