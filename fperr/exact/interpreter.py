"""Run a captured graph, or only its backward half, in any arithmetic.

The backward half reads values of the forward half: ReLU signs, pooling choices, weights. Those
`SavedValues` come from an exact forward run, or from a run in floating point, which they then
represent exactly: the same pullback serves J^T and the J~^T of a format.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import getitem
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fperr.errors import UndecidedError
from fperr.exact import index_arrays
from fperr.exact.arithmetic import Arithmetic, Array
from fperr.exact.graph import Capture, Node
from fperr.exact.operations import OPERATIONS, Operation
from fperr.exact.saved_values import FloatRun, sample_of, saved_for_backward
from fperr.exact.stacked import StackedArithmetic

Values = dict[str, Any]
Observer = Callable[[Node, Any], None]
_NUMBERS_AT_ONCE = 4_000_000  # of a few hundred bytes each


@dataclass(frozen=True, slots=True)
class SavedValues:
    """What the backward half uses of the forward half, by `source` or `consumer.position`."""

    values: Mapping[str, Any]

    def same_as(self, other: "SavedValues", arithmetic: Arithmetic[Any]) -> bool:
        """Whether every reading agrees: then both pullbacks are the same linear map."""
        return self.values.keys() == other.values.keys() and all(
            _same(value, other.values[key], arithmetic) for key, value in self.values.items()
        )


@dataclass(frozen=True, slots=True)
class ForwardRun:
    """An exact forward run.

    Attributes:
        logits: (1, K), of the arithmetic.
        readings: what the backward half uses.
        values: what every node of the forward half holds, by its name.
    """

    logits: Array
    saved_values: SavedValues
    values: Mapping[str, Any]


class Interpreter:
    """The captured network in one arithmetic, its weights converted once.

    Args:
        capture: the network.
        arithmetic: the number system.

    Raises:
        StaleCaptureError: weights were changed after the capture.
    """

    def __init__(self, capture: Capture, arithmetic: Arithmetic[Any]) -> None:
        self.capture = capture
        self.arithmetic = arithmetic
        self._constants: Values = {}
        by_tensor: dict[int, Any] = {}
        for name, tensor in capture.constants().items():
            if id(tensor) not in by_tensor:
                by_tensor[id(tensor)] = self._convert(tensor)
            self._constants[name] = by_tensor[id(tensor)]
        for name, value in capture.kinds.made.items():
            self._constants[name] = self.converted(value)
        for node in (*capture.forward, *capture.backward):
            if node.name not in self._constants and all(
                source.name in self._constants for source in node.all_input_nodes
            ):
                self._constants[node.name] = self._run(node, self._constants)
        self._reads = saved_for_backward(capture)
        self._data_constants: dict[tuple[str, torch.dtype], tuple[Tensor, Any]] = {}
        self._columns = StackedArithmetic(arithmetic)
        self._lifted = {name: self._lift(value) for name, value in self._constants.items()}

    def forward(self, x: Tensor, overrides: Mapping[str, Any] | None = None) -> ForwardRun:
        """Logits and readings at x, which has the shape that was captured.

        Args:
            x: (1, *shape).
            given: values of the arithmetic that are taken instead of computed, by node name.

        Raises:
            StaleCaptureError: weights were changed after the capture.
        """
        return self.forward_from(self.arithmetic.from_torch(x), overrides)

    def forward_from(self, x: Array, overrides: Mapping[str, Any] | None = None) -> ForwardRun:
        """The same at an array of the arithmetic."""
        self.capture.constants()
        values = {**self._constants, **(overrides or {})}
        values[self.capture.placeholders[0].name] = x
        for node in self.capture.forward:
            if node.name not in values:
                values[node.name] = self._run(node, values)
        logits = values[self.capture.results[0].name]
        return ForwardRun(logits, self._saved_values(lambda source: values[source.name]), values)

    def saved_values_of(self, run: FloatRun, sample: int) -> SavedValues:
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
            tensor = run.values[source.name]
            key = source.name, tensor.dtype
            remembered = self._data_constants.get(key)
            if remembered is None or not torch.equal(remembered[0], tensor):
                converted, exact = self._convert(tensor), self._constants[source.name]
                same = _same(converted, exact, self.arithmetic)
                self._data_constants[key] = remembered = tensor, exact if same else converted
            return remembered[1]

        return self._saved_values(value)

    def part(self, run: FloatRun, name: str, sample: int) -> Tensor:
        """What the node `name` of a run holds for one sample.

        Raises:
            CaptureAuditError: a tensor of the run does not split into samples.
        """
        return sample_of(run.values[name], self.capture.shapes[name], sample)

    def products(
        self,
        saved_values: SavedValues,
        v: Array,
        observe: Observer | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Array:
        """J^T v for every row of v (count, K), with the J that the saved values define.

        Args:
            saved_values: of one sample.
            v: logit gradients.
            observe: sees every node and its value, a column for each row of v.
            given: values of the arithmetic that are taken instead of computed, by node name.

        Returns:
            (count, entries of x).

        Raises:
            StaleCaptureError: weights were changed after the capture.
        """
        self.capture.constants()
        A, (count, classes) = self._columns, self.arithmetic.shape(v)
        values = self._lifted | {key: self._lift(read) for key, read in saved_values.values.items()}
        entering = self.arithmetic.permute(self.arithmetic.without_value_numbers(v), (1, 0))
        v_node = self.capture.placeholders[1].name
        values[v_node] = self.arithmetic.reshape(entering, (1, classes, count))
        values |= {name: self._lift(value) for name, value in (overrides or {}).items()}
        for node in self.capture.backward:
            if node.name in values:
                continue
            values[node.name] = self._run(node, values, A)
            if observe is not None:
                observe(node, values[node.name])
        gradient = values[self.capture.results[1].name]
        gradient = self.arithmetic.reshape(gradient, (self.entries, A.count(gradient)))
        gradient = self.arithmetic.expand(gradient, (self.entries, count))
        return self.arithmetic.permute(gradient, (1, 0))

    def pullback(
        self, saved_values: SavedValues, v: Array, observe: Observer | None = None
    ) -> Array:
        """J^T v, (1, *shape), for one v (1, K) of the arithmetic: for a batch, one of each sample.

        Args:
            saved_values: of the samples.
            v: logit gradients.
            observe: sees every node and its value.

        Raises:
            StaleCaptureError: weights were changed after the capture.
        """
        self.capture.constants()
        v = self.arithmetic.without_value_numbers(v)  # nothing is decided that depends on it
        values = {**self._constants, **saved_values.values, self.capture.placeholders[1].name: v}
        for node in self.capture.backward:
            if node.name not in values:
                values[node.name] = self._run(node, values)
                if observe is not None:
                    observe(node, values[node.name])
        return values[self.capture.results[1].name]

    @property
    def entries(self) -> int:
        """The number of entries of x, which is one sample."""
        return int(np.prod(self.capture.shapes[self.capture.results[1].name]))

    def jacobian(self, saved_values: SavedValues) -> Array:
        """The rows of J at one sample: (K, entries of x), as many at a time as memory allows."""
        classes = self.capture.shapes[self.capture.results[0].name][1]
        identity = torch.eye(classes, dtype=torch.float64)
        at_once = max(1, _NUMBERS_AT_ONCE // _widest(self.capture))
        rows = [
            self.products(saved_values, self.arithmetic.from_torch(v))
            for v in torch.split(identity, at_once)
        ]
        return self.arithmetic.concatenate(rows, 0)

    def _lift(self, value: Any) -> Any:
        """A value of the forward half as the backward half, with its columns, takes it."""
        if isinstance(value, tuple | list):
            return [self._lift(output) for output in value]
        plain = value is None or index_arrays.is_index_array(value)
        return value if plain else self._columns.lifted(value)

    def converted(self, value: Any) -> Any:
        """What a node holds in a run in floating point, exactly, in the arithmetic."""
        if isinstance(value, tuple | list):
            return [None if output is None else self.converted(output) for output in value]
        return self._convert(value)

    def applied(self, node: Node, values: Mapping[str, Any]) -> Any:
        """The node's own operation, exact, on given values; of a constant, its value."""
        if node.name in self._constants:
            return self._constants[node.name]
        return self._run(node, {**self._constants, **values})

    def _convert(self, tensor: Tensor) -> Any:
        if tensor.is_floating_point():
            return self.arithmetic.from_torch(tensor)
        return tensor.cpu().numpy()

    def _run(self, node: Node, values: Values, A: Arithmetic[Any] | None = None) -> Any:
        A = A or self.arithmetic
        if node.target is getitem:
            source, position = node.args
            return values[source.name][position]  # type: ignore[union-attr,index]
        if self.capture.kinds.is_discrete(node):
            own_arguments = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n.name])
            return index_arrays.computed(node.target, *own_arguments)  # type: ignore[arg-type]
        operation = OPERATIONS[str(node.target)]
        own_arguments = [
            self._argument(node, operation, position, argument, values, A)
            for position, argument in enumerate(node.args)
        ]
        options = fx.node.map_arg(node.kwargs, lambda n: values[n.name])
        try:
            return operation.meaning(A, *arguments, **options)
        except UndecidedError as fault:
            raise fault.at(node.name) from fault

    def _argument(
        self,
        node: Node,
        operation: Operation,
        position: int,
        argument: Any,
        values: Values,
        A: Arithmetic[Any],
    ) -> Any:
        if isinstance(argument, Node) and position in operation.shape_only:
            return self.capture.shapes[argument.name]
        if isinstance(argument, Node) and position in operation.decisions:
            key = f"{node.name}.{position}"
            if key in values:
                return values[key]
            return operation.decisions[position](self.arithmetic, values[argument.name], node.args)
        value = fx.node.map_arg(argument, lambda n: values[n.name])
        return value if position in operation.discrete else _numbers(A, value)

    def _saved_values(self, value: Callable[[Node], Any]) -> SavedValues:
        saved: Values = {}
        for key, source, decide, arguments in self._reads:
            read = value(source)
            try:
                saved[key] = read if decide is None else decide(self.arithmetic, read, arguments)
            except UndecidedError as fault:
                raise fault.at(source.name) from fault
        return SavedValues(saved)


def _numbers(A: Arithmetic[Any], value: Any) -> Any:
    """Masks and indices as numbers of the arithmetic; everything else as it is."""
    if index_arrays.is_index_array(value):
        return A.from_index_array(value)
    if isinstance(value, list | tuple):
        return [_numbers(A, output) for output in value]
    return value


def _widest(capture: Capture) -> int:
    """The most numbers that one operation of the backward half gathers, for one product."""
    widest = max(int(np.prod(shape)) for shape in capture.shapes.values())
    for node in capture.backward:
        if str(node.target) == "aten.convolution_backward.default":
            x, weight = (capture.shapes[str(node.args[i])] for i in (1, 2))
            widest = max(widest, int(np.prod(x[2:]) * np.prod(weight) // weight[1]))
    return widest


def _same(a: Any, b: Any, arithmetic: Arithmetic[Any]) -> bool:
    if a is b:
        return True
    if isinstance(a, np.ndarray) and a.dtype != object:
        return np.array_equal(a, b)
    return arithmetic.equal(a, b)
