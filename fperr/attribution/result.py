"""What `attribute` returns."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fperr import checks
from fperr.attribution.paired import FEWEST_IMAGES
from fperr.attribution.parts import Part
from fperr.attribution.plots import AttributionPlots
from fperr.attribution.sentences import sentence, share_of_gap
from fperr.attribution.stand_in import StandIn
from fperr.report.html import AttributionSection, attribution_page
from fperr.report.style import picture
from fperr.storage import write

_WORDS = {"exact_ce": "exact gradients", "stable_ce": "stable cross-entropy"}


@dataclass(frozen=True, slots=True, repr=False)
class Attribution:
    """What a robust-accuracy gap is made of.

    It prints as one sentence. An image's outcome in an arm is the share of its starts that
    withstand; differences are means over the images, in shares of 1.

    Attributes:
        frame: A row an image: `sample`, `label`, `is_judged`; outcomes in the arms, `ce`,
            `stable_ce`, `mifpe`, `tmifpe` in the format, `exact_ce` and `exact_mifpe` on exact
            gradients (NaN where they were not computed), `unlimited_ce` with why=True; `floor` with
            a search (NaN where the image is not judged), and `autoattack_fooled` with AutoAttack;
            and `never_had_gradient`: every gradient of cross-entropy in the format was exactly
            zero.
        parts: The parts of the gap, the gap, and lines beside it; see `summary`.
        kind: The attack in words.
        stand_in: How far stable cross-entropy stands in for exact gradients; None if exact
            gradients were computed for all images, or for none.
        search: What the floor is made of, or None.
        note: Why exact gradients were not computed, or None.
        provenance: Network, images, attack, versions and device, in words.

    Example:
        >>> import fperr
        >>> from fperr import data, zoo
        >>> images, model = data.fashion_mnist_1000().first(2), zoo.load("fashion_saturated")
        >>> result = fperr.attribute(model, images.x, images.y, radius=0.05, steps=2, starts=1)
        >>> result.part("numerical").difference.only_second
        0
        >>> list(result.summary().index)
        ['numerical', 'loss', 'gap', 'mifpe_rounding', 'cw', 'tmifpe']
    """

    frame: pd.DataFrame
    parts: tuple[Part, ...]
    kind: str
    stand_in: StandIn | None
    search: str | None
    note: str | None
    provenance: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Attribution({self.sentence})"

    @property
    def sentence(self) -> str:
        """How much of the gap is floating-point error, and what to do, in words."""
        return sentence(self.frame, self.parts, self.stand_in, self.search)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the sentence should know besides."""
        share = share_of_gap(self.parts)
        judged = self.frame[self.frame["is_judged"]]
        dead, without = judged[judged["never_had_gradient"]], self.parts[0].second
        of_dead = (
            f"At {len(dead)} of {len(self.frame)} images every gradient of cross-entropy was "
            f"exactly zero; {int(dead[without].eq(1).sum())} of them withstand {_WORDS[without]}, "
            "too."
        )
        return tuple(
            text
            for text in (
                share,
                of_dead if len(dead) else None,
                None if self.stand_in is None else self.stand_in.sentence,
                f"Fewer than {FEWEST_IMAGES} images: the intervals are rough."
                if len(judged) < FEWEST_IMAGES
                else None,
                self.note,
            )
            if text is not None
        )

    def part(self, name: str) -> Part:
        """The part of that name.

        Raises:
            ValueError: There is none.
        """
        for part in self.parts:
            if part.name == name:
                return part
        known = ", ".join(repr(part.name) for part in self.parts)
        raise ValueError(f"name must be one of {known}, got {name!r}: give one of them")

    def summary(self) -> pd.DataFrame:
        """The parts in percentage points: a row a part, indexed by its name.

        Columns: `words`, `points`, `low`, `high` (the interval), `only_first` and `only_second`
        (numbers of images), `is_told` (the interval excludes 0), `is_equivalent` (less than half a
        point, by two one-sided tests at 5 %), `first` and `second` (robust accuracy of the arms in
        per cent).
        """
        judged = self.frame[self.frame["is_judged"]]
        rows = {
            part.name: {
                "words": part.words,
                "points": 100 * part.difference.estimate,
                "low": 100 * part.difference.low,
                "high": 100 * part.difference.high,
                "only_first": part.difference.only_first,
                "only_second": part.difference.only_second,
                "is_told": part.difference.is_told,
                "is_equivalent": part.difference.is_equivalent,
                "first": 100 * judged[part.first].mean(),
                "second": 100 * judged[part.second].mean(),
            }
            for part in self.parts
        }
        return pd.DataFrame.from_dict(rows, orient="index")

    @property
    def plot(self) -> AttributionPlots:
        """The figures: `plot.waterfall()`."""
        return AttributionPlots(self.frame, self.parts, self.kind)

    @property
    def section(self) -> AttributionSection:
        """The attribution as a section of the report page: see `Report.to_html`."""
        table = self.summary()
        rows = [
            (
                str(line["words"]),
                f"{line['first']:.1f}",
                f"{line['second']:.1f}",
                f"{line['points']:.1f} [{line['low']:.1f}, {line['high']:.1f}]",
                f"{line['only_first']} : {line['only_second']}",
            )
            for _, line in table.iterrows()
        ]
        figure = picture(self.plot.waterfall(), dpi=110)
        return AttributionSection(
            sentence=self.sentence,
            remarks=self.remarks,
            kind=self.kind,
            png=base64.b64encode(figure).decode(),
            alt="; ".join(f"{row[0]}: from {row[1]} to {row[2]} %" for row in rows),
            columns=(
                "part",
                "from, %",
                "to, %",
                f"points [{100 * self.parts[0].difference.confidence:g} % interval]",
                "images only in the first : second",
            ),
            rows=rows,
            provenance=self.provenance,
        )

    def to_html(self) -> str:
        """One self-contained HTML page."""
        return attribution_page(self.section)

    def to_parquet(self, path: str | Path) -> None:
        """Write the frame to a Parquet file.

        Raises:
            StorageError: It cannot be written.
        """
        write(checks.path("path", path), self.frame.to_parquet(index=False))
