"""`fperr.measure`: measures the floating-point error of input gradients, and reports it."""

import contextlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fperr import checks
from fperr.caller_state import in_neutral_state
from fperr.errors import FperrError, StorageError
from fperr.measurement.arguments import checked_request
from fperr.measurement.row_store import RowsInMemory, as_first_chosen, engine_of, folder_of, rows_of
from fperr.measurement.run import MeasurementRun
from fperr.networks.model import Accessor
from fperr.reasons import UnmeasuredWarning, unmeasured_sentence
from fperr.report.frame import Report
from fperr.vocabulary import EngineChoice, FormatName, JacobianChoice, Reduction


@in_neutral_state
def measure(
    model: nn.Module,
    x: Tensor | np.ndarray,
    y: Tensor | Sequence[int] | None = None,
    *,
    targets: Tensor | Sequence[int] | None = None,
    losses: Sequence[str] = ("ce", "mifpe", "tmifpe"),
    formats: Sequence[FormatName] = ("float16", "float32", "float64"),
    scenarios: str | Sequence[str] | None = None,
    engine: EngineChoice = "auto",
    digits: int | None = None,
    certify: bool = False,
    jacobian: JacobianChoice = "auto",
    reduction: Reduction = "sum",
    loss_scale: float = 1.0,
    autocast: bool = False,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
    logits: Accessor | str | int | None = None,
    accept_probabilities: bool = False,
    name: str | None = None,
    out: str | Path | None = None,
) -> Report:
    """Measure how wrong the input gradients of attack losses are in floating point.

    The gradient that a format computes is compared with the exact gradient: that of the same
    network with the same weights, in arbitrary precision. Both use the same labels, and the scale c
    that the format computed, for losses that have one.

    A sample that cannot be measured (for instance because its input is not finite) does not stop
    the others: its rows hold the reason in the column `reason`, and an `UnmeasuredWarning` says how
    many such rows there are. It does not count rows whose exact gradient is zero, or whose numbers
    are not finite in the format. Ctrl-C returns the rows that are finished.

    Args:
        model: (batch, *shape) -> logits (batch, K), K >= 2, in evaluation mode; not changed.
        x: (n, *shape), floating point, in the model's domain; cast once to the model's dtype.
        y: (n,) true labels.
        targets: (n,) target classes: measures targeted losses.
        losses: names; `"ce"`, `"mifpe"`, `"tmifpe"`, `"mifpe:T=4"`, `"stable_ce"`, `"cw"`,
            `"dlr"`, `"mifpe_shifted"`, `"tmifpe_shifted"`.
        formats: names; the whole network runs in each, weights and input cast to it.
        scenarios: `"observed"` (y or targets classify each sample), `"all"` (each of the four at
            every x, by assigning the label from the reference's logits), or names of some of the
            four. None: observed if y or targets are given, else all.
        engine: Engine of the exact gradients: `"ball"` proves every digit, `"mpmath"` defines them,
            `"double_word"` runs whole batches in pairs of float64 with a bound on each error (and
            balls where that settles nothing); `"auto"`: the cheapest for this network, by short
            timings on this machine.
        digits: correct decimal digits of the reference, in norm: proved by balls, and by pairs of
            float64 where `is_proved`; mpmath is checked against twice as many. By default 50, or
            20 in pairs of float64 (10 where only half formats are measured).
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
        logits: where the logits are in what the model returns: a name (a key or an attribute), an
            index, or a function, e.g. `lambda output: output[0]`.
        accept_probabilities: do not refuse a model that returns probabilities.
        name: what the report calls the network; the model's class if not given.
        out: a folder in which the rows are kept as they come, new or of the same measurement cut
            off: what is finished there is read, and the rest measured; a batch that was cut off is
            run again as a whole, so that the frame is that of an undisturbed measurement, bit for
            bit. `measurement.json` holds the settings, and `0000000.parquet`, ... a batch each
            (`Report.from_parquet` reads them). Each has a digest; one that does not fit is computed
            again, with a `DamagedFileWarning`. With `engine="auto"` the engine is that of the
            first run. None: nothing is written.

    Returns:
        The report: one row for each sample, scenario, loss and format.

    Raises:
        TypeError, ValueError: an argument is not usable.
        ModelError: the model is random, depends on its batch, or fails in a format.
        UnsupportedOperationError: it has operations without an exact meaning; lists them.
        CaptureAuditError: its captured graph is not bit-equal to the eager run.
        ValueError: `out` cannot be a folder, or holds something else; names the settings that
            differ.
        StorageError: `out` cannot be written to (a full disk), or another run is at work in it.
        FperrError: the measurement stopped later; the error's `report` holds the finished samples.
    """
    checks.optional_flag("progress", progress)
    with folder_of(out) as run:
        job = checked_request(
            model=model,
            x=x,
            y=y,
            targets=targets,
            losses=losses,
            formats=formats,
            scenarios=scenarios,
            engine=engine_of(run, engine),
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
        lab = MeasurementRun(as_first_chosen(job, run, engine))
        report = _measured(lab, rows_of(lab, run, engine), progress)
    sentence = unmeasured_sentence(report.frame, with_results=False)
    if sentence is not None:
        warnings.warn(sentence, UnmeasuredWarning, stacklevel=3)
    return report


def _measured(run: MeasurementRun, rows: RowsInMemory, progress: bool | None) -> Report:
    """The report of all samples, or of those that were finished before Ctrl-C.

    Raises:
        FperrError: the measurement failed; its `report` holds the finished samples.
    """
    samples = len(run.job.x)
    hidden = None if progress is None else not progress
    layout = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=2 * samples, desc="measure", bar_format=layout, disable=hidden) as bar:
        bar.update(2 * rows.samples_read)
        try:
            started = rows.samples_read + 1
            for done, of_sample in enumerate(run.rows(bar.update, rows.finished), start=started):
                rows.add(of_sample)
                bar.set_postfix_str(f"{done} of {samples} samples")
            return rows.report(interrupted=False)
        except KeyboardInterrupt:
            rows.flush()
            return rows.report(interrupted=True)
        except Exception as fault:
            with contextlib.suppress(StorageError):  # the fault is more important than a full disk
                rows.flush()
            report = rows.report(interrupted=True)
            if not len(report.frame):
                raise
            raise _with_report(fault, report) from fault


def _with_report(fault: Exception, report: Report) -> FperrError:
    """Attach the report of the finished samples to the fault, so that nothing is lost."""
    error = fault
    if not isinstance(error, FperrError):
        error = FperrError(
            f"the measurement stopped after {report.frame['sample'].nunique()} samples, whose rows "
            f"are in this error's `report`: {type(fault).__name__}: {fault}"
        )
    error.report = report
    return error
