"""A recorded attack: tables on disk, read on request."""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from fperr.recording import trace_files
from fperr.recording.diagnosis import ERROR_COLUMNS, STEP_COLUMNS, Diagnosis
from fperr.recording.plots import TracePlots


class Trace:
    """A trace that `fperr.record` wrote: tables of steps, errors and points, and figures.

    Args:
        folder: Folder of the trace. While an attack runs, and after a kill, it holds what has been
            written so far.

    Raises:
        MissingDataError: the folder holds no trace.

    Example:
        >>> import tempfile, torch, fperr
        >>> from fperr import zoo
        >>> model, y = zoo.load("fashion_standard"), torch.tensor([0, 1])
        >>> x = torch.rand(2, 1, 28, 28).requires_grad_()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with fperr.record(model, x, y, samples=0, out=folder + "/trace"):
        ...         torch.nn.functional.cross_entropy(model(x), y).backward()
        ...     trace = fperr.Trace(folder + "/trace")
        ...     steps = trace.steps(["step", "loss"])
        >>> steps["loss"].tolist()  # one step of two samples
        ['ce', 'ce']
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        trace_files.read_description(self.folder)

    def __repr__(self) -> str:
        state = "complete" if self.about["is_complete"] else "not complete"
        faults = len(self.diagnosis())
        remark = f", {faults} found in diagnosis()" if faults else ""
        return f"<fperr.Trace {self.folder}: {self.gradients} gradient steps, {state}{remark}>"

    @property
    def about(self) -> dict[str, Any]:
        """The settings and versions, and the number of forward passes once the attack has ended."""
        return trace_files.read_description(self.folder)

    def diagnosis(self) -> list[str]:
        """The faults of the attack or the model, each in a sentence with counts.

        Training mode, dL/dz that is exactly zero, a loss of the label that falls, logits that are
        not finite, a model that gives other logits when it is run again, terms of dL/dx beside the
        network, and what is not compared for that. Empty for an attack that is as it should be.
        """
        description = self.about
        if "diagnosis" in description:
            return list(description["diagnosis"])
        is_compared = bool(description["compared"]["samples"])
        diagnosis = Diagnosis(description["samples"], None, is_compared)
        for read, names, count in (
            (self.steps, STEP_COLUMNS, diagnosis.add_steps),
            (self.errors, ERROR_COLUMNS, diagnosis.add_errors),
        ):
            rows = read(names)
            if len(rows):
                count(pa.Table.from_pandas(rows, preserve_index=False))
        return diagnosis.sentences()

    @property
    def gradients(self) -> int:
        """The number of backward passes that were captured, and written so far."""
        return int(self.steps(["step"])["step"].nunique())

    def steps(self, columns: list[str] | None = None) -> pd.DataFrame:
        """A row for each gradient step and sample of the attack's batch.

        `step` counts backward passes, `forward` the forward passes that they belong to; `margin`
        is the largest logit minus the second largest, `label_margin` z_y - max_{i != y} z_i,
        `t_star` the T that maximises G where the label leads (after success T-MIFPE uses another),
        `log2_G` log2 of G at the scale that the recognised loss uses; `label` is the class that it
        uses. dL/dz = `factor` * (the logit gradient of `loss`, ascended), with a factor for each
        sample where `reduction` is "by sample". `zero_share` and `gradient_norm` are of dL/dx, in
        the attack's own units, and `is_logit_gradient_zero` says that dL/dz is exactly 0.
        `is_finite`: logits, but for -inf of absent classes, and dL/dx are. `is_training`: the model
        was in training mode.

        Args:
            columns: Columns to read; None: all.
        """
        return trace_files.read_table(self.folder, "steps", columns)

    def errors(self, columns: list[str] | None = None) -> pd.DataFrame:
        """A row for each chosen step and sample: the attack's own gradient, and other losses.

        `is_own`: the attack's dL/dx, `compared_with` the exact gradient of its loss, recognised or
        given. Three columns hold the relative error in norm, and one of them at most is filled:
        `delta`, of network and loss together; `network_delta` where the loss is unknown, against
        J^T of the attack's own dL/dz taken as data, which leaves out the loss's own error;
        `relative_difference` where more than the network is in dL/dx (`is_rerun_equal` is false),
        which is no error. `logit_gradient_delta` is the error of dL/dz alone, at the same logits.
        `reason` says in words why `delta` is empty. A fitted factor (see `compared_with`) is taken
        as exact. The other rows say what a loss would have given there in a format, summed over
        the chosen samples as a batch.

        Args:
            columns: Columns to read; None: all.
        """
        return trace_files.read_table(self.folder, "errors", columns)

    def points(self, columns: list[str] | None = None) -> pd.DataFrame:
        """The inputs and dL/dx, flattened, at the chosen steps and samples.

        Args:
            columns: Columns to read; None: all.
        """
        return trace_files.read_table(self.folder, "points", columns)

    @property
    def plot(self) -> TracePlots:
        """Figures: `trace.plot.relative_error()`, `.margins()`, `.t_star()`, `.zeros()`."""
        return TracePlots(self.steps, self.errors)
