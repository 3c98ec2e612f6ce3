"""Bits of the gradient that each operation of a network loses."""

import pandas as pd
from matplotlib.figure import Figure

from fperr.figures.study import Study, Subject
from fperr.measurement import trace_layers
from fperr.report.layers import LayerReport, draw, legend
from fperr.vocabulary import FormatName

_TRACED = 8  # images
_LOSS = "tmifpe"
_FORMATS: tuple[FormatName, ...] = ("float16", "float32")
_COLUMNS = len(_FORMATS)


def frame(study: Study) -> pd.DataFrame:
    """Trace the layers of each network: the rows of `fperr.trace_layers`, network and format."""
    return study.for_each_subject("layers", _traced, _TRACED, loss=_LOSS, formats=_FORMATS)


def _traced(subject: Subject) -> pd.DataFrame:
    images = subject.images
    return pd.concat(
        [
            trace_layers(subject.model, images.x, images.y, loss=_LOSS, format=name).frame.assign(
                format=name
            )
            for name in _FORMATS
        ],
        ignore_index=True,
    )


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the bits left after each operation, and below them the error that it adds."""
    groups = list(frame.groupby(["network", "format"], sort=False))
    lines = len(groups) // _COLUMNS
    figure = Figure(figsize=(5.4 * _COLUMNS, 5.8 * lines + 0.4), layout="constrained")
    axes = figure.subplots(2 * lines, _COLUMNS, squeeze=False)
    for index, ((network, name), rows) in enumerate(groups):
        line, column = (
            2 * (index // _COLUMNS),
            index % _COLUMNS,
        )  # bits above, errors below
        above, below = axes[line][column], axes[line + 1][column]
        report = LayerReport(rows.drop(columns=["network", "format"]), _LOSS, name)
        draw(report.summary(), above, below)
        title = f"{network}, {_LOSS} in {name}, {rows['sample'].nunique()} images"
        above.set_title(title, fontsize="medium", pad=30)
        above.set(xticks=[], xlim=below.get_xlim())  # the first point may be missing
        for axis in (above, below):
            axis.grid(axis="y", alpha=0.3)
            axis.set_axisbelow(True)
            if column:
                axis.set_ylabel("")
    legend(figure)
    return figure
