"""Runs a measurement: batches through the formats, and samples through the exact network."""

import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from fperr.bounds.cross_entropy import Bound
from fperr.errors import CaptureAuditError, ModelError, UnsupportedOperationError
from fperr.exact.branches import Branches
from fperr.exact.graph import probe
from fperr.exact.saved_values import FloatRun
from fperr.formats import FLOAT64, Format, of_dtype
from fperr.gradient_error.loss_bound import logit_bound
from fperr.gradient_error.needed_bits import NeededBits, needed_bits
from fperr.losses import Context, Loss
from fperr.measurement.arguments import MeasureRequest
from fperr.measurement.format_result import FormatResult
from fperr.measurement.labels_by_scenario import LabelAssignment, label_assignments
from fperr.measurement.provenance import emulation_notes, provenance
from fperr.measurement.rounded_network import ExactFormatNetwork, ExactSampleInFormat
from fperr.measurement.rows import (
    ExactResult,
    Row,
    failed_row,
    measured_row,
    negated_row,
    unmeasured_row,
)
from fperr.networks.checks import check_function_of_sample
from fperr.networks.exact_network import ExactNetwork, ExactSample, NoExactSample, SampleLadder
from fperr.networks.in_format import FloatGradient, FormatNetwork
from fperr.reasons import format_fails

_PASSED = NoExactSample("its rows have been made")  # replaces a sample, to free its memory


@dataclass(frozen=True, slots=True)
class _FormatRun:
    """One format's run on one batch.

    The keys of the dictionaries are the loss and the index of the assignment of labels.

    Attributes:
        network: The format's network, evaluated exactly.
        gradients: Gradients that the format computed.
        bounds: Bounds on the error of the logit gradients.
        saved_values: Values that the forward pass saved for the backward pass.
        frozen: Gradients with the exact network's branches, filled as they are needed.
    """

    network: ExactFormatNetwork
    gradients: dict[tuple[Loss, int], FloatGradient]
    bounds: dict[tuple[Loss, int], Bound | None]
    saved_values: FloatRun
    frozen: dict[tuple[Loss, int], Tensor | None]


