"""Hooks on a model that see every forward pass and every gradient, and change none of them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fperr import pass_origin
from fperr.networks.model import described_output, remedy_for_output

_FEWEST_CLASSES = 2
_MOST_OPEN = 1024  # forward passes that wait for a backward pass: older ones are given up


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """A forward pass that somebody may differentiate.

    Attributes:
        number: of the forward passes under gradient mode, from 0.
        logits: (batch, K), a copy.
        note: what the receiver made of its input.
        is_training: the model, or a part of it, was in training mode.
        autocast: the dtype of the autocast that it ran under; None: of none.
    """

    number: int
    logits: Tensor
    note: Any
    is_training: bool
    autocast: torch.dtype | None = None


@dataclass(frozen=True, slots=True)
class BackwardPass:
    """What one backward pass brought.

    Attributes:
        number: of the backward passes, from 0.
        of: the forward pass.
        logit_gradient: (batch, K), a copy.
        gradient: (batch, *shape), the attack's own tensor, to be copied or left alone; None where
            several forward passes of one input were differentiated together, for then it belongs
            to none of them. The passes of a second derivative count as further ones.
    """

    number: int
    of: ForwardPass
    logit_gradient: Tensor
    gradient: Tensor | None


@dataclass(slots=True)
class Counts:
    """What was seen: forward passes, with and without gradient mode, and gradients.

    Attributes:
        on_integers: the forward passes on an input that has no gradient.
    """

    forwards: int = 0
    on_integers: int = 0
    differentiable: int = 0
    gradients: int = 0


@dataclass(slots=True)
class _Open:
    """A forward pass whose backward passes are awaited."""

    known: ForwardPass
    x: Tensor
    pending: Tensor | None = None
    is_used: bool = False
    handles: list[RemovableHandle] = field(default_factory=list)

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


@contextmanager
def hooks_on(
    model: nn.Module,
    seen: Callable[[Tensor, bool], Any],
    received: Callable[[BackwardPass], None],
    pick: Callable[[Any], Any] | None = None,
) -> Iterator[Counts]:
    """Inside, the model's passes are reported; the tensors of the attack are left alone.

    A plain `Sequential` is watched at its ends, because some libraries call its children in turn.
    Copies of the model that are made inside report, too, until the end. Passes of other threads do
    not, because each thread records its own attack, nor those by which fperr looks at the model.

    Args:
        model: what the attack calls.
        seen: called after each forward pass with its input and whether it may be differentiated;
            what it returns becomes the pass's `note`.
        received: called in each backward pass that reaches logits and input.
        pick: takes the logits out of what the model returns; None: it returns them.

    Raises:
        ValueError: the first or last child of a `Sequential` occurs in it twice.
    """
    entrance, leaving = _ends(model)
    counts, waiting, inputs = Counts(), list[_Open](), list[Tensor]()
    is_over, owner = False, threading.get_ident()
    parts = tuple(model.modules())

    def is_recorded() -> bool:
        is_ours = threading.get_ident() == owner and not pass_origin.are_internal()
        return is_ours and not is_over

    # plain functions: a copy of the model, made by somebody inside, keeps reporting here
    def enter(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        if is_recorded():
            inputs[:] = arguments[:1]

    def leave(module: nn.Module, _: tuple[Any, ...], output: Any) -> None:
        if not is_recorded():
            return
        if not inputs or not isinstance(inputs[0], Tensor):
            raise ValueError(
                "the recorded model must be called as model(x), got "
                f"{[type(a).__name__ for a in inputs]}: record a module that is"
            )
        x = inputs.pop()
        output = _picked(output, len(x), pick)
        if torch._C._functorch.is_functorch_wrapped_tensor(x):
            raise ValueError("torch.func transforms cannot be recorded: use torch.autograd.grad")
        counts.forwards += 1
        counts.on_integers += not x.is_floating_point()
        for one in waiting:
            one.pending = None  # its backward pass ended before the input
        is_open = torch.is_grad_enabled() and x.requires_grad and output.requires_grad
        note = seen(x, is_open)
        if not is_open:
            return
        _forget(waiting)
        # a copy of the model has a mode of its own
        is_training = any(m.training for m in parts) or any(m.training for m in module.modules())
        known = ForwardPass(
            counts.differentiable, output.detach().clone(), note, is_training, _autocast(x)
        )
        counts.differentiable += 1
        entry = _Open(known, x)
        waiting.append(entry)
        entry.handles = [
            output.register_hook(lambda v: _pend(entry, v)),
            x.register_hook(lambda g: _emit(entry, g, waiting, counts, received)),
        ]

    enter.fperr_tap = leave.fperr_tap = True  # type: ignore[attr-defined]
    handles = [
        entrance.register_forward_pre_hook(enter, prepend=True),  # before others change the input
        leaving.register_forward_hook(leave),
    ]
    try:
        yield counts
    finally:
        is_over = True
        for handle in handles:
            handle.remove()
        for entry in waiting:
            entry.close()


def _autocast(x: Tensor) -> torch.dtype | None:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def without_hooks(model: nn.Module) -> nn.Module:
    """The model, a copy of a tapped one perhaps, without its taps."""
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [k for k, hook in hooks.items() if hasattr(hook, "fperr_tap")]:
                del hooks[key]
    return model


def _picked(output: Any, batch: int, pick: Callable[[Any], Any] | None) -> Tensor:
    """The logits in what the model returned: the very tensor that the attack goes on with.

    Raises:
        ValueError: they are not there, or made anew.
    """
    logits = check_output(output if pick is None else pick(output), batch)
    if pick is not None and pick(output) is not logits:
        raise ValueError(
            "logits= must pick a tensor that the model returns, because the attack's gradient "
            "passes through that one, and it computes a new one: record a module that returns it"
        )
    return logits


def check_output(output: Any, batch: int) -> Tensor:
    """The logits (batch, K).

    Raises:
        ValueError: they are none.
    """
    if not isinstance(output, Tensor):
        raise ValueError(
            f"the model must return logits (batch, K), got {described_output(output)}: "
            f"{remedy_for_output(output)}"
        )
    if output.ndim != 2 or len(output) != batch or output.shape[1] < _FEWEST_CLASSES:
        raise ValueError(
            "the model must return logits (batch, K) of at least 2 classes, got "
            f"{tuple(output.shape)} for {batch} samples: one decision for each sample is recorded, "
            "no map of them. Record a module that returns (batch, K)"
        )
    return output


def _ends(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Where input and logits are seen: the module itself, if it does more than its children."""
    is_plain = type(model).forward is nn.Sequential.forward
    hooks = [*model._forward_hooks.values(), *model._forward_pre_hooks.values()]
    if not is_plain or hooks or not isinstance(model, nn.Sequential) or not len(model):
        return model, model
    parts = [m for _, m in model.named_modules(remove_duplicate=False)]
    first, last = model[0], model[-1]
    if sum(m is first for m in parts) > 1 or sum(m is last for m in parts) > 1:
        raise ValueError(
            "the first or last module of the Sequential occurs in it twice, so its passes cannot "
            "be told apart: give the attack and the recorder a module that holds the Sequential"
        )
    return first, last


def _forget(waiting: list[_Open]) -> None:
    """Close what has been differentiated, and what has waited too long."""
    done = [e for e in waiting if e.is_used and e.pending is None]
    done += [e for e in waiting if e not in done][: -_MOST_OPEN + 1]
    for entry in done:
        entry.close()
    waiting[:] = [e for e in waiting if all(e is not d for d in done)]


def _pend(entry: _Open, v: Tensor) -> None:
    entry.pending = v.detach().clone()


def _emit(
    entry: _Open,
    g: Tensor,
    waiting: list[_Open],
    counts: Counts,
    received: Callable[[BackwardPass], None],
) -> None:
    """Report the passes of this input that the backward pass went through."""
    together = [e for e in waiting if e.x is entry.x and e.pending is not None]
    whole = g.detach() if len(together) == 1 else None
    for one in together:
        assert one.pending is not None
        received(BackwardPass(counts.gradients, one.known, one.pending, whole))
        counts.gradients += 1
        one.pending, one.is_used = None, True
