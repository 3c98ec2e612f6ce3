"""`fperr.record`: any attack, recorded through the model that it calls."""

import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fperr import checks
from fperr.caller_state import neutral_outside_yield
from fperr.formats import TF32, Format
from fperr.losses import LossFunction, loss_named
from fperr.networks.checks import check_model, number_of_classes
from fperr.networks.in_format import copied, device_and_dtype
from fperr.networks.model import Accessor
from fperr.recording.arguments import (
    check_logits,
    check_name,
    checked_labels,
    checked_loss,
    checked_model,
    checked_names,
    checked_numbers,
    runs_on,
)
from fperr.recording.comparison import Comparison
from fperr.recording.diagnosis import Diagnosis
from fperr.recording.hooks import PassCounts, hooks_on, without_hooks
from fperr.recording.loss_function import UserLoss
from fperr.recording.recorder import Recorder
from fperr.recording.sample_matching import SampleMatcher
from fperr.recording.trace import Trace
from fperr.recording.trace_files import TraceWriter
from fperr.vocabulary import FormatName

LOSSES = ("ce", "stable_ce", "mifpe", "tmifpe")
FORMATS: tuple[FormatName, ...] = ("float16", "float32", "float64")


@contextmanager
@neutral_outside_yield
def record(
    model: nn.Module,
    x: Tensor | None,
    y: Tensor,
    *,
    targets: Tensor | None = None,
    loss: str | LossFunction | None = None,
    losses: Sequence[str] = LOSSES,
    formats: Sequence[FormatName | Format] = FORMATS,
    every: int = 10,
    samples: int | Sequence[int] = 4,
    digits: int | None = None,
    out: str | Path | None = None,
    logits: Accessor | str | int | None = None,
    accept_probabilities: bool = False,
) -> Iterator[Trace]:
    """Record every gradient that an attack takes of `model`, whoever wrote the attack.

    Hooks on the model read its logits, dL/dz and dL/dx. The attack runs as it would without them,
    bit by bit (but not under torch.func or torch.compile). The trace describes every step of every
    sample. At every `every`-th forward pass the gradients of some samples are compared with exact
    ones, and with the gradients of other losses at the same points in each format. ::

        with fperr.record(model, x, y) as trace:
            torchattacks.PGD(model, eps=0.3)(x, y)
        trace.errors()

    Args:
        model: Module that the attack calls, in evaluation mode.
        x: Clean inputs (n, *shape). They are needed if the attack calls the model on a part of the
            batch: its samples are then recognised by the nearest clean input (in the maximum norm).
            None: not known.
        y: True labels (n,), int64.
        targets: Target classes (n,), int64, of a targeted attack. If they are not given, a targeted
            loss is recognised by its dL/dz.
        loss: The attack's loss. A function `loss(logits, y, targets) -> (batch,)`, in which each
            value depends on its row of the logits alone and `targets` is None for an untargeted
            attack: the attack's gradient is compared with the exact gradient of that function. Or
            a name, for attacks whose first dL/dz is zero everywhere, so that the loss cannot be
            recognised. None: recognised by dL/dz.
        losses: Names of losses whose gradients are computed at each point, beside the attack's.
        formats: Names of the formats in which they are computed, or formats of your own.
        every: Interval of the comparisons: forward passes 0, every, 2 every, ... under gradient
            mode are compared.
        samples: Number of samples to compare, the first of the batch, or a list of their indices.
            0: no exact arithmetic at all.
        digits: Correct decimal digits of the exact gradients, 10 to 24. None: what four digits of
            each format's delta need.
        out: Empty or missing folder, written to while the attack runs. None: a temporary folder,
            removed together with the trace.
        logits: Position of the logits in what the model returns: a name, an index, or a function
            that picks a tensor of it. None: the model returns logits.
        accept_probabilities: Whether to record a model that returns probabilities; otherwise it is
            refused.

    Yields:
        The trace, which grows while the attack runs.

    Raises:
        TypeError, ValueError: An argument is not usable, or the attack calls the model in a way
            that cannot be recorded; says what to do.
        ModelError, UnsupportedOperationError, CaptureAuditError: As `fperr.measure`, of the model,
            and of a `loss` that is a function. They are raised at the attack's first step; those of
            the model before it if x is given.

    Warns:
        UserWarning: Each sentence of `Trace.diagnosis()`.

    Example:
        >>> import fperr
        >>> from torch.nn.functional import cross_entropy
        >>> from fperr import data, zoo
        >>> images, model = data.fashion_mnist_1000().first(2), zoo.load("fashion_standard")
        >>> x = images.x.clone().requires_grad_()
        >>> with fperr.record(model, images.x, images.y, samples=1) as trace:
        ...     cross_entropy(model(x), images.y).backward()
        >>> trace.gradients
        1
        >>> trace.steps()["loss"].tolist()  # as recognised by dL/dz
        ['ce', 'ce']
    """
    checks.flag("accept_probabilities", accept_probabilities)
    usable, pick_logits = checked_model(model, logits)
    y, targets = checked_labels(model, y, x, targets)
    compared_samples = checked_numbers(every, samples, digits, len(y))
    attack_loss = checked_loss(loss)
    losses = checked_names("losses", losses)
    for name in losses:
        check_name(name)
    is_empty = isinstance(formats, list | tuple) and not formats
    compared_formats = [] if is_empty else checks.formats_of("formats", formats)
    if out is not None and not isinstance(out, str | Path):
        raise TypeError(f"out must be a folder, got {checks.shown(out)}: give its path, or None")
    device, _ = device_and_dtype(model)
    if TF32 in compared_formats and device.type != "cuda":
        raise ValueError(
            f"format 'tf32' exists on CUDA devices only, and the model is on {device}: move it "
            "there, or leave the format out"
        )
    comparison, is_checked = None, False
    if compared_samples:
        # a copy, because the attack may change its model; its passes are not the attack's
        usable = without_hooks(copied(usable))
        comparison = Comparison(
            usable, [loss_named(name) for name in losses], compared_formats, digits
        )
    if x is not None:
        is_checked = _check_on_inputs(
            usable, x, comparison=comparison, accept_probabilities=accept_probabilities
        )
    folder = Path(tempfile.mkdtemp(prefix="fperr-")) if out is None else Path(out)
    user_loss = attack_loss.name if isinstance(attack_loss, UserLoss) else None
    description: dict[str, Any] = {
        "network": checks.class_name(model),
        "samples": len(y),
        "compared": {"samples": compared_samples, "every": every, "digits": digits},
        "loss": attack_loss.name if isinstance(attack_loss, UserLoss) else attack_loss,
        "losses": list(losses),
        "formats": [fmt.name for fmt in compared_formats],
        "device": str(device),
        "versions": {"fperr": version("fperr"), "torch": torch.__version__},
    }
    writer = TraceWriter(folder, description)
    matcher = SampleMatcher(len(y), None if x is None else x.detach().clone())
    diagnosis = Diagnosis(len(y), user_loss, comparison is not None)
    recorder = Recorder(
        y,
        targets,
        attack_loss,
        losses,
        compared_samples,
        every,
        matcher,
        comparison,
        writer,
        diagnosis,
        partial(check_logits, accept_probabilities=accept_probabilities or is_checked),
        # a comparison checks the model itself, at its first point
        None
        if is_checked or compared_samples
        else partial(_check_on_inputs, usable, comparison=None),
    )
    trace = Trace(folder)
    if out is None:
        weakref.finalize(trace, shutil.rmtree, folder, ignore_errors=True)
    is_complete, counts = False, PassCounts()
    try:
        with hooks_on(model, recorder.on_forward, recorder.on_backward, pick_logits) as counts:
            recorder.counts = counts
            yield trace
        is_complete = True
    finally:
        recorder.drain()
        writer.flush()
        description["forwards"], description["gradients"] = counts.forwards, counts.gradients
        sentences = [*_match_sentences(matcher), *diagnosis.sentences(), *_hook_sentences(counts)]
        description["diagnosis"] = sentences
        writer.describe({**description, "is_complete": is_complete})
    for sentence in sentences:
        warnings.warn(sentence, stacklevel=4)  # at the line of `with`, above two decorators


