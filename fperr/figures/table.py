"""A table as a picture, as Markdown and as LaTeX: the same cells."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

_SIZE = 8  # of the letters, in points
_LINE = 0.19  # height of a line of cells, in inches
_LETTER = 0.066  # width of a letter in inches: more than the mean
_GAP = 3  # letters between columns
_SYMBOLS = {"ℓ∞": r"$\ell_\infty$", "÷": r"$\div$", "−": "$-$"}


def picture(cells: pd.DataFrame, title: str, note: str) -> Figure:
    """Draw the cells below title and note; to be saved with `bbox_inches="tight"`.

    Args:
        cells: Text of the cells.
        title: Title, a single line.
        note: Lines between title and cells.
    """
    letters = [max(map(len, [str(name), *cells[name]])) + _GAP for name in cells]
    figure = Figure(figsize=(_LETTER * sum(letters), _LINE * (len(cells) + 1)))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis_table = axis.table(
        cells.to_numpy().tolist(), colLabels=list(cells.columns), loc="upper left",
        cellLoc="left", colLoc="left", edges="horizontal", bbox=Bbox.unit(),
    )  # fmt: skip
    axis_table.auto_set_font_size(False)
    axis_table.set_fontsize(_SIZE)
    axis_table.auto_set_column_width(list(range(len(cells.columns))))
    for (line, _), cell in axis_table.get_celld().items():
        cell.set_edgecolor("0.8" if line else "black")
        if not line:
            cell.set_text_props(weight="bold")
    axis.text(0, 1.0, f"{note}\n", size=_SIZE, va="bottom", transform=axis.transAxes)
    # the note's lines (one more than it has newlines) and an empty one, at 1.35 letter sizes a line
    # and 72 points an inch; the axes are as high as the figure
    above = 1.0 + (note.count("\n") + 2) * _SIZE * 1.35 / 72 / figure.get_figheight()
    axis.text(0, above, title, size=_SIZE + 1, weight="bold", va="bottom", transform=axis.transAxes)
    return figure


def contents(cells: pd.DataFrame, title: str, note: str, path: Path) -> dict[Path, bytes]:
    """The table as Markdown and as LaTeX (booktabs): contents of the files, by path.

    Args:
        cells: Text of the cells.
        title: Title, a single line.
        note: Lines below the title.
        path: Path of the files without their suffix.
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
