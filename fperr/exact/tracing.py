"""Trace a network and its backward pass into one graph of operations without effects."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize, vjp
from torch.fx.experimental.proxy_tensor import make_fx

from fperr.caller_state import SWITCH_LOCK
from fperr.errors import ModelError
from fperr.exact.call_sites import call_sites
from fperr.exact.node_kinds import kinds_of
from fperr.exact.plain_calls import PlainCalls
from fperr.exact.replays import without_autocast
from fperr.kernel_switches import mathematical_attention

Node = fx.Node


def traced(model: nn.Module, x: Tensor, v: Tensor, *, by_autograd: bool = False) -> fx.GraphModule:
    """The graph of logits and pullback.

    Args:
        model: Model in evaluation mode.
        x: Inputs (batch, *shape).
        v: Cotangents (batch, K).
        by_autograd: Whether autograd's backward pass is traced, and not functorch's.

    Raises:
        ModelError: the model cannot be traced, or decides something by x.
    """
    try:
        with (
            torch.no_grad(),
            mathematical_attention(),
            fixed_parameters(model),
            _kept_attributes(model),
            PlainCalls(),
            # what nodes say of shapes is a fake tensor; without this, each makes a mode of its own,
            # which takes half of the time
            tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))),
        ):
            # functorch takes operations apart before autocast sees them
            by_autograd = by_autograd or torch._C._is_any_autocast_enabled()
            module = (_through_autograd if by_autograd else _through_functorch)(model, x, v)
    except ModelError:
        raise
    except Exception as fault:
        raise ModelError(
            f"the model cannot be traced: {fault}. It must be a fixed sequence of PyTorch "
            "operations, without control flow that depends on the data"
        ) from fault
    _refuse_decisions(module, model, x, v)
    _name_convolutions(module)
    module.graph.eliminate_dead_code(is_impure_node=_has_effect)
    module.recompile()
    return module


def _name_convolutions(module: fx.GraphModule) -> None:
    """Call TorchScript's convolutions by their usual name, without the switches of cuDNN."""
    for node in module.graph.nodes:
        if node.target is torch.ops.aten._convolution.default:
            with module.graph.inserting_before(node):
                usual = module.graph.call_function(
                    torch.ops.aten.convolution.default, node.args[:_ARGUMENTS_OF_CONVOLUTION]
                )
            usual.meta = node.meta
            node.replace_all_uses_with(usual)
            module.graph.erase_node(node)


def _through_functorch(model: nn.Module, x: Tensor, v: Tensor) -> fx.GraphModule:
    """The graph by functorch's pullback, or where it cannot by autograd's own.

    Functorch refuses an `autograd.Function` (and with it hooks on backward passes) and checkpoints.
    """
    try:
        return _functional(_joint(model), x, v)
    except Exception:  # whatever functorch's reason: autograd's, if any, is what is reported
        return _through_autograd(model, x, v)


def _through_autograd(model: nn.Module, x: Tensor, v: Tensor) -> fx.GraphModule:
    """The graph by autograd, which traces backward passes of users as code.

    What is done in place, there and to constants, is made functional in the graph.
    """
    with torch.autograd.set_multithreading_enabled(False):  # modes belong to a thread
        traced = make_fx(_joint_by_autograd(model), _error_on_data_dependent_ops=False)(x, v)
    module = _without_detours(_without_writes(traced, x, v))
    _check_linear(module, x, v)
    return module


def _without_detours(module: fx.GraphModule) -> fx.GraphModule:
    """The graph without detachments: its backward half reads its forward half itself."""
    for node in module.graph.nodes:
        if str(node.target) in _DETACHED:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.recompile()
    return module


_DETACHED = {"aten.detach.default", "aten.alias.default"}
_ARGUMENTS_OF_CONVOLUTION = len(torch.ops.aten.convolution.default._schema.arguments)
_NAMED = 3  # calls of an operation, in a message
_FACTORS = (2.0**-20, 2.0**20)  # of cotangents, far enough to meet a threshold
_ROUNDED = 2.0**-10  # what underflow may cost in float32, relative to the norm


def _check_linear(module: fx.GraphModule, x: Tensor, v: Tensor) -> None:
    """Check that the backward pass is linear in the cotangent, as derivatives are.

    Half formats have no room for the factors: networks are captured in the model's dtype, too.

    Raises:
        ModelError: it is not, as where an own function clips or normalises gradients.
    """
    if torch.finfo(v.dtype).bits < 32:
        return
    with torch.no_grad(), without_autocast():
        gradient = module(x, v)[1]
        allowed = _ROUNDED * float(gradient.norm())
        scaled = [module(x, factor * v)[1] / factor for factor in _FACTORS]
    apart = max(float((other - gradient).norm()) for other in scaled)
    if allowed < apart < math.inf:
        raise ModelError(
            "the model's own backward pass is not linear in the gradient that arrives, so that "
            "there is no derivative to compare with: leave out what clips or normalises gradients"
        )