class MeasurementRun:
    """The run of a measurement: the networks in their formats, and the exact network.

    Args:
        request: Checked request.

    Attributes:
        request: Checked request; its batch size is 1 where batches cannot be run.
        reference: The exact network.
        formats: The network in each format in which it runs.
        failed: Reason for each format in which it fails.
        switches: Kernel switches that are set, by format.

    Raises:
        FperrError: the network cannot be captured, is random, or runs in no format.
    """

    def __init__(self, request: MeasureRequest) -> None:
        self.request = request
        network = FormatNetwork(request.model, of_dtype(request.x.dtype), autocast=False)
        check_function_of_sample(network, request.x[request.batches()[0]])
        by_rows = request.jacobian == "rows"
        self.reference = ExactNetwork(
            network,
            request.x,
            request.engines,
            max(request.bits_for(fmt) for fmt in request.formats),
            by_rows=by_rows,
            max_seconds=request.max_seconds,
        )
        self._norms_from = network if by_rows else _widest(network, request)
        self.failed: dict[Format, str] = {}
        self.formats = self._formats()
        self._check_batches()
        self.switches: dict[str, dict[str, str]] = {}
        for fmt in self.formats:
            with fmt.network.running() as switches:
                self.switches[fmt.network.format.name] = switches

    def _formats(self) -> list[ExactFormatNetwork]:
        """The network in each format in which it runs; `failed` gets the reason for the others.

        Raises:
            FperrError: it runs in none of them.
        """
        networks: list[ExactFormatNetwork] = []
        for fmt in self.request.formats:
            try:
                network = FormatNetwork(self.request.model, fmt, autocast=self.request.autocast)
                networks.append(ExactFormatNetwork(self.reference, network, self.request.x))
            except (ModelError, UnsupportedOperationError, CaptureAuditError) as fault:
                if len(self.failed) == len(self.request.formats) - 1:
                    raise
                self.failed[fmt] = format_fails(fmt, str(fault))
        return networks

    def _check_batches(self) -> None:
        """Set the batch size to 1 where a batch runs other operations than a single sample does.

        Raises:
            CaptureAuditError: a batch runs other operations, or a format couples its samples, and
                the user gave the batch size.
        """
        single = self.request.x[:1]
        coupled = [f.network.format.name for f in self.formats if f.network.couples_samples]
        if coupled and self.request.batch_size > 1:
            reason = f"in {coupled[0]} a tensor's scale depends on the other samples of a batch: "
            return self._give_up_batches(reason)
        for batch in {b.stop - b.start: b for b in self.request.batches()}.values():
            for fmt in self.formats:
                captured = fmt.network.capture(self.request.x[batch])
                if fmt.network.capture(single).counterparts(captured) is None:
                    return self._give_up_batches(
                        f"the graph for a batch of {batch.stop - batch.start} differs from that "
                        f"for one sample in {fmt.network.format.name}, because PyTorch multiplies "
                        "matrices in another way: "
                    )
        return None

    def _give_up_batches(self, reason: str) -> None:
        """Set the batch size to 1, with a warning; refuse if the user gave the batch size."""
        if self.request.batch_size_is_asked_for:
            raise CaptureAuditError(reason + "use batch_size=1")
        warnings.warn(reason + "the samples are run one by one, as batch_size=1 does", stacklevel=6)
        self.request = replace(self.request, batch_size=1)

    def rows(
        self, advance: Callable[[], object], finished: Container[int] = ()
    ) -> Iterator[list[Row]]:
        """The rows of each sample, in order.

        Args:
            advance: Function that is called twice for each sample: after the exact network, and
                after the rows.
            finished: First samples of the batches that are left out.
        """
        for batch in self.request.batches():
            if batch.start in finished:
                continue
            x = self.request.x[batch]
            needs = sorted({self.request.bits_for(fmt.network.format) for fmt in self.formats})
            samples = self.reference.samples(x, needs, advance)
            lowest = [s.lowest if isinstance(s, SampleLadder) else None for s in samples]
            exact = [s if isinstance(s, ExactSample) else None for s in lowest]
            orders = _orders(exact, self.request.classes, x.device)
            assignments = label_assignments(self.request, batch, orders)
            runs, failed = self._runs(x, assignments)
            branches = [None if e is None else e.point.decisions for e in exact]
            casts = {fmt: _Casts(run, x, samples, self.request) for fmt, run in runs.items()}
            for i in range(len(x)):
                sample = samples[i]
                yield self._sample_rows(
                    batch.start, i, sample, x, assignments, runs, failed, casts, branches
                )
                # free the memory of this sample: no later sample needs it
                exact[i] = lowest[i] = None
                samples[i] = _PASSED
                for cast in casts.values():
                    cast.forget(i)
                advance()

    def provenance(self, *, interrupted: bool) -> dict[str, Any]:
        """The provenance of the report, under the name of the network."""
        details = provenance(
            self.request,
            self.reference.description,
            self.reference.capture.network_digest,
            self.switches,
            self.emulation_notes,
            interrupted=interrupted,
            time_is_up=self.reference.time_is_up,
        )
        return {self.request.name: details}

    @property
    def emulation_notes(self) -> dict[str, dict[str, Any]]:
        """Notes on what the runs so far met, by emulated format."""
        networks = [f.network for f in self.formats if f.network.format.emulation is not None]
        return {n.format.name: emulation_notes(n.format, n.met) for n in networks}

    def _runs(
        self, x: Tensor, assignments: list[LabelAssignment]
    ) -> tuple[dict[Format, _FormatRun], dict[Format, str]]:
        """Each format's run on one batch, and why a format has none."""
        runs, failed = dict[Format, _FormatRun](), dict(self.failed)
        for fmt in self.formats:
            name = fmt.network.format
            try:
                runs[name] = self._run(fmt, x, assignments)
            except ModelError as fault:
                if name.emulation is None:  # it may lack an operation, or a scale for a sample
                    raise
                failed[name] = format_fails(name, str(fault))
        return runs, failed

    def _run(
        self, fmt: ExactFormatNetwork, x: Tensor, assignments: list[LabelAssignment]
    ) -> _FormatRun:
        """One format's run on one batch, for every loss and assignment of labels."""
        gradients, bounds = {}, {}
        for index, labels in enumerate(assignments):
            context = Context(labels.targeted, labels.y, self.request.loss_scale)
            for loss in self.request.losses:
                computed = fmt.network.gradient(
                    x, labels.label, loss, context, mean=self.request.mean
                )
                gradients[loss, index] = computed
                bounds[loss, index] = logit_bound(computed, labels.label, loss)
        v = probe(next(iter(gradients.values())).logits)
        return _FormatRun(fmt, gradients, bounds, fmt.run(x, v), {})

    def _frozen(
        self,
        run: _FormatRun,
        key: tuple[Loss, int],
        x: Tensor,
        sample: ExactSampleInFormat | None,
        branches: Sequence[tuple[Branches, ...] | None],
    ) -> Tensor | None:
        """The format's gradients on the batch with the exact network's branches.

        They are computed once for each key, and only if a branch of `sample` differs.
        """
        if sample is None or sample.flips is None:
            return None
        if not any(f.flips or f.tie_flips for f in sample.flips):
            return run.gradients[key].gradient
        if key not in run.frozen:
            v = run.gradients[key].logit_gradient
            run.frozen[key] = run.network.frozen_gradient(x, v, branches)
        return run.frozen[key]

    def _needed(self, result: FormatResult, bits: float) -> NeededBits:
        """How many bits of its exact gradient a row needs."""
        batch, are_asked_for = result.float_gradient.gradient, self.request.digits is not None
        return needed_bits(
            bits, lambda A: None if are_asked_for else result.unscaled_if_finite(A, batch)
        )

    def _row_log2_norms(self, exact: ExactSample, x: Tensor) -> list[float]:
        """log2 of the norms of the rows of J: exact, or in floating point without exact rows."""
        if self.reference.ladder.by_rows:
            return exact.row_log2_norms
        return self._norms_from.row_log2_norms(x)

    def _sample_rows(
        self,
        start: int,
        i: int,
        exact: SampleLadder | NoExactSample,
        x: Tensor,
        assignments: list[LabelAssignment],
        runs: Mapping[Format, _FormatRun],
        failed: Mapping[Format, str],
        casts: "Mapping[Format, _Casts]",
        branches: Sequence[tuple[Branches, ...] | None],
    ) -> list[Row]:
        """The rows of sample i of the batch that begins with sample `start`."""
        norms: dict[int, list[float]] = {}  # by rung
        rows: dict[tuple[str, str, str], Row] = {}
        for (index, labels), loss, fmt in product(
            enumerate(assignments), self.request.losses, self.request.formats
        ):
            scenario = labels.scenarios[i]
            # of two scenarios whose gradients differ by the sign, the second is copied
            twin = rows.get((scenario.twin.name, loss.name, fmt.name))
            if twin is not None and loss.targeted_is_negated:
                row = negated_row(twin, scenario)
            elif fmt in failed:
                row = failed_row(start + i, i, loss, fmt, labels, failed[fmt])
            else:
                run = runs[fmt]
                computed, bound = run.gradients[loss, index], run.bounds[loss, index]
                result = FormatResult(start + i, i, loss, fmt, labels, computed, None, bound)
                if isinstance(exact, NoExactSample):
                    row = unmeasured_row(result, exact.reason, is_certified=exact.is_certified)
                else:
                    bits = self.request.bits_for(fmt)
                    at_sample = result.loss_at_sample()
                    sample, gradient = exact.first(bits), None
                    assert isinstance(sample, ExactSample)
                    needed = self._needed(result, bits)
                    if at_sample is not None:
                        sample, gradient = exact.gradient(at_sample, bits, needed)
                    cast = casts[fmt].of(i, sample)
                    frozen = self._frozen(run, (loss, index), x, cast, branches)
                    if sample.rung not in norms:
                        norms[sample.rung] = self._row_log2_norms(sample, x[i : i + 1])
                    compared = ExactResult(
                        sample,
                        gradient,
                        cast,
                        norms[sample.rung],
                        bits if gradient is None else needed(sample.vectors, gradient.gradient),
                        self.request.certify,
                    )
                    row = measured_row(replace(result, frozen=frozen), at_sample, compared)
            rows[scenario.name, loss.name, fmt.name] = row
        return list(rows.values())


