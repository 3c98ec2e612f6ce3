"""Singular gradients: which operation has no slope where a gradient is infinite or undefined."""

from collections.abc import Iterator, Mapping
from operator import getitem
from typing import cast

from fperr.errors import SingularGradientError
from fperr.exact import index_arrays
from fperr.exact.arithmetic import NodeValue, T
from fperr.exact.graph import Capture, Node
from fperr.exact.interpreter import ForwardRun, Interpreter

# operation -> position of the argument at whose zeros it is undefined or has no slope
_SINGULAR_AT = {
    "aten.div.Tensor": 1,
    "aten.reciprocal.default": 0,
    "aten.rsqrt.default": 0,
    "aten.log.default": 0,
}
_STEEP = ("aten.sqrt.default", "aten.log.default", "aten.linalg_vector_norm.default")
_WITHOUT_NAME = {
    f"aten.{name}"
    for name in (
        "mul.Scalar",
        "mul.Tensor",
        "expand.default",
        "view.default",
        "reshape.default",
        "unsqueeze.default",
        "squeeze.dim",
        "clone.default",
    )
}


def check_regular(
    interpreter: Interpreter[T], run: ForwardRun[T], v: T, gradient: T, sample: int = 0
) -> None:
    """Check that no operation without a slope at 0 makes a gradient infinite or undefined.

    Callers must check for numbers that are not finite for other reasons, above all for lack of
    precision.

    Args:
        interpreter: Exact network, for one sample.
        run: Run of the network at the sample.
        v: Cotangent of the logits (1, K) in the arithmetic.
        gradient: Product J^T v, or rows of J.
        sample: Number of the sample, for the error.

    Raises:
        SingularGradientError: an operation is taken at an exact zero where it has no value or no
            slope, and the result is used.
    """
    A = interpreter.arithmetic
    if A.is_finite(gradient) and A.is_finite(run.logits):
        return
    values: dict[str, NodeValue[T]] = dict(run.values)

    def observe(node: Node, value: NodeValue[T]) -> None:
        values[node.name] = value

    interpreter.pullback(run.saved_values, v, observe)
    values[interpreter.capture.placeholders[1].name] = v
    for culprit in _first_not_finite(interpreter, values):
        position = _SINGULAR_AT.get(str(culprit.target))
        divisor = None if position is None else culprit.args[position]
        if isinstance(divisor, Node) and A.has_zero(cast(T, values[divisor.name])):
            raise SingularGradientError(
                sample, _culprit_name(interpreter.capture, culprit, divisor)
            )


def _first_not_finite(
    interpreter: Interpreter[T], values: Mapping[str, NodeValue[T]]
) -> Iterator[Node]:
    """Yield the operations whose results are used and not finite, though their arguments are."""
    pending, visited = list(interpreter.capture.results), set[Node]()
    while pending:
        node = pending.pop()
        if node in visited or not _is_not_finite(interpreter, values, node):
            continue
        visited.add(node)
        not_finite = [n for n in node.all_input_nodes if _is_not_finite(interpreter, values, n)]
        pending += not_finite
        if not not_finite:
            yield node


def _is_not_finite(
    interpreter: Interpreter[T], values: Mapping[str, NodeValue[T]], node: Node
) -> bool:
    value = values.get(node.name)
    if node.target is getitem and value is None:
        return False
    outputs = value if isinstance(value, list | tuple) else [value]
    return any(
        output is not None
        and not index_arrays.is_index_array(output)
        and not interpreter.arithmetic.is_finite(output)
        for output in outputs
    )


def _culprit_name(capture: Capture, culprit: Node, divisor: Node) -> str:
    """Name the operation of the forward half without a slope; else the culprit itself.

    The culprit is often a division of the backward half by the result of a square root.
    """
    forward = {*capture.forward}
    node = divisor
    while str(node.target) in _WITHOUT_NAME and isinstance(node.args[0], Node):
        node = node.args[0]
    candidates = [node, *node.users]
    steep = [n for n in candidates if n in forward and str(n.target) in _STEEP]
    return str((steep or [culprit])[0].target)
