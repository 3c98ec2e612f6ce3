"""Values that a network computes from parameters, buffers and constants alone, by PyTorch.

Such a value is the same for every x. Its operation may have no exact meaning: then its value is
what PyTorch computes in float64 from the stored parameters, and enters the exact network as data.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, fx

from fperr.exact.node_kinds import NodeKinds, TorchValue, is_discrete, value_inputs
from fperr.exact.replays import without_autocast

Node = fx.Node


def as_float64(value: object, *, with_integers: bool = False) -> object:
    """The value with floating-point tensors and dtypes as float64, complex ones as complex128.

    Args:
        value: An argument of an operation: a tensor, a dtype, a number, or a list of arguments.
        with_integers: Whether tensors of integers and masks become float64, too.
    """
    if isinstance(value, list | tuple):
        return [as_float64(element, with_integers=with_integers) for element in value]
    if isinstance(value, torch.dtype):
        return _widest(value)
    if isinstance(value, Tensor):
        return value.to(torch.float64 if with_integers else _widest(value.dtype))
    return value


@torch.no_grad()
def constant_values(
    module: fx.GraphModule, kinds: NodeKinds, wanted: Iterable[Node], *, in_float64: bool
) -> dict[str, TorchValue]:
    """Compute the values of nodes that do not depend on x or v, by node name.

    Args:
        module: Graph module.
        kinds: Properties of its nodes. What the graph makes from nothing is taken from there.
        wanted: Nodes.
        in_float64: Compute in float64, or else in the dtypes that the graph writes.
    """
    nodes = set(wanted)
    needed = _with_sources(nodes, kinds)
    values: dict[str, TorchValue] = {}
    for node in module.graph.nodes:
        if node not in needed:
            continue
        if node.op == "get_attr":
            values[node.name] = getattr(module, str(node.target)).detach()
        elif node.name in kinds.made:
            values[node.name] = kinds.made[node.name]
        elif node.name in kinds.of_input:
            values[node.name] = _of_shape(node, kinds)
        else:
            with without_autocast():
                values[node.name] = _computed(node, kinds, values, in_float64=in_float64)
    return {node.name: values[node.name] for node in nodes}


def _computed(
    node: Node, kinds: NodeKinds, values: dict[str, TorchValue], *, in_float64: bool
) -> TorchValue:
    """The value of a node from those of its sources."""
    assert callable(node.target)
    arguments: list[object] = [
        fx.node.map_arg(argument, lambda n: values[n.name]) for argument in node.args
    ]
    options: dict[str, object] = dict(fx.node.map_arg(node.kwargs, lambda n: values[n.name]))
    if in_float64 and str(node.target) not in _NOT_IN_FLOAT64:
        # PyTorch makes float32 of integers alone, which the graph does not say anywhere
        promotes = not is_discrete(kinds.dtypes.get(node.name)) and all(
            is_discrete(kinds.dtypes.get(source.name)) for source in value_inputs(node)
        )
        arguments = [as_float64(argument, with_integers=promotes) for argument in arguments]
        options = {name: as_float64(option) for name, option in options.items()}
    value: TorchValue = node.target(*arguments, **options)
    return value


# whose kernels refuse float64: their results of the graph's own dtypes are taken
_NOT_IN_FLOAT64 = {"aten.fake_quantize_per_channel_affine_cachemask.default"}


def _with_sources(nodes: Iterable[Node], kinds: NodeKinds) -> set[Node]:
    """The nodes and all of which their values are computed."""
    pending, needed = list(nodes), set[Node]()
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            if node.name not in kinds.made and node.name not in kinds.of_input:
                pending += node.all_input_nodes
    return needed


def _of_shape(node: Node, kinds: NodeKinds) -> Tensor:
    """A tensor in place of one that depends on x, of which only the shape is used."""
    dtype = kinds.dtypes[node.name]
    assert isinstance(dtype, torch.dtype)
    return torch.empty(kinds.shapes[node.name], dtype=dtype)


def _widest(dtype: torch.dtype) -> torch.dtype:
    if dtype.is_complex:
        return torch.complex128
    return torch.float64 if dtype.is_floating_point else dtype
