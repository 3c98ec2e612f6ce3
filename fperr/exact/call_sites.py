"""Which module of a network calls which operation: for errors that name the culprit."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


def call_sites(model: nn.Module, x: Tensor) -> dict[str, list[str]]:
    """For each ATen operation of the forward pass at x, the innermost modules that call it.

    A module is given as its name in the model and its type, the model itself as its type; in order
    of execution. Operations of the backward pass are not among them.
    """
    watch = _Watch()
    handles = []
    for name, module in model.named_modules():
        label = f"{name} ({type(module).__name__})" if name else type(module).__name__
        handles += [
            module.register_forward_pre_hook(watch.entering(label)),
            module.register_forward_hook(watch.leaving),
        ]
    try:
        with torch.no_grad(), watch:
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return {operation: list(labels) for operation, labels in watch.modules_by_operation.items()}


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation with the module that is running."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.modules_by_operation: dict[str, dict[str, None]] = defaultdict(dict)
        self._running: list[str] = []

    def entering(self, label: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self._running.append(label)

        return enter

    def leaving(self, *_: Any) -> None:
        self._running.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for label in self._running[-1:]:
            self.modules_by_operation[str(func)][label] = None
        return func(*args, **(kwargs or {}))
