"""Between the hooks and the tables: what waits, and when it is described."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from torch import Tensor

from fperr.caller_state import neutral_state
from fperr.recording.attack_step import AttackStep, gradient_summary
from fperr.recording.comparison import Chosen, Comparison
from fperr.recording.diagnosis import Diagnosis
from fperr.recording.hooks import BackwardPass, Counts
from fperr.recording.loss_function import GivenLoss
from fperr.recording.recognition import Recognised, recognise_all
from fperr.recording.sample_matching import SampleMatcher
from fperr.recording.step_table import step_table
from fperr.recording.trace_files import Writer

_NUMBERS = 1 << 16  # logits that wait to be described: together, because each step is little


@dataclass(frozen=True, slots=True)
class _Note:
    """Of a forward pass: which sample each row is, and the input where it will be compared."""

    rows: Tensor
    chosen: Chosen | None


@dataclass(slots=True)
class Recorder:
    """Takes what the hooks bring, and writes it between the attack's steps, many at a time."""

    y: Tensor
    targets: Tensor | None
    hint: str | GivenLoss | None
    losses: Sequence[str]
    samples: Sequence[int]
    every: int
    identities: SampleMatcher
    comparison: Comparison | None
    writer: Writer
    diagnosis: Diagnosis
    check_logits: Callable[[Tensor], None]
    check_model: Callable[[Tensor], object] | None
    counts: Counts = field(default_factory=Counts)
    waiting: list[AttackStep] = field(default_factory=list)
    compared: list[tuple[int, BackwardPass]] = field(default_factory=list)
    last: Recognised | None = None

    def seen(self, x: Tensor, is_open: bool) -> _Note | None:
        """After a forward pass: whose rows these are."""
        numbers = sum(step.logits.numel() for step in self.waiting)
        if self.compared or numbers > _NUMBERS or self.writer.is_due:
            self.drain()
        if not is_open:
            if len(x) == len(self.y) and self.identities.is_waiting:
                self.identities.rows(x)
            return None
        if self.check_model is not None:  # at the first inputs that are differentiated
            check, self.check_model = self.check_model, None
            with neutral_state():
                check(x)
        rows = self.identities.rows(x)
        if self.comparison is None or self.counts.differentiable % self.every:
            return _Note(rows, None)
        places = [i for i, sample in enumerate(rows.tolist()) if sample in self.samples]
        if not places:
            return _Note(rows, None)
        return _Note(rows, Chosen(x.detach().clone(), places, rows[places].tolist()))

    def received(self, gradient: BackwardPass) -> None:
        """Keep what a backward pass brought until the attack calls the model again."""
        note: _Note = gradient.of.note
        if gradient.number == 0:
            _check_classes(self.y, self.targets, gradient.of.logits.shape[1])
            self.check_logits(gradient.of.logits)
            if isinstance(self.hint, GivenLoss):
                y = self._of(note.rows, self.y)
                towards = None if self.targets is None else self._of(note.rows, self.targets)
                self.hint.check(gradient.of.logits, y, towards)
        with torch.no_grad():
            summary = gradient_summary(gradient.gradient, len(note.rows), self.y.device)
        if note.chosen is not None:
            g = gradient.gradient
            kept = replace(gradient, gradient=None if g is None else g.clone())
            self.compared.append((len(self.waiting), kept))
        self.waiting.append(
            AttackStep(
                gradient.number,
                gradient.of.number,
                note.rows,
                self._of(note.rows, self.y),
                None if self.targets is None else self._of(note.rows, self.targets),
                gradient.of.logits,
                gradient.logit_gradient,
                *summary,
                gradient.of.is_training,
            )
        )

    def _of(self, rows: Tensor, labels: Tensor) -> Tensor:
        """The labels of the rows."""
        return labels if rows is self.identities.everybody else labels[rows.to(labels.device)]

    def drain(self) -> None:
        """Describe and compare what waits, and hand it to the writer."""
        steps, compared = self.waiting, self.compared
        self.waiting, self.compared = [], []
        if not steps:
            return
        with neutral_state(), torch.no_grad():
            known: list[Recognised] = []
            for _, alike in groupby(steps, key=lambda s: (s.logits.dtype, s.logits.shape[1])):
                group = list(alike)
                found = recognise_all(group, self.losses, self.last, self.hint)
                self.last = found[-1]
                rows = step_table(group, found)
                self.writer.add("steps", rows)
                self.diagnosis.add_steps(rows)
                known += found
            if compared:  # exact arithmetic may take minutes
                self.writer.flush()
            for place, gradient in compared:
                assert self.comparison is not None
                note: _Note = gradient.of.note
                assert note.chosen is not None
                self.writer.add("points", self.comparison.points(gradient, note.chosen))
                y = steps[place].y
                rows = self.comparison.rows(gradient, note.chosen, known[place], y)
                self.writer.add("errors", rows)
                self.diagnosis.add_errors(rows)


def _check_classes(y: Tensor, targets: Tensor | None, classes: int) -> None:
    for name, labels in (("y", y), ("targets", targets)):
        if labels is not None and bool(((labels < 0) | (labels >= classes)).any()):
            raise ValueError(
                f"{name} must be between 0 and {classes - 1}, the model's classes, got values from "
                f"{int(labels.min())} to {int(labels.max())}: give labels below {classes}"
            )
