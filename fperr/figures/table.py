"""A table as a picture, as Markdown and as LaTeX: the same cells."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

_SIZE = 8  # points
_LINE = 0.19  # inches: height of a line of cells
_LETTER, _GAP = 0.066, 3  # inches: more than the mean width; letters between columns
_SYMBOLS = {"ℓ∞": r"$\ell_\infty$", "÷": r"$\div$", "−": "$-$"}


def picture(cells: pd.DataFrame, title: str, note: str) -> Figure:
    """The cells below title and note; to be saved with `bbox_inches="tight"`.

    Args:
        cells: text.
        title: a line.
        note: lines.
    """
    letters = [max(map(len, [str(name), *cells[name]])) + _GAP for name in cells]
    figure = Figure(figsize=(_LETTER * sum(letters), _LINE * (len(cells) + 1)))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    drawn = axis.table(
        cells.to_numpy().tolist(), colLabels=list(cells.columns), loc="upper left",
        cellLoc="left", colLoc="left", edges="horizontal", bbox=Bbox.unit(),
    )  # fmt: skip
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(_SIZE)
    drawn.auto_set_column_width(list(range(len(cells.columns))))
    for (line, _), cell in drawn.get_celld().items():
        cell.set_edgecolor("0.8" if line else "black")
        if not line:
            cell.set_text_props(weight="bold")
    axis.text(0, 1.0, f"{note}\n", size=_SIZE, va="bottom", transform=axis.transAxes)
    above = 1.0 + (note.count("\n") + 2) * _SIZE * 1.35 / 72 / figure.get_figheight()
    axis.text(0, above, title, size=_SIZE + 1, weight="bold", va="bottom", transform=axis.transAxes)
    return figure


def contents(cells: pd.DataFrame, title: str, note: str, path: Path) -> dict[Path, bytes]:
    """Markdown and LaTeX (booktabs): the contents by path of their files.

    Args:
        cells: as for `picture`.
        title: the same.
        note: the same.
        path: without an ending.
    """
    markdown, latex = path.with_suffix(".md"), path.with_suffix(".tex")
    table = cells.to_markdown(index=False, disable_numparse=True)
    lines = "  \n".join(note.splitlines())
    style = cells.style.hide(axis="index").format(escape="latex")
    inner = style.format_index(axis=1, escape="latex").to_latex(hrules=True)
    for symbol, command in _SYMBOLS.items():
        inner = inner.replace(symbol, command)
    comments = "".join(f"% {line}\n" for line in [title, *note.splitlines()])
    text = f"**{title}**\n\n{table}\n\n{lines}\n"
    return {markdown: text.encode(), latex: (comments + inner).encode()}
