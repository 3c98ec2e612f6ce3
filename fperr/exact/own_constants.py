"""A captured network with the constants that its own format computes.

Constants are what the network computes from parameters, buffers and constants alone. The exact
network has them exactly (see `fperr.exact.computed_constants`); a format rounds them.
"""

from collections.abc import Mapping

from torch import Tensor

from fperr.exact.audit.rounding_noise import moves_numbers
from fperr.exact.computed_constants import constant_values
from fperr.exact.graph import Capture, Node
from fperr.exact.node_kinds import TorchValue, is_discrete

_CAST = "aten._to_copy.default"


def with_own_constants(capture: Capture) -> Capture | None:
    """The network with the constants that PyTorch computes in the dtypes that the graph writes.

    Must be called with the kernels switched as when the format runs.

    Returns:
        The network; `capture` itself where no operation on constants rounds; None where one
        overflows.
    """
    constants = [
        node
        for node in (*capture.forward, *capture.backward)
        if capture.kinds.is_computed_constant(node) and node.name in capture.kinds.dtypes
    ]
    if all(_moves(node) for node in constants):
        return capture
    own, in_float64 = (
        constant_values(capture.module, capture.kinds, constants, in_float64=in_float64)
        for in_float64 in (False, True)
    )
    rounded = _rounded(capture, constants, own)
    if not all(_is_finite_where(own[name], in_float64[name]) for name in rounded):
        return None
    return capture.with_constants({name: own[name] for name in rounded}) if rounded else capture


def _moves(node: Node) -> bool:
    """Whether the operation rounds no numbers, in any dtype."""
    name = str(node.target)
    is_part = name == "<built-in function getitem>"
    return is_part or (moves_numbers(name) and name != _CAST)


def _rounded(
    capture: Capture, constants: list[Node], own: Mapping[str, TorchValue]
) -> dict[str, None]:
    """The names of the constants at which the format may depart from the exact network.

    Where an operation has an exact meaning and rounds, it is taken to depart: its exact result is
    not known here. Masks and indices depart only if what they are computed from does.
    """
    rounded, departing = dict[str, None](), set[str]()
    for node in constants:
        sources = {source.name for source in node.all_input_nodes}
        departs = bool(sources & departing)
        if node.name in capture.float64_constants:
            departs = not same_numbers(own[node.name], capture.float64_constants[node.name])
            rounds = departs
        elif str(node.target) == _CAST:
            rounds = not same_numbers(own[node.name], _source_value(capture, node, own))
        elif is_discrete(capture.kinds.dtypes[node.name]):
            rounds = departs
        else:
            rounds = not _moves(node)
        if rounds:
            rounded[node.name] = None
        if rounds or departs:
            departing.add(node.name)
    return rounded


def _source_value(capture: Capture, node: Node, own: Mapping[str, TorchValue]) -> TorchValue:
    """What a node is computed from, as the format has it."""
    (source,) = node.all_input_nodes
    if source.op == "get_attr":
        tensor: Tensor = getattr(capture.module, str(source.target))
        return tensor
    return own[source.name] if source.name in own else capture.kinds.made[source.name]


def same_numbers(a: TorchValue, b: TorchValue) -> bool:
    """Whether two nodes hold the same numbers, of whatever dtypes."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same_shape = a.shape == b.shape
        return same_shape and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, Tensor) or isinstance(b, Tensor) or len(a) != len(b):
        return False
    return all(
        x is y or (x is not None and y is not None and same_numbers(x, y))
        for x, y in zip(a, b, strict=True)
    )


def _is_finite_where(own: TorchValue, in_float64: TorchValue) -> bool:
    """Whether what the format computed is finite, except where float64 has the same infinity."""
    if isinstance(own, Tensor):
        assert isinstance(in_float64, Tensor)
        return bool((own.isfinite() | (own == in_float64)).all())
    pairs = zip(own, in_float64, strict=True)
    return all(a is None or b is None or _is_finite_where(a, b) for a, b in pairs)
