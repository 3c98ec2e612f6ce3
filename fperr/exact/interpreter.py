"""Run a captured graph, or only its backward half, in any arithmetic.

The backward half reads values of the forward half: ReLU signs, pooling choices, weights. Those
`Readings` come from an exact forward run, or from a run in floating point, which they then
represent exactly: the same pullback serves J^T and the J~^T of a format.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import getitem
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fperr.errors import CaptureAuditError
from fperr.exact.arithmetic import Arithmetic, Array
from fperr.exact.graph import Capture, Node
from fperr.exact.operations import OPERATIONS, Operation

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Readings:
    """What the backward half uses of the forward half, by `source` or `consumer.position`."""

    values: Mapping[str, Any]

    def same_as(self, other: "Readings", arithmetic: Arithmetic) -> bool:
        """Whether every reading agrees: then both pullbacks are the same linear map."""
        return self.values.keys() == other.values.keys() and all(
            _same(value, other.values[key], arithmetic) for key, value in self.values.items()
        )


@dataclass(frozen=True, slots=True)
class ForwardRun:
    """An exact forward run: logits (batch, K) of the arithmetic, and what the pullback reads."""

    logits: Array
    readings: Readings


class Interpreter:
    """The captured network in one arithmetic, its weights converted once.

    Args:
        capture: the network.
        arithmetic: the number system.

    Raises:
        StaleCaptureError: weights were changed after the capture.
    """

    def __init__(self, capture: Capture, arithmetic: Arithmetic) -> None:
        self.capture = capture
        self.arithmetic = arithmetic
        self._constants: Values = {}
        by_tensor: dict[int, Any] = {}
        for name, tensor in capture.constants().items():
            if id(tensor) not in by_tensor:
                by_tensor[id(tensor)] = self._convert(tensor)
            self._constants[name] = by_tensor[id(tensor)]
        for node in capture.forward:
            if all(source.name in self._constants for source in node.all_input_nodes):
                self._constants[node.name] = self._run(node, self._constants)
        self._reads = _reads(capture)
        self._data_constants: Values = {}

    def forward(self, x: Tensor) -> ForwardRun:
        """Logits and readings at x, which has the shape that was captured.

        Raises:
            StaleCaptureError: weights were changed after the capture.
        """
        self.capture.constants()
        values = dict(self._constants)
        values[self.capture.placeholders[0].name] = self.arithmetic.from_torch(x)
        for node in self.capture.forward:
            if node.name not in values:
                values[node.name] = self._run(node, values)
        logits = values[self.capture.results[0].name]
        return ForwardRun(logits, self._readings(lambda source: values[source.name]))

    def readings_of(self, run: "FloatRun", sample: int) -> Readings:
        """The readings of one sample of a run in floating point, exactly as that run left them.

        Constants of the forward half are that run's, too, except for tensors of the network,
        which both have in common.

        Raises:
            CaptureAuditError: a tensor of the run does not split into samples.
        """

        def value(source: Node) -> Any:
            if source.op == "get_attr":
                return self._constants[source.name]
            if source.name not in self._constants:
                return self._convert(self.part(run, source.name, sample))
            if source.name not in self._data_constants:
                found = self._convert(run.values[source.name])
                exact = self._constants[source.name]
                same = _same(found, exact, self.arithmetic)
                self._data_constants[source.name] = exact if same else found
            return self._data_constants[source.name]

        return self._readings(value)

    def part(self, run: "FloatRun", name: str, sample: int) -> Tensor:
        """What the node `name` of a run holds for one sample.

        Raises:
            CaptureAuditError: a tensor of the run does not split into samples.
        """
        return sample_of(run.values[name], self.capture.shapes[name], sample)

    def pullback(self, readings: Readings, v: Array) -> Array:
        """J^T v for v (batch, K), with the J that the readings define: (batch, *shape).

        Raises:
            StaleCaptureError: weights were changed after the capture.
        """
        self.capture.constants()
        values: Values = {**self._constants, **readings.values}
        values[self.capture.placeholders[1].name] = v
        for node in self.capture.backward:
            values[node.name] = self._run(node, values)
        return values[self.capture.results[1].name]

    def jacobian(self, readings: Readings) -> Array:
        """The rows of J at one sample: (K, entries of x)."""
        logits, gradient = (self.capture.shapes[n.name] for n in self.capture.results)
        classes, entries = logits[1], int(np.prod(gradient[1:]))
        A = self.arithmetic
        identity = A.from_torch(torch.eye(classes, dtype=torch.float64))
        rows = [
            A.reshape(
                self.pullback(readings, A.take(identity, np.arange(classes)[None] + k * classes)),
                (1, entries),
            )
            for k in range(classes)
        ]
        return A.concatenate(rows, 0)

    def _convert(self, tensor: Tensor) -> Any:
        if tensor.is_floating_point():
            return self.arithmetic.from_torch(tensor)
        return tensor.cpu().numpy()

    def _run(self, node: Node, values: Values) -> Any:
        if node.target is getitem:
            source, position = node.args
            return values[source.name][position]  # type: ignore[union-attr,index]
        operation = OPERATIONS[str(node.target)]
        arguments = [
            self._argument(node, operation, position, argument, values)
            for position, argument in enumerate(node.args)
        ]
        return operation.meaning(self.arithmetic, *arguments, **node.kwargs)

    def _argument(
        self, node: Node, operation: Operation, position: int, argument: Any, values: Values
    ) -> Any:
        if isinstance(argument, Node) and position in operation.shape_only:
            return self.capture.shapes[argument.name]
        if isinstance(argument, Node) and position in operation.decisions:
            key = f"{node.name}.{position}"
            if key in values:
                return values[key]
            decide = operation.decisions[position]
            return decide(self.arithmetic, values[argument.name], node.args)
        return fx.node.map_arg(argument, lambda n: values[n.name])

    def _readings(self, value: Callable[[Node], Any]) -> Readings:
        found: Values = {}
        for key, source, decide, arguments in self._reads:
            read = value(source)
            found[key] = read if decide is None else decide(self.arithmetic, read, arguments)
        return Readings(found)


@dataclass(frozen=True, slots=True)
class FloatRun:
    """The values of the forward half's nodes in a run in floating point, by node name."""

    values: Mapping[str, Tensor]


