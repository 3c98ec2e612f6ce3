"""The recorder: buffers what the hooks report, and writes it to the trace in batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from torch import Tensor

from fperr.caller_state import neutral_state
from fperr.recording.attack_step import AttackStep, gradient_summary
from fperr.recording.compared_rows import ComparedRows
from fperr.recording.comparison import Comparison
from fperr.recording.diagnosis import Diagnosis
from fperr.recording.hooks import BackwardPass, PassCounts
from fperr.recording.loss_fit import RecognisedLoss
from fperr.recording.loss_function import UserLoss
from fperr.recording.recognition import recognise_all
from fperr.recording.sample_matching import SampleMatcher
from fperr.recording.step_table import step_table
from fperr.recording.trace_files import TraceWriter

# logits that wait to be described, 65,536 of them: together, because each step alone is small and
# the tables cost a fixed time
_MOST_LOGITS = 1 << 16


@dataclass(frozen=True, slots=True)
class _InputNote:
    """The recorder's note on the input of a forward pass.

    Attributes:
        samples: (batch,) int64, the sample that each row is.
        compared: Rows to be compared with exact gradients, with the input; None: none.
    """

    samples: Tensor
    compared: ComparedRows | None


@dataclass(slots=True)
class Recorder:
    """Takes what the hooks report, and writes it between the attack's steps, many at a time.

    Attributes:
        y: (n,) int64, the true labels.
        targets: (n,) int64, the targets, where they are known.
        hint: Loss that the user named, or gave as a function.
        losses: Names of losses to try beside the usual ones.
        samples: Samples whose gradients are compared with exact ones.
        every: Number of differentiable forward passes from one comparison to the next.
        matcher: Matcher of the rows of a batch to samples.
        comparison: Comparison with exact gradients; None: there is none.
        writer: Writer of the trace.
        diagnosis: Counts of what goes wrong.
        check_logits: Check of the first logits.
        check_model: Check of the model at the first inputs that are differentiated; None: it has
            been made.
        counts: Counts of the hooks.
        waiting: Steps that wait to be described.
        to_compare: Backward passes that wait to be compared, each with its position in `waiting`.
        last: Loss of the last step that was described.
    """

    y: Tensor
    targets: Tensor | None
    hint: str | UserLoss | None
    losses: Sequence[str]
    samples: Sequence[int]
    every: int
    matcher: SampleMatcher
    comparison: Comparison | None
    writer: TraceWriter
    diagnosis: Diagnosis
    check_logits: Callable[[Tensor], None]
    check_model: Callable[[Tensor], object] | None
    counts: PassCounts = field(default_factory=PassCounts)
    waiting: list[AttackStep] = field(default_factory=list)
    to_compare: list[tuple[int, BackwardPass]] = field(default_factory=list)
    last: RecognisedLoss | None = None

    def on_forward(self, x: Tensor, is_differentiable: bool) -> _InputNote | None:
        """Match the rows of a forward pass to samples; first, write what waits if it is time."""
        logits = sum(step.logits.numel() for step in self.waiting)
        if self.to_compare or logits > _MOST_LOGITS or self.writer.is_due:
            self.drain()
        if not is_differentiable:
            if len(x) == len(self.y) and self.matcher.needs_inputs:
                self.matcher.samples_of(x)
            return None
        if self.check_model is not None:  # at the first inputs that are differentiated
            check, self.check_model = self.check_model, None
            with neutral_state(allows_repaired=True):
                check(x)
        samples = self.matcher.samples_of(x)
        if self.comparison is None or self.counts.differentiable % self.every:
            return _InputNote(samples, None)
        rows = [i for i, sample in enumerate(samples.tolist()) if sample in self.samples]
        if not rows:
            return _InputNote(samples, None)
        compared = ComparedRows(x.detach().clone(), rows, samples[rows].tolist())
        return _InputNote(samples, compared)

    def on_backward(self, backward: BackwardPass) -> None:
        """Copy what a backward pass brought, until the attack calls the model again."""
        note: _InputNote = backward.forward.note
        y = self._labels_of(note.samples, self.y)
        targets = None if self.targets is None else self._labels_of(note.samples, self.targets)
        logits, gradient = backward.forward.logits, backward.gradient
        if backward.number == 0:
            _check_classes(self.y, self.targets, logits.shape[1])
            self.check_logits(logits)
            if isinstance(self.hint, UserLoss):
                self.hint.check(logits, y, targets)
        with torch.no_grad():
            summary = gradient_summary(gradient, len(note.samples), self.y.device)
        if note.compared is not None:
            copied = replace(backward, gradient=None if gradient is None else gradient.clone())
            self.to_compare.append((len(self.waiting), copied))
        self.waiting.append(
            AttackStep(
                backward.number,
                backward.forward.number,
                note.samples,
                y,
                targets,
                logits,
                backward.logit_gradient,
                *summary,
                backward.forward.is_training,
            )
        )

    def _labels_of(self, samples: Tensor, labels: Tensor) -> Tensor:
        """The labels of these samples."""
        return labels if samples is self.matcher.in_order else labels[samples.to(labels.device)]

    def drain(self) -> None:
        """Describe and compare what waits, and hand it to the writer."""
        steps, to_compare = self.waiting, self.to_compare
        self.waiting, self.to_compare = [], []
        if not steps:
            return
        with neutral_state(allows_repaired=True), torch.no_grad():
            losses: list[RecognisedLoss] = []
            # one table holds logits of one dtype and one number of classes
            for _, alike in groupby(steps, key=lambda s: (s.logits.dtype, s.logits.shape[1])):
                group = list(alike)
                recognised = recognise_all(group, self.losses, self.last, self.hint)
                self.last = recognised[-1]
                rows = step_table(group, recognised)
                self.writer.add("steps", rows)
                self.diagnosis.add_steps(rows)
                losses += recognised
            if to_compare:  # exact arithmetic may take minutes
                self.writer.flush()
            for position, backward in to_compare:
                assert self.comparison is not None
                note: _InputNote = backward.forward.note
                assert note.compared is not None
                self.writer.add("points", self.comparison.points(backward, note.compared))
                y = steps[position].y
                rows = self.comparison.rows(backward, note.compared, losses[position], y)
                self.writer.add("errors", rows)
                self.diagnosis.add_errors(rows)


def _check_classes(y: Tensor, targets: Tensor | None, classes: int) -> None:
    for name, labels in (("y", y), ("targets", targets)):
        if labels is not None and bool(((labels < 0) | (labels >= classes)).any()):
            raise ValueError(
                f"{name} must be between 0 and {classes - 1}, the model's classes, got values from "
                f"{int(labels.min())} to {int(labels.max())}: give labels below {classes}"
            )
