"""A guard of parameters: no optimiser may step on gradients that a repair has left in them."""

import sys
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.optim import Optimizer
from torch.optim import optimizer as optimizer_module
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

_COMPARED = 64  # entries of a gradient whose signs are kept
_OPTIMIZER_FILE = optimizer_module.__file__


class GradientGuard:
    """Refuses an optimiser's step on gradients of a repaired loss, also after the repair's end.

    A parameter is marked when such a gradient arrives, until another one arrives where there is
    none, or zeros. (That a gradient is let go cannot be observed: it must not be looked at from the
    callback of a weak reference, as PyTorch is still destroying it.)

    Args:
        message: What such a step is answered with.
    """

    def __init__(self, message: str) -> None:
        self._message = message
        # by the identity of a parameter, as tensors compare number by number
        self._watched: dict[int, _Watched] = {}
        self._pass = -1  # the number of the backward pass of the last repaired loss
        self._refusal: str | None = None  # of that pass, for any parameter
        self._is_open = True
        self._on_step: RemovableHandle | None = None
        self._watch_optimisers()

    def expect(self, parameters: Iterable[nn.Parameter], refusal: str | None) -> None:
        """Mark those of the parameters that the backward pass which is running comes to.

        It may run after the repair, and may leave parameters as they are.

        Args:
            parameters: Parameters that the loss depends on.
            refusal: What the gradient of a parameter is answered with; None: it is let through.

        Raises:
            RuntimeError: Later, in the pass: a gradient is refused.
        """
        self._pass, self._refusal = torch._C._current_graph_task_id(), refusal
        self._watch_optimisers()
        for parameter in parameters:
            if id(parameter) not in self._watched:
                self._watch(parameter)
        Variable._execution_engine.queue_callback(self._forget_unmarked)

    def end(self) -> None:
        """The repair is over; steps are refused as long as a parameter is marked."""
        self._is_open = False
        self._forget_unmarked()

    def _watch(self, parameter: nn.Parameter) -> None:
        key = id(parameter)
        owner = weakref.ref(parameter, lambda _: self._release(key))

        def arrives(_: Tensor) -> None:
            alive = owner()
            if alive is not None:
                self._arrives(alive)

        hooks = (
            parameter.register_hook(arrives),  # type: ignore[no-untyped-call]
            parameter.register_post_accumulate_grad_hook(self._is_added),  # type: ignore[no-untyped-call]
        )
        self._watched[key] = _Watched(owner, hooks)

    def _arrives(self, parameter: Tensor) -> None:
        """A gradient comes to a parameter, and is not yet added to its own."""
        watched = self._watched[id(parameter)]
        if torch._C._current_graph_task_id() != self._pass:  # of another loss
            if watched.is_marked and _has_gradient(parameter):
                watched.signs = None  # a mixture, whatever is added
            else:
                self._release(id(parameter))
            return
        if self._refusal is not None:
            raise RuntimeError(self._refusal)
        if any(parameter is p for optimiser in _at_work() for p in _parameters(optimiser)):
            raise RuntimeError(self._message)  # a closure: the step is about to be made
        watched.is_marked, watched.signs = True, None

    def _is_added(self, parameter: Tensor) -> None:
        """A gradient has been added to that of a parameter."""
        watched = self._watched.get(id(parameter))
        is_own = torch._C._current_graph_task_id() == self._pass
        if watched is not None and watched.is_marked and is_own and parameter.grad is not None:
            watched.signs = _signs(parameter.grad)

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        del args, kwargs
        marked = [
            (watched, parameter.grad)
            for parameter in _parameters(optimizer)
            if (watched := self._watched.get(id(parameter))) is not None
            and watched.is_marked
            and parameter.grad is not None
            and _has_gradient(parameter)
        ]
        # clipped, unscaled and copied gradients keep their signs; one that was put in by hand has
        # its own
        if marked and all(watched.may_be(gradient) for watched, gradient in marked):
            raise RuntimeError(self._message)

    def _forget_unmarked(self) -> None:
        for key in [key for key, watched in self._watched.items() if not watched.is_marked]:
            self._release(key)
        self._leave_optimisers_if_done()

    def _release(self, key: int) -> None:
        watched = self._watched.pop(key, None)
        if watched is not None:
            for hook in watched.hooks:
                hook.remove()
        self._leave_optimisers_if_done()

    def _watch_optimisers(self) -> None:
        if self._on_step is None:
            self._on_step = register_optimizer_step_pre_hook(self._before_step)

    def _leave_optimisers_if_done(self) -> None:
        if not self._is_open and not self._watched and self._on_step is not None:
            self._on_step.remove()
            self._on_step = None


@dataclass(slots=True)
class _Watched:
    """What is known of a parameter that a repaired loss depends on.

    Attributes:
        owner: The parameter.
        hooks: Hooks on gradients that arrive, and that were added.
        is_marked: Whether its gradient is one of a repaired loss.
        signs: Signs of the first entries of that gradient; None: anything counts as it.
    """

    owner: weakref.ref[nn.Parameter]
    hooks: tuple[RemovableHandle, ...]
    is_marked: bool = False
    signs: Tensor | None = None

    def may_be(self, gradient: Tensor) -> bool:
        """Whether a gradient may be the marked one, or a positive multiple of it."""
        return self.signs is None or torch.equal(self.signs, _signs(gradient))


def _at_work() -> list[Optimizer]:
    """The optimisers whose step has called the code that is running, in this thread."""
    found: list[Optimizer] = []
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == _OPTIMIZER_FILE:
            found += [
                value
                for value in (*frame.f_locals.get("args", ())[:1], frame.f_locals.get("self"))
                if isinstance(value, Optimizer)
            ]
        frame = frame.f_back  # type: ignore[assignment]
    return found


def _parameters(optimiser: Optimizer) -> list[Tensor]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _signs(gradient: Tensor) -> Tensor:
    dense = gradient.coalesce().values() if gradient.is_sparse else gradient
    return dense.detach().reshape(-1)[:_COMPARED].sign().to(torch.int8)


def _has_gradient(parameter: Tensor) -> bool:
    """Whether a parameter has a gradient other than zeros."""
    gradient = parameter.grad
    if gradient is None:
        return False
    return bool((gradient.coalesce().values() if gradient.is_sparse else gradient).any())
