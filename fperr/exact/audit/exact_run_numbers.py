"""The numbers of an exact run at a batch of samples, for the branches of the audit."""

from typing import Generic, cast

import numpy as np
import torch
from torch import Tensor

from fperr.exact import index_arrays
from fperr.exact.arithmetic import Arithmetic, NodeValue, T
from fperr.exact.audit.float64_branches import ExactNumbers
from fperr.exact.graph import Node
from fperr.exact.index_arrays import IndexArray
from fperr.exact.interpreter import ForwardRun, Interpreter


class ExactRunNumbers(ExactNumbers, Generic[T]):
    """The numbers of an exact run at a batch of samples.

    Args:
        interpreter: Exact network, for a single sample.
        run: Forward run at the samples.
    """

    def __init__(self, interpreter: Interpreter[T], run: ForwardRun[T]) -> None:
        self._interpreter, self._values = interpreter, dict[str, NodeValue[T]](run.values)
        self._depending_on_v = _descendants_of_v(interpreter)

    def numbers(self, node: Node) -> NodeValue[T]:
        """The value of a node; None if it depends on v."""
        if node.name in self._depending_on_v:
            return None
        if node.name not in self._values:  # of the backward half
            for source in node.all_input_nodes:
                self.numbers(source)
            self._values[node.name] = self._interpreter.applied(node, self._values)
        return self._values[node.name]

    def sides(self, node: Node, kink: float, entries: Tensor) -> Tensor | None:
        """See `ExactNumbers`."""
        a = self.numbers(node)
        if a is None:
            return None
        A = self._interpreter.arithmetic
        numbers = A.take(cast(T, a), _flat_index(entries))  # a kink is one of numbers
        return _signs(A, numbers, A.add(A.zeros(A.shape(numbers)), float(kink)))

    def relations(self, node: Node, entries: Tensor) -> Tensor | None:
        """See `ExactNumbers`."""
        A, shape = self._interpreter.arithmetic, self._interpreter.capture.shapes[node.name]
        operands = []
        for argument in node.args[:2]:
            if not isinstance(argument, Node):
                assert isinstance(argument, int | float)
                operands.append(A.add(A.zeros((len(entries),)), float(argument)))
                continue
            a = self.numbers(argument)
            if a is None:
                return None
            operand = A.from_index_array(a) if index_arrays.is_index_array(a) else cast(T, a)
            operands.append(A.take(A.expand(operand, shape), _flat_index(entries)))
        first, second = operands
        return _signs(A, first, second)

    def positions(self, node: Node) -> Tensor | None:
        """See `ExactNumbers`."""
        value = self.numbers(node)
        if value is None:
            return None
        positions = value[1] if isinstance(value, list | tuple) else value
        return with_samples(cast(IndexArray, positions))

    def are_equal(self, node: Node, first: Tensor, second: Tensor) -> Tensor:
        """See `ExactNumbers`."""
        A, a = self._interpreter.arithmetic, cast(T, self.numbers(node))
        numbers = [A.take(a, _index_of_samples(positions)) for positions in (first, second)]
        return with_samples(A.same(*numbers))


def with_samples(a: IndexArray) -> Tensor:
    """An index array as a tensor (samples or 1, *shape)."""
    if isinstance(a, Tensor):
        return a
    single: Tensor = torch.from_numpy(np.array(a))[None]
    return single


def _flat_index(entries: Tensor) -> IndexArray:
    """Flat positions that are the same for all samples, as an arithmetic takes them."""
    index: IndexArray = entries.cpu().numpy()
    return index


def _index_of_samples(positions: Tensor) -> IndexArray:
    """Flat positions (samples or 1, entries), as an arithmetic takes them."""
    return _flat_index(positions[0]) if len(positions) == 1 else positions


def _signs(A: Arithmetic[T], a: T, b: T) -> Tensor:
    """(samples or 1, *shape): the signs of a - b, also where they are equal infinities."""
    are_equal = A.same(a, b)
    difference = A.where(are_equal, A.zeros(A.shape(a)), A.sub(a, b))
    return with_samples(A.sign(difference))


def _descendants_of_v(interpreter: Interpreter[T]) -> set[str]:
    """The names of the nodes that depend on v."""
    capture = interpreter.capture
    names = {capture.placeholders[1].name}
    for node in capture.backward:
        if any(source.name in names for source in node.all_input_nodes):
            names.add(node.name)
    return names
