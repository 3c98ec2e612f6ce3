"""Networks that are rightly refused, each with words of the sentence that says why."""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.makers.architectures.settled import CLASSES, Architecture, Before, settled, small_cnn
from tests.makers.architectures.wrapped import Checkpointed, scripted


class ActiveDropout(nn.Module):
    """Monte-Carlo dropout: active in evaluation, too."""

    def __init__(self) -> None:
        super().__init__()
        self.network = small_cnn()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(F.dropout(x, 0.5, training=True))


class SpectralLayer(nn.Module):
    """A layer of a Fourier neural operator."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, 3, 3, dtype=torch.cfloat))
        self.network = small_cnn()

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x)
        mixed = torch.zeros_like(spectrum)
        mixed[:, :, :3, :3] = torch.einsum("nixy,ioxy->noxy", spectrum[:, :, :3, :3], self.weight)
        return self.network(torch.fft.irfft2(mixed, s=x.shape[-2:]))


class Spectrogram(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(8))
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.stft(x, 8, 4, window=self.window, return_complex=True)
        return self.head(spectrum.abs().mean(2))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = small_cnn()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(2 * x if x.mean() > 0.5 else x)


class Selecting(nn.Module):
    """The mean of the bright pixels, however many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.stack([image[image > 0.5].mean() for image in x]).unsqueeze(1))


class InNumPy(nn.Module):
    """A part of the forward pass outside of PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.network = small_cnn()

    def forward(self, x: Tensor) -> Tensor:
        offset = torch.from_numpy(x.detach().numpy().mean((1, 2, 3), keepdims=True))
        return self.network(x - offset)


class BatchStatistics(nn.Module):
    """A defence by the statistics of the batch that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.network = small_cnn()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x - x.mean(0))


def quantised() -> tuple[nn.Module, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the whole module is deprecated, for torchao
        model, x = settled(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), 6)()
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}).eval(), x


def training() -> tuple[nn.Module, Tensor]:
    model, x = settled(small_cnn)()
    return model.train(), x


def scripted_branch() -> tuple[nn.Module, Tensor]:
    model, x = settled(Branching)()
    return scripted(model), x


def in_front(function) -> Architecture:
    return settled(lambda: Before(function, small_cnn()))


_COMPLEX = "complex numbers, as of a Fourier transform"

REFUSED = {
    "Monte-Carlo dropout": (
        settled(ActiveDropout),
        "two runs of the model on the same batch differ: it depends on randomness",
    ),
    "randomised smoothing": (
        in_front(lambda x: x + 0.25 * torch.randn_like(x)),
        "two runs of the model on the same batch differ: it depends on randomness",
    ),
    "dynamic quantisation": (quantised, "quantized.linear_dynamic"),
    "Fourier magnitude": (
        in_front(lambda x: torch.fft.fft2(x).abs()),
        f"aten._fft_c2c.default ({_COMPLEX}) in Before, refused.py:",
    ),
    "Fourier mixing, FNet": (
        in_front(lambda x: torch.fft.fft2(x).real),
        f"aten._fft_c2c.default ({_COMPLEX}) in Before, refused.py:",
    ),
    "Fourier neural operator": (
        settled(SpectralLayer),
        f"aten._fft_r2c.default ({_COMPLEX}) in SpectralLayer, refused.py:",
    ),
    "spectrogram": (
        settled(Spectrogram, 32),
        f"aten._fft_r2c.default ({_COMPLEX}) in Spectrogram, refused.py:",
    ),
    "branch on the data": (
        settled(Branching),
        "it takes a number out of a tensor that depends on x",
    ),
    "selection by the data": (
        settled(Selecting),
        "how many entries it selects depends on the data",
    ),
    "NumPy": (settled(InNumPy), "numbers that leave PyTorch, as for NumPy"),
    "batch statistics": (settled(BatchStatistics), "the model depends on the batch"),
    "training mode": (training, "the model must be in evaluation mode"),
    "TorchScript, branch on the data": (
        scripted_branch,
        "it takes a number out of a tensor that depends on x",
    ),
    "reentrant checkpoint": (
        settled(lambda: Checkpointed(use_reentrant=True)),
        "set use_reentrant=False",
    ),
}
