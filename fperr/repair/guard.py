"""A guard of parameters: no optimiser may step on gradients that a repair has left in them."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle


def leaves(output: Tensor) -> tuple[list[nn.Parameter], bool]:
    """The parameters that a tensor depends on, and whether it depends on any other leaf."""
    parameters, has_other = list[nn.Parameter](), False
    if output.grad_fn is None:
        return parameters, output.requires_grad and not isinstance(output, nn.Parameter)
    seen, waiting = {output.grad_fn}, [output.grad_fn]
    while waiting:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, nn.Parameter):
            parameters.append(leaf)
        elif isinstance(leaf, Tensor):
            has_other = True
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return parameters, has_other


class GradientGuard:
    """Refuses an optimiser's step on gradients of a repaired loss, also after the repair's end.

    Args:
        message: What such a step is answered with.
    """

    def __init__(self, message: str) -> None:
        self._message = message
        # by the identity of a parameter, as tensors compare number by number: the parameter, and
        # the gradient that a repaired loss was added to
        self._noted: dict[int, tuple[weakref.ref[Tensor], weakref.ref[Tensor]]] = {}
        self._hooks: dict[int, RemovableHandle] = {}
        self._on_step: RemovableHandle | None = register_optimizer_step_pre_hook(self._before_step)

    def watch(self, parameters: Iterable[nn.Parameter]) -> None:
        """Note the gradients that these parameters are about to get."""
        for parameter in parameters:
            if id(parameter) not in self._hooks:
                add = parameter.register_post_accumulate_grad_hook
                self._hooks[id(parameter)] = add(self._note)  # type: ignore[no-untyped-call]

    def end(self) -> None:
        """Note no more gradients; steps are refused as long as one of those noted is there."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()
        self._remove_if_done()

    def _note(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._noted[id(parameter)] = (
            weakref.ref(parameter),
            weakref.ref(parameter.grad, self._on_release),
        )

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        del args, kwargs
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                noted = self._noted.get(id(parameter))
                if noted is not None and _is_there(*noted):
                    raise RuntimeError(self._message)

    def _on_release(self, gradient: weakref.ref[Tensor]) -> None:
        """A noted gradient is gone: never while an optimiser walks through its hooks."""
        del gradient
        self._remove_if_done()

    def _remove_if_done(self) -> None:
        """Remove the hook on optimisers once no noted gradient is left in a parameter."""
        self._noted = {key: noted for key, noted in self._noted.items() if _is_there(*noted)}
        if not self._noted and not self._hooks and self._on_step is not None:
            self._on_step.remove()
            self._on_step = None


def _is_there(parameter: weakref.ref[Tensor], gradient: weakref.ref[Tensor]) -> bool:
    """Whether a parameter still has that gradient."""
    alive, noted = parameter(), gradient()
    return alive is not None and noted is not None and alive.grad is noted


def is_tracked(output: Tensor) -> bool:
    """Whether a gradient may flow back from a tensor."""
    return output.requires_grad and torch.is_grad_enabled()