class _Casts:
    """The samples of a batch through the network of a format, on the rungs that rows need.

    Args:
        run: The format's run on the batch.
        x: Batch (batch, *shape).
        samples: The exact network at each sample.
        request: Checked request.
    """

    def __init__(
        self,
        run: _FormatRun,
        x: Tensor,
        samples: Sequence[SampleLadder | NoExactSample],
        request: MeasureRequest,
    ) -> None:
        self._run, self._x, self._samples = run, x, samples
        self._bits = request.bits_for(run.network.network.format)
        self._computed: dict[tuple[int, int], ExactSampleInFormat] = {}

    def of(self, i: int, exact: ExactSample) -> ExactSampleInFormat:
        """Sample i on the rung of its exact network; a piece is computed together."""
        key = i, exact.rung
        if key not in self._computed:
            together = {i: exact}
            for piece in self._run.network.pieces(len(self._x), exact.rung):
                if piece.start <= i < piece.stop:
                    together |= self._starting_at(exact.rung, piece)
            computed = self._run.network.samples(self._x, self._run.saved_values, together)
            self._computed |= {(j, exact.rung): cast for j, cast in computed.items()}
        return self._computed[key]

    def _starting_at(self, rung: int, piece: slice) -> dict[int, ExactSample]:
        """The samples of a piece whose rows start at a rung."""
        starting = {}
        for j in range(*piece.indices(len(self._x))):
            ladder = self._samples[j]
            if isinstance(ladder, SampleLadder) and (j, rung) not in self._computed:
                first = ladder.first(self._bits)
                if isinstance(first, ExactSample) and first.rung == rung:
                    starting[j] = first
        return starting

    def forget(self, i: int) -> None:
        """Free the memory of sample i."""
        for key in [key for key in self._computed if key[0] == i]:
            del self._computed[key]


def _widest(network: FormatNetwork, request: MeasureRequest) -> FormatNetwork:
    """The network in float64, or in its own dtype where it cannot be run in float64."""
    wide = FormatNetwork(request.model, FLOAT64, autocast=False)
    try:
        wide.logits(request.x[:1])
    except RuntimeError:  # a cast inside the network does not fit the dtype of the weights
        return network
    return wide


def _orders(exact: Sequence[ExactSample | None], classes: int, device: torch.device) -> Tensor:
    """The classes (batch, K) by descending exact logit; 0, 1, ... for a sample without any."""
    ranks = [list(range(classes)) if e is None else e.order for e in exact]
    return torch.tensor(ranks, dtype=torch.int64, device=device)
