"""Defences: what is done to the input, to the activations, to the weights and with the logits."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from tests.makers.architectures.convolutions import WideResNet
from tests.makers.architectures.settled import CLASSES, Before, head, settled, small_cnn


def straight_through(rounded: Tensor, x: Tensor) -> Tensor:
    """Those numbers in forward, the identity in backward."""
    return x + (rounded - x).detach()


def bit_depth(x: Tensor) -> Tensor:
    return straight_through((x * 7).round() / 7, x)


class BlockwiseDCT(nn.Module):
    """JPEG: the DCT of each 4 x 4 block, divided by a table, rounded, and back."""

    def __init__(self, rounded) -> None:
        super().__init__()
        k = torch.arange(4, dtype=torch.float64)
        dct = torch.cos(math.pi * (2 * k + 1) * k[:, None] / 8) / math.sqrt(2)
        dct[0] = 0.5
        self.register_buffer("dct", dct.float())
        self.register_buffer("table", 0.05 + 0.02 * (k[:, None] + k).float())
        self.rounded = rounded

    def forward(self, x: Tensor) -> Tensor:
        blocks = x.unfold(2, 4, 4).unfold(3, 4, 4)
        q = self.rounded(self.dct @ (blocks - 0.5) @ self.dct.T / self.table)
        y = self.dct.T @ (q * self.table) @ self.dct + 0.5
        return y.permute(0, 1, 2, 4, 3, 5).reshape(x.shape)


ROUNDINGS = {
    "straight through": lambda q: straight_through(q.round(), q),
    "polynomial": lambda q: q.round() + (q - q.round()) ** 3,
    "sine": lambda q: q - torch.sin(2 * math.pi * q) / (2 * math.pi),
}


def blurred(x: Tensor) -> Tensor:
    """Torchvision's Gaussian blur."""
    places = torch.linspace(-1, 1, 3, dtype=torch.float32, device=x.device)
    row = torch.exp(-0.5 * (places / 0.8) ** 2)
    row = row / row.sum()
    kernel = torch.outer(row, row).to(x.dtype).expand(3, 1, 3, 3)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, groups=3)


def median_filtered(x: Tensor) -> Tensor:
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    patches = F.unfold(padded, 3).view(len(x), 3, 9, -1)
    return patches.median(dim=2).values.view(x.shape)


def without_variation(x: Tensor) -> Tensor:
    """Three gradient steps on the total variation, smoothed, plus the distance to the input."""
    y = x
    for _ in range(3):
        down, right = y.diff(dim=2), y.diff(dim=3)
        down, right = down / (down.square() + 0.01).sqrt(), right / (right.square() + 0.01).sqrt()
        slope = F.pad(down, (0, 0, 1, 0)) - F.pad(down, (0, 0, 0, 1))
        slope = slope + F.pad(right, (1, 0)) - F.pad(right, (0, 1))
        y = y - 0.05 * (slope + y - x)
    return y.clamp(0, 1)


def non_local_means(x: Tensor) -> Tensor:
    """Feature denoising: each pixel becomes a mean of all, weighted by similarity."""
    flat = x.flatten(2)
    weights = (flat.transpose(1, 2) @ flat / math.sqrt(x.shape[1])).softmax(-1)
    return x + (flat @ weights.transpose(1, 2)).view(x.shape)


def resized(**options):
    return settled(lambda: Before(lambda x: F.interpolate(x, **options), small_cnn()))


