"""Hooks on a model that report every forward pass and every gradient, and change none of them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fperr import pass_origin
from fperr.emulated_kernels import emulated_format
from fperr.formats import Format, of_dtype
from fperr.networks.model import described_output, remedy_for_output

_FEWEST_CLASSES = 2
_MOST_PENDING = 1024  # forward passes that wait for a backward pass: older ones are given up


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """A forward pass that may be differentiated.

    Attributes:
        number: Number of the pass among those under gradient mode, from 0.
        logits: (batch, K), a copy.
        note: Value that `on_forward` returned for this pass.
        is_training: Whether the model, or a module of it, was in training mode.
        autocast: Dtype of the autocast that the pass ran under; None: it ran under none.
        emulated: Format whose kernels were emulated; None: the device's own ran.
    """

    number: int
    logits: Tensor
    note: Any
    is_training: bool
    autocast: torch.dtype | None = None
    emulated: Format | None = None

    @property
    def format(self) -> Format:
        """The format that the pass ran in, by its logits."""
        return self.emulated or of_dtype(self.logits.dtype)


@dataclass(frozen=True, slots=True)
class BackwardPass:
    """The gradients that one backward pass brought.

    Attributes:
        number: Number of the backward pass, from 0.
        forward: Forward pass that was differentiated.
        logit_gradient: (batch, K), dL/dz, a copy.
        gradient: (batch, *shape), dL/dx, the attack's own tensor, to be copied or left alone; None
            where several forward passes of one input were differentiated together, for then it
            belongs to none of them. The passes of a second derivative count as further ones.
    """

    number: int
    forward: ForwardPass
    logit_gradient: Tensor
    gradient: Tensor | None


@dataclass(slots=True)
class PassCounts:
    """Counts of the recorded passes.

    Attributes:
        forwards: Number of forward passes.
        on_integers: Number of forward passes on an input of integers, which has no gradient.
        differentiable: Number of forward passes that may be differentiated.
        gradients: Number of backward passes.
    """

    forwards: int = 0
    on_integers: int = 0
    differentiable: int = 0
    gradients: int = 0


@dataclass(slots=True)
class _PendingPass:
    """A forward pass whose backward passes are awaited.

    Attributes:
        forward: The pass as it is reported.
        x: Input of the pass, the attack's own tensor.
        logit_gradient: dL/dz of a backward pass that has reached the logits and not the input yet.
        is_differentiated: Whether a backward pass has been reported.
        handles: Handles of the hooks on logits and input.
    """

    forward: ForwardPass
    x: Tensor
    logit_gradient: Tensor | None = None
    is_differentiated: bool = False
    handles: list[RemovableHandle] = field(default_factory=list)

    def close(self) -> None:
        """Remove the hooks from logits and input."""
        for handle in self.handles:
            handle.remove()


@contextmanager
def hooks_on(
    model: nn.Module,
    on_forward: Callable[[Tensor, bool], Any],
    on_backward: Callable[[BackwardPass], None],
    pick_logits: Callable[[Any], Any] | None = None,
) -> Iterator[PassCounts]:
    """Report the model's passes inside the context, and leave the attack's tensors alone.

    A plain `Sequential` is watched at its ends, because some libraries call its children in turn.
    Copies of the model that are made inside report, too, until the end. Passes of other threads do
    not, because each thread records its own attack, nor those by which fperr looks at the model.

    Args:
        model: Model that the attack calls.
        on_forward: Function called after each forward pass with its input and whether it may be
            differentiated; the value that it returns becomes the pass's `note`.
        on_backward: Function called in each backward pass that reaches logits and input.
        pick_logits: Function that takes the logits out of what the model returns; None: the model
            returns them.

    Yields:
        Counts of the passes, which grow as the attack goes.

    Raises:
        ValueError: the first or last child of a `Sequential` occurs in it twice.
    """
    input_module, output_module = _input_and_output_modules(model)
    counts, pending, inputs = PassCounts(), list[_PendingPass](), list[Tensor]()
    is_over, owner = False, threading.get_ident()
    modules = tuple(model.modules())

    def is_recorded() -> bool:
        is_ours = threading.get_ident() == owner and not pass_origin.are_internal()
        return is_ours and not is_over

    # plain functions: a copy of the model, made by somebody inside, keeps reporting here
    def before_forward(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        if is_recorded():
            inputs[:] = arguments[:1]

    def after_forward(module: nn.Module, _: tuple[Any, ...], output: Any) -> None:
        if not is_recorded():
            return
        if not inputs or not isinstance(inputs[0], Tensor):
            raise ValueError(
                "the recorded model must be called as model(x), got "
                f"{[type(a).__name__ for a in inputs]}: record a module that is"
            )
        x = inputs.pop()
        output = _picked_logits(output, len(x), pick_logits)
        if torch._C._functorch.is_functorch_wrapped_tensor(x):
            raise ValueError("torch.func transforms cannot be recorded: use torch.autograd.grad")
        counts.forwards += 1
        counts.on_integers += not x.is_floating_point()
        for earlier in pending:
            earlier.logit_gradient = None  # its backward pass ended before the input
        is_differentiable = torch.is_grad_enabled() and x.requires_grad and output.requires_grad
        note = on_forward(x, is_differentiable)
        if not is_differentiable:
            return
        _close_old(pending)
        # a copy of the model has a mode of its own
        is_training = any(m.training for m in modules) or any(m.training for m in module.modules())
        forward = ForwardPass(
            counts.differentiable,
            output.detach().clone(),
            note,
            is_training,
            _autocast_dtype(x),
            emulated_format(),
        )
        counts.differentiable += 1
        entry = _PendingPass(forward, x)
        pending.append(entry)
        entry.handles = [
            output.register_hook(lambda v: _keep_logit_gradient(entry, v)),
            x.register_hook(lambda g: _report(entry, g, pending, counts, on_backward)),
        ]

    before_forward.is_fperr_hook = after_forward.is_fperr_hook = True  # type: ignore[attr-defined]
    handles = [
        # before other hooks change the input
        input_module.register_forward_pre_hook(before_forward, prepend=True),
        output_module.register_forward_hook(after_forward),
    ]
    try:
        yield counts
    finally:
        is_over = True
        for handle in handles:
            handle.remove()
        for entry in pending:
            entry.close()


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def without_hooks(model: nn.Module) -> nn.Module:
    """The same model, a copy of a recorded one perhaps, after the recorder's hooks are removed."""
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [k for k, hook in hooks.items() if hasattr(hook, "is_fperr_hook")]:
                del hooks[key]
    return model