def _functional(
    function: Callable[..., tuple[Tensor, Tensor]], x: Tensor, v: Tensor
) -> fx.GraphModule:
    module = make_fx(
        functionalize(function, remove="mutations"),
        _error_on_data_dependent_ops=False,  # the graph says later what they depend on
    )(x, v)
    return _without_writes(module, x, v)


def _without_writes(module: fx.GraphModule, x: Tensor, v: Tensor) -> fx.GraphModule:
    """The graph without writes into constants, as into a slice of a copy of a bias.

    Parameters are no arguments of the function that was traced, so that what was written into
    tensors made of them alone was not made functional: here they are.
    """
    if not any(_writes(node) for node in module.graph.nodes):
        return module
    targets = sorted({str(n.target) for n in module.graph.nodes if n.op == "get_attr"})
    tensors = [getattr(module, target) for target in targets]

    def with_constants(x: Tensor, v: Tensor, *constants: Tensor) -> object:
        return _WithConstants(module, dict(zip(targets, constants, strict=True))).run(x, v)

    lifted = make_fx(
        functionalize(with_constants, remove="mutations"), _error_on_data_dependent_ops=False
    )(x, v, *tensors)
    placeholders = [n for n in lifted.graph.nodes if n.op == "placeholder"]
    for target, tensor, node in zip(targets, tensors, placeholders[2:], strict=True):
        lifted.register_buffer(target, tensor)
        with lifted.graph.inserting_before(node):
            constant = lifted.graph.get_attr(target)
        node.replace_all_uses_with(constant)
        lifted.graph.erase_node(node)
    lifted.recompile()
    return lifted


class _WithConstants(fx.Interpreter):
    """Runs a graph with other tensors in place of its own."""

    def __init__(self, module: fx.GraphModule, constants: Mapping[str, Tensor]) -> None:
        super().__init__(module)
        self.constants = constants

    def get_attr(self, target: object, args: object, kwargs: object) -> Tensor:
        del args, kwargs
        return self.constants[str(target)]


def _writes(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _has_effect(node: Node) -> bool:
    """Whether the node does something besides its result; assertions, which have none, do not."""
    schema = getattr(node.target, "_schema", None)
    return node.is_impure() and (schema is None or bool(schema.returns))


def _refuse_decisions(module: fx.GraphModule, model: nn.Module, x: Tensor, v: Tensor) -> None:
    """Check that no number that the model takes out of a tensor depends on x.

    Raises:
        ModelError: one does.
    """
    decisions = [
        n
        for n in module.graph.nodes
        if torch.Tag.data_dependent_output in getattr(n.target, "tags", ())
    ]
    if not decisions:
        return
    of_input = kinds_of(module, x, v).of_input
    refused = [str(node.target) for node in decisions if node.name in of_input]
    if refused:
        sites = call_sites(model, x, with_lines=True).get(refused[0], [])
        where = f" in {', '.join(sites[:_NAMED])}" if sites else ""
        raise ModelError(
            "the model cannot be traced: it takes a number out of a tensor that depends on "
            f"x{where}, as `if x.sum() > 0` and `.item()` do, and torch.distributions without "
            "validate_args=False. It must be a fixed sequence of PyTorch operations, without "
            "control flow that depends on the data"
        )


@contextmanager
def _kept_attributes(model: nn.Module) -> Iterator[None]:
    """Put tensors that are plain attributes of modules back after the `with` block.

    Hooks set them in each forward pass, as the old weight norm does; a trace would leave its own.
    """
    kept = [
        (vars(module), name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
    ]
    try:
        yield
    finally:
        for attributes, name, value in kept:
            attributes[name] = value


@contextmanager
def fixed_parameters(model: nn.Module) -> Iterator[None]:
    """Switch off `requires_grad` of all parameters inside the `with` block.

    Kernels may depend on it: PyTorch folds a batch into a matrix product if the weight requires a
    gradient. A captured graph has no parameters that do.
    """
    with SWITCH_LOCK:  # another thread may have the same model
        requiring = [p for p in model.parameters() if p.requires_grad]
        try:
            for parameter in requiring:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in requiring:
                parameter.requires_grad_(True)


def _joint(model: nn.Module) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Combine forward and backward pass in a function of (x, v), to be traced as one graph."""

    def logits_and_gradient(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        z, pullback, *_ = vjp(model, x)
        logits = z.clone()  # pending in-place changes and views are traced up to here
        border = v.clone()  # everything traced from here on belongs to the backward half
        with without_autocast():
            (gradient,) = pullback(border)
        return logits, gradient

    return logits_and_gradient


def _joint_by_autograd(model: nn.Module) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """As `_joint`, by autograd's own backward pass."""

    def logits_and_gradient(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            z = model(leaf)
            logits = z.detach().clone()
            border = v.clone()
            with without_autocast():
                (gradient,) = torch.autograd.grad(z, leaf, border)
        return logits, gradient

    return logits_and_gradient
