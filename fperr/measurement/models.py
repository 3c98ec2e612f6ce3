"""Any user's model, made measurable or refused: unwrapped, in evaluation mode, returning logits."""

import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.flop_counter import FlopCounterMode

from fperr.formats import of_dtype
from fperr.measurement.network import copied, device_and_dtype
from fperr.precision import mathematical_attention

Accessor = Callable[[Any], Tensor]
_PROBED_SAMPLES = 8
_SIGMOIDS = frozenset({"Sigmoid", "Hardsigmoid"})
# operations, as autograd calls them, that move numbers and leave them as they are
_MOVES = re.compile(
    "Alias|Cat|Clone|Expand|Permute|ReshapeAlias|Select|Slice|Squeeze|Stack|T|ToCopy|Transpose|"
    "UnsafeView|Unsqueeze|View"
)


class LogitsOf(nn.Module):
    """A model whose output holds the logits somewhere: `accessor(model(x))`."""

    def __init__(self, model: nn.Module, accessor: Accessor) -> None:
        super().__init__()
        self.model = model
        self.accessor = accessor
        self.training = False  # the model's own mode is left as it is

    def forward(self, x: Tensor) -> Tensor:
        """The logits at x."""
        return self.accessor(self.model(x))


def usable_model(
    model: nn.Module, device: str | torch.device | None, logits: Accessor | None
) -> nn.Module:
    """The model as it will be measured; the original is not changed.

    Args:
        model: any module; one from `torch.compile` is unwrapped.
        device: where it shall run: copied there if it is elsewhere; None: where it is.
        logits: takes the logits out of what the model returns.

    Raises:
        TypeError: not a module, or TorchScript.
        ValueError: training mode, several dtypes or devices, or weights that are not finite.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "the model is TorchScript, which cannot be captured: give the nn.Module it was made "
            "from, with its state_dict loaded"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, got {type(model).__name__}: wrap it in one"
        )
    plain = getattr(model, "_orig_mod", model)  # torch.compile's wrapper holds the model there
    training = [name or "the model" for name, m in plain.named_modules() if m.training]
    if training:
        raise ValueError(
            f"the model must be in evaluation mode, but {', '.join(training[:3])}"
            f"{' and others are' if len(training) > 3 else ' is'} in training mode: "
            "call model.eval()"
        )
    for name, tensor in [*plain.named_parameters(), *plain.named_buffers()]:
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"the model's {name} has NaN or infinite entries: load other weights")
    where, _ = device_and_dtype(plain)
    if device is not None and torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={str(device)!r}, but there is no CUDA device: use device='cpu'")
    if device is not None and torch.device(device) != where:
        plain = copied(plain).to(device)
    return plain if logits is None else LogitsOf(plain, logits)


@torch.no_grad()
def number_of_classes(model: nn.Module, x: Tensor, *, accept_probabilities: bool) -> int:
    """K, the number of logits that the model returns.

    Args:
        model: from `usable_model`.
        x: (n, *shape), the inputs.
        accept_probabilities: measure the model even if it returns probabilities.

    Raises:
        ValueError: the model fails, does not return (batch, K) with K >= 2, or returns
            probabilities or their logarithms.

    Warns:
        UserWarning: the values are those of independent sigmoids.
    """
    try:
        z = model(x[:_PROBED_SAMPLES])
    except Exception as fault:
        raise ValueError(
            f"the model fails on x[:{_PROBED_SAMPLES}], of shape "
            f"{tuple(x[:_PROBED_SAMPLES].shape)} and dtype {x.dtype}: {fault}. Give x as the model "
            "takes it, e.g. (n, channels, height, width)"
        ) from fault
    if not isinstance(z, Tensor):
        raise ValueError(
            f"the model must return logits (batch, K), got {type(z).__name__}: say where they are "
            "with logits=, e.g. logits=lambda output: output[0]"
        )
    n = len(x[:_PROBED_SAMPLES])
    if z.shape in ((n, 1), (n,)) or z.numel() == n == 1:
        raise ValueError(_of_one_logit(z, model(x[:1])))
    if z.ndim != 2 or len(z) != n or z.shape[1] < 2:
        raise ValueError(
            f"the model must return logits (batch, K) of at least 2 classes, got {tuple(z.shape)} "
            f"for {n} samples"
        )
    values = z[~z.isnan().any(1)].double()
    if not accept_probabilities and len(values):
        _refuse_probabilities(z.dtype, values)
        if _within_0_and_1(values) and _ends_in_sigmoids(model, x):
            warnings.warn(
                "the model returns the values of sigmoids, all in [0, 1], and no logits: leave out "
                "its sigmoid, or measure it as it is with accept_probabilities=True",
                stacklevel=5,  # of which `torch.no_grad` is one
            )
    return z.shape[1]


def _of_one_logit(z: Tensor, of_one_sample: Tensor) -> str:
    """What to do about a binary model: one output z for each sample, or a sigmoid's p."""
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
    """All of them are, and not only zeros and ones."""
    return bool(((values >= 0) & (values <= 1)).all() and ((values > 0) & (values < 1)).any())


def _ends_in_sigmoids(model: nn.Module, x: Tensor) -> bool:
    """Whether a sigmoid made every output: honest logits can lie in [0, 1] as well."""
    with torch.enable_grad():
        leaf = x[:1].detach().requires_grad_()
        node = model(leaf.clone()).grad_fn  # a copy: the model may work in place
    return node is not None and _is_of_sigmoids(node)


def _is_of_sigmoids(node: Node) -> bool:
    kind = node.name().partition("Backward")[0]
    sources = [source for source, _ in node.next_functions if source is not None]
    is_moved = _MOVES.fullmatch(kind) is not None and bool(sources)
    return kind in _SIGMOIDS or (is_moved and all(_is_of_sigmoids(s) for s in sources))


def _refuse_probabilities(dtype: torch.dtype, values: Tensor) -> None:
    """Every row sums to 1, or its exponentials do, to within the rounding of K numbers.

    Args:
        dtype: in which they were computed.
        values: (n, K), float64, without NaN.
    """
    tolerance = 4 * values.shape[1] * of_dtype(dtype).unit_roundoff
    if bool((values >= 0).all() and ((values.sum(1) - 1).abs() <= tolerance).all()):
        kind, remedy = "probabilities", "leave out its softmax"
    elif bool((values <= 0).all()) and bool(
        # the logarithms are rounded, too: each by u times its size
        (values.logsumexp(1).abs() <= tolerance * math.e + tolerance * values.abs().amin(1)).all()
    ):
        kind, remedy = "log-probabilities", "leave out its log_softmax"
    else:
        return
    raise ValueError(
        f"the model returns {kind}, not logits (each row's sum to 1): {remedy}, or measure it as "
        "it is with accept_probabilities=True"
    )


def multiply_adds(model: nn.Module, x: Tensor) -> int:
    """The multiply-adds of the products in one forward pass at x."""
    with torch.no_grad(), mathematical_attention(), FlopCounterMode(display=False) as counter:
        model(x)
    return int(counter.get_total_flops()) // 2