class Purified(nn.Module):
    """Diffusion purification: fixed noise, and two steps of denoising with time codes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("noise", torch.randn(3, 8, 8))
        self.register_buffer("kept", torch.tensor([0.98, 0.9, 0.7]))
        self.first, self.time = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 4)
        self.last, self.classifier = nn.Conv2d(4, 3, 3, padding=1), small_cnn()

    def estimated_noise(self, x: Tensor, step: int) -> Tensor:
        frequencies = torch.exp(-math.log(10000) * torch.arange(2, dtype=torch.float32) / 2)
        angles = step * frequencies
        code = self.time(torch.cat([angles.sin(), angles.cos()]).to(x.dtype))
        return self.last(F.silu(self.first(x) + code.view(4, 1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.kept[2].sqrt() * (2 * x - 1) + (1 - self.kept[2]).sqrt() * self.noise
        for step in (2, 1):
            noise, kept, after = self.estimated_noise(y, step), self.kept[step], self.kept[step - 1]
            clean = ((y - (1 - kept).sqrt() * noise) / kept.sqrt()).clamp(-1, 1)
            y = after.sqrt() * clean + (1 - after).sqrt() * noise
        return self.classifier((y + 1) / 2)


class Ensemble(nn.Module):
    """Several networks whose logits are joined by a function."""

    def __init__(self, join, members: int = 2) -> None:
        super().__init__()
        self.members, self.join = nn.ModuleList(small_cnn() for _ in range(members)), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(torch.stack([member(x) for member in self.members]))


class Stacked(nn.Module):
    """An ensemble by vmap over the stacked weights of its members."""

    def __init__(self) -> None:
        super().__init__()
        members = [nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, CLASSES)) for _ in "abc"]
        weights, _ = stack_module_state(members)
        self.weights = nn.ParameterDict({k.replace(".", "_"): v for k, v in weights.items()})
        self.names, self.skeleton = list(weights), [copy.deepcopy(members[0])]

    def forward(self, x: Tensor) -> Tensor:
        weights = {name: self.weights[name.replace(".", "_")] for name in self.names}
        logits = torch.vmap(lambda w: functional_call(self.skeleton[0], w, (x,)))(weights)
        return logits.mean(0)


class Mixed(nn.Module):
    """MixedNUTS: logits normalised, clipped and raised to a power, then mixed as probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.accurate, self.robust = small_cnn(), small_cnn()

    def forward(self, x: Tensor) -> Tensor:
        z = F.layer_norm(self.robust(x), (CLASSES,)) + 0.2
        z = 2 * F.gelu(z).abs().pow(2.5) * z.sign()
        mixed = 0.4 * self.accurate(x).softmax(1) + 0.6 * z.softmax(1)
        return mixed.log()


class FlippedToo(nn.Module):
    """The mean of the logits of an image and of its mirror image."""

    def __init__(self) -> None:
        super().__init__()
        self.network = small_cnn()

    def forward(self, x: Tensor) -> Tensor:
        return (self.network(x) + self.network(x.flip(-1))) / 2


class SpatialTransformer(nn.Module):
    def __init__(self, *, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.locate = nn.Sequential(nn.Conv2d(3, 2, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 6))
        self.register_buffer("identity", torch.eye(2, 3))
        self.network = small_cnn()

    def forward(self, x: Tensor) -> Tensor:
        theta = self.identity + 0.1 * self.locate(x).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=self.align_corners)
        return self.network(F.grid_sample(x, grid, align_corners=self.align_corners))


class WinnersTakeAll(nn.Module):
    """k-WTA: only the largest fifth of the activations of a sample stays."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        least = flat.topk(flat.shape[1] // 5, dim=1)[0][:, -1:]
        return (flat * (flat >= least).to(x.dtype)).view(x.shape)


class MeanSparse(nn.Module):
    """What is near a channel's mean becomes that mean; a condition on a buffer comes before."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, values in (("mean", torch.rand(channels)), ("var", torch.rand(channels) + 0.1)):
            self.register_buffer(f"running_{name}", values)
        self.register_buffer("threshold", torch.tensor(0.4))

    def forward(self, x: Tensor) -> Tensor:
        if self.threshold == 0:
            return x
        mean = self.running_mean.view(1, -1, 1, 1)
        size = self.threshold * self.running_var.sqrt().view(1, -1, 1, 1)
        return torch.where(torch.abs(x - mean) < size, mean, x)


class SwishFunction(torch.autograd.Function):
    """RobustBench's memory-saving Swish."""

    @staticmethod
    def forward(ctx, x):
        result = x * torch.sigmoid(x)
        ctx.save_for_backward(x)
        return result

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * (s * (1 + x * (1 - s)))


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return SwishFunction.apply(x)


