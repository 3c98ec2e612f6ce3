"""A measurement at work: batches through the formats, samples through the exact network."""

import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from fperr.bounds.cross_entropy import Bound
from fperr.errors import CaptureAuditError, ModelError
from fperr.exact.branches import Branches
from fperr.exact.graph import probe
from fperr.exact.saved_values import FloatRun
from fperr.formats import FLOAT64, Format, of_dtype
from fperr.gradient_error.loss_bound import logit_bound
from fperr.losses import Context, Loss
from fperr.measurement.arguments import MeasureRequest
from fperr.measurement.exact_in_format import ExactInFormat, ExactSampleInFormat
from fperr.measurement.labels_by_scenario import LabelsOfScenario, labels_by_scenario
from fperr.measurement.provenance import provenance
from fperr.measurement.rows import (
    Row,
    RowContext,
    RowRequest,
    failed_row,
    measured_row,
    negated_row,
    unmeasured_row,
)
from fperr.networks.checks import check_function_of_sample
from fperr.networks.exactly import ExactNetwork, ExactSample, NoExactSample
from fperr.networks.in_format import FloatGradient, FormatNetwork
from fperr.reasons import format_fails

_PASSED = NoExactSample("its rows have been made")  # in place of a sample that is no longer held


@dataclass(frozen=True, slots=True)
class _FormatRun:
    """One format's run on one batch: its gradients by loss and case, and what it left behind.

    `frozen` holds the gradients with the exact network's decisions that have been asked for.
    """

    reference: ExactInFormat
    gradients: dict[tuple[Loss, int], FloatGradient]
    bounds: dict[tuple[Loss, int], Bound | None]
    left_behind: FloatRun
    frozen: dict[tuple[Loss, int], Tensor | None]


class MeasurementRun:
    """A request at work: the networks in their formats, and the reference."""

    def __init__(self, job: MeasureRequest) -> None:
        self.job = job
        own = FormatNetwork(job.model, of_dtype(job.x.dtype), autocast=False)
        check_function_of_sample(own, job.x[job.batches()[0]])
        by_rows = job.jacobian == "rows"
        self.reference = ExactNetwork(own, job.x, job.digits, job.engine, by_rows=by_rows)
        self._norms_from = own if by_rows else _widest(own, job)
        self.failed: dict[Format, str] = {}
        self.formats = self._formats()
        self._check_batches()
        self.switches: dict[str, dict[str, str]] = {}
        for fmt in self.formats:
            with fmt.network.running() as switches:
                self.switches[fmt.network.format.name] = switches

    def _formats(self) -> list[ExactInFormat]:
        """The formats in which the network runs; the others are noted, with the reason.

        Raises:
            FperrError: it runs in none of them.
        """
        found: list[ExactInFormat] = []
        for fmt in self.job.formats:
            try:
                network = FormatNetwork(self.job.model, fmt, autocast=self.job.autocast)
                found.append(ExactInFormat(self.reference, network, self.job.x))
            except ModelError as fault:
                if len(self.failed) == len(self.job.formats) - 1:
                    raise
                self.failed[fmt] = format_fails(fmt, str(fault))
        return found

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
        warnings.warn(text + "the samples are run one by one, as batch_size=1 does", stacklevel=6)
        self.job = replace(self.job, batch_size=1)

    def rows(
        self, advance: Callable[[], object], finished: Container[int] = ()
    ) -> Iterator[list[Row]]:
        """The rows of each sample, in order.

        Args:
            advance: called twice for each sample: after the exact network, and after the rows.
            finished: the first samples of batches that are left out.
        """
        for batch in self.job.batches():
            if batch.start in finished:
                continue
            x = self.job.x[batch]
            samples = self.reference.samples(x, advance)
            exact = [s if isinstance(s, ExactSample) else None for s in samples]
            cases = labels_by_scenario(self.job, batch, _orders(exact, self.job.classes, x.device))
            runs = {fmt.network.format: self._run(fmt, x, cases) for fmt in self.formats}
            routes = [None if e is None else e.state.decisions for e in exact]
            sides = {
                fmt: run.reference.samples(x, run.left_behind, exact) for fmt, run in runs.items()
            }
            for i in range(len(x)):
                sample = samples[i]
                cast = {fmt: next(side) for fmt, side in sides.items()}
                exact[i] = None  # what it holds is not needed again
                samples[i] = _PASSED
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

    def _run(self, fmt: ExactInFormat, x: Tensor, cases: list[LabelsOfScenario]) -> _FormatRun:
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
        sample: ExactSampleInFormat | None,
        routes: Sequence[tuple[Branches, ...] | None],
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
        exact: ExactSample | NoExactSample,
        x: Tensor,
        cases: list[LabelsOfScenario],
        runs: Mapping[Format, _FormatRun],
        cast: Mapping[Format, ExactSampleInFormat | None],
        routes: Sequence[tuple[Branches, ...] | None],
    ) -> list[Row]:
        context = None
        if isinstance(exact, ExactSample):
            norms = self._row_log2_norms(exact, x[i : i + 1])
            context = RowContext(self.reference, norms, self.job.certify)
        found: dict[tuple[str, str, str], Row] = {}
        for (number, case), loss, fmt in product(
            enumerate(cases), self.job.losses, self.job.formats
        ):
            scenario = case.scenarios[i]
            twin = found.get((scenario.twin.name, loss.name, fmt.name))
            if twin is not None and loss.targeted_is_negated:
                row = negated_row(twin, scenario)
            elif fmt in self.failed:
                row = failed_row(start + i, i, loss, fmt, case, self.failed[fmt])
            else:
                run, sample = runs[fmt], cast[fmt]
                gradient = run.gradients[loss, number]
                frozen = self._frozen(run, (loss, number), x, sample, routes)
                bound = run.bounds[loss, number]
                situation = RowRequest(start + i, i, loss, fmt, case, gradient, frozen, bound)
                if isinstance(exact, NoExactSample):
                    row = unmeasured_row(situation, exact.reason, is_certified=exact.is_certified)
                else:
                    assert sample is not None
                    assert context is not None
                    row = measured_row(situation, exact, sample, context)
            found[scenario.name, loss.name, fmt.name] = row
        return list(found.values())


def _widest(own: FormatNetwork, job: MeasureRequest) -> FormatNetwork:
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
