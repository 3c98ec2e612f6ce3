"""Any user's model, made usable or refused: unwrapped, in evaluation mode, returning logits."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fperr import checks
from fperr.networks.in_format import copied, device_and_dtype

Accessor = Callable[[Any], Tensor]


class OutputError(ValueError):
    """The model's output holds no logits at the position that `logits=` names."""


class LogitsOf(nn.Module):
    """A model that takes the logits out of another model's output.

    Args:
        model: Any module.
        where: Position of the logits in its output: a name (a key of a mapping, or an attribute),
            an index into a tuple or list, or a function of the output.
    """

    def __init__(self, model: nn.Module, where: Accessor | str | int) -> None:
        super().__init__()
        self.model = model
        self.where = where
        self.training = False  # the mode of the model inside is not changed

    def forward(self, x: Tensor) -> Tensor:
        """The logits at x.

        Raises:
            OutputError: the output has no tensor at this position.
        """
        output = self.model(x)
        if callable(self.where):
            try:
                return self.where(output)
            except (AttributeError, IndexError, KeyError, TypeError) as fault:
                raise OutputError(
                    "the function logits= fails on the model's output, "
                    f"{described_output(output)}, with {type(fault).__name__}: {fault}: "
                    f"{remedy_for_output(output)}"
                ) from fault
        if isinstance(self.where, int):
            is_there = isinstance(output, Sequence) and self.where in range(
                -len(output), len(output)
            )
            picked = output[self.where] if is_there else None
        elif isinstance(output, Mapping):
            picked = output.get(self.where)
        else:
            picked = getattr(output, self.where, None)
        if not isinstance(picked, Tensor):
            raise OutputError(
                f"the model's output, {described_output(output)}, has no tensor at "
                f"logits={self.where!r}: {remedy_for_output(output)}"
            )
        return picked

    def extra_repr(self) -> str:
        """The position of the logits; a function by its name."""
        where = self.where
        return (
            f"logits={getattr(where, '__qualname__', type(where).__name__)}"
            if callable(where)
            else f"logits={where!r}"
        )


def described_output(output: object) -> str:
    """Describe what a model returned: its type, and the names or the number of its entries."""
    kind = type(output).__name__
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)}"
    names = _tensor_names(output)
    if names:
        return f"{kind} with {', '.join(map(repr, names))}"
    return f"{kind} of {len(output)}" if isinstance(output, Sequence) else kind


def remedy_for_output(output: object) -> str:
    """The advice how to say where the logits are in such an output."""
    if isinstance(output, Tensor):
        return "leave logits= out"
    if output is None:
        return "give a model whose forward returns its logits"
    names = _tensor_names(output)
    if names:
        likely = next((name for name in names if "logit" in name.lower()), names[0])
        return f"say where the logits are, e.g. logits={likely!r}"
    if isinstance(output, Sequence):
        tensors = [i for i, value in enumerate(output) if isinstance(value, Tensor)]
        return f"say where the logits are, e.g. logits={tensors[0] if tensors else 0}"
    return "say where the logits are, e.g. logits=lambda output: output.scores"


def _tensor_names(output: object) -> list[str]:
    """The names under which an output holds tensors."""
    if isinstance(output, Mapping):
        return [key for key in output if isinstance(key, str)]
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return list(output._fields)
    if dataclasses.is_dataclass(output):
        return [field.name for field in dataclasses.fields(output)]
    if isinstance(output, Sequence) or not hasattr(output, "__dict__"):
        return []
    return [name for name, value in vars(output).items() if isinstance(value, Tensor)]


def usable_model(
    model: nn.Module, device: str | torch.device | None, logits: Accessor | str | int | None
) -> nn.Module:
    """The model as it will be measured; the original is not changed.

    Args:
        model: Any module; one from `torch.compile` is unwrapped.
        device: Device to run on, or `"auto"`; the model is copied there if it is elsewhere. None:
            the model's own device.
        logits: Position of the logits in the model's output, see `LogitsOf`.

    Raises:
        TypeError: the model is no module; or logits= is no function, name or index.
        ValueError: the model is in training mode, has several dtypes or devices, or weights that
            are not finite.
    """
    if logits is not None and (
        isinstance(logits, bool) or not (callable(logits) or isinstance(logits, str | int))
    ):
        raise TypeError(
            "logits must be a name, an index or a function of the output, got "
            f"{checks.shown(logits)}: give one of them, e.g. 'logits', 0, or a lambda"
        )
    plain = checks.model("model", model)
    present, _ = device_and_dtype(plain)
    if device is not None:
        chosen = usable_device(device)
        if chosen != present:
            plain = copied(plain).to(chosen)
    return plain if logits is None else LogitsOf(plain, logits)


def usable_device(device: str | torch.device) -> torch.device:
    """The device, checked to exist and to compute; `"auto"` is CUDA where there is a card.

    Raises:
        ValueError: It is no device, or not here, or has no float64.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        usable = torch.device(device)
    except (RuntimeError, TypeError) as fault:
        raise ValueError(
            f"device={device!r} is no device of PyTorch: use 'cpu', 'cuda', 'cuda:0' or 'auto'"
        ) from fault
    if usable.type == "mps":
        raise ValueError(
            "device='mps' has no float64, in which gradients are compared: use device='cpu'"
        )
    if usable.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={str(device)!r}, but there is no CUDA device: use device='cpu'")
    if usable.type == "meta":
        raise ValueError("device='meta' computes nothing: use device='cpu'")
    return usable
