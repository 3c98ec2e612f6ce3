"""The tables of verdicts on the report page: losses by formats, and networks by formats."""

from collections.abc import Mapping
from dataclasses import dataclass

from fperr.losses import LOSSES_BY_NAME
from fperr.report.answer import Verdicts, losses_by_state
from fperr.report.numbers import number
from fperr.report.verdict import State, Verdict

SYMBOLS: dict[State, str] = {
    "trustworthy": "✓",
    "do not trust": "✗",
    "cannot tell": "?",
    "not measured": "–",
}
# classes of the page's style
CLASSES: dict[State, str] = {
    "trustworthy": "good",
    "do not trust": "bad",
    "cannot tell": "open",
    "not measured": "none",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """What a table of verdicts shows of one loss in one format.

    Attributes:
        symbol, state, kind: The state as a symbol, in words, and as a class of the page's style.
        numbers: Names of numbers, and the numbers.
    """

    symbol: str
    state: str
    kind: str
    numbers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a table of verdicts.

    Attributes:
        name: The loss.
        full_name: Its full name; empty if it has none.
        cells: A cell for each format; None where the loss was not measured in it.
    """

    name: str
    full_name: str
    cells: tuple[Cell | None, ...]


def formats_of(verdicts: Verdicts) -> list[str]:
    """The formats, in order."""
    return list(dict.fromkeys(fmt for cells in verdicts.values() for fmt in cells))


def matrix(verdicts: Verdicts) -> list[Line]:
    """A line for each loss, a cell for each format."""
    return [
        Line(
            loss,
            full_name(loss),
            tuple(_cell(cells[f]) if f in cells else None for f in formats_of(verdicts)),
        )
        for loss, cells in verdicts.items()
    ]


def overview(
    by_network: Mapping[str, Verdicts],
) -> tuple[list[str], list[tuple[str, list[list[tuple[str, str, str]]]]]]:
    """The formats, and for each network and format the losses in each state.

    Args:
        by_network: Verdicts by network.

    Returns:
        The formats; and for each network its name and, for each format, triples of a symbol, names
        of losses, and a class of the page's style.
    """
    formats = list(
        dict.fromkeys(f for verdicts in by_network.values() for f in formats_of(verdicts))
    )
    lines = [
        (
            name,
            [
                [
                    (SYMBOLS[state], ", ".join(losses), CLASSES[state])
                    for state, losses in losses_by_state(verdicts, fmt).items()
                ]
                for fmt in formats
            ],
        )
        for name, verdicts in by_network.items()
    ]
    return formats, lines


def full_name(name: str) -> str:
    """The full name of a loss; empty for a loss with a parameter."""
    loss = LOSSES_BY_NAME.get(name)
    return "" if loss is None else loss.full_name or loss.display_name


def _cell(verdict: Verdict) -> Cell:
    """One verdict. The numbers are those of the scenario in which most gradients fail."""
    numbers = (
        (
            ("step gain", number(verdict.step_gain_median)),
            ("exactly zero", f"{100 * verdict.dead / verdict.rows:.0f}\u202f%"),
            ("error δ", number(verdict.delta_median)),
        )
        if verdict.rows
        else ()
    )
    return Cell(SYMBOLS[verdict.state], verdict.state, CLASSES[verdict.state], numbers)
