"""The cores of convolutional networks for images, as the papers and timm have them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.makers.architectures.settled import CLASSES, head, settled


def conv_bn(inputs: int, outputs: int, side: int = 3, activation=nn.ReLU, **options) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False, **options),
        nn.BatchNorm2d(outputs),
        activation(),
    )


class PreActivationBlock(nn.Module):
    """The block of RobustBench's wide ResNets and of PreActResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: nn.Module) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(y)
        return kept + self.conv2(self.activation(self.bn2(self.conv1(y))))


class WideResNet(nn.Sequential):
    """Normalised images, a stem, blocks, and activation, pooling and a linear layer at the end."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__(
            Normalised(),
            nn.Conv2d(3, 4, 3, padding=1, bias=False),
            PreActivationBlock(4, 4, 1, activation),
            PreActivationBlock(4, 6, 2, activation),
            nn.BatchNorm2d(6),
            activation,
            head(6),
        )


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2471, 0.2435, 0.2616]).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class StandardisedConv(nn.Conv2d):
    """BiT's convolution: weights standardised by a batch norm in training mode, as timm does it."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, activation=nn.ReLU, gate=nn.Sigmoid) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)
        self.activation, self.gate = activation(), gate()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.expand(self.activation(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * self.gate(scale)


class InvertedResidual(nn.Module):
    """MobileNet's and EfficientNet's block: expand, depthwise convolution, squeeze, project."""

    def __init__(self, channels: int, activation=nn.Hardswish, gate=nn.Hardsigmoid) -> None:
        super().__init__()
        wide = 2 * channels
        self.layers = nn.Sequential(
            conv_bn(channels, wide, 1, activation),
            conv_bn(wide, wide, 3, activation, groups=wide),
            SqueezeExcite(wide, nn.ReLU, gate),
            conv_bn(wide, channels, 1, nn.Identity),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7 x 7, layer norm over the channels at the end, an MLP, and a layer's scale."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Linear(8, width))
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.mlp(y)).permute(0, 3, 1, 2)


class GlobalResponseNorm(nn.Module):
    """ConvNeXt V2's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.zeros(1, 1, 1, width)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        size = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        return self.scale * (x * size / (size.mean(-1, keepdim=True) + 1e-6)) + self.shift + x


class ConvNeXtV2Block(ConvNeXtBlock):
    def __init__(self) -> None:
        super().__init__()
        self.mlp.insert(2, GlobalResponseNorm(8))


class Dense(nn.Module):
    """DenseNet's layer: its output beside its input."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), nn.Conv2d(inputs, 3, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x.clone())], 1)


class Branches(nn.Module):
    """Inception's: several paths side by side."""

    def __init__(self, *paths: nn.Module) -> None:
        super().__init__()
        self.paths = nn.ModuleList(paths)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([path(x) for path in self.paths], 1)


class ShuffleUnit(nn.Module):
    """ShuffleNet V2's: half of the channels pass, and then all change places."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.path = nn.Sequential(conv_bn(half, half, 1), conv_bn(half, half, 3, groups=half))

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, 1)
        y = torch.cat([kept, self.path(changed)], 1)
        n, channels, height, width = y.shape
        return y.view(n, 2, channels // 2, height, width).transpose(1, 2).reshape(y.shape)


class Fire(nn.Module):
    """SqueezeNet's: squeeze, then convolutions of two sizes."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, 2, 1)
        self.small, self.large = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.squeeze(x), inplace=True)
        return torch.cat([F.relu(self.small(y)), F.relu(self.large(y))], 1)


class Ghost(nn.Module):
    """GhostNet's: half of the channels are cheap functions of the others, cut to size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        primary = (outputs + 1) // 2
        self.primary = conv_bn(inputs, primary, 1)
        self.cheap, self.outputs = conv_bn(primary, primary, 3, groups=primary), outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.primary(x)
        return torch.cat([y, self.cheap(y)], 1)[:, : self.outputs]


class Res2(nn.Module):
    """Res2Net's: groups of channels, each of which sees the one before."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(conv_bn(channels // 3, channels // 3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        first, *others = torch.split(x, x.shape[1] // 3, 1)
        results = [first]
        for part, convolution in zip(others, self.convolutions, strict=True):
            results.append(convolution(part + results[-1]))
        return x + torch.cat(results, 1)


class RepVGGBlock(nn.Module):
    """Its form in training: 3 x 3, 1 x 1 and identity, each with a batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense = conv_bn(channels, channels, 3, nn.Identity)
        self.pointwise = conv_bn(channels, channels, 1, nn.Identity)
        self.identity = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.dense(x) + self.pointwise(x) + self.identity(x))


class HighResolution(nn.Module):
    """HRNet's: two resolutions side by side that exchange what they see."""

    def __init__(self) -> None:
        super().__init__()
        self.high, self.low = conv_bn(3, 4), conv_bn(3, 4, stride=2)
        self.down = conv_bn(4, 4, 3, nn.Identity, stride=2)
        self.up = nn.Sequential(conv_bn(4, 4, 1, nn.Identity), nn.Upsample(scale_factor=2))
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        high, low = self.high(x), self.low(x)
        high, low = F.relu(high + self.up(low)), F.relu(low + self.down(high))
        low = F.interpolate(low, size=high.shape[-2:], mode="bilinear", align_corners=False)
        return self.head(torch.cat([high, low], 1))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.bottom, self.up = conv_bn(3, 4), conv_bn(4, 6), conv_bn(10, 4)
        self.head = head(4)

    def forward(self, x: Tensor) -> Tensor:
        high = self.down(x)
        low = self.bottom(F.max_pool2d(high, 2))
        low = F.interpolate(low, scale_factor=2, mode="bilinear", align_corners=True)
        return self.head(self.up(torch.cat([high, low], 1)))


class EfficientChannelAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolution(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return x * y.view(len(x), -1, 1, 1)


def behind_stem(*layers: nn.Module, channels: int = 4, out: int | None = None) -> nn.Module:
    return nn.Sequential(conv_bn(3, channels), *layers, head(out or channels))


CONVOLUTIONS = {
    "wide ResNet, ReLU": settled(lambda: WideResNet(nn.ReLU(inplace=True))),
    "wide ResNet, SiLU": settled(lambda: WideResNet(nn.SiLU())),
    "PreActResNet, leaky ReLU": settled(lambda: WideResNet(nn.LeakyReLU(0.1))),
    "BiT, standardised weights": settled(
        lambda: nn.Sequential(
            StandardisedConv(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(),
            StandardisedConv(4, 4, 3, 2), nn.GroupNorm(2, 4), nn.ReLU(), head(4),
        )
    ),
    "MobileNet V3": settled(lambda: behind_stem(InvertedResidual(4))),
    "MobileNet V2, ReLU6": settled(
        lambda: behind_stem(InvertedResidual(4, nn.ReLU6, nn.Identity))
    ),
    "EfficientNet": settled(lambda: behind_stem(InvertedResidual(4, nn.SiLU, nn.Sigmoid))),
    "ConvNeXt": settled(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 2, 2), ConvNeXtBlock(), ConvNeXtBlock(), head(4))
    ),
    "ConvNeXt V2": settled(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 2, 2), ConvNeXtV2Block(), head(4))
    ),
    "DenseNet": settled(lambda: behind_stem(Dense(4), Dense(7), nn.AvgPool2d(2), out=10)),
    "Inception": settled(
        lambda: behind_stem(
            Branches(
                conv_bn(4, 2, 1),
                nn.Sequential(conv_bn(4, 2, 1), conv_bn(2, 3, 5)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(4, 2, 1)),
                nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), conv_bn(4, 2, 1)),
            ),
            out=9,
        )
    ),
    "ShuffleNet V2": settled(lambda: behind_stem(ShuffleUnit(4), ShuffleUnit(4))),
    "SqueezeNet": settled(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(4),
            nn.Conv2d(6, CLASSES, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )
    ),
    "GhostNet": settled(lambda: behind_stem(Ghost(4, 5), out=5)),
    "Res2Net": settled(lambda: behind_stem(Res2(6), channels=6)),
    "SENet": settled(lambda: behind_stem(SqueezeExcite(4))),
    "ECA-Net": settled(lambda: behind_stem(EfficientChannelAttention())),
    "RepVGG": settled(lambda: behind_stem(RepVGGBlock(4), RepVGGBlock(4))),
    "HRNet": settled(HighResolution),
    "U-Net, bilinear": settled(UNet),
}  # fmt: skip
