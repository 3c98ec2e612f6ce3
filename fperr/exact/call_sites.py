"""Call sites: which modules of a network call an operation, for errors that name them."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


def call_sites(model: nn.Module, x: Tensor) -> dict[str, list[str]]:
    """Record the innermost modules that call each ATen operation of the forward pass at x.

    Modules are listed in order of execution, as name and type: `"0.1 (ReLU)"`; the model itself as
    its type. Operations of the backward pass alone are missing.
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
    """Records every operation with the module that is running."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.modules_by_operation: dict[str, dict[str, None]] = defaultdict(dict)
        self._running: list[str] = []

    def entering(self, label: str) -> Callable[..., None]:
        def enter(*_: object) -> None:
            self._running.append(label)

        return enter

    def leaving(self, *_: object) -> None:
        self._running.pop()

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        for label in self._running[-1:]:
            self.modules_by_operation[str(func)][label] = None
        return func(*args, **(kwargs or {}))
