"""Checks that a model can be measured and attacked: it must return the logits of each sample.

The logits must be the same in every run, and depend on no other sample of the batch. `measure`,
`attack` and `record` all use these checks.
"""

import re
import warnings

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from fperr.errors import ModelError
from fperr.exact.audit.function_of_sample import check_function_of_sample as check_logits
from fperr.exact.audit.function_of_sample import check_repeatable, run_on_copy
from fperr.formats import of_dtype
from fperr.networks.in_format import FormatNetwork
from fperr.networks.model import OutputError, described_output, remedy_for_output

_PROBED_SAMPLES = 8
_SIGMOIDS = frozenset({"Sigmoid", "Hardsigmoid"})
# operations, by autograd's names, that move numbers without changing them
_MOVES = re.compile(
    "Alias|Cat|Clone|Expand|Permute|ReshapeAlias|Select|Slice|Squeeze|Stack|T|ToCopy|Transpose|"
    "UnsafeView|Unsqueeze|View"
)
# operations, by autograd's names, that sum products: each may add in another order
_PRODUCTS = re.compile("onvolution|mm|Mv|Dot|Linear|Bilinear|ScaledDotProduct")


def check_model(model: nn.Module, x: Tensor, *, accept_probabilities: bool) -> int:
    """The number of classes K of a model, once it has passed every check that `measure` makes.

    Args:
        model: Model from `usable_model`.
        x: Inputs (n, *shape), in the model's dtype and on its device; the first samples are run.
        accept_probabilities: Accept a model that returns probabilities.

    Raises:
        ValueError: see `number_of_classes`.
        ModelError: the model is random, or a sample's logits depend on its batch.
    """
    classes = number_of_classes(model, x, accept_probabilities=accept_probabilities)
    network = FormatNetwork(model, of_dtype(x.dtype), autocast=False)
    few = x[:_PROBED_SAMPLES].detach()
    products = _number_of_products(_differentiable(model, few[:1]).grad_fn)
    check_repeatable(lambda x_: _differentiable(model, x_).detach(), few)
    check_logits(network.logits, few, products, _unit_roundoff(network))
    return classes


def _differentiable(model: nn.Module, x: Tensor) -> Tensor:
    """The logits as an attack computes them: with autograd's graph."""
    with torch.enable_grad():
        logits: Tensor = model(x.clone().requires_grad_())
    return logits


def check_function_of_sample(network: FormatNetwork, x: Tensor) -> None:
    """Check that the logits of a sample depend on nothing but the sample.

    The batch is run twice, and single samples are compared with the same samples in the batch.

    Args:
        network: The model in its own dtype.
        x: Batch (n, *shape), as it will be run.

    Raises:
        ModelError: two equal runs differ, or a sample's logits depend on its batch.
    """
    check_repeatable(network.logits, x)  # a random model cannot be captured
    depth = network.capture(x[:1]).depth
    check_logits(network.logits, x, depth, _unit_roundoff(network))


@torch.no_grad()
def number_of_classes(model: nn.Module, x: Tensor, *, accept_probabilities: bool) -> int:
    """The number K of logits that the model returns.

    Args:
        model: Model from `usable_model`.
        x: Inputs (n, *shape); a copy of the first samples is run.
        accept_probabilities: Accept a model that returns probabilities.

    Raises:
        ValueError: the model fails, does not return (batch, K) with K >= 2, or returns
            probabilities.
        ModelError: the model changes its input in place.

    Warns:
        UserWarning: the values are those of independent sigmoids, not logits.
    """
    few = x[:_PROBED_SAMPLES].detach()
    try:
        z = run_on_copy(model, few)
    except (OutputError, ModelError):
        raise
    except Exception as fault:
        reason = " ".join(f"{type(fault).__name__}: {fault}".split())
        raise ValueError(
            f"the model fails on x[:{len(few)}], of shape {tuple(few.shape)} and dtype "
            f"{x.dtype}: {reason}. {_remedy_for_shape(few)}"
        ) from fault
    if not isinstance(z, Tensor):
        raise ValueError(
            f"the model must return logits (batch, K), got {described_output(z)}: "
            f"{remedy_for_output(z)}"
        )
    if not z.is_floating_point():
        raise ValueError(
            f"the model must return floating-point logits, got {z.dtype}: give the module without "
            "its argmax or rounding"
        )
    n = len(few)
    if z.shape in ((n, 1), (n,)) or z.numel() == n == 1:
        raise ValueError(_one_logit_text(z, model(few[:1])))
    if z.ndim != 2 or len(z) != n or z.shape[1] < 2:
        raise ValueError(
            f"the model must return logits (batch, K) of at least 2 classes, got {tuple(z.shape)} "
            f"for {n} samples: {_remedy_for_output_shape(z, n)}"
        )
    values = z[~z.isnan().any(1)].double()
    if not accept_probabilities and len(values):
        _refuse_probabilities(z.dtype, values)
        if _within_0_and_1(values) and _ends_in_sigmoids(model, few):
            warnings.warn(
                "the model returns the values of sigmoids, all in [0, 1], and no logits: leave out "
                "its sigmoid, or take it as it is with accept_probabilities=True",
                stacklevel=6,  # the frame of `torch.no_grad` counts
            )
    return z.shape[1]


