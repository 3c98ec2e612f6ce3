"""Dtypes, shapes and dependencies of the nodes of a captured graph.

Three kinds of values never reach an exact arithmetic. Values that depend on no tensor (those of a
constructor, positions, a mask made of them) are computed by PyTorch, in the dtype that the graph
writes. Integers and booleans computed from integers and booleans only are computed by PyTorch, too,
because its own rules, e.g. for `True + True`, define the result. Shapes of tensors are taken from
the capture. For values that depend on parameters but not on x see `fperr.exact.computed_constants`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fperr.exact.operations import OPERATIONS, SHAPE_OF_FIRST
from fperr.exact.replays import without_autocast

Node = fx.Node
# What PyTorch computes for a node: one tensor, or several outputs.
TorchValue = Tensor | tuple[Tensor | None, ...] | list[Tensor | None]
Dtypes = torch.dtype | tuple[torch.dtype | None, ...]


@dataclass(frozen=True, slots=True)
class NodeKinds:
    """Properties of the nodes, by node name.

    Attributes:
        shapes: Shape of each node with a single tensor.
        dtypes: Dtype of each node with a single tensor; a tuple for a node with several outputs.
        made: Values that depend on no tensor, as PyTorch computed them; zeros where it leaves
            memory as it is.
        of_input: Names of the nodes whose values depend on those of x or v.
        row_by_row: Names of the nodes whose tensor lies in memory row by row, from its beginning.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, Dtypes]
    made: Mapping[str, TorchValue]
    of_input: frozenset[str]
    row_by_row: frozenset[str]

    def is_discrete(self, node: Node) -> bool:
        """Whether the node holds integers or booleans computed from such only."""
        used = [self.dtypes.get(source.name) for source in value_inputs(node)]
        return is_discrete(self.dtypes.get(node.name)) and all(map(is_discrete, used))

    def is_computed_constant(self, node: Node) -> bool:
        """Whether the node computes with parameters, buffers or constants, and not with x or v."""
        is_call = node.op == "call_function"
        return is_call and node.name not in self.of_input and node.name not in self.made

    def depends_on_data_by_shape(self, node: Node) -> bool:
        """Whether the number of entries of the node depends on the values of x, as `x[x > 0]`."""
        name = str(node.target)
        if name in _INDEXING:
            masks: list[Node] = []
            fx.node.map_arg(node.args[1], masks.append)
            if self._puts_one_number(node, masks):
                return False
            return any(
                mask.name in self.of_input and self.dtypes[mask.name] == torch.bool
                for mask in masks
            )
        tags = getattr(node.target, "tags", ())
        used = {source.name for source in value_inputs(node)}
        return torch.Tag.dynamic_output_shape in tags and bool(used & self.of_input)

    def _puts_one_number(self, node: Node, masks: list[Node]) -> bool:
        """Whether it is `x[mask] = number`, of which every entry is decided by itself."""
        if "index_put" not in str(node.target) or len(masks) != 1:
            return False
        (source,) = [n for n in (node.args[2],) if isinstance(n, Node)]
        return math.prod(self.shapes[source.name]) == 1


_INDEXING = {"aten.index.Tensor", "aten.index_put.default", "aten._unsafe_index_put.default"}


def is_discrete(dtypes: Dtypes | None) -> bool:
    """Whether all of the dtypes are integer or boolean."""
    listed_dtypes = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    return all(
        dtype is not None and not dtype.is_floating_point and not dtype.is_complex
        for dtype in listed_dtypes
    )


def value_inputs(node: Node) -> list[Node]:
    """The nodes of which `node` uses the values, and not only the shapes."""
    name = str(node.target)
    skipped: Iterable[int] = ()
    if name in SHAPE_OF_FIRST:
        skipped = (0,)
    elif name in OPERATIONS:
        skipped = OPERATIONS[name].only_shapes(node.args)
    used: list[Node] = []
    for position, argument in enumerate(node.args):
        if position not in skipped:
            fx.node.map_arg(argument, used.append)
    fx.node.map_arg(node.kwargs, used.append)
    return used


@torch.no_grad()
def kinds_of(module: fx.GraphModule, x: Tensor, v: Tensor) -> NodeKinds:
    """Record the kinds of all nodes in one run of the graph at (x, v)."""
    recorder = _Recorder(module)
    with without_autocast():
        recorder.run(x, v)
    return NodeKinds(
        recorder.shapes,
        recorder.dtypes,
        recorder.made,
        frozenset(recorder.of_input),
        frozenset(recorder.row_by_row),
    )


class _Recorder(fx.Interpreter):
    """Runs the graph and records the shape, the dtype and the dependencies of each node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, Dtypes] = {}
        self.made: dict[str, TorchValue] = {}
        self.of_input: set[str] = set()
        self.row_by_row: set[str] = set()

    def run_node(self, n: Node) -> TorchValue:
        """Run one node."""
        value: TorchValue = super().run_node(n)
        used = {source.name for source in value_inputs(n)}
        if n.op == "placeholder" or used & self.of_input:
            self.of_input.add(n.name)
        if "empty" in str(n.target):
            assert isinstance(value, Tensor)
            value = torch.zeros_like(value)
        if isinstance(value, Tensor):
            if value.is_contiguous() and value.storage_offset() == 0:
                self.row_by_row.add(n.name)
            self.shapes[n.name] = tuple(value.shape)
            self.dtypes[n.name] = value.dtype
        elif isinstance(value, tuple | list):
            self.dtypes[n.name] = tuple(
                output.dtype if isinstance(output, Tensor) else None for output in value
            )
        if n.op == "call_function" and used <= self.made.keys():
            self.made[n.name] = value
        return value
