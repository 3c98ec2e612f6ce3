"""Networks that run in another way: wrappers, half formats, checkpoints, hooks, memory formats."""

import io
import warnings

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from tests.makers.architectures.settled import Architecture, settled, small_cnn


class Autocast(nn.Module):
    """bfloat16 inside forward, by autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.network = small_cnn()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.network(x)
        return y.to(x.dtype)


class Checkpointed(nn.Module):
    """Its first half is computed again in the backward pass."""

    def __init__(self, *, use_reentrant: bool) -> None:
        super().__init__()
        self.network, self.use_reentrant = small_cnn(), use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.network(x)
        y = checkpoint(self.network[:4], x, use_reentrant=self.use_reentrant)
        return self.network[4:](y)


class Functional(nn.Module):
    """Called with its weights as arguments, each times 1.5."""

    def __init__(self) -> None:
        super().__init__()
        self.network = small_cnn()

    def forward(self, x: Tensor) -> Tensor:
        weights = {name: 1.5 * value for name, value in self.network.named_parameters()}
        return functional_call(self.network, weights, (x,))


def hooked() -> nn.Module:
    """Hooks on its backward pass, as Grad-CAM has them, and one on its forward pass."""
    model = small_cnn()
    model[0].register_full_backward_hook(lambda module, inputs, outputs: None)
    model[4].register_full_backward_hook(lambda module, inputs, outputs: (2 * inputs[0],))
    model[2].register_forward_hook(lambda module, inputs, output: output + 0.1)
    return model


class InPlace(nn.Module):
    """Changes in place of slices, masks and views of an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.network = small_cnn()

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, 1:, 2:4] *= 2
        y[y > 0.875] = 0.875
        y[:, 0].add_(0.1)
        return self.network(y)


class GradientInside(nn.Module):
    """Its features are the gradient of a score with respect to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        slope = torch.func.grad(lambda point: self.score(point).sum())(x)
        return self.head(slope)


def in_dtype(dtype: torch.dtype) -> Architecture:
    def build() -> tuple[nn.Module, Tensor]:
        model, x = settled(small_cnn)()
        return model.to(dtype), x.to(dtype)

    return build


def channels_last() -> tuple[nn.Module, Tensor]:
    model, x = settled(small_cnn)()
    last = torch.channels_last
    return model.to(memory_format=last), x.to(memory_format=last)


def compiled() -> tuple[nn.Module, Tensor]:
    model, x = settled(small_cnn)()
    return torch.compile(model, backend="aot_eager"), x


def traced() -> tuple[nn.Module, Tensor]:
    model, x = settled(small_cnn)()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.trace(model, x), x


def scripted(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(model)


def read_from_torchscript() -> tuple[nn.Module, Tensor]:
    model, x = settled(small_cnn)()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(model), file)
        file.seek(0)
        return torch.jit.load(file), x


WRAPPED = {
    "autocast inside": settled(Autocast),
    "bfloat16": in_dtype(torch.bfloat16),
    "float16": in_dtype(torch.float16),
    "float64": in_dtype(torch.float64),
    "channels last": channels_last,
    "compiled": compiled,
    "DataParallel": settled(lambda: nn.DataParallel(small_cnn())),
    "TorchScript, traced": traced,
    "TorchScript, scripted and read from a file": read_from_torchscript,
    "checkpointed": settled(lambda: Checkpointed(use_reentrant=False)),
    "functional call": settled(Functional),
    "hooks": settled(hooked),
    "changes in place": settled(InPlace),
    "gradient inside": settled(GradientInside, 6),
}
