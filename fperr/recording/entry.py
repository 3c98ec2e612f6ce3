"""`fperr.record`: any attack, recorded through the model that it calls."""

import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from fperr import formats as formats_module
from fperr.formats import TF32
from fperr.measurement.models import usable_model
from fperr.measurement.network import copied, device_and_dtype
from fperr.recording.columns import step_table
from fperr.recording.comparison import Chosen, Comparison
from fperr.recording.identity import Identities
from fperr.recording.recognition import Recognised, recognise_all
from fperr.recording.steps import Step, gradient_summary
from fperr.recording.store import Writer
from fperr.recording.taps import Counts, Gradient, tapped
from fperr.recording.trace import Trace
from fperr.theory.losses import named

_DIGITS = 20
_NUMBERS = 1 << 16  # logits that wait to be described: together, because each step is little
LOSSES = ("ce", "stable_ce", "mifpe", "tmifpe")
FORMATS = ("float16", "float32", "float64")


@contextmanager
def record(
    model: nn.Module,
    y: Tensor,
    *,
    x: Tensor | None = None,
    targets: Tensor | None = None,
    losses: Sequence[str] = LOSSES,
    formats: Sequence[str] = FORMATS,
    every: int = 10,
    samples: int | Sequence[int] = 4,
    digits: int = _DIGITS,
    out: str | Path | None = None,
) -> Iterator[Trace]:
    """Record every gradient that an attack takes of `model`, whoever wrote the attack.

    Hooks on the model see its logits, dL/dz and dL/dx; the attack runs as it would without them,
    bit by bit. Every step of every sample is described; at every `every`-th forward pass the
    gradients of some samples are compared with exact ones, and with what other losses would have
    given there in each format.

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
    y, targets, chosen = _checked(model, y, x, targets, every, samples)
    known = [named(name) for name in losses]
    wanted = [formats_module.named(name) for name in formats]
    where, _ = device_and_dtype(model)
    if TF32 in wanted and where.type != "cuda":
        raise ValueError(f"format 'tf32' exists on CUDA devices only, and the model is on {where}")
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
    comparison = Comparison(copied(model), known, wanted, digits) if chosen else None
    identities = Identities(len(y), None if x is None else x.detach())
    recorder = _Recorder(y, targets, tuple(losses), chosen, every, identities, comparison, writer)
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
    if not counts.gradients:
        warnings.warn(
            f"no gradient was recorded in {counts.forwards} forward passes: the attack calls "
            "another module, or takes no gradient with respect to its input",
            stacklevel=3,
        )


@dataclass(frozen=True, slots=True)
class _Note:
    """Of a forward pass: which sample each row is, and the input where it will be compared."""

    rows: Tensor
    chosen: Chosen | None


@dataclass(slots=True)
class _Recorder:
    """Takes what the hooks bring, and writes it between the attack's steps, many at a time."""

    y: Tensor
    targets: Tensor | None
    losses: Sequence[str]
    samples: Sequence[int]
    every: int
    identities: Identities
    comparison: Comparison | None
    writer: Writer
    counts: Counts = field(default_factory=Counts)
    waiting: list[Step] = field(default_factory=list)
    compared: list[tuple[int, Gradient]] = field(default_factory=list)
    last: Recognised | None = None

    def seen(self, x: Tensor, is_open: bool) -> _Note | None:
        """After a forward pass: whose rows these are."""
        numbers = sum(step.logits.numel() for step in self.waiting)
        if self.compared or numbers > _NUMBERS or self.writer.is_due:
            self.drain()
        if not is_open:
            if len(x) == len(self.y):
                self.identities.rows(x)
            return None
        rows = self.identities.rows(x)
        if self.comparison is None or self.counts.differentiable % self.every:
            return _Note(rows, None)
        places = [i for i, sample in enumerate(rows.tolist()) if sample in self.samples]
        if not places:
            return _Note(rows, None)
        return _Note(rows, Chosen(x.detach().clone(), places, rows[places].tolist()))

    def received(self, gradient: Gradient) -> None:
        """Keep what a backward pass brought until the attack calls the model again."""
        note: _Note = gradient.of.note
        rows = note.rows.to(self.y.device)
        with torch.no_grad():
            share, norm = gradient_summary(gradient.gradient, len(rows), self.y.device)
        if note.chosen is not None:
            g = gradient.gradient
            kept = replace(gradient, gradient=None if g is None else g.clone())
            self.compared.append((len(self.waiting), kept))
        self.waiting.append(
            Step(
                gradient.number,
                gradient.of.number,
                note.rows,
                self.y[rows],
                None if self.targets is None else self.targets[rows],
                gradient.of.logits,
                gradient.logit_gradient,
                share,
                norm,
            )
        )

    def drain(self) -> None:
        """Describe and compare what waits, and hand it to the writer."""
        steps, compared = self.waiting, self.compared
        self.waiting, self.compared = [], []
        if not steps:
            return
        with torch.no_grad(), torch.autocast(self.y.device.type, enabled=False):
            known = recognise_all(steps, self.losses, self.last)
            self.last = known[-1]
            self.writer.add("steps", step_table(steps, known))
            for place, gradient in compared:
                assert self.comparison is not None
                note: _Note = gradient.of.note
                assert note.chosen is not None
                self.writer.add("points", self.comparison.points(gradient, note.chosen))
                y = steps[place].y
                rows = self.comparison.rows(gradient, note.chosen, known[place], y)
                self.writer.add("errors", rows)


def _checked(
    model: nn.Module,
    y: Tensor,
    x: Tensor | None,
    targets: Tensor | None,
    every: int,
    samples: int | Sequence[int],
) -> tuple[Tensor, Tensor | None, list[int]]:
    """Labels and targets on the model's device, and the samples to compare."""
    if usable_model(model, None, None) is not model:
        raise TypeError("the model comes from torch.compile: record the module inside it")
    where, _ = device_and_dtype(model)
    for name, labels in (("y", y), ("targets", targets)):
        if labels is not None and (labels.ndim != 1 or labels.dtype != torch.int64):
            raise ValueError(f"{name} must be (n,) int64, got {tuple(labels.shape)} {labels.dtype}")
    if targets is not None and targets.shape != y.shape:
        raise ValueError(f"targets must be as many as y, {len(y)}, got {len(targets)}")
    if x is not None and len(x) != len(y):
        raise ValueError(f"x and y must be of one length, got {len(x)} and {len(y)}")
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every!r}")
    chosen = list(range(min(samples, len(y)))) if isinstance(samples, int) else list(samples)
    if any(not 0 <= i < len(y) for i in chosen) or (isinstance(samples, int) and samples < 0):
        raise ValueError(f"samples must be between 0 and {len(y) - 1}, or a number, got {samples}")
    return y.to(where), None if targets is None else targets.to(where), chosen
