"""`fperr.measure`: a model and inputs in, a report of the floating-point error of gradients out."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fperr.errors import CaptureAuditError, FperrError
from fperr.exact.graph import probe
from fperr.exact.interpreter import FloatRun
from fperr.formats import FLOAT64, of_dtype
from fperr.measurement.arguments import Job, checked_job
from fperr.measurement.cases import Case, cases_of
from fperr.measurement.format_reference import FormatReference, FormatSample
from fperr.measurement.model_checks import check_function_of_sample
from fperr.measurement.models import Accessor
from fperr.measurement.network import FloatGradient, FormatNetwork
from fperr.measurement.provenance import provenance
from fperr.measurement.reference import ExactSample, Reference
from fperr.measurement.rows import (
    Row,
    RowContext,
    Situation,
    measured_row,
    negated_row,
    unmeasured_row,
)
from fperr.report.frame import Report
from fperr.theory.losses import Context, Loss


def measure(
    model: nn.Module,
    x: Tensor | np.ndarray,
    y: Tensor | Sequence[int] | None = None,
    *,
    target: Tensor | Sequence[int] | None = None,
    losses: Sequence[str] = ("ce", "mifpe", "tmifpe"),
    formats: Sequence[str] = ("float16", "float32", "float64"),
    scenarios: str | Sequence[str] | None = None,
    reference: str = "auto",
    digits: int = 50,
    certify: bool = False,
    jacobian: str = "auto",
    reduction: str = "sum",
    loss_scale: float = 1.0,
    autocast: bool = False,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
    logits: Accessor | None = None,
    accept_probabilities: bool = False,
    name: str | None = None,
) -> Report:
    """Measure how wrong the input gradients of attack losses are in floating point.

    The reference is the gradient of the same network in arbitrary precision; the scale c that the
    format's run computed, and the labels, are data of both. Faults in the data mark their rows,
    and the others go on; Ctrl-C returns the rows that are finished.

    Args:
        model: (batch, *shape) -> logits (batch, K), K >= 2, in evaluation mode; not changed.
        x: (n, *shape), floating point, in the model's domain; cast once to the model's dtype.
        y: (n,) true labels.
        target: (n,) target classes: measures targeted losses.
        losses: names; `"ce"`, `"mifpe"`, `"tmifpe"`, `"mifpe:T=4"`, `"stable_ce"`, `"cw"`,
            `"dlr"`, `"mifpe_shifted"`, `"tmifpe_shifted"`.
        formats: names; the whole network runs in each, weights and input cast to it.
        scenarios: `"observed"` (y or target classifies each sample), `"all"` (each of the four at
            every x, by assigning the label from the reference's logits), or names of some of the
            four. None: observed if y or target is given, else all.
        reference: the exact engine: `"ball"` proves every digit, `"mpmath"` is the definition;
            `"auto"`: whichever is cheaper for this network.
        digits: correct decimal digits of the reference, in norm: proved by balls; mpmath is checked
            against twice as many.
        certify: add `delta_lo` and `delta_hi`, a proved interval for delta. Needs balls.
        jacobian: `"rows"`: all K rows of J at each sample, which every loss and scenario combines;
            `"products"`: one vector-Jacobian product for each gradient, for large K; `"auto"`: what
            takes fewer runs of the backward half.
        reduction: `"sum"` or `"mean"` over the batch, as the attack does it.
        loss_scale: factor on the loss, divided out of the gradient exactly.
        autocast: run float16 and bfloat16 under `torch.autocast` instead of casting the network.
        device: where to run; the model's own device by default.
        batch_size: samples in one batch of the format's run: float bits depend on it. If it is not
            given, 64, or 1 (with a warning) where a batch runs other operations than one sample.
        progress: show a progress bar; None: only where standard error is a terminal.
        logits: takes the logits out of what the model returns, e.g. `lambda output: output[0]`.
        accept_probabilities: do not refuse a model that returns probabilities.
        name: what the report calls the network; the model's class if not given.

    Returns:
        The report: one row for each sample, scenario, loss and format.

    Raises:
        TypeError, ValueError: an argument is not usable.
        ModelError: the model is random, depends on its batch, or fails in a format.
        UnsupportedOperationError: it has operations without an exact meaning; lists them.
        CaptureAuditError: its captured graph is not bit-equal to the eager run.
        FperrError: anything that stops it later; `report` holds the finished samples.
    """
    job = checked_job(
        model=model,
        x=x,
        y=y,
        target=target,
        losses=losses,
        formats=formats,
        scenarios=scenarios,
        reference=reference,
        digits=digits,
        certify=certify,
        jacobian=jacobian,
        reduction=reduction,
        loss_scale=loss_scale,
        autocast=autocast,
        device=device,
        batch_size=batch_size,
        logits=logits,
        accept_probabilities=accept_probabilities,
        name=name,
    )
    lab = Lab(job)
    rows: list[Row] = []
    hidden = None if progress is None else not progress
    interrupted = False
    layout = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=3 * len(job.x), desc="measure", bar_format=layout, disable=hidden) as bar:
        try:
            for done, sample_rows in enumerate(lab.rows(bar.update), start=1):
                rows.extend({"network": job.name, **row} for row in sample_rows)
                bar.set_postfix_str(f"{done} of {len(job.x)} samples")
        except KeyboardInterrupt:
            interrupted = True
        except Exception as fault:
            if not rows:
                raise
            report = Report.from_rows(rows, lab.provenance(interrupted=True))
            raise _keeping(report, fault) from fault
    return Report.from_rows(rows, lab.provenance(interrupted=interrupted))


def _keeping(report: Report, fault: Exception) -> FperrError:
    """The fault, with what was finished before it: nothing that was computed is lost."""
    kept = fault
    if not isinstance(kept, FperrError):
        kept = FperrError(
            f"the measurement stopped after {report.frame['sample'].nunique()} samples, whose rows "
            f"are in this error's `report`: {type(fault).__name__}: {fault}"
        )
    kept.report = report
    return kept


@dataclass(frozen=True, slots=True)
class _FormatRun:
    """One format's run on one batch: its gradients by loss and case, and what it left behind."""

    reference: FormatReference
    gradients: dict[tuple[Loss, int], FloatGradient]
    left_behind: FloatRun
    frozen: dict[tuple[Loss, int], Tensor | None]


class Lab:
    """A request at work: the networks in their formats, and the reference."""

    def __init__(self, job: Job) -> None:
        self.job = job
        own = FormatNetwork(job.model, of_dtype(job.x.dtype), autocast=False)
        check_function_of_sample(own, job.x[job.batches()[0]])
        by_rows = job.jacobian == "rows"
        self.reference = Reference(own, job.x, job.digits, job.engine, by_rows=by_rows)
        self._norms_from = own if by_rows else _widest(own, job)
        self.formats = [
            FormatReference(
                self.reference, FormatNetwork(job.model, f, autocast=job.autocast), job.x
            )
            for f in job.formats
        ]
        self._check_batches()
        self.switches: dict[str, dict[str, str]] = {}
        for fmt in self.formats:
            with fmt.network.running() as switches:
                self.switches[fmt.network.format.name] = switches

    def _check_batches(self) -> None:
        """Run samples one by one where a batch runs other operations than a single sample does.

        Raises:
            CaptureAuditError: it does, and that batch size was asked for.
        """
        single = self.job.x[:1]
        for batch in {b.stop - b.start: b for b in self.job.batches()}.values():
            for fmt in self.formats:
                captured = fmt.network.capture(self.job.x[batch])
                if fmt.network.capture(single).counterparts(captured) is None:
                    self._give_up_batches(batch.stop - batch.start, fmt.network.format.name)
                    return

    def _give_up_batches(self, size: int, format: str) -> None:
        text = (
            f"the graph for a batch of {size} differs from that for one sample in {format}, "
            "because PyTorch multiplies matrices in another way: "
        )
        if self.job.batch_size_is_asked_for:
            raise CaptureAuditError(text + "use batch_size=1")
        warnings.warn(text + "the samples are run one by one, as batch_size=1 does", stacklevel=5)
        self.job = replace(self.job, batch_size=1)

    def rows(self, advance: Callable[[], object]) -> Iterator[list[Row]]:
        """The rows of each sample, in order.

        Args:
            advance: called three times for each sample: after the exact network, after the exact
                side of the formats, after the rows.
        """
        for batch in self.job.batches():
            x = self.job.x[batch]
            exact = []
            for i in range(len(x)):
                exact.append(self.reference.sample(x[i : i + 1]))
                advance()
            cases = cases_of(self.job, batch, _orders(exact, self.job.classes, x.device))
            runs = [self._run(fmt, x, cases) for fmt in self.formats]
            casts = []
            for i, sample in enumerate(exact):
                casts.append(
                    [
                        None if sample is None else r.reference.sample(x, r.left_behind, i, sample)
                        for r in runs
                    ]
                )
                advance()
            for run, of_run in zip(runs, zip(*casts, strict=True), strict=True):
                self._freeze(run, x, exact, of_run)
            for i, sample in enumerate(exact):
                exact[i] = None  # what it holds is not needed again
                yield self._sample_rows(batch.start, i, sample, x, cases, runs, casts[i])
                advance()

    def provenance(self, *, interrupted: bool) -> dict[str, Any]:
        """What the report must say about this request, under the name of the network."""
        engine = self.reference.engine.name
        found = provenance(
            self.job,
            engine,
            self.reference.capture.network_digest,
            self.switches,
            interrupted=interrupted,
        )
        return {self.job.name: found}

    def _run(self, fmt: FormatReference, x: Tensor, cases: list[Case]) -> _FormatRun:
        gradients = {}
        for number, case in enumerate(cases):
            context = Context(case.targeted, case.y, self.job.loss_scale)
            for loss in self.job.losses:
                gradients[loss, number] = fmt.network.gradient(
                    x, case.label, loss, context, mean=self.job.mean
                )
        v = probe(next(iter(gradients.values())).logits)
        frozen: dict[tuple[Loss, int], Tensor | None] = {
            key: g.gradient for key, g in gradients.items()
        }
        return _FormatRun(fmt, gradients, fmt.run(x, v), frozen)

    def _freeze(
        self,
        run: _FormatRun,
        x: Tensor,
        exact: list[ExactSample | None],
        samples: Sequence[FormatSample | None],
    ) -> None:
        """Put the exact network's decisions in the gradients of a run where they differ."""
        known = [s for s in samples if s is not None and s.flips is not None]
        if known and not any(f.flips or f.tie_flips for s in known for f in s.flips or ()):
            return
        for key, gradient in run.gradients.items():
            run.frozen[key] = (
                run.reference.frozen_gradient(x, gradient.logit_gradient, exact) if known else None
            )

    def _row_log2_norms(self, exact: ExactSample, x: Tensor) -> list[float]:
        """Of the exact Jacobian, or, where its rows are not computed, in floating point."""
        return (
            exact.row_log2_norms if self.reference.by_rows else self._norms_from.row_log2_norms(x)
        )

    def _sample_rows(
        self,
        start: int,
        i: int,
        exact: ExactSample | None,
        x: Tensor,
        cases: list[Case],
        runs: list[_FormatRun],
        cast: Sequence[FormatSample | None],
    ) -> list[Row]:
        context = None
        if exact is not None:
            norms = self._row_log2_norms(exact, x[i : i + 1])
            context = RowContext(self.reference, norms, self.job.certify)
        found: dict[tuple[str, str, str], Row] = {}
        for number, case in enumerate(cases):
            for loss in self.job.losses:
                for run, sample in zip(runs, cast, strict=True):
                    fmt = run.reference.network.format
                    scenario = case.scenarios[i]
                    twin = found.get((scenario.twin.name, loss.name, fmt.name))
                    if twin is not None and loss.targeted_is_negated:
                        row = negated_row(twin, scenario)
                    else:
                        gradient = run.gradients[loss, number]
                        frozen = run.frozen[loss, number]
                        situation = Situation(start + i, i, loss, fmt, case, gradient, frozen)
                        if exact is None or sample is None or context is None:
                            finite = bool(x[i].isfinite().all())
                            row = unmeasured_row(situation, is_certified=False if finite else None)
                        else:
                            row = measured_row(situation, exact, sample, context)
                    found[scenario.name, loss.name, fmt.name] = row
        return list(found.values())


def _widest(own: FormatNetwork, job: Job) -> FormatNetwork:
    """The network in float64, or in its own dtype where it cannot be run in float64."""
    wide = FormatNetwork(job.model, FLOAT64, autocast=False)
    try:
        wide.logits(job.x[:1])
    except RuntimeError:  # a cast inside the network meets weights of another dtype
        return own
    return wide


def _orders(exact: Sequence[ExactSample | None], classes: int, device: torch.device) -> Tensor:
    """The ranking (batch, K) by exact logits; 0, 1, ... for a sample that has none."""
    ranks = [list(range(classes)) if e is None else e.order for e in exact]
    return torch.tensor(ranks, dtype=torch.int64, device=device)
