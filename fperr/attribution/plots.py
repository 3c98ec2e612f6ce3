"""The figure of an attribution."""

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from fperr.attribution.parts import Part
from fperr.caller_state import in_neutral_state

_COLOURS = {"numerical": "#0173b2", "loss": "#de8f05", "search": "#949494"}
_ENDS = "#d9dce1"


@dataclass(frozen=True, slots=True)
class AttributionPlots:
    """The figures of one attribution.

    Attributes:
        frame: Outcomes of the arms, a row an image.
        parts: Parts of the gap.
        title: Title of the figures.
    """

    frame: pd.DataFrame
    parts: tuple[Part, ...]
    title: str

    @in_neutral_state
    def waterfall(self) -> Figure:
        """Robust accuracy from cross-entropy down to the floor, a bar a part, with intervals.

        A part's points are what it takes off; negative ones add to robust accuracy.
        """
        judged = self.frame[self.frame["is_judged"]]
        steps = [part for part in self.parts if part.is_of_gap]
        figure = Figure(figsize=(6.4, 0.62 * (len(steps) + 2) + 1.1), layout="constrained")
        axis = figure.subplots()
        start = 100 * float(judged["ce"].mean()) if len(judged) else 0.0
        axis.barh(0, start, color=_ENDS)
        axis.text(start + 1, 0, f"{start:.1f} %", va="center")
        labels, level = ["cross-entropy\nin the format"], start
        for row, part in enumerate(steps, start=1):
            d = part.difference
            size = 100 * d.estimate
            axis.barh(row, -size, left=level, color=_COLOURS[part.name])
            low, high = 100 * d.low, 100 * d.high
            # an interval may reach beyond 0 or 100 %
            axis.plot(
                [level - low, level - high], [row, row], color="black", linewidth=1.2, clip_on=False
            )
            words = f"{size:.1f} points [{low:.1f}, {high:.1f}]".replace("-", "−")
            axis.text(max(level, level - low) + 1, row, words, va="center")
            labels.append(part.words.partition(":")[0])
            level -= size
        axis.barh(len(steps) + 1, level, color=_ENDS)
        axis.text(level + 1, len(steps) + 1, f"{level:.1f} %", va="center")
        labels.append("what is left")
        axis.set_yticks(range(len(labels)), labels)
        axis.set_xlim(0, 118)
        axis.set_xticks(range(0, 101, 20))
        axis.invert_yaxis()
        axis.set_xlabel("robust accuracy in per cent; lines: intervals")
        axis.set_title(self.title, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        return figure
