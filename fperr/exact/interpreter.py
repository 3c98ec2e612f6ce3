"""Run a captured graph, or only its backward half, in any arithmetic.

The backward half uses values of the forward half: signs at ReLUs, positions of maxima, weights.
These `SavedValues` come from an exact forward run, or from a run in floating point, whose values
they represent exactly. So one pullback serves both the exact J^T and the J~^T of a format.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Generic, TypeAlias, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, fx

from fperr.errors import UndecidedError
from fperr.exact import index_arrays
from fperr.exact.arithmetic import Arithmetic, NodeValue, Output, T
from fperr.exact.graph import Capture, Node
from fperr.exact.index_arrays import IndexNDArray
from fperr.exact.node_kinds import TorchValue, is_discrete
from fperr.exact.operations import OPERATIONS, Operation
from fperr.exact.operations.table import Argument
from fperr.exact.saved_values import (
    FloatRun,
    is_made_of_decisions,
    sample_of,
    saved_for_backward,
)
from fperr.exact.stacked import StackedArithmetic

Values: TypeAlias = dict[str, NodeValue[T]]
Observer: TypeAlias = Callable[[Node, NodeValue[T]], None]
# An argument of an ATen call, with what nodes hold in place of the nodes.
NodeArgument: TypeAlias = NodeValue[T] | Argument
Written = TypeVar("Written", bound=Argument)
_NUMBERS_AT_ONCE = 4_000_000  # a few hundred bytes each: about 1 GB


@dataclass(frozen=True, slots=True)
class SavedValues(Generic[T]):
    """Values of the forward half that the backward half uses, as autograd saves them.

    Attributes:
        values: Values by key: the name of the node, or `consumer.position` where only a comparison
            of the node's numbers is used.
    """

    values: Mapping[str, NodeValue[T]]

    def same_as(self, other: "SavedValues[T]", arithmetic: Arithmetic[T]) -> bool:
        """Whether all values agree: then both pullbacks are the same linear map."""
        return self.values.keys() == other.values.keys() and all(
            _same(value, other.values[key], arithmetic) for key, value in self.values.items()
        )


@dataclass(frozen=True, slots=True)
class ForwardRun(Generic[T]):
    """An exact forward run.

    Attributes:
        logits: Logits (1, K) in the arithmetic.
        saved_values: Values that the backward half uses.
        values: Value of every node of the forward half, by node name.
    """

    logits: T
    saved_values: SavedValues[T]
    values: Mapping[str, NodeValue[T]]


class Interpreter(Generic[T]):
    """A captured network in one arithmetic, with its weights converted once.

    Args:
        capture: Captured network.
        arithmetic: Number system in which the network runs.

    Raises:
        StaleCaptureError: weights were changed after the capture.

    Example:
        The Jacobian of a linear layer is its weight.

        >>> import torch
        >>> from fperr import exact
        >>> model, x = torch.nn.Sequential(torch.nn.Linear(4, 3)).eval(), torch.rand(1, 4)
        >>> B = exact.BallArithmetic(128)
        >>> interpreter = exact.Interpreter(exact.capture(model, x), B)
        >>> J = interpreter.jacobian(interpreter.forward(x).saved_values)
        >>> torch.equal(B.to_torch(J), model[0].weight.double())
        True
    """

    def __init__(self, capture: Capture, arithmetic: Arithmetic[T]) -> None:
        self.capture = capture
        self.arithmetic = arithmetic
        self._constants: Values[T] = {}
        by_tensor: dict[int, NodeValue[T]] = {}
        for name, tensor in capture.constants().items():
            if id(tensor) not in by_tensor:
                by_tensor[id(tensor)] = self._convert(tensor)
            self._constants[name] = by_tensor[id(tensor)]
        for name, value in capture.data.items():
            self._constants[name] = self.converted(value)
        for node in (*capture.forward, *capture.backward):
            if node.name not in self._constants and all(
                source.name in self._constants for source in node.all_input_nodes
            ):
                self._constants[node.name] = self._run(node, self._constants)
        self._reads = saved_for_backward(capture)
        self._data_constants: dict[tuple[str, torch.dtype], tuple[Tensor, NodeValue[T]]] = {}
        self._columns = StackedArithmetic(arithmetic)
        self._lifted = {name: self._lift(value) for name, value in self._constants.items()}

    def forward(
        self, x: Tensor, overrides: Mapping[str, NodeValue[T]] | None = None
    ) -> ForwardRun[T]:
        """Run the forward half at x, taken exactly.

        Args:
            x: Input (1, *shape) of the shape that was captured.
            overrides: Values of nodes to use instead of computing them, by node name.

        Raises:
            StaleCaptureError: weights were changed after the capture.
        """
        return self.forward_from(self.arithmetic.from_torch(x), overrides)

    def forward_from(
        self,
        x: T,
        overrides: Mapping[str, NodeValue[T]] | None = None,
        *,
        has_checked: bool = False,
    ) -> ForwardRun[T]:
        """Run the forward half at an array of the arithmetic: see `forward`.

        Args:
            x: Input, as for `forward`.
            overrides: See `forward`.
            has_checked: Whether the caller has just checked that weights are those of the capture.
        """
        if not has_checked:
            self.capture.constants()
        values = {**self._constants, **(overrides or {})}
        values[self.capture.placeholders[0].name] = x
        for node in self.capture.forward:
            if node.name not in values:
                values[node.name] = self._run(node, values)
        logits = cast(T, values[self.capture.results[0].name])  # logits are numbers
        return ForwardRun(logits, self._saved_values(lambda source: values[source.name]), values)

    def saved_values_of(self, run: FloatRun, sample: int) -> SavedValues[T]:
        """Convert one sample's saved values of a run in floating point, exactly.

        Values that the run computed from weights alone are the run's, too, with its rounding
        errors. The weights themselves are those of this network.

        Raises:
            CaptureAuditError: a tensor of the run does not split into samples.
        """
        computed: Values[T] = {}

        def again(node: Node) -> NodeValue[T]:
            if node.name not in computed:
                inputs = {source.name: value(source) for source in node.all_input_nodes}
                computed[node.name] = self._run(node, inputs)
            return computed[node.name]

        def value(source: Node) -> NodeValue[T]:
            if source.op == "get_attr":
                return self._constants[source.name]
            if source.name not in self._constants:
                if is_made_of_decisions(self.capture, source):
                    return again(source)
                return self._convert(self.part(run, source.name, sample))
            tensor = run.tensor(source.name)
            if tensor.shape != self.capture.shapes[source.name]:  # one entry for each sample
                if is_discrete(tensor.dtype):  # such as the samples' own numbers: the first's here
                    return self._constants[source.name]
                tensor = self.part(run, source.name, sample)
            key = source.name, tensor.dtype
            remembered = self._data_constants.get(key)
            if remembered is None or not torch.equal(remembered[0], tensor):
                converted, exact = self._convert(tensor), self._constants[source.name]
                same = _same(converted, exact, self.arithmetic)
                self._data_constants[key] = remembered = tensor, exact if same else converted
            return remembered[1]

        return self._saved_values(value)

    def part(self, run: FloatRun, name: str, sample: int) -> Tensor:
        """Take one sample's slice of the value of the node `name` in a run.

        Raises:
            CaptureAuditError: a tensor of the run does not split into samples.
        """
        return sample_of(run.tensor(name), self.capture.shapes[name], sample)

    def products(
        self,
        saved_values: SavedValues[T],
        v: T,
        observe: Observer[T] | None = None,
    ) -> T:
        """Compute J^T v for every row of v, with the J that the saved values define.

        Args:
            saved_values: Saved values of one sample.
            v: Cotangents of the logits (count, K).
            observe: Callback that gets every node and its value, which has a trailing axis with one
                entry for each row of v.

        Returns:
            The products (count, entries of x).

        Raises:
            StaleCaptureError: weights were changed after the capture.
        """
        self.capture.constants()
        A, (count, classes) = self._columns, self.arithmetic.shape(v)
        values = self._lifted | {key: self._lift(read) for key, read in saved_values.values.items()}
        entering = self.arithmetic.permute(self.arithmetic.without_value_numbers(v), (1, 0))
        v_node = self.capture.placeholders[1].name
        values[v_node] = self.arithmetic.reshape(entering, (1, classes, count))
        for node in self.capture.backward:
            if node.name in values:
                continue
            values[node.name] = self._run(node, values, A)
            if observe is not None:
                observe(node, values[node.name])
        gradient = cast(T, values[self.capture.results[1].name])  # gradients are numbers
        gradient = self.arithmetic.reshape(gradient, (self.entries, A.count(gradient)))
        gradient = self.arithmetic.expand(gradient, (self.entries, count))
        return self.arithmetic.permute(gradient, (1, 0))

    def pullback(
        self,
        saved_values: SavedValues[T],
        v: T,
        observe: Observer[T] | None = None,
        *,
        overrides: Mapping[str, NodeValue[T]] | None = None,
        has_checked: bool = False,
    ) -> T:
        """Compute J^T v, (1, *shape), for a single v; in a batch, for one v of each sample.

        Args:
            saved_values: Saved values of the samples.
            v: Cotangents of the logits (1, K).
            observe: Callback that gets every node and its value.
            overrides: Values of nodes to use instead of computing them, by node name.
            has_checked: See `forward_from`.

        Raises:
            StaleCaptureError: weights were changed after the capture.
        """
        if not has_checked:
            self.capture.constants()
        v = self.arithmetic.without_value_numbers(v)  # nothing is decided that depends on it
        values = {
            **self._constants,
            **saved_values.values,
            self.capture.placeholders[1].name: v,
            **(overrides or {}),
        }
        for node in self.capture.backward:
            if node.name not in values:
                values[node.name] = self._run(node, values)
                if observe is not None:
                    observe(node, values[node.name])
        return cast(T, values[self.capture.results[1].name])  # gradients are numbers

    @property
    def entries(self) -> int:
        """The number of entries of x, which is one sample."""
        return int(np.prod(self.capture.shapes[self.capture.results[1].name]))

    def jacobian(self, saved_values: SavedValues[T]) -> T:
        """Compute J at one sample, (K, entries of x): as many rows at a time as memory allows.

        Args:
            saved_values: Saved values of the sample.
        """
        classes = self.capture.shapes[self.capture.results[0].name][1]
        identity = torch.eye(classes, dtype=torch.float64)
        at_once = max(1, _NUMBERS_AT_ONCE // _widest(self.capture))
        rows = [
            self.products(saved_values, self.arithmetic.from_torch(v))
            for v in torch.split(identity, at_once)
        ]
        return self.arithmetic.concatenate(rows, 0)

    def _lift(self, value: NodeValue[T]) -> NodeValue[T]:
        """Append the axis of cotangents to the numbers of a node: see `StackedArithmetic`."""
        if isinstance(value, tuple | list):
            return [self._lift_output(output) for output in value]
        return self._lift_output(value)

    def _lift_output(self, output: Output[T]) -> Output[T]:
        if output is None or index_arrays.is_index_array(output):
            return output
        return self._columns.lifted(output)

    def converted(self, value: TorchValue) -> NodeValue[T]:
        """Convert the value of a node in a run in floating point, exactly.

        Args:
            value: Tensor, or several, of torch.
        """
        if isinstance(value, tuple | list):
            return [None if output is None else self._convert(output) for output in value]
        return self._convert(value)

    def applied(self, node: Node, values: Mapping[str, NodeValue[T]]) -> NodeValue[T]:
        """Apply the node's own operation, exactly, to `values`; return a constant's value.

        Args:
            node: Node of the captured graph.
            values: Values of the nodes that the operation uses, by node name.
        """
        if node.name in self._constants:
            return self._constants[node.name]
        return self._run(node, {**self._constants, **values})

    def _convert(self, tensor: Tensor) -> Output[T]:
        if tensor.is_complex():
            return None  # no operation with an exact meaning uses it
        if tensor.is_floating_point():
            return self.arithmetic.from_torch(tensor)
        return cast(IndexNDArray, tensor.cpu().numpy())

    def _run(self, node: Node, values: Values[T], A: Arithmetic[T] | None = None) -> NodeValue[T]:
        """Run one node; `A` is the stacked arithmetic in the backward half of `products`."""
        A = A or self.arithmetic
        if node.target is getitem:
            source, position = node.args
            assert isinstance(source, Node)
            assert isinstance(position, int)
            return cast("Sequence[Output[T]]", values[source.name])[position]
        if self.capture.kinds.is_discrete(node):
            assert callable(node.target)
            own_arguments, own_options = _with_values((node.args, node.kwargs), values)
            outputs = index_arrays.computed(node.target, own_arguments, own_options)
            return cast(NodeValue[T], outputs)  # a list of index arrays is one of outputs
        operation = OPERATIONS[str(node.target)]
        arguments = [
            self._argument(node, operation, position, argument, values, A)
            for position, argument in enumerate(node.args)
        ]
        options = _with_values(node.kwargs, values)
        try:
            # ATen is typed dynamically: the table gives each operation the meaning of its own type
            return cast("NodeValue[T]", operation.meaning(A, *arguments, **options))
        except UndecidedError as fault:
            raise fault.at(node.name) from fault

    def _argument(
        self,
        node: Node,
        operation: Operation,
        position: int,
        argument: Argument,
        values: Values[T],
        A: Arithmetic[T],
    ) -> NodeArgument[T]:
        """The argument at `position` of the node's call, as the operation's meaning takes it."""
        if isinstance(argument, Node) and position in operation.only_shapes(node.args):
            return self.capture.shapes[argument.name]
        if isinstance(argument, Node) and position in operation.decisions:
            key = f"{node.name}.{position}"
            if key in values:
                return values[key]
            numbers = cast(T, values[argument.name])  # only numbers are compared
            return operation.decisions[position](self.arithmetic, numbers, node.args)
        value = _with_values(argument, values)
        return value if position in operation.discrete else _numbers(A, value)

    def _saved_values(self, value: Callable[[Node], NodeValue[T]]) -> SavedValues[T]:
        """Collect the saved values, where `value` gives that of a node of the forward half."""
        saved: Values[T] = {}
        for key, source, decide, arguments in self._reads:
            source_value = value(source)
            if decide is None:
                saved[key] = source_value
                continue
            numbers = cast(T, source_value)  # only numbers are compared
            try:
                saved[key] = decide(self.arithmetic, numbers, arguments)
            except UndecidedError as fault:
                raise fault.at(source.name) from fault
        return SavedValues(saved)


def _with_values(argument: Written, values: Mapping[str, NodeValue[T]]) -> Written:
    """The argument with what each node holds in its place."""
    # fx types an argument as it is written, with nodes; so it stays typed with values
    return fx.node.map_arg(argument, lambda n: cast(Argument, values[n.name]))


def _numbers(A: Arithmetic[T], value: NodeArgument[T]) -> NodeArgument[T]:
    """Masks and index arrays as numbers of the arithmetic; other arguments unchanged."""
    if index_arrays.is_index_array(value):
        return A.from_index_array(value)
    if isinstance(value, list | tuple):
        return cast(NodeArgument[T], [_numbers(A, element) for element in value])
    return value


def _widest(capture: Capture) -> int:
    """The largest number of entries that an operation of the backward half needs at once.

    For one product J^T v. A convolution's transpose gathers a row of channels/groups * taps entries
    for each position of its input.
    """
    widest = max(int(np.prod(shape)) for shape in capture.shapes.values())
    for node in capture.backward:
        if str(node.target) == "aten.convolution_backward.default":
            x, weight = (capture.shapes[str(node.args[i])] for i in (1, 2))
            widest = max(widest, int(np.prod(x[2:]) * np.prod(weight) // weight[1]))
    return widest


def _same(a: NodeValue[T], b: NodeValue[T], arithmetic: Arithmetic[T]) -> bool:
    """Whether two nodes hold the same numbers, masks or indices."""
    if a is b:
        return True
    if isinstance(a, np.ndarray) and a.dtype != object:
        return np.array_equal(a, cast(IndexNDArray, b))  # both hold indices
    return arithmetic.equal(cast(T, a), cast(T, b))  # the saved values are no lists
