"""The small networks of the zoo, as plain `nn.Sequential`s: images in, logits out."""

from torch import nn


def conv_small(channels: int = 1, size: int = 28) -> nn.Sequential:
    """ConvSmall of Wong and Kolter: 0.6 million multiply-adds for 1x28x28 images, 10 classes.

    Args:
        channels: image channels.
        size: image height and width in pixels, a multiple of 4.
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