def _check_on_inputs(
    model: nn.Module,
    x: Tensor,
    *,
    comparison: Comparison | None,
    accept_probabilities: bool = True,
) -> bool:
    """Check the model on the first inputs, if it takes them as they are.

    Returns:
        Whether it takes them, and has been checked.

    Raises:
        ValueError, ModelError: it returns something else than logits, or is not a function of one
            sample.
    """
    probe = runs_on(model, x)
    if probe is None:
        return False
    if comparison is None:
        check_model(model, probe, accept_probabilities=accept_probabilities)
    else:
        number_of_classes(model, probe, accept_probabilities=accept_probabilities)
        comparison.check(probe)
    return True


def _match_sentences(matcher: SampleMatcher) -> list[str]:
    if not matcher.uncertain:
        return []
    return [
        f"in {matcher.uncertain} batches some rows are nearer to another clean input than "
        "half the way to it: their samples are likely, not certain"
    ]


def _hook_sentences(counts: PassCounts) -> list[str]:
    if counts.gradients:
        return []
    text = f"no gradient was recorded in {counts.forwards} forward passes: the attack calls "
    if counts.on_integers:
        return [
            f"{text}the model on integers ({counts.on_integers} of them), which have no gradient. "
            "Give it floating-point inputs: record the part of it behind an embedding"
        ]
    return [
        f"{text}another module, runs in another thread than the recorder, or takes no gradient "
        "with respect to its input"
    ]
