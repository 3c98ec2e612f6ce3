"""A recorded attack: tables on disk, read when they are asked for."""

from pathlib import Path
from typing import Any

import pandas as pd

from fperr.recording import store
from fperr.recording.plots import TracePlots


class Trace:
    """What `fperr.record` wrote.

    Args:
        folder: of the trace; while an attack runs, and after a kill, it holds what was written.

    Raises:
        MissingDataError: the folder holds no trace.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        store.about(self.folder)

    def __repr__(self) -> str:
        about = self.about
        state = "complete" if about["is_complete"] else "not complete"
        return f"<fperr.Trace {self.folder}: {self.gradients} gradient steps, {state}>"

    @property
    def about(self) -> dict[str, Any]:
        """Settings, versions, and, once the attack has ended, the number of forward passes."""
        return store.about(self.folder)

    @property
    def gradients(self) -> int:
        """How many backward passes were captured, and written so far."""
        return int(self.steps(["step"])["step"].nunique())

    def steps(self, columns: list[str] | None = None) -> pd.DataFrame:
        """A row for each gradient step and sample of the attack's batch.

        `step` counts backward passes, `forward` the forward passes that they belong to; `margin`
        is z_pi1 - z_pi2 and `label_margin` z_y - max_{i != y} z_i, `t_star` the T that maximises G
        where the label leads (after success T-MIFPE uses another), `log2_G` log2 of G at the scale
        that the recognised loss uses; `label` is the class that it uses. dL/dz = `factor` * (the
        logit gradient of `loss`, ascended). `zero_share` and `gradient_norm` are of dL/dx, in the
        attack's own units.

        Args:
            columns: the ones to read; None: all.
        """
        return store.table(self.folder, "steps", columns)

    def errors(self, columns: list[str] | None = None) -> pd.DataFrame:
        """A row for each chosen step and sample: the attack's own gradient, and other losses.

        `is_own`: the attack's dL/dx, `compared_with` the exact gradient of the recognised loss, or
        of the attack's own dL/dz taken as data where none was recognised. The other rows say what
        a loss would have given there in a format, summed over the chosen samples as a batch.
        `is_rerun_equal` is false where more than the network is in dL/dx: it is no error then.

        Args:
            columns: the ones to read; None: all.
        """
        return store.table(self.folder, "errors", columns)

    def points(self, columns: list[str] | None = None) -> pd.DataFrame:
        """The inputs and dL/dx, flattened, at the chosen steps and samples."""
        return store.table(self.folder, "points", columns)

    @property
    def plot(self) -> TracePlots:
        """Figures: `trace.plot.relative_error()`, `.margins()`, `.t_star()`, `.zeros()`."""
        return TracePlots(self.steps, self.errors)
