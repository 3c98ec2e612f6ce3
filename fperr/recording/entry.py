"""`fperr.record`: any attack, recorded through the model that it calls."""

import operator
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from fperr import formats as formats_module
from fperr.caller_state import neutral_outside_yield
from fperr.formats import TF32
from fperr.measurement.models import usable_model
from fperr.measurement.network import copied, device_and_dtype
from fperr.recording.comparison import Comparison
from fperr.recording.identity import Identities
from fperr.recording.recorder import Recorder
from fperr.recording.store import Writer
from fperr.recording.taps import Counts, tapped, untapped
from fperr.recording.trace import Trace
from fperr.theory.losses import named

_DIGITS = 20
LOSSES = ("ce", "stable_ce", "mifpe", "tmifpe")
FORMATS = ("float16", "float32", "float64")


@contextmanager
@neutral_outside_yield
def record(
    model: nn.Module,
    y: Tensor,
    *,
    x: Tensor | None = None,
    targets: Tensor | None = None,
    loss: str | None = None,
    losses: Sequence[str] = LOSSES,
    formats: Sequence[str] = FORMATS,
    every: int = 10,
    samples: int | Sequence[int] = 4,
    digits: int = _DIGITS,
    out: str | Path | None = None,
) -> Iterator[Trace]:
    """Record every gradient that an attack takes of `model`, whoever wrote the attack.

    Hooks on the model see its logits, dL/dz and dL/dx; the attack runs as it would without them,
    bit by bit (but not under torch.func or torch.compile). Every step of every sample is described;
    at every `every`-th forward pass the gradients of some samples are compared with exact ones, and
    with what other losses would have given there in each format.

        with fperr.record(model, y, x=x) as trace:
            torchattacks.PGD(model, eps=0.3)(x, y)
        trace.errors()

    Args:
        model: the module that the attack calls, in evaluation mode.
        y: (n,) int64, the true labels.
        x: (n, *shape), the clean inputs: needed where the attack calls the model on parts of the
            batch, whose samples are told by the nearest input (in the maximum norm).
        targets: (n,) int64, of a targeted attack; where they are not given, a targeted loss is
            recognised by its dL/dz.
        loss: name of the attack's own, for first steps in which dL/dz is zero everywhere and shows
            nothing.
        losses: names, to compute at each point beside the attack's own gradient.
        formats: names, in which to compute them.
        every: which forward passes under gradient mode are compared: 0, every, 2 every, ...
        samples: the first so many, or a list of them; 0: no exact arithmetic at all.
        digits: of the exact gradients.
        out: an empty or missing folder, written to as the attack goes. None: a temporary one,
            removed with the trace.

    Yields:
        The trace, which grows as the attack goes.

    Raises:
        TypeError, ValueError: an argument is not usable, or the attack calls the model in a way
            that cannot be recorded; says what to do.
        ModelError, UnsupportedOperationError, CaptureAuditError: see `fperr.measure`; raised at
            the attack's first step.
    """
    y, targets, chosen = _checked(model, y, x, targets, every, samples, digits)
    known = [named(name) for name in (*losses, *([] if loss is None else [loss]))]
    wanted = [formats_module.named(name) for name in formats]
    where, _ = device_and_dtype(model)
    if any(one.kind == "gama" for one in known):
        raise ValueError("loss 'gama' compares points of an attack: leave it out")
    if TF32 in wanted and where.type != "cuda":
        raise ValueError(f"format 'tf32' exists on CUDA devices only, and the model is on {where}")
    comparison = None
    if chosen:
        comparison = Comparison(untapped(copied(model)), known[: len(losses)], wanted, digits)
    folder = Path(tempfile.mkdtemp(prefix="fperr-")) if out is None else Path(out)
    about = {
        "network": type(model).__name__,
        "samples": len(y),
        "compared": {"samples": chosen, "every": every, "digits": digits},
        "losses": list(losses),
        "formats": list(formats),
        "device": str(where),
        "versions": {"fperr": version("fperr"), "torch": torch.__version__},
    }
    writer = Writer(folder, about)
    identities = Identities(len(y), None if x is None else x.detach().clone())
    recorder = Recorder(y, targets, loss, losses, chosen, every, identities, comparison, writer)
    trace = Trace(folder)
    if out is None:
        weakref.finalize(trace, shutil.rmtree, folder, ignore_errors=True)
    is_complete, counts = False, Counts()
    try:
        with tapped(model, recorder.seen, recorder.received) as counts:
            recorder.counts = counts
            yield trace
        is_complete = True
    finally:
        recorder.drain()
        writer.flush()
        seen = {"forwards": counts.forwards, "gradients": counts.gradients}
        writer.tell({**about, **seen, "is_complete": is_complete})
    if identities.uncertain:
        warnings.warn(
            f"in {identities.uncertain} batches some rows are nearer to another clean input than "
            "half the way to it: their samples are likely, not certain",
            stacklevel=4,
        )
    if recorder.unknown and comparison is not None:
        warnings.warn(
            f"the loss of {recorder.unknown} of {counts.gradients} gradient steps is none of those "
            "tried: their error is that of the network alone, with the attack's own dL/dz taken as "
            "data; if its name is one of fperr's, give it in losses=",
            stacklevel=4,
        )
    if not counts.gradients:
        warnings.warn(
            f"no gradient was recorded in {counts.forwards} forward passes: the attack calls "
            "another module, or takes no gradient with respect to its input",
            stacklevel=4,
        )


def _checked(
    model: nn.Module,
    y: Tensor,
    x: Tensor | None,
    targets: Tensor | None,
    every: int,
    samples: int | Sequence[int],
    digits: int,
) -> tuple[Tensor, Tensor | None, list[int]]:
    """Labels and targets on the model's device, and the samples to compare."""
    if usable_model(model, None, None) is not model:
        raise TypeError("the model comes from torch.compile: record the module inside it")
    where, _ = device_and_dtype(model)
    for name, given in (("y", y), ("targets", targets), ("x", x)):
        if given is not None and not isinstance(given, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(given).__name__}: torch.tensor(x)")
    for name, labels in (("y", y), ("targets", targets)):
        if labels is not None and (labels.ndim != 1 or labels.dtype != torch.int64):
            raise ValueError(f"{name} must be (n,) int64, got {tuple(labels.shape)} {labels.dtype}")
    if targets is not None and (targets.shape != y.shape or bool((targets == y).any())):
        raise ValueError(f"targets must be as many as y, {len(y)}, and differ from y")
    if x is not None and len(x) != len(y):
        raise ValueError(f"x and y must be of one length, got {len(x)} and {len(y)}")
    for name, number, least, most in (("every", every, 1, None), ("digits", digits, 10, 24)):
        if not isinstance(number, int) or number < least or (most is not None and number > most):
            limits = f"from {least} on" if most is None else f"from {least} to {most}"
            raise ValueError(f"{name} must be a whole number {limits}, got {number!r}")
    try:
        wanted = range(min(samples, len(y))) if isinstance(samples, int) else samples
        chosen = list(dict.fromkeys(operator.index(i) for i in wanted))
    except TypeError:
        raise TypeError(f"samples must be a number or a list of them, got {samples!r}") from None
    if any(not 0 <= i < len(y) for i in chosen) or (isinstance(samples, int) and samples < 0):
        raise ValueError(f"samples must be between 0 and {len(y) - 1}, or a number, got {samples}")
    return y.to(where), None if targets is None else targets.to(where), chosen
