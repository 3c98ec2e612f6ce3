"""Architectures of the zoo's small networks, from images to logits."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Normalise(nn.Module):
    """Normalise images (batch, channels, height, width): (x - mean) / std for each channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """The normalised images."""
        return (x - self.mean) / self.std


def conv_small(channels: int = 1, size: int = 28) -> nn.Sequential:
    """ConvSmall of Wong and Kolter: 0.6 million multiply-adds for 1x28x28 images, 10 classes.

    Args:
        channels: Number of image channels.
        size: Height and width of the images in pixels, a multiple of 4.
    """
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (size // 4) ** 2, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def conv_small_cifar() -> nn.Sequential:
    """ConvSmall for 3x32x32 images in [0, 1], which it normalises: 2.6 million multiply-adds."""
    return nn.Sequential(
        Normalise((0.485, 0.456, 0.406), (0.225, 0.225, 0.225)), *conv_small(3, 32)
    )


def small_cnn() -> nn.Sequential:
    """SmallCNN of the TRADES and level-set papers, for 1x28x28 images: four convolutions."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1024, 200),
        nn.ReLU(),
        nn.Linear(200, 200),
        nn.ReLU(),
        nn.Linear(200, 10),
    )


def lenet5() -> nn.Sequential:
    """LeNet5 of advertorch's examples, for 1x28x28 images."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 200),
        nn.ReLU(),
        nn.Linear(200, 10),
    )


def mlp() -> nn.Sequential:
    """Three linear layers for 1x28x28 images: 0.1 million multiply-adds.

    The sizes of two of them are multiples of 16, which kernels in float8 need.
    """
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


class Attention(nn.Module):
    """Self-attention of tokens (batch, tokens, width), with several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """The tokens' new values."""
        batch, count, width = tokens.shape
        split = self.qkv(tokens).view(batch, count, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, count, width))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A block of a transformer with layer norms first: attention, then an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """The tokens' new values."""
        tokens = tokens + self.attention(tokens)
        return tokens + self.mlp(tokens)  # type: ignore[no-any-return]


class SmallTransformer(nn.Module):
    """A vision transformer for 1x28x28 images: 16 patches, two blocks, 1.1 million multiply-adds.

    The sizes of all linear layers but the last are multiples of 16, which kernels in float8 need.
    """

    def __init__(self, width: int = 64, heads: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 7, stride=7)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The logits (batch, 10) of images (batch, 1, 28, 28)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(1))  # type: ignore[no-any-return]
