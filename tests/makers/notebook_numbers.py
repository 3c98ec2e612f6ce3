"""In what the outputs of two runs of a notebook differ: words, numbers, kinds of output.

Notebooks print counts, medians and few digits. That is what another CPU prints, too, as long as a
line has no number of a half format: 8 or 11 bits are so few that the order of additions, which each
kernel chooses, moves medians and decisions.
"""

import html
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import nbformat

HALF_TAG = "half-format"  # of a cell whose every number comes from a half format
HALF_FACTOR = 3
NUMBER = re.compile(r"(?<![\w.])(?:10\^)?[-+−]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)")
HALF = re.compile(r"\bb?float16\b")
PICTURE = re.compile(r"<Figure size .*>|<IPython.core.display.Image object>")


def differences(
    stored: nbformat.NotebookNode, fresh: nbformat.NotebookNode, *, has_same_kernels: bool
) -> list[str]:
    """One sentence for each line of output that differs by more than its printed digits.

    Args:
        stored: The notebook with the outputs that are shown.
        fresh: The same cells, run again.
        has_same_kernels: Whether both ran the same kernels; if not, half formats are left out.
    """
    cells = [c for c in stored.cells if c.cell_type == "code"]
    again = [c for c in fresh.cells if c.cell_type == "code"]
    if len(cells) != len(again):
        return [f"{len(cells)} code cells are stored, {len(again)} were run"]
    return [
        f"cell {cell.id}: {sentence}"
        for cell, other in zip(cells, again, strict=True)
        for sentence in _of_cell(cell, other, has_same_kernels)
    ]


def lines(output: nbformat.NotebookNode) -> list[str]:
    """What an output says in words and numbers, a row of a table in a line."""
    if output.output_type == "stream":
        return _filled(output.text.splitlines())
    if output.output_type == "error":
        return [output.ename]
    shown: dict[str, Any] = output.data
    if "text/html" in shown:
        rows = re.sub(r"(?s)<style.*?</style>", "", shown["text/html"]).split("</tr>")
        return _filled(html.unescape(re.sub(r"<[^>]+>", " ", row)) for row in rows)
    return _filled(PICTURE.sub("", shown.get("text/plain", "")).splitlines())


def _filled(texts: Any) -> list[str]:
    collapsed = (" ".join(text.split()) for text in texts)
    return [text for text in collapsed if text]


def _of_cell(
    cell: nbformat.NotebookNode, other: nbformat.NotebookNode, has_same_kernels: bool
) -> Iterator[str]:
    kinds, kinds_again = (
        [(o.output_type, *sorted(o.get("data", ()))) for o in c.outputs] for c in (cell, other)
    )
    if kinds != kinds_again:
        yield f"outputs {kinds} are stored, {kinds_again} were made"
        return
    is_all_half = HALF_TAG in cell.metadata.get("tags", ())
    for output, made in zip(cell.outputs, other.outputs, strict=True):
        texts, again = lines(output), lines(made)
        if len(texts) != len(again) and (has_same_kernels or not is_all_half):
            yield f"{len(texts)} lines are stored, {len(again)} were printed"
            continue
        for text, new in zip(texts, again, strict=False):
            is_half = is_all_half or HALF.search(text) is not None
            if is_half and not has_same_kernels:
                continue
            if not agree(text, new, is_half=is_half):
                yield f"stored {text!r}, printed {new!r}"


def agree(text: str, new: str, *, is_half: bool) -> bool:
    """Whether two lines have the same words, and the same numbers at the digits they print."""
    if NUMBER.sub("#", text) != NUMBER.sub("#", new):
        return False
    pairs = zip(NUMBER.findall(text), NUMBER.findall(new), strict=True)
    return all(_near_half(a, b) if is_half else _equal(a, b) for a, b in pairs)


def _decimal(number: str) -> Decimal:
    """Its value; of a power of ten the exponent, which is the digit that it prints."""
    return Decimal(number.removeprefix("10^").replace(",", "").replace("−", "-"))


def _equal(a: str, b: str) -> bool:
    """Counts are equal; of other numbers the last digit may round to either side."""
    first, second = _decimal(a), _decimal(b)
    if a.startswith("10^") and b.startswith("10^"):
        return abs(first - second) <= 1
    if not re.search(r"[.e]", a + b):
        return first == second
    units = (Decimal(1).scaleb(int(value.as_tuple().exponent)) for value in (first, second))
    return abs(first - second) <= max(units)


def _near_half(a: str, b: str) -> bool:
    if a.startswith("10^"):
        return _equal(a, b)
    first, second = _decimal(a), _decimal(b)
    low, high = sorted((abs(first), abs(second)))
    return first * second >= 0 and high <= HALF_FACTOR * low
