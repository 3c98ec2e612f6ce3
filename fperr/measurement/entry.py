"""`fperr.measure`: a model and inputs in, a report of the floating-point error of gradients out."""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fperr import checks
from fperr.caller_state import in_neutral_state
from fperr.errors import FperrError
from fperr.measurement.arguments import checked_job
from fperr.measurement.lab import Lab
from fperr.measurement.models import Accessor
from fperr.measurement.rows import Row
from fperr.report.frame import Report
from fperr.report.reasons import UnmeasuredWarning, unmeasured_sentence


@in_neutral_state
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
    digits: int | None = None,
    certify: bool = False,
    jacobian: str = "auto",
    reduction: str = "sum",
    loss_scale: float = 1.0,
    autocast: bool = False,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
    logits: Accessor | str | int | None = None,
    accept_probabilities: bool = False,
    name: str | None = None,
) -> Report:
    """Measure how wrong the input gradients of attack losses are in floating point.

    The reference is the gradient of the same network in arbitrary precision; the scale c that the
    format's run computed, and the labels, are data of both. Faults in the data mark their rows,
    and the others go on; Ctrl-C returns the rows that are finished. A row that could not be
    measured says why (`reason`), and an `UnmeasuredWarning` says how many there are, unless the
    exact gradient is zero there or the format's numbers are not finite.

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
        reference: the exact engine: `"ball"` proves every digit, `"mpmath"` is the definition,
            `"multiword"` runs whole batches in pairs of float64 with a bound on each error (and
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

    Returns:
        The report: one row for each sample, scenario, loss and format.

    Raises:
        TypeError, ValueError: an argument is not usable.
        ModelError: the model is random, depends on its batch, or fails in a format.
        UnsupportedOperationError: it has operations without an exact meaning; lists them.
        CaptureAuditError: its captured graph is not bit-equal to the eager run.
        FperrError: anything that stops it later; `report` holds the finished samples.
    """
    checks.optional_flag("progress", progress)
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
    with tqdm(total=2 * len(job.x), desc="measure", bar_format=layout, disable=hidden) as bar:
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
    report = Report.from_rows(rows, lab.provenance(interrupted=interrupted))
    sentence = unmeasured_sentence(report.frame, with_results=False)
    if sentence is not None:
        warnings.warn(sentence, UnmeasuredWarning, stacklevel=3)
    return report


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
