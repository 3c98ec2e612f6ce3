"""Any user's model, made usable or refused: unwrapped, in evaluation mode, returning logits."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fperr import checks
from fperr.kernel_switches import mathematical_attention
from fperr.networks.in_format import copied, device_and_dtype

Accessor = Callable[[Any], Tensor]


class OutputError(ValueError):
    """The model's output holds no logits where they were said to be."""


class LogitsOf(nn.Module):
    """A model whose output holds the logits somewhere.

    Args:
        model: any module.
        where: a function of its output, a name (a key of a mapping, an attribute), or an index
            into a tuple or list.
    """

    def __init__(self, model: nn.Module, where: Accessor | str | int) -> None:
        super().__init__()
        self.model = model
        self.where = where
        self.training = False  # the model's own mode is left as it is

    def forward(self, x: Tensor) -> Tensor:
        """The logits at x.

        Raises:
            OutputError: the output has nothing there.
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
        """Where the logits are; a function by its name."""
        where = self.where
        return (
            f"logits={getattr(where, '__qualname__', type(where).__name__)}"
            if callable(where)
            else f"logits={where!r}"
        )


def described_output(output: object) -> str:
    """What a model returned, in words: its type, and the names or number of its parts."""
    kind = type(output).__name__
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)}"
    names = _names_of_parts(output)
    if names:
        return f"{kind} with {', '.join(map(repr, names))}"
    return f"{kind} of {len(output)}" if isinstance(output, Sequence) else kind


def remedy_for_output(output: object) -> str:
    """How to say where the logits are in such an output."""
    if isinstance(output, Tensor):
        return "leave logits= out"
    if output is None:
        return "give a model whose forward returns its logits"
    names = _names_of_parts(output)
    if names:
        likely = next((name for name in names if "logit" in name.lower()), names[0])
        return f"say where the logits are, e.g. logits={likely!r}"
    if isinstance(output, Sequence):
        tensors = [i for i, part in enumerate(output) if isinstance(part, Tensor)]
        return f"say where the logits are, e.g. logits={tensors[0] if tensors else 0}"
    return "say where the logits are, e.g. logits=lambda output: output.scores"


def _names_of_parts(output: object) -> list[str]:
    """The names under which an output holds tensors."""
    if isinstance(output, Mapping):
        return [key for key in output if isinstance(key, str)]
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return list(output._fields)
    if dataclasses.is_dataclass(output):
        return [field.name for field in dataclasses.fields(output)]
    if isinstance(output, Sequence) or not hasattr(output, "__dict__"):
        return []
    return [name for name, part in vars(output).items() if isinstance(part, Tensor)]


def usable_model(
    model: nn.Module, device: str | torch.device | None, logits: Accessor | str | int | None
) -> nn.Module:
    """The model as it will be measured; the original is not changed.

    Args:
        model: any module; one from `torch.compile` is unwrapped.
        device: where it shall run: copied there if it is elsewhere; None: where it is.
        logits: where the logits are in what the model returns, see `LogitsOf`.

    Raises:
        TypeError: not a module, or TorchScript; or logits= is no function, name or index.
        ValueError: training mode, several dtypes or devices, or weights that are not finite.
    """
    if logits is not None and (
        isinstance(logits, bool) or not (callable(logits) or isinstance(logits, str | int))
    ):
        raise TypeError(
            "logits must be a name, an index or a function of the output, got "
            f"{checks.shown(logits)}: give one of them, e.g. 'logits', 0, or a lambda"
        )
    plain = checks.model("model", model)
    where, _ = device_and_dtype(plain)
    if device is not None and _usable_device(device) != where:
        plain = copied(plain).to(device)
    return plain if logits is None else LogitsOf(plain, logits)


def _usable_device(device: str | torch.device) -> torch.device:
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as fault:
        raise ValueError(
            f"device={device!r} is no device of PyTorch: use 'cpu', 'cuda' or 'cuda:0'"
        ) from fault
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={str(device)!r}, but there is no CUDA device: use device='cpu'")
    if wanted.type == "meta":
        raise ValueError("device='meta' computes nothing: use device='cpu'")
    return wanted


def multiply_adds(model: nn.Module, x: Tensor) -> int:
    """The multiply-adds of the products in one forward pass at x."""
    with torch.no_grad(), mathematical_attention(), FlopCounterMode(display=False) as counter:
        model(x)
    return int(counter.get_total_flops()) // 2
