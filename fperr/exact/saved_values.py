"""What the backward half of a captured graph uses of its forward half; runs in floating point."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fperr.errors import CaptureAuditError
from fperr.exact.graph import Capture, Node
from fperr.exact.node_kinds import TorchValue
from fperr.exact.operations import OPERATIONS
from fperr.exact.operations.table import Argument, Comparison
from fperr.exact.replays import without_autocast

# key, node of the forward half, comparison or None, arguments of the node that uses the value
Read = tuple[str, Node, Comparison | None, tuple[Argument, ...]]


def saved_for_backward(capture: Capture) -> list[Read]:
    """List what the backward half uses of the forward half.

    The key is the name of the node of the forward half. Where the backward half uses only a
    comparison of its value (the sign, for ReLU), the key is `consumer.position` instead, and the
    comparison says which.
    """
    forward_nodes = set(capture.forward) | {capture.placeholders[0]}
    reads_by_key: dict[str, Read] = {}
    for node in capture.backward:
        operation = OPERATIONS.get(str(node.target))
        for position, argument in enumerate(node.args):
            if operation is not None and position in operation.only_shapes(node.args):
                continue
            decide = None if operation is None else operation.decisions.get(position)
            sources: list[Node] = []
            fx.node.map_arg(argument, sources.append)
            for source in sources:
                if source in forward_nodes:
                    key = source.name if decide is None else f"{node.name}.{position}"
                    reads_by_key[key] = (key, source, decide, node.args)
    return list(reads_by_key.values())


def is_made_of_decisions(capture: Capture, node: Node) -> bool:
    """Whether the node holds integers or masks computed from such alone, which depend on x.

    They are computed again from those: in a batch, positions may count from the first sample.
    """
    depends = node.op == "call_function" and node.name in capture.kinds.of_input
    return depends and capture.kinds.is_discrete(node)


def _origins(capture: Capture, nodes: Iterable[Node]) -> set[str]:
    """The names of the nodes of which a run is kept for the saved values of nodes."""
    pending, seen, origins = list(nodes), set[Node](), set[str]()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if is_made_of_decisions(capture, node):
            pending += node.all_input_nodes
        else:
            origins.add(node.name)
    return origins


@dataclass(frozen=True, slots=True)
class FloatRun:
    """A run of the captured graph in floating point.

    Attributes:
        values: Values of the nodes, by node name, with the batch that was run.
    """

    values: Mapping[str, TorchValue]

    def tensor(self, name: str) -> Tensor:
        """The value of a node with a single tensor."""
        value = self.values[name]
        assert isinstance(value, Tensor)
        return value


@torch.no_grad()
def float_run(
    capture: Capture,
    x: Tensor,
    v: Tensor,
    single: Capture | None = None,
    *,
    everything: bool = False,
) -> FloatRun:
    """Replay the graph in floating point on the captured batch.

    Args:
        capture: Network, captured at the batch's shape.
        x: Input (batch, *shape), in the format.
        v: Cotangents of the logits (batch, K), in the format.
        single: Network captured for one sample, whose node names are used; by default `capture`.
        everything: Whether to keep the value of every node instead of what the pullback uses.

    Raises:
        CaptureAuditError: the graph of the batch is not that of a single sample.
    """
    single = single or capture
    names = single.counterparts(capture)
    if names is None:
        raise CaptureAuditError(
            f"the graph for a batch of {len(x)} differs from that for one sample in {x.dtype}: "
            "use batch_size=1"
        )
    node_names = _origins(single, (source for _, source, _, _ in saved_for_backward(single)))
    if everything:
        node_names = {node.name for node in (*single.forward, *single.backward)}
    recorder = _ValueRecorder(capture.module, {names[name] for name in node_names})
    with without_autocast():
        recorder.run(x, v)
    return FloatRun({name: recorder.values[names[name]] for name in node_names})


def sample_of(tensor: Tensor, shape: tuple[int, ...], sample: int) -> Tensor:
    """Take one sample's slice of a batch's `tensor`; a tensor of one sample has shape `shape`.

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


def check_split(run: FloatRun, of_first: FloatRun, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that the values of a batch's run are laid out sample by sample.

    Args:
        run: Run on a batch.
        of_first: Run on as many copies of the batch's first sample. The kernels are the same, so
            the first sample's slices of both runs have the same bits, unless they hold numbers of
            other samples.
        shapes: Shape of every node for one sample, by node name.

    Raises:
        CaptureAuditError: it is not.
    """
    for name in run.values:
        in_batch, among_copies = (
            sample_of(r.tensor(name), shapes[name], 0) for r in (run, of_first)
        )
        if not torch.equal(in_batch.nan_to_num(), among_copies.nan_to_num()):
            raise CaptureAuditError(
                f"{name} of a batch does not split into samples, or depends on the other samples: "
                "use batch_size=1"
            )


class _ValueRecorder(fx.Interpreter):
    """Runs a graph and keeps the values of some nodes, by name."""

    def __init__(self, module: fx.GraphModule, node_names: set[str]) -> None:
        super().__init__(module)
        self._node_names = node_names
        self.values: dict[str, TorchValue] = {}

    def run_node(self, n: Node) -> TorchValue:
        """Run one node."""
        value: TorchValue = super().run_node(n)
        if n.name in self._node_names:
            self.values[n.name] = value
        return value
