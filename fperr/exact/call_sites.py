"""Call sites: which modules of a network call an operation, for errors and reports."""

import contextlib
import difflib
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

_OPERATION = "aten."


@dataclass(frozen=True, slots=True)
class Call:
    """An ATen operation that a network ran.

    Attributes:
        operation: Name with overload, e.g. `"aten.relu.default"`.
        shape: Shape of its result; None if that is no tensor.
        module: Name of the innermost module that ran it; "" is the network, None is unknown.
        kind: Type of the module.
        is_leaf: Whether the module has no others within.
        line: File and line of the innermost call outside of PyTorch, if it was asked for.
    """

    operation: str
    shape: tuple[int, ...] | None
    module: str | None
    kind: str
    is_leaf: bool
    line: str | None = None

    @property
    def layer(self) -> str:
        """The module's name if nothing is within, else the operation's within the module."""
        operation = _plain(self.operation).strip("_")
        if not self.module:
            return operation
        if not self.is_leaf:
            return f"{self.module}.{operation}"
        is_numbered = self.module.rpartition(".")[2].isdigit()
        return f"{self.module} ({self.kind})" if is_numbered else self.module


def call_sites(model: nn.Module, x: Tensor, *, with_lines: bool) -> dict[str, list[str]]:
    """Record the innermost modules that call each ATen operation of the forward pass at x.

    Modules are listed in order of execution, as name and type: `"0.1 (ReLU)"`; the model itself as
    its type. Operations of the backward pass alone are missing.

    Args:
        model: Network.
        x: Input (batch, *shape).
        with_lines: Whether the line outside of PyTorch is named, too: `"0.2 (Mine, net.py:12)"`.
    """
    with torch.no_grad(), _watched(model, with_lines=with_lines) as watch:
        model(x)
    sites: dict[str, dict[str, None]] = {}
    for call in watch.calls:
        kind = f"{call.kind}, {call.line}" if call.line else call.kind
        label = f"{call.module} ({kind})" if call.module else kind
        sites.setdefault(call.operation, {})[label] = None
    return {operation: list(labels) for operation, labels in sites.items()}


def layer_names(
    model: nn.Module,
    x: Tensor,
    v: Tensor,
    halves: tuple[Sequence[fx.Node], Sequence[fx.Node]],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, str]:
    """Name the nodes of a captured network after its modules.

    An operation is found again by its name and shape in the order of the run. Nodes that are not
    found, such as sums of gradients, which belong to no module, are left out. `"layer1.0.conv2"`
    is the operation of a module without others within (`"0 (Conv2d)"` if a number is its name),
    `"layer1.0.add"` one that a block does itself; a second one of the same name has a number:
    `"layer1.0.relu (2)"`.

    Args:
        model: Network that was captured.
        x: Input (batch, *shape) of the capture.
        v: Cotangent of the logits (batch, K).
        halves: Nodes of the forward and of the backward half that call operations, in order.
        shapes: Shape of each tensor-valued node's value.
    """
    with torch.autograd.set_multithreading_enabled(False), _watched(model) as watch:
        leaf = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            torch.autograd.grad(model(leaf), leaf, v)
    nodes = [*halves[0], *halves[1]]
    ran = [(_plain(call.operation), call.shape) for call in watch.calls]
    wanted = [(_plain(str(node.target)), shapes.get(node.name)) for node in nodes]
    matcher = difflib.SequenceMatcher(None, wanted, ran, autojunk=False)
    calls = {
        node.name: call
        for at, found, length in matcher.get_matching_blocks()
        for node, call in zip(nodes[at : at + length], watch.calls[found:], strict=False)
    }
    forward, backward = halves
    # backwards, so that a module that runs twice has the same number in both halves
    return _numbered(forward, calls) | _numbered(backward[::-1], calls)


def _numbered(nodes: Sequence[fx.Node], calls: Mapping[str, Call]) -> dict[str, str]:
    names: dict[str, str] = {}
    times: Counter[tuple[str, str]] = Counter()
    for node in nodes:
        call = calls.get(node.name)
        if call is None or call.module is None:
            continue
        operation = _plain(call.operation)
        name = call.layer
        times[name, operation] += 1
        number = times[name, operation]
        names[node.name] = f"{name} ({number})" if number > 1 else name
    return names


def _plain(operation: str) -> str:
    """The name without namespace, overload, and the mark of what is done in place."""
    return operation.removeprefix(_OPERATION).partition(".")[0].rstrip("_")


@contextlib.contextmanager
def _watched(model: nn.Module, *, with_lines: bool = False) -> "Iterator[_Watch]":
    watch = _Watch(with_lines=with_lines)
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # it takes no hooks on what it calls
            continue
        handles += [
            module.register_forward_pre_hook(watch.entering(name, module)),
            module.register_forward_hook(watch.leaving),
        ]
    try:
        with watch:
            yield watch
    finally:
        for handle in handles:
            handle.remove()


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operation with the module that is running, or whose backward pass is."""

    def __init__(self, *, with_lines: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._with_lines = with_lines
        self.calls: list[Call] = []
        self._running: list[tuple[str, nn.Module]] = []
        self._by_sequence_number: dict[int, tuple[str, nn.Module]] = {}

    def entering(self, name: str, module: nn.Module) -> Callable[..., None]:
        def enter(*_: object) -> None:
            self._running.append((name, module))

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
        result = func(*args, **(kwargs or {}))
        shape = tuple(result.shape) if isinstance(result, Tensor) else None
        name, module = self._site(str(func)) or (None, None)
        is_leaf = module is None or _is_leaf(module)
        line = _line_of_user() if self._with_lines else None
        self.calls.append(Call(str(func), shape, name, type(module).__name__, is_leaf, line))
        return result

    def _site(self, operation: str) -> tuple[str, nn.Module] | None:
        node = torch._C._current_autograd_node()
        if node is not None:  # of the backward pass: its number is that of the forward operation
            # gradients are summed between two nodes, while the last one still counts as current
            is_sum = _plain(operation) == "add"
            return None if is_sum else self._by_sequence_number.get(node._sequence_nr())
        if not self._running:
            return None
        # autograd has counted its node by now, and not yet the next
        number = torch.autograd._get_sequence_nr() - 1
        self._by_sequence_number.setdefault(number, self._running[-1])
        return self._running[-1]


_TORCH, _FPERR = Path(torch.__file__).parent, Path(__file__).parents[1]


def _line_of_user() -> str | None:
    """`"net.py:12"`: the innermost call outside of PyTorch; None if fperr itself calls PyTorch."""
    for frame, line in traceback.walk_stack(sys._getframe(2)):
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(_FPERR):
            return None
        if not (file.is_relative_to(_TORCH) or file == Path(contextlib.__file__)):
            return f"{file.name}:{line}"
    return None


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None