def _picked_logits(output: Any, batch: int, pick_logits: Callable[[Any], Any] | None) -> Tensor:
    """The logits in what the model returned: the very tensor that the attack goes on with.

    Raises:
        ValueError: they are not there, or `pick_logits` makes a new tensor.
    """
    logits = check_output(output if pick_logits is None else pick_logits(output), batch)
    if pick_logits is not None and pick_logits(output) is not logits:
        raise ValueError(
            "logits= must pick a tensor that the model returns, because the attack's gradient "
            "passes through that one, and it computes a new one: record a module that returns it"
        )
    return logits


def check_output(output: Any, batch: int) -> Tensor:
    """Check that a model's output is logits (batch, K), and return it.

    Raises:
        ValueError: it is not.
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


def _input_and_output_modules(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The modules whose input is x and whose output is the logits.

    Both are the model itself, unless it is a plain `Sequential`, which does no more than its
    children.
    """
    is_plain = type(model).forward is nn.Sequential.forward
    hooks = [*model._forward_hooks.values(), *model._forward_pre_hooks.values()]
    if not is_plain or hooks or not isinstance(model, nn.Sequential) or not len(model):
        return model, model
    modules = [m for _, m in model.named_modules(remove_duplicate=False)]
    first, last = model[0], model[-1]
    if sum(m is first for m in modules) > 1 or sum(m is last for m in modules) > 1:
        raise ValueError(
            "the first or last module of the Sequential occurs in it twice, so its passes cannot "
            "be told apart: give the attack and the recorder a module that holds the Sequential"
        )
    return first, last


def _close_old(pending: list[_PendingPass]) -> None:
    """Close the passes that have been differentiated, and those that have waited too long."""
    closed = [p for p in pending if p.is_differentiated and p.logit_gradient is None]
    # one fewer than the most, because a pass is about to be added
    closed += [p for p in pending if p not in closed][: -_MOST_PENDING + 1]
    for entry in closed:
        entry.close()
    pending[:] = [p for p in pending if all(p is not entry for entry in closed)]


def _keep_logit_gradient(entry: _PendingPass, v: Tensor) -> None:
    entry.logit_gradient = v.detach().clone()


def _report(
    entry: _PendingPass,
    g: Tensor,
    pending: list[_PendingPass],
    counts: PassCounts,
    on_backward: Callable[[BackwardPass], None],
) -> None:
    """Report the passes of this input that the backward pass went through.

    Args:
        entry: Pass whose input the gradient belongs to.
        g: (batch, *shape), dL/dx.
        pending: Forward passes whose backward passes are awaited.
        counts: Counts of the passes.
        on_backward: Function called with each pass.
    """
    together = [p for p in pending if p.x is entry.x and p.logit_gradient is not None]
    gradient = g.detach() if len(together) == 1 else None
    for differentiated in together:
        v = differentiated.logit_gradient
        assert v is not None
        on_backward(BackwardPass(counts.gradients, differentiated.forward, v, gradient))
        counts.gradients += 1
        differentiated.logit_gradient, differentiated.is_differentiated = None, True
