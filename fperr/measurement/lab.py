"""A measurement at work: batches through the formats, samples through the exact network."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fperr.bounds.cross_entropy import Bound
from fperr.errors import CaptureAuditError
from fperr.exact.graph import probe
from fperr.exact.readings import FloatRun
from fperr.exact.routing import Decisions
from fperr.formats import FLOAT64, of_dtype
from fperr.measurement.arguments import Job
from fperr.measurement.bounded import logit_bound
from fperr.measurement.cases import Case, cases_of
from fperr.measurement.format_reference import FormatReference, FormatSample
from fperr.measurement.model_checks import check_function_of_sample
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
from fperr.report.reasons import INPUT_NOT_FINITE, NOT_CERTIFIED
from fperr.theory.losses import Context, Loss


@dataclass(frozen=True, slots=True)
class _FormatRun:
    """One format's run on one batch: its gradients by loss and case, and what it left behind.

    `frozen` holds the gradients with the exact network's decisions that have been asked for.
    """

    reference: FormatReference
    gradients: dict[tuple[Loss, int], FloatGradient]
    bounds: dict[tuple[Loss, int], Bound | None]
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
            advance: called twice for each sample: after the exact network, and after the rows.
        """
        for batch in self.job.batches():
            x = self.job.x[batch]
            exact = self.reference.samples(x, advance)
            cases = cases_of(self.job, batch, _orders(exact, self.job.classes, x.device))
            runs = [self._run(fmt, x, cases) for fmt in self.formats]
            routes = [None if e is None else e.state.decisions for e in exact]
            sides = [run.reference.samples(x, run.left_behind, exact) for run in runs]
            for i, sample in enumerate(exact):
                cast = [next(side) for side in sides]
                exact[i] = None  # what it holds is not needed again
                yield self._sample_rows(batch.start, i, sample, x, cases, runs, cast, routes)
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
        gradients, bounds = {}, {}
        for number, case in enumerate(cases):
            context = Context(case.targeted, case.y, self.job.loss_scale)
            for loss in self.job.losses:
                found = fmt.network.gradient(x, case.label, loss, context, mean=self.job.mean)
                gradients[loss, number] = found
                bounds[loss, number] = logit_bound(found, case.label, loss)
        v = probe(next(iter(gradients.values())).logits)
        return _FormatRun(fmt, gradients, bounds, fmt.run(x, v), {})

    def _frozen(
        self,
        run: _FormatRun,
        key: tuple[Loss, int],
        x: Tensor,
        sample: FormatSample | None,
        routes: Sequence[tuple[Decisions, ...] | None],
    ) -> Tensor | None:
        """The format's gradients on the batch with the exact network's decisions, for a sample."""
        if sample is None or sample.flips is None:
            return None
        if not any(f.flips or f.tie_flips for f in sample.flips):
            return run.gradients[key].gradient
        if key not in run.frozen:
            v = run.gradients[key].logit_gradient
            run.frozen[key] = run.reference.frozen_gradient(x, v, routes)
        return run.frozen[key]

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
        routes: Sequence[tuple[Decisions, ...] | None],
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
                        frozen = self._frozen(run, (loss, number), x, sample, routes)
                        bound = run.bounds[loss, number]
                        situation = Situation(
                            start + i, i, loss, fmt, case, gradient, frozen, bound
                        )
                        if exact is None or sample is None or context is None:
                            finite = bool(x[i].isfinite().all())
                            reason = NOT_CERTIFIED if finite else INPUT_NOT_FINITE
                            certified = False if finite else None
                            row = unmeasured_row(situation, reason, is_certified=certified)
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