def _remedy_for_shape(x: Tensor) -> str:
    """The advice if the model fails on inputs of this shape."""
    if x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        return "Its channels seem to come last: give x.permute(0, 3, 1, 2)"
    return "Give x in the shape and dtype that the model takes"


def _remedy_for_output_shape(z: Tensor, n: int) -> str:
    """The advice if the output for n samples is not (n, K)."""
    if not z.ndim or len(z) != n:
        return "give a model that returns one row for each sample, without a sum over the batch"
    if z.ndim == 4:  # a class for each pixel
        return "for the classes of one pixel give logits=lambda z: z[:, :, 0, 0]"
    if z.ndim == 3:  # a class for each token
        return "for the classes of one position give logits=lambda z: z[:, 0]"
    return "say where they are with logits=, e.g. logits=lambda z: z.flatten(1)"


def _number_of_products(last: Node | None) -> int:
    """The number of operations between input and logits that sum products."""
    visited: set[Node] = set()
    waiting = [] if last is None else [last]
    count = 0
    while waiting:
        node = waiting.pop()
        if node in visited:
            continue
        visited.add(node)
        count += _PRODUCTS.search(node.name().partition("Backward")[0]) is not None
        waiting += [source for source, _ in node.next_functions if source is not None]
    return count


def _one_logit_text(z: Tensor, of_one_sample: Tensor) -> str:
    """The error about a binary model, which returns one logit z or one probability p a sample."""
    is_flat = z.ndim == of_one_sample.ndim == 1
    two = f"torch.{'stack' if is_flat else 'cat'}([torch.zeros_like({{0}}), {{1}}], 1)"
    first = "" if of_one_sample.ndim else "leave out squeeze(), which drops a batch of 1 too, and "
    text = (
        "the model returns K = 1 logit, but at least 2 classes are needed: for a binary model "
        f"{first}give logits=lambda z: {two.format('z', 'z')}"
    )
    if not _within_0_and_1(z):
        return text
    # torch.logit has no exact meaning here, its definition has
    return (
        f"{text}; all its values lie in [0, 1]: if a sigmoid makes them, leave it out first, or "
        f"else give logits=lambda p: {two.format('p', 'torch.log(p / (1 - p))')}"
    )


def _within_0_and_1(values: Tensor) -> bool:
    """Whether all values lie in [0, 1], and not all are 0 or 1."""
    return bool(((values >= 0) & (values <= 1)).all() and ((values > 0) & (values < 1)).any())


def _ends_in_sigmoids(model: nn.Module, x: Tensor) -> bool:
    """Whether every output comes from a sigmoid: true logits can lie in [0, 1] as well."""
    with torch.enable_grad():
        leaf = x[:1].detach().requires_grad_()
        node = model(leaf.clone()).grad_fn  # a copy: the model may work in place
    return node is not None and _only_moves_sigmoids(node)


def _only_moves_sigmoids(node: Node) -> bool:
    """Whether the node is a sigmoid, or only moves the values of sigmoids."""
    kind = node.name().partition("Backward")[0]
    sources = [source for source, _ in node.next_functions if source is not None]
    is_moved = _MOVES.fullmatch(kind) is not None and bool(sources)
    return kind in _SIGMOIDS or (is_moved and all(_only_moves_sigmoids(s) for s in sources))


def _refuse_probabilities(dtype: torch.dtype, values: Tensor) -> None:
    """Refuse outputs of which every row sums to 1; their logarithms are logits, and are taken.

    The sums are compared with a tolerance for the rounding of K numbers.

    Args:
        dtype: Dtype in which the outputs were computed.
        values: Outputs (n, K) in float64, without NaN.

    Raises:
        ValueError: the outputs are probabilities.
    """
    tolerance = 4 * values.shape[1] * of_dtype(dtype).unit_roundoff
    if bool((values >= 0).all() and ((values.sum(1) - 1).abs() <= tolerance).all()):
        raise ValueError(
            "the model returns probabilities, not logits (each row's sum to 1): leave out its "
            "softmax, or take it as it is with accept_probabilities=True"
        )


def _unit_roundoff(network: FormatNetwork) -> float:
    """The unit roundoff by which two runs of the network may differ in a number."""
    stored = of_dtype(network.dtype).unit_roundoff
    if network.format.emulation is None:
        return stored
    return max(stored, network.format.coarsest_unit_roundoff)