@torch.no_grad()
def float_run(capture: Capture, x: Tensor, v: Tensor) -> FloatRun:
    """Replay the graph in floating point on the captured batch; keep what the pullback reads."""
    wanted = {source.name for _, source, _, _ in _reads(capture)}
    keeper = _Keeper(capture.module, wanted)
    keeper.run(x, v)
    return FloatRun(keeper.kept)


def sample_of(tensor: Tensor, shape: tuple[int, ...], sample: int) -> Tensor:
    """The part of a batch's `tensor` that belongs to one sample, where one sample has `shape`.

    Raises:
        CaptureAuditError: the tensor does not split into samples along one dimension.
    """
    differ = [d for d, (n, m) in enumerate(zip(tensor.shape, shape, strict=False)) if n != m]
    if tensor.ndim != len(shape) or len(differ) > 1:
        raise CaptureAuditError(
            f"a tensor of shape {tuple(tensor.shape)} in a batch has shape {shape} for one "
            "sample: it does not split into samples. Use batch_size=1"
        )
    if not differ:
        return tensor
    length = shape[differ[0]]
    return tensor.narrow(differ[0], sample * length, length)


class _Keeper(fx.Interpreter):
    """Runs a graph and keeps the values of the nodes that are wanted."""

    def __init__(self, module: fx.GraphModule, wanted: set[str]) -> None:
        super().__init__(module)
        self.wanted = wanted
        self.kept: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        """Run one node."""
        value = super().run_node(n)
        if n.name in self.wanted:
            self.kept[n.name] = value
        return value


Read = tuple[str, Node, Callable[..., Any] | None, tuple[Any, ...]]


def _reads(capture: Capture) -> list[Read]:
    """What the backward half reads: (key, source, decision or None, arguments of the consumer)."""
    before = set(capture.forward) | {capture.placeholders[0]}
    found: dict[str, Read] = {}
    for node in capture.backward:
        operation = OPERATIONS.get(str(node.target))
        for position, argument in enumerate(node.args):
            if operation is not None and position in operation.shape_only:
                continue
            decide = None if operation is None else operation.decisions.get(position)
            sources: list[Node] = []
            fx.node.map_arg(argument, sources.append)
            for source in sources:
                if source in before:
                    key = source.name if decide is None else f"{node.name}.{position}"
                    found[key] = (key, source, decide, node.args)
    return list(found.values())


def _same(a: Any, b: Any, arithmetic: Arithmetic) -> bool:
    if a is b:
        return True
    if isinstance(a, np.ndarray) and a.dtype != object:
        return np.array_equal(a, b)
    return arithmetic.equal(a, b)
