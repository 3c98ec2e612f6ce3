"""An unmodified network as a graph of plain ATen operations: logits and vector-Jacobian product.

The graph is audited when it is captured: every operation that depends on x or v must have an exact
meaning, and replaying the graph in floating point must give the bits of the eager run. Conditions
on parameters, buffers and constants are decided once, at the capture.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from operator import getitem

import torch
from torch import Tensor, fx, nn

from fperr.errors import (
    CaptureAuditError,
    FperrError,
    ModelError,
    StaleCaptureError,
    UnsupportedOperationError,
)
from fperr.exact.call_sites import call_sites, layer_names
from fperr.exact.computed_constants import constant_values
from fperr.exact.node_kinds import NodeKinds, TorchValue, is_discrete, kinds_of, value_inputs
from fperr.exact.operations import OPERATIONS
from fperr.exact.replays import without_autocast
from fperr.exact.tracing import fixed_parameters, traced
from fperr.formats import FLOAT32
from fperr.kernel_switches import controlled, mathematical_attention

Node = fx.Node
_NAMED = 3  # largest number of modules that a message names
_PRODUCTS = (
    "aten.convolution.default",
    "aten.mm.default",
    "aten.addmm.default",
    "aten.bmm.default",
)


@dataclass(frozen=True)
class Capture:
    """A network's logits z = f(x) and pullback v -> J^T v, for one shape of x.

    Attributes:
        module: Graph module; called with (x, v), it returns (z, J^T v) in floating point.
        forward: Nodes of the forward half, in order of execution.
        backward: Nodes of the backward half, those from the first use of v on.
        kinds: Shapes and dtypes of the nodes, and what their values depend on.
        digest: SHA-256 of the parameters, buffers and constants at the time of the capture.
        float64_constants: Values that depend on parameters but not on x, of operations without an
            exact meaning, by node name: computed in float64.
        given_constants: Values that are given instead of computed, by node name.
        layers: Names after the network's modules, by node name; sums of gradients have none.

    Example:
        >>> import torch
        >>> from fperr import exact
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).eval()
        >>> captured = exact.capture(model, torch.rand(1, 4))
        >>> [str(node.target) for node in captured.forward if "relu" in node.name]
        ['aten.relu.default']
        >>> logits, gradient = captured.module(torch.rand(1, 4), torch.eye(3)[:1])
        >>> tuple(gradient.shape)
        (1, 4)
    """

    module: fx.GraphModule
    forward: tuple[Node, ...]
    backward: tuple[Node, ...]
    kinds: NodeKinds
    digest: str
    float64_constants: Mapping[str, TorchValue] = field(default_factory=dict)
    given_constants: Mapping[str, TorchValue] = field(default_factory=dict)
    layers: Mapping[str, str] = field(default_factory=dict)

    @property
    def data(self) -> dict[str, TorchValue]:
        """Values of nodes that every arithmetic takes as they are, by node name."""
        return {**self.kinds.made, **self.float64_constants, **self.given_constants}

    def layer(self, node: Node) -> str:
        """The name of a node after the module that it belongs to, or its own."""
        return self.layers.get(node.name, node.name)

    def with_constants(self, values: Mapping[str, TorchValue]) -> "Capture":
        """The same network with values given instead of computed.

        Args:
            values: Values by node name.
        """
        return replace(self, given_constants={**self.given_constants, **values})

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each tensor-valued node's value."""
        return self.kinds.shapes

    @property
    def placeholders(self) -> tuple[Node, Node]:
        """The nodes of x and v."""
        x, v = (n for n in self.module.graph.nodes if n.op == "placeholder")
        return x, v

    @property
    def results(self) -> tuple[Node, Node]:
        """The nodes of z and J^T v."""
        output = next(n for n in self.module.graph.nodes if n.op == "output")
        logits, gradient = output.args[0]
        return logits, gradient

    @property
    def depth(self) -> int:
        """The number of convolutions and matrix products of the forward half."""
        return sum(str(n.target) in _PRODUCTS for n in self.forward)

    def constants(self) -> dict[str, Tensor]:
        """Parameters, buffers and other tensors of the network, by the name of their node.

        Raises:
            StaleCaptureError: one of them was changed after the capture.
        """
        current = _constants(self.module)
        if digest_of(current) != self.digest:
            raise StaleCaptureError(
                "parameters or buffers were changed in place after the network was captured: "
                "the exact weights no longer belong to it. Capture it again"
            )
        return current

    @property
    def network_digest(self) -> str:
        """SHA-256 of the operations with their settings and of every tensor of the network."""
        return hashlib.sha256(f"{self.module.code}{self.digest}".encode()).hexdigest()

    def is_like(self, other: "Capture") -> bool:
        """Whether both graphs hold the same operations in the same order, under the same names.

        Args:
            other: Capture of the same model, at another shape as a rule.
        """
        operations = [(n.name, str(n.target)) for n in self.forward + self.backward]
        return operations == [(n.name, str(n.target)) for n in other.forward + other.backward]

    def counterparts(self, other: "Capture") -> dict[str, str] | None:
        """Map the name of every node to that of the node of `other` with the same value.

        Graphs for batches of different sizes may differ in copies, which a tensor of a single
        sample does not need to be contiguous. None if the graphs differ in more.
        """
        operations, other_operations = _without_copies(self), _without_copies(other)
        if [kind for _, kind in operations] != [kind for _, kind in other_operations]:
            return None
        counterpart_by_name = {
            a.name: b.name for (a, _), (b, _) in zip(operations, other_operations, strict=True)
        }
        return {
            node.name: counterpart_by_name[_copied(node).name]
            for node in self.module.graph.nodes
            if _copied(node).name in counterpart_by_name
        }

    def audit(self, model: nn.Module, x: Tensor, v: Tensor) -> None:
        """Compare the replay with the eager run of `model`, bit for bit, at x and v.

        Args:
            model: Model that was captured.
            x: Inputs (batch, *shape).
            v: Cotangents (batch, K).

        Raises:
            CaptureAuditError: they differ.
        """
        self.audit_each(model, [(x, v)])

    def audit_each(self, model: nn.Module, runs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """As `audit`, for several runs, whose verdicts are read at the end: the device goes on.

        Args:
            model: Model that was captured.
            runs: Inputs and cotangents of each.

        Raises:
            CaptureAuditError: they differ in one.
        """
        are_same = []
        for x, v in runs:
            with torch.no_grad(), without_autocast():
                # a copy, as in the eager run: kernels may sum in an order that depends on addresses
                replayed = self.module(x.clone(), v)
            pairs = zip(replayed, _eager(model, x, v), strict=True)
            are_same.append(torch.stack([_same_bits(a, b) for a, b in pairs]))
        if not are_same:
            return
        for name, is_same in zip(
            ("logits", "gradient"), torch.stack(are_same).all(0).tolist(), strict=True
        ):
            if not is_same:
                raise CaptureAuditError(
                    f"the captured graph's {name} differ from the eager run's at the same input. "
                    "A graph holds neither control flow that depends on the data, nor numbers that "
                    "leave PyTorch, as for NumPy, nor what changes between calls: remove them"
                )


_COPY = "aten.clone.default"
_VIEWS = {"aten.view.default", "aten._unsafe_view.default", "aten.reshape.default"}


def _copied(node: Node) -> Node:
    """The node of which `node` is a copy, or `node` itself."""
    while str(node.target) == _COPY:
        source = node.args[0]
        assert isinstance(source, Node)
        node = source
    return node


def _without_copies(capture: Capture) -> list[tuple[Node, str]]:
    """The nodes in order of execution without copies, each with the name of its operation."""
    nodes = [n for n in capture.module.graph.nodes if n.op != "output" and str(n.target) != _COPY]
    return [(n, "view" if str(n.target) in _VIEWS else _kind(n)) for n in nodes]


def _kind(node: Node) -> str:
    return str(node.target) if node.op == "call_function" else f"{node.op} {node.target}"


@controlled(FLOAT32)  # the audit asks for the same bits twice
def capture(model: nn.Module, x: Tensor) -> Capture:
    """Capture the network `model` at the shape, dtype and device of `x`, and audit it.

    Args:
        model: Model in evaluation mode; its parameters are held by reference.
        x: Input (batch, *shape), in the model's dtype.

    Raises:
        ModelError: the model cannot run on x or cannot be traced.
        UnsupportedOperationError: operations without an exact meaning; lists them all.
        CaptureAuditError: the replay is not bit-equal to the eager run.

    Example:
        >>> import torch
        >>> from fperr import exact
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).eval()
        >>> captured = exact.capture(model, torch.rand(1, 4))
        >>> captured.depth  # convolutions and matrix products of the forward half
        1
        >>> [captured.shapes[node.name] for node in captured.results]  # the logits, and J^T v
        [(1, 3), (1, 4)]
    """
    v = probe(logits_of(model, x))
    try:
        return _captured(model, x, v, traced(model, x, v))
    except CaptureAuditError as fault:
        # functorch's backward pass may call other kernels than autograd's: layouts may differ
        try:
            return _captured(model, x, v, traced(model, x, v, by_autograd=True))
        except FperrError:
            raise fault from None


def _captured(model: nn.Module, x: Tensor, v: Tensor, module: fx.GraphModule) -> Capture:
    """The capture of what was traced, after its audit; errors as `capture`."""
    nodes = [n for n in module.graph.nodes if n.op == "call_function"]
    kinds = kinds_of(module, x, v)
    _refuse_unsupported(nodes, kinds, model, x)
    inexact = [
        n for n in nodes if kinds.is_computed_constant(n) and _without_meaning(n, kinds) is not None
    ]
    v_node = [n for n in module.graph.nodes if n.op == "placeholder"][1]
    if not v_node.users:
        raise ModelError("the logits do not depend on the input: there is no gradient to measure")
    border = min(nodes.index(user) for user in v_node.users)
    halves = tuple(nodes[:border]), tuple(nodes[border:])
    result = Capture(
        module,
        *halves,
        kinds,
        digest_of(_constants(module)),
        constant_values(module, kinds, inexact, in_float64=True),
    )
    result.audit(model, x, v)
    with mathematical_attention(), fixed_parameters(model):
        return replace(result, layers=layer_names(model, x, v, halves, kinds.shapes))


def probe(logits: Tensor) -> Tensor:
    """Draw a generic v for audits, like `logits`: standard normal, the same for every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(logits.shape, generator=generator).to(logits)


def _refuse_unsupported(nodes: list[Node], kinds: NodeKinds, model: nn.Module, x: Tensor) -> None:
    """Check that every operation has an exact meaning, or needs none (see `node_kinds`).

    Raises:
        UnsupportedOperationError: lists every one that has not, with the reason and the modules
            that call it.
    """
    missing: set[tuple[str, str]] = set()
    for node in nodes:
        reason = _refusal(node, kinds)
        if reason is not None:
            missing.add((str(node.target), f" ({reason})" if reason else ""))
    if not missing:
        return
    complex_ones = {entry for entry in missing if _COMPLEX in entry[1]}
    # what computes with complex numbers follows from what makes them
    made = {entry for entry in complex_ones if entry[0] not in OPERATIONS} or complex_ones
    listed = sorted((missing - complex_ones) | made)
    descriptions = [
        f"{name}{reason}{called_in(name, model, x, with_lines=True)}" for name, reason in listed
    ]
    raise UnsupportedOperationError(
        f"the network uses operations that have no exact meaning here: {'; '.join(descriptions)}. "
        "Supported are networks in evaluation mode made of convolutions, linear layers, attention, "
        "the usual norms, activations and poolings"
    )


def _refusal(node: Node, kinds: NodeKinds) -> str | None:
    """Why the network is refused for the node, "" where there is nothing to say; None if not."""
    if kinds.depends_on_data_by_shape(node):
        return "how many entries it selects depends on the data: multiply by the mask instead"
    if node.name in kinds.of_input:
        return _without_meaning(node, kinds)
    is_random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return "random numbers" if is_random else None


def _without_meaning(node: Node, kinds: NodeKinds) -> str | None:
    """Why the node cannot be run exactly, "" where there is nothing to say; None if it can."""
    name = str(node.target)
    if node.target is getitem or kinds.is_discrete(node):
        return None
    if any(_is_complex(kinds, used) for used in (node, *value_inputs(node))):
        return _COMPLEX
    if name not in OPERATIONS:
        return ""
    dtype = kinds.dtypes.get(node.name)
    if not OPERATIONS[name].decides and is_discrete(dtype):
        return f"conversion to {dtype}, which rounds to whole numbers"
    if name in _BY_MEMORY:
        source = node.args[0]
        assert isinstance(source, Node)
        if source.name not in kinds.row_by_row:
            return "of a tensor that does not lie in memory row by row"
    return OPERATIONS[name].refusal(node.args, node.kwargs)


_COMPLEX = "complex numbers, as of a Fourier transform"
_BY_MEMORY = {"aten.as_strided.default", "aten.as_strided_scatter.default"}


def _is_complex(kinds: NodeKinds, node: Node) -> bool:
    dtype = kinds.dtypes.get(node.name)
    return isinstance(dtype, torch.dtype) and dtype.is_complex


def called_in(operation: str, model: nn.Module, x: Tensor, *, with_lines: bool = False) -> str:
    """Name up to three modules that call the operation at x, for a message: `" in 0.1 (ReLU)"`.

    The empty string for an operation of the backward half alone; `with_lines` as in `call_sites`.
    """
    with mathematical_attention(), fixed_parameters(model):
        modules = call_sites(model, x, with_lines=with_lines).get(operation, [])
    if not modules:
        return ""
    more = f" and {len(modules) - _NAMED} more" if len(modules) > _NAMED else ""
    return f" in {', '.join(modules[:_NAMED])}{more}"


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Compute the logits (batch, K) at x.

    Raises:
        ModelError: the model fails, or returns something else.
    """
    try:
        with torch.no_grad(), mathematical_attention(), fixed_parameters(model):
            z = model(x)
    except Exception as fault:
        raise ModelError(
            f"the model fails on an input of shape {tuple(x.shape)} and dtype {x.dtype}: "
            f"{' '.join(str(fault).split())}. Give x in the shape and dtype that the model takes; "
            "if it takes these, its forward makes tensors of another: make them by x.new_tensor"
        ) from fault
    if not isinstance(z, Tensor) or z.ndim != 2 or len(z) != len(x):
        got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise ModelError(f"the model must return logits of shape ({len(x)}, K), got {got}: wrap it")
    return z


def _eager(model: nn.Module, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad(), mathematical_attention(), fixed_parameters(model):
        z = model(leaf)
        with without_autocast():
            (gradient,) = torch.autograd.grad(z, leaf, v)
    return z.detach(), gradient


def _same_bits(a: Tensor, b: Tensor) -> Tensor:
    """Whether the numbers are equal, with NaN at the same positions, as a tensor."""
    if a.shape != b.shape:
        return torch.zeros((), dtype=torch.bool, device=a.device)
    return ((a == b) | (a.isnan() & b.isnan())).all()


def _constants(module: fx.GraphModule) -> dict[str, Tensor]:
    """The tensors of the network, by the name of their node."""
    tensors: dict[str, Tensor] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            tensors[node.name] = getattr(module, str(node.target))
    return tensors


def digest_of(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes; a tensor with several names counts once."""
    sha = hashlib.sha256()
    unique = {id(t): (name, t) for name, t in reversed(tensors.items())}
    for name, tensor in unique.values():
        sha.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        sha.update(flat.view(torch.uint8).numpy().data)
    return sha.hexdigest()
