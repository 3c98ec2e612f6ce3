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
from fperr.formats import Format
from fperr.measurement.arguments import checked_request
from fperr.measurement.row_store import RowsInMemory, folder_of, rows_of
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
    formats: Sequence[FormatName | Format] = ("float16", "float32", "float64"),
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
    max_seconds: float | None = None,
) -> Report:
    """Measure how wrong the input gradients of attack losses are in floating point.

    The gradient that a format computes is compared with the exact gradient: that of the same
    network with the same weights, in arbitrary precision. Both use the same labels. A loss that
    rescales the logits has the same scale c in both, the one that the format computed.

    A sample that cannot be measured (for instance because its input is not finite) does not stop
    the others. Its rows hold the reason in the column `reason`, and an `UnmeasuredWarning` says how
    many such rows there are. Rows whose exact gradient is zero, or whose numbers are not finite in
    the format, are not counted in that warning. Ctrl-C returns the rows that are finished.

    Args:
        model: Module in evaluation mode that maps (batch, *shape) to logits (batch, K), K >= 2. It
            is not changed.
        x: Inputs (n, *shape), floating point, in the model's domain; cast once to the model's
            dtype.
        y: True labels (n,), whole numbers.
        targets: Target classes (n,), whole numbers. If they are given, the losses are targeted.
        losses: Names of losses: `"ce"`, `"mifpe"`, `"tmifpe"`, `"mifpe:T=4"`, `"stable_ce"`,
            `"cw"`, `"dlr"`, `"mifpe_shifted"`, `"tmifpe_shifted"`.
        formats: Names of floating-point formats, or records of your own (`fperr.formats.Format`).
            The whole network runs in each, with weights and
            input cast to it.
        scenarios: `"observed"` (y or targets classify each sample), `"all"` (each of the four at
            every x, with the label assigned from the exact logits), or names of scenarios among the
            four. None: observed if y or targets are given, else all.
        engine: Engine of the exact gradients. `"auto"` climbs a ladder: plain float64 beside
            float32, whose agreement tells its error; pairs of float64 with a bound on each error;
            balls, which prove every digit. Each format starts at the cheapest rung that its delta
            needs, and a sample that a rung does not settle climbs to the next. A name begins the
            ladder there: `"float64"`, `"double_word"` or `"ball"`. `"mpmath"` defines the exact
            values, and climbs to balls.
        digits: Correct decimal digits of the exact gradients, relative to the norm. By default what
            four digits of each format's delta need: 25 bits for float16, 38 for float32, 67 for
            float64. The column `certainty` says of each row whether they are `proved` (a bound),
            `agreed` (an estimate from another precision) or `uncertified`.
        certify: Whether to add `delta_lo` and `delta_hi`, a proved interval for delta. Needs balls.
        jacobian: `"rows"` computes all K rows of the Jacobian J at each sample; every loss and
            scenario combines them. `"products"` computes one vector-Jacobian product for each
            gradient, which suits large K. `"auto"` takes the one with fewer backward passes.
        reduction: `"sum"` or `"mean"`: how the losses of a batch are combined, as in the attack.
        loss_scale: Factor on the loss, divided out of the gradient exactly.
        autocast: Whether float16 and bfloat16 run under `torch.autocast`; otherwise the network is
            cast.
        device: Device to run on, e.g. `"cuda"`, or `"auto"`; by default the model's own.
        batch_size: Number of samples in one batch of the format's run; the bits of its results
            depend on it. By default 64, or 1 (with a warning) if a batch runs other operations
            than one sample.
        progress: Whether to show a progress bar. None: only if standard error is a terminal.
        logits: Position of the logits in what the model returns: a name (a key or an attribute), an
            index, or a function, e.g. `lambda output: output[0]`. None: the model returns logits.
        accept_probabilities: Whether to measure a model that returns probabilities; otherwise it is
            refused.
        name: Name of the network in the report; by default the model's class.
        max_seconds: Seconds after which no more balls are computed: the samples that need them are
            left uncertified, and say so. With `out`, a later call computes them. A
            `SlowReferenceWarning` says beforehand how long balls take. None: no limit.
        out: Folder in which finished rows are stored. It may be new, or hold the same measurement,
            cut off: finished batches are read from it, and the other batches are measured, so that
            the frame is that of an undisturbed measurement, bit for bit. `measurement.json` holds
            the settings, and `0000000.parquet`, ... hold one batch each (`Report.from_parquet`
            reads them). Each file has a digest; if it does not fit, the batch is computed again,
            with a `DamagedFileWarning`.
            None: nothing is written.

    Returns:
        The report, with one row for each sample, scenario, loss and format. The column `delta` is
        the relative error of the input gradient, |g_hat - g|_2 / |g|_2.

    Raises:
        TypeError, ValueError: An argument is not usable.
        ModelError: The model is random, depends on its batch, or fails in a format.
        UnsupportedOperationError: The model has operations without an exact meaning; lists them.
        CaptureAuditError: The captured graph of the model is not bit-equal to the eager run.
        ValueError: `out` cannot be a folder, or holds something else; names the settings that
            differ.
        StorageError: `out` cannot be written to (a full disk), or another run is at work in it.
        FperrError: The measurement stopped later; the error's `report` holds the finished samples.

    Example:
        Cross-entropy cannot be trusted in float16 at the first two images, MIFPE can.

        >>> import fperr
        >>> from fperr import data, zoo
        >>> images = data.fashion_mnist_1000().first(2)
        >>> report = fperr.measure(
        ...     zoo.load("fashion_standard"), images.x, images.y,
        ...     losses=["ce", "mifpe"], formats=["float16"], engine="double_word", progress=False,
        ... )
        >>> len(report.frame)  # 2 samples, 2 losses, 1 format
        4
        >>> (report.frame["delta"] > 0.1).groupby(report.frame["loss"]).sum().to_dict()
        {'ce': 2, 'mifpe': 0}
    """
    checks.optional_flag("progress", progress)
    with folder_of(out) as run_folder:
        request = checked_request(
            model=model,
            x=x,
            y=y,
            targets=targets,
            losses=losses,
            formats=formats,
            scenarios=scenarios,
            engine=engine,
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
            max_seconds=max_seconds,
        )
        run = MeasurementRun(request)
        report = _measured(run, rows_of(run, run_folder), progress)
    sentence = unmeasured_sentence(report.frame, with_results=False)
    if sentence is not None:
        warnings.warn(sentence, UnmeasuredWarning, stacklevel=3)
    return report


def _measured(run: MeasurementRun, rows: RowsInMemory, progress: bool | None) -> Report:
    """Measure all samples, or those that are finished before Ctrl-C.

    Raises:
        FperrError: the measurement failed; its `report` holds the finished samples.
    """
    samples = len(run.request.x)
    hidden = None if progress is None else not progress
    layout = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=2 * samples, desc="measure", bar_format=layout, disable=hidden) as bar:
        bar.update(2 * rows.samples_read)
        try:
            started = rows.samples_read + 1
            for done, of_sample in enumerate(run.rows(bar.update, rows.finished), start=started):
                rows.add(of_sample)
                bar.set_postfix_str(f"{done} of {samples} samples")
            return rows.report(interrupted=run.reference.time_is_up)
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
