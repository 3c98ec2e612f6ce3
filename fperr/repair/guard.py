"""A guard of parameters: no optimiser may step on gradients that a repair has left in them."""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.autograd import Variable
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle


class GradientGuard:
    """Refuses an optimiser's step on gradients of a repaired loss, also after the repair's end.

    A parameter is marked when such a gradient is added to its own, until another gradient arrives
    where there is none, or zeros. (That a gradient is let go cannot be observed: it must not be
    looked at from the callback of a weak reference, as PyTorch is still destroying it.)

    Args:
        message: What such a step is answered with.
    """

    def __init__(self, message: str) -> None:
        self._message = message
        # by the identity of a parameter, as tensors compare number by number
        self._expected: dict[int, RemovableHandle] = {}
        self._marked: dict[int, _Mark] = {}
        self._stepped_on: set[int] = set()
        self._is_open = True
        self._on_step: list[RemovableHandle] = []
        self._watch_optimisers()

    def expect(self, parameters: Iterable[nn.Parameter]) -> None:
        """Mark those of the parameters that the backward pass which is running adds gradients to.

        A backward pass may run after the repair, and may leave parameters as they are.
        """
        for parameter in parameters:
            if id(parameter) not in self._expected:
                add = parameter.register_post_accumulate_grad_hook
                self._expected[id(parameter)] = add(self._mark)  # type: ignore[no-untyped-call]
        Variable._execution_engine.queue_callback(self._expect_no_more)

    def end(self) -> None:
        """The repair is over; steps are refused as long as a parameter is marked."""
        self._is_open = False
        self._stepped_on.clear()
        self._expect_no_more()
        self._leave_optimisers_if_done()

    def _expect_no_more(self) -> None:
        for hook in self._expected.values():
            hook.remove()
        self._expected.clear()

    def _mark(self, parameter: Tensor) -> None:
        key = id(parameter)
        if key in self._stepped_on:  # by an optimiser's closure: the step is about to be made
            self._stepped_on.clear()
            raise RuntimeError(self._message)
        if parameter.grad is None or key in self._marked:
            return
        self._watch_optimisers()
        owner = weakref.ref(parameter, lambda _: self._release(key))

        def release_if_new(_: Tensor) -> None:
            alive = owner()
            if alive is None or not _has_gradient(alive):
                self._release(key)

        on_gradient = parameter.register_hook(release_if_new)  # type: ignore[no-untyped-call]
        self._marked[key] = _Mark(owner, on_gradient)

    def _release(self, key: int) -> None:
        mark = self._marked.pop(key, None)
        if mark is not None:
            mark.on_gradient.remove()
        self._leave_optimisers_if_done()

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        del args, kwargs
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if any(id(p) in self._marked and _has_gradient(p) for p in parameters):
            raise RuntimeError(self._message)
        if self._is_open:
            self._stepped_on = {id(p) for p in parameters}

    def _after_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        del optimizer, args, kwargs
        self._stepped_on.clear()

    def _watch_optimisers(self) -> None:
        if not self._on_step:
            self._on_step = [
                register_optimizer_step_pre_hook(self._before_step),
                register_optimizer_step_post_hook(self._after_step),
            ]

    def _leave_optimisers_if_done(self) -> None:
        if self._is_open or self._marked:
            return
        for hook in self._on_step:
            hook.remove()
        self._on_step = []


@dataclass(frozen=True, slots=True)
class _Mark:
    """What is known of a parameter with a gradient of a repaired loss.

    Attributes:
        owner: The parameter; a callback takes the mark away with it.
        on_gradient: A hook on the next gradients that arrive, which does so if they start anew.
    """

    owner: weakref.ref[Tensor]
    on_gradient: RemovableHandle


def _has_gradient(parameter: Tensor) -> bool:
    """Whether a parameter has a gradient other than zeros."""
    gradient = parameter.grad
    if gradient is None:
        return False
    return bool((gradient.coalesce().values() if gradient.is_sparse else gradient).any())
