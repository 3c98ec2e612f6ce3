"""`fperr.trace_layers`: splits the error of a gradient by the operations of the network.

The network is replayed many times: the operations up to a certain one have the values that the
format computed, and all later ones are exact. Each step to the next operation adds one vector to
the error of the gradient, and the vectors sum to the total error:

    g_hat - g = cast + sum over forward operations + loss + sum over backward operations
"""

import warnings

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fperr import checks
from fperr.caller_state import in_neutral_state
from fperr.formats import Format, of_dtype
from fperr.measurement.arguments import checked_request
from fperr.measurement.layer_tracer import LayerTracer
from fperr.networks.checks import check_function_of_sample
from fperr.networks.in_format import FormatNetwork
from fperr.networks.model import Accessor
from fperr.report.layers import LayerReport
from fperr.vocabulary import FormatName


@in_neutral_state
def trace_layers(
    model: nn.Module,
    x: Tensor | np.ndarray,
    y: Tensor | None = None,
    *,
    targets: Tensor | None = None,
    loss: str = "ce",
    format: FormatName | Format = "float32",
    logits: Accessor | str | int | None = None,
    accept_probabilities: bool = False,
    device: str | torch.device | None = None,
    progress: bool | None = None,
) -> LayerReport:
    """Split the error of an input gradient by the operations of the network.

    The report says how much each operation adds to the error. Every sample runs by itself (batch
    size 1). The cost is about one exact gradient for each operation that rounds; every gradient is
    proved, in pairs of float64 or else in balls, to ten bits more than four digits of the format's
    delta need.

    Args:
        model: Module in evaluation mode that maps (batch, *shape) to logits (batch, K).
        x: Inputs (n, *shape), finite, cast to the model's dtype.
        y: True labels (n,). Without y and targets, the classes that the model predicts.
        targets: Target classes (n,). If they are given, the loss is targeted.
        loss: Name of a loss; `fperr.measure` lists them.
        format: Name of a format, or a `fperr.formats.Format` of your own.
        logits: Position of the logits in what the model returns: a name, an index or a function.
            None: the model returns logits.
        accept_probabilities: Whether to trace a model that returns probabilities; otherwise it is
            refused.
        device: Device to run on, e.g. `"cuda"`, or `"auto"`; by default the model's own.
        progress: Whether to show a progress bar. None: only if standard error is a terminal.

    Returns:
        The report, with a row for each sample and operation.

    Raises:
        TypeError, ValueError, FperrError: as `fperr.measure`; also ValueError if x is not finite.

    Warns:
        UserWarning: a sample overflows in the format, and is left out.
        SlowReferenceWarning: a sample needs balls, and how long that takes.

    Example:
        The input's cast is traced first; then the forward half, the loss and the backward half.

        >>> import fperr
        >>> from fperr import data, zoo
        >>> images = data.fashion_mnist_1000().first(1)
        >>> report = fperr.trace_layers(
        ...     zoo.load("fashion_standard"), images.x, images.y,
        ...     loss="mifpe", format="float16", progress=False,
        ... )
        >>> report.frame["half"].unique().tolist()
        ['cast', 'forward', 'loss', 'backward']
    """
    checks.optional_flag("progress", progress)
    assigned = None if y is not None or targets is not None else ["untargeted_unsuccessful"]
    request = checked_request(
        model=model,
        x=x,
        y=y,
        targets=targets,
        losses=[loss],
        formats=[format],
        scenarios=assigned,
        logits=logits,
        accept_probabilities=accept_probabilities,
        device=device,
    )
    broken = (~request.x.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if broken:
        raise ValueError(f"x is not finite at samples {broken}: leave them out")
    unrounded = FormatNetwork(request.model, of_dtype(request.x.dtype), autocast=False)
    check_function_of_sample(unrounded, request.x)
    network = FormatNetwork(request.model, request.formats[0], autocast=False)
    rows: list[dict[str, object]] = []
    hidden = None if progress is None else not progress
    for sample in tqdm(range(len(request.x)), desc="layers", unit="sample", disable=hidden):
        tracer = LayerTracer(request, unrounded, network, sample)
        if tracer.is_finite:
            rows += [{"sample": sample, **r} for r in tracer.rows()]
        else:
            warnings.warn(
                f"sample {sample} overflows in {format}: its error cannot be split, and it is "
                "left out",
                stacklevel=3,
            )
    return LayerReport.from_rows(rows, request.losses[0].name, request.formats[0].name)