class ShiftedSiLU(nn.Module):
    """The parametric activation of RobustBench's PAF networks."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha, self.beta = (nn.Parameter(torch.tensor(v)) for v in (1.3, 0.2))

    def forward(self, x: Tensor) -> Tensor:
        beta = self.beta.clamp(0, 0.99)
        return x * (torch.sigmoid(self.alpha.abs() * x) - beta) / (1 - beta)


class VisualCortex(nn.Module):
    """VOneNet's front end: fixed Gabor filters, simple cells and complex ones."""

    def __init__(self) -> None:
        super().__init__()
        place = torch.linspace(-1, 1, 5)
        y, x = torch.meshgrid(place, place, indexing="ij")
        for name, phase in (("even", 0.0), ("odd", math.pi / 2)):
            filters = []
            for angle in (0.0, 0.8, 1.6):
                along = x * math.cos(angle) + y * math.sin(angle)
                filters.append(torch.exp(-(x**2) - y**2) * torch.cos(4 * along + phase))
            self.register_buffer(name, torch.stack(filters).unsqueeze(1).expand(3, 3, 5, 5) / 3)
        self.network = small_cnn(6)

    def forward(self, x: Tensor) -> Tensor:
        even, odd = (F.conv2d(x, weight, padding=2) for weight in (self.even, self.odd))
        cells = torch.sqrt((even**2 + odd**2) / 2 + 1e-6)
        return self.network(torch.cat([F.relu(even), cells], 1))


class BlurPool(nn.Module):
    """Anti-aliased pooling: a dense maximum, then a fixed blur with stride."""

    def __init__(self) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("kernel", (torch.outer(row, row) / 16).expand(4, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(x, 2, 1)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.kernel, None, 2, groups=4)


class Scattering(nn.Module):
    """Haar wavelets, their moduli, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        haar = torch.tensor([[[1, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]]]) / 2
        self.register_buffer("filters", haar.unsqueeze(1).repeat(3, 1, 1, 1))
        self.head = nn.Linear(96, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.filters, None, 2, groups=3).view(len(x), 3, 3, 4, 4)
        size = torch.hypot(y[:, :, 1], y[:, :, 2])
        return self.head(torch.cat([y[:, :, 0], size], 1).flatten(1))


def in_front(function):
    return settled(lambda: Before(function, small_cnn()))


def behind(layer: nn.Module, channels: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), layer, head(channels))


DEFENCES = {
    "bit depth, straight through": in_front(bit_depth),
    **{
        f"JPEG, {name}": settled(lambda rounded=rounded: Before(BlockwiseDCT(rounded), small_cnn()))
        for name, rounded in ROUNDINGS.items()
    },
    "Gaussian blur": in_front(blurred),
    "median filter": in_front(median_filtered),
    "total variation": in_front(without_variation),
    "resize, area": resized(size=12, mode="area"),
    "resize, nearest": resized(size=12, mode="nearest"),
    "resize, nearest-exact": resized(size=11, mode="nearest-exact"),
    "resize, bilinear": resized(size=11, mode="bilinear", align_corners=False),
    "resize, bicubic": resized(size=11, mode="bicubic", align_corners=False),
    "resize, antialiased": resized(size=5, mode="bilinear", antialias=True),
    "diffusion purification": settled(Purified),
    "spatial transformer": settled(lambda: SpatialTransformer(align_corners=True), 3, 9, 9),
    "flip average": settled(FlippedToo),
    "feature denoising": settled(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, 2), nn.ReLU(), Before(non_local_means, nn.Identity()), head(4)
        )
    ),
    "ensemble, DVERGE": settled(
        lambda: Ensemble(lambda z: z.softmax(-1).mean(0).clamp(min=1e-40).log())
    ),
    "ensemble, mean of softmax": settled(
        lambda: Ensemble(lambda z: torch.log(z.softmax(-1).mean(0)))
    ),
    "ensemble, logsumexp": settled(
        lambda: Ensemble(lambda z: z.log_softmax(-1).logsumexp(0) - math.log(len(z)))
    ),
    "ensemble, logits": settled(lambda: Ensemble(lambda z: z.mean(0), 3)),
    "ensemble, vmap": settled(Stacked, 6),
    "MixedNUTS": settled(Mixed),
    "k winners take all": settled(lambda: behind(WinnersTakeAll())),
    "MeanSparse": settled(lambda: behind(nn.Sequential(MeanSparse(4), nn.ReLU()))),
    "wide ResNet, own Swish": settled(lambda: WideResNet(Swish())),
    "parametric shifted SiLU": settled(lambda: behind(ShiftedSiLU())),
    "VOneNet": settled(VisualCortex),
    "BlurPool": settled(lambda: behind(nn.Sequential(nn.ReLU(), BlurPool()))),
    "scattering": settled(Scattering),
}
