"""Along which operations of a network the gradient loses its bits."""

import pandas as pd
from matplotlib.figure import Figure

from fperr.figures.study import Study, Subject
from fperr.measurement import trace_layers
from fperr.report.layers import LayerReport, draw, legend

_TRACED = 8  # images
_LOSS, _FORMATS = "tmifpe", ("float16", "float32")


def frame(study: Study) -> pd.DataFrame:
    """The rows of `fperr.trace_layers`, with the columns network and format."""
    return study.of_each("layers", _traced, _TRACED, loss=_LOSS, formats=_FORMATS)


def _traced(subject: Subject) -> pd.DataFrame:
    few = subject.images
    return pd.concat(
        [
            trace_layers(subject.model, few.x, few.y, loss=_LOSS, format=name).frame.assign(
                format=name
            )
            for name in _FORMATS
        ],
        ignore_index=True,
    )


def plot(frame: pd.DataFrame) -> Figure:
    """Two panels for each network and format: bits left, and what each operation adds."""
    groups = list(frame.groupby(["network", "format"], sort=False))
    figure = Figure(figsize=(5.2 * len(groups), 6.4), layout="constrained")
    axes = figure.subplots(2, len(groups), sharex="col", squeeze=False)
    for column, ((network, name), rows) in enumerate(groups):
        report = LayerReport(rows.drop(columns=["network", "format"]), _LOSS, name)
        above, below = axes[0][column], axes[1][column]
        draw(report.summary(), above, below)
        title = f"{network}, {_LOSS} in {name}, {rows['sample'].nunique()} images"
        above.set_title(title, fontsize="medium", pad=14)
        for axis in (above, below):
            axis.grid(axis="y", alpha=0.3)
            axis.set_axisbelow(True)
            if column:
                axis.set_ylabel("")
    legend(figure)
    return figure
