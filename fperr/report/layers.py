"""The report of `fperr.trace_layers`: a row for each sample and operation of the network."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fperr.caller_state import in_neutral_state
from fperr.report.columns import LAYERS, dtypes
from fperr.report.style import STAGES, colours
from fperr.storage import write

COLUMNS = dtypes(LAYERS)
_DERIVED = ("position", "bits_left")  # computed from the other columns
_COLOURS = colours(STAGES)


@dataclass(frozen=True, eq=False)
class LayerReport:
    """The error of a gradient, split by the operations of the network.

    Attributes:
        frame: Data frame with a row for each sample and operation, in the order of computing.
            `contribution` is the norm of the vector that the operation adds to the error, relative
            to the exact gradient. `share` is its signed share in the total error; the shares of a
            sample sum to 1. `delta_so_far` is the relative error if this operation and all earlier
            ones run in the format, and the later ones exactly; `bits_left` is -log2 of it. `flips`
            counts the branches of a ReLU or pooling that differ from the exact network's.
        loss: Name of the loss.
        format: Name of the format.

    Example:
        >>> import fperr
        >>> from fperr import data, zoo
        >>> images, model = data.fashion_mnist_1000().first(1), zoo.load("fashion_standard")
        >>> report = fperr.trace_layers(model, images.x, images.y, loss="cw", progress=False)
        >>> report.summary()["half"].unique().tolist()
        ['cast', 'forward', 'loss', 'backward']
        >>> float(round(report.frame["share"].sum(), 6))
        1.0
    """

    frame: pd.DataFrame
    loss: str
    format: str

    def __repr__(self) -> str:
        return f"<fperr.LayerReport of {self.loss} in {self.format}: {len(self.frame)} rows>"

    def _repr_html_(self) -> str:
        html: str = self.summary().to_html(index=False, float_format="{:.3g}".format)
        return f"<p>{self.loss} in {self.format}</p>{html}"

    @classmethod
    def from_rows(
        cls, rows: Iterable[Mapping[str, object]], loss: str, format: str
    ) -> "LayerReport":
        """Make a report from rows in the order of computing.

        Args:
            rows: Values by column, without those that are computed from others.
            loss: Name of the loss.
            format: Name of the format.
        """
        frame = pd.DataFrame(list(rows), columns=[c for c in COLUMNS if c not in _DERIVED])
        frame["position"] = frame.groupby("sample").cumcount()
        error = frame["delta_so_far"].to_numpy(dtype=np.float64)
        frame["bits_left"] = [-math.log2(e) if 0 < e < math.inf else math.nan for e in error]
        return cls(frame[list(COLUMNS)].astype(COLUMNS), loss, format)

    def summary(self) -> pd.DataFrame:
        """Medians over the samples of each operation, in order; flips are added up."""
        grouped = self.frame.groupby(["half", "layer", "operation"], sort=False)
        table = grouped[["contribution", "share", "delta_so_far", "bits_left"]].median()
        table["flips"] = grouped["flips"].sum()
        order = grouped["position"].median().sort_values(kind="stable").index
        return table.loc[order].reset_index()

    @property
    def plot(self) -> "LayerPlots":
        """Figures: `report.plot.relative_error()`."""
        return LayerPlots(self)

    def to_parquet(self, path: str | Path) -> None:
        """Write the frame to a Parquet file, whole or not at all.

        Args:
            path: Path of the file.

        Raises:
            StorageError: it cannot be written.
        """
        write(Path(path), self.frame.to_parquet())


class LayerPlots:
    """Figures of a trace along the network: what is drawn is what its summary holds."""

    def __init__(self, report: LayerReport) -> None:
        self._report = report

    def __call__(self) -> NoReturn:
        """Refuse the spelling of earlier versions.

        Raises:
            TypeError: Always; names the function of today.
        """
        raise TypeError("plot() is called plot.relative_error() now: give that")

    @in_neutral_state
    def relative_error(self) -> Figure:
        """Bits left along the network, and what each operation adds; flips are marked."""
        report = self._report
        table = report.summary()
        figure = Figure(figsize=(max(6.0, 0.32 * len(table)), 6.0), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        draw(table, above, below)
        samples = report.frame["sample"].nunique()
        above.set_title(f"{report.loss} in {report.format}, {samples} samples", loc="left")
        legend(figure)
        return figure


def draw(table: pd.DataFrame, above: Axes, below: Axes) -> None:
    """Draw a summary into two axes.

    Args:
        table: Result of `LayerReport.summary`.
        above: Axes for the correct bits left; operations with flips are marked.
        below: Axes for the error that each operation adds.
    """
    positions = np.arange(len(table))
    stage_colours = [_COLOURS[half] for half in table["half"]]
    above.plot(positions, table["bits_left"], color="0.4", linewidth=1, zorder=1)
    above.scatter(positions, table["bits_left"], c=stage_colours, zorder=2)
    flipped = table["flips"] > 0
    marked = positions[flipped], table["bits_left"][flipped]
    above.scatter(*marked, marker="x", color="black", s=60, zorder=3)
    for position, bits, flips in zip(*marked, table["flips"][flipped], strict=True):
        above.annotate(
            f"{flips} flip{'s'[: flips != 1]}",
            (position, bits),
            textcoords="offset points",
            xytext=(2, 6),
            rotation=60,
            rotation_mode="anchor",
            fontsize=7,
        )
    above.set_ylabel("correct bits so far\n(median of $-\\log_2$ error)")
    below.bar(positions, table["contribution"], color=stage_colours)
    below.set_yscale("log")
    below.set_ylabel("error added, over $\\|g\\|_2$\n(median)")
    below.set_xticks(positions, table["layer"], rotation=90, fontsize=8, parse_math=False)
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)


def legend(figure: Figure) -> None:
    """Add a legend with the colours of the stages."""
    handles = [Rectangle((0, 0), 1, 1, color=c) for c in _COLOURS.values()]
    figure.legend(handles, _COLOURS, ncols=5, fontsize=8, frameon=False, loc="outside upper right")
