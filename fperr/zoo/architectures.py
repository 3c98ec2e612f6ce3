"""Architectures of the zoo's small networks: `nn.Sequential`s from images to logits."""

import torch
from torch import Tensor, nn


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
