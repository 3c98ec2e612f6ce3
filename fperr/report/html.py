"""Renders the report page: one self-contained HTML file, for readers new to the subject."""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import jinja2
import pandas as pd

from fperr.reasons import Tally, reasons, tally
from fperr.report import facts
from fperr.report.answer import Verdicts, answer, verdicts
from fperr.report.judging import is_judged
from fperr.report.matrix import CLASSES, SYMBOLS, formats_of, full_name, matrix
from fperr.report.matrix import overview as overview_of
from fperr.report.numbers import joined, number, typeset
from fperr.report.pictures import pictures
from fperr.report.summary import certainties, headline, overview, short, summarise
from fperr.report.verdict import Thresholds

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("fperr.report", ""),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["typeset"] = typeset


@dataclass(frozen=True, slots=True)
class AttributionSection:
    """What the page shows of an attribution, see `fperr.attribute`.

    Attributes:
        sentence: The result in a sentence.
        remarks: Further sentences.
        kind: The attack in words.
        png: The figure, encoded in base64.
        alt: The figure in words.
        columns, rows: A table of the parts.
        provenance: Network, images, attack, versions and device, in words.
    """

    sentence: str
    remarks: Sequence[str]
    kind: str
    png: str
    alt: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    provenance: Mapping[str, str]


def attribution_page(section: AttributionSection) -> str:
    """The HTML page of an attribution alone."""
    return _ENVIRONMENT.get_template("attribution_page.html.j2").render(attribution=section)


def page(
    frame: pd.DataFrame,
    provenance: Mapping[str, Any],
    thresholds: Thresholds,
    attributions: Mapping[str, AttributionSection],
    made_on: date,
) -> str:
    """The HTML page of a report.

    Args:
        frame: Rows of the report.
        provenance: Provenance by network.
        thresholds: Largest errors and shares of failures that the verdicts allow.
        attributions: Attributions by network, each a section.
        made_on: Date that the page bears.
    """
    by_network = {
        name: verdicts(frame[frame["network"] == name], thresholds) for name in provenance
    }
    formats, lines = overview_of(by_network)
    first = next(iter(provenance.values()))
    return _ENVIRONMENT.get_template("page.html.j2").render(
        made_on=f"{made_on.day} {made_on:%B %Y}",
        made_on_iso=made_on.isoformat(),
        versions=list(filter(None, dict.fromkeys(map(facts.versions, provenance.values())))),
        calls=list(
            dict.fromkeys(
                facts.call(p, frame[frame["network"] == name]) for name, p in provenance.items()
            )
        ),
        digits=first["settings"]["digits"],
        emulated=joined(_emulated(provenance)),
        networks=[
            _network(name, frame[frame["network"] == name], details, by_network[name], thresholds)
            for name, details in provenance.items()
        ],
        overview={"formats": formats, "lines": lines},
        symbols={state: (SYMBOLS[state], CLASSES[state]) for state in SYMBOLS},
        thresholds=thresholds,
        attributions=attributions,
        tables=_tables(frame, thresholds),
    )


def _emulated(provenance: Mapping[str, Any]) -> list[str]:
    """The formats whose kernels are emulated, of all networks."""
    names = [n for details in provenance.values() for n in details.get("emulation", {})]
    return list(dict.fromkeys(names))


def _network(
    name: str,
    frame: pd.DataFrame,
    provenance: Mapping[str, Any],
    by_loss: Verdicts,
    thresholds: Thresholds,
) -> dict[str, Any]:
    """What the template shows of one network."""
    independent = frame[~frame["is_sign_twin"]]
    return {
        "name": name,
        "model": facts.model(provenance, frame["sample"].nunique()),
        "interrupted": provenance["interrupted"],
        "time_is_up": provenance["time_is_up"],
        "margin": short(frame["margin"].median()) if frame["margin"].notna().any() else None,
        "answer": answer(by_loss),
        "formats": formats_of(by_loss),
        "matrix": matrix(by_loss),
        "verdicts": _sentences(by_loss),
        "headline": headline(frame),
        "missing": _missing(independent),
        "certainties": certainties(independent),
        "emulation": facts.emulation(provenance),
        "rows": len(independent),
        "pictures": pictures(name, frame, thresholds, is_observed=facts.is_observed(provenance)),
        "provenance": json.dumps(provenance, indent=1),
    }


def _missing(frame: pd.DataFrame) -> list[tuple[Tally, bool]]:
    """The reasons of rows without a relative error, and whether those rows count as failing."""
    judged = is_judged(frame)
    fails = judged & frame["delta"].isna()
    return [
        (group, is_failing)
        for rows, is_failing in ((frame[~judged], False), (frame[fails], True))
        for group in tally(reasons(rows))
    ]


def _sentences(by_loss: Verdicts) -> list[dict[str, str]]:
    """Each verdict in a sentence."""
    listed = []
    for loss, cells in by_loss.items():
        title = f"{full_name(loss)} ({loss})" if full_name(loss) else loss
        for fmt, verdict in cells.items():
            words = verdict.sentence.partition(": ")[2]
            listed.append(
                {
                    "loss": title,
                    "format": fmt,
                    "state": verdict.state,
                    "kind": CLASSES[verdict.state],
                    "words": f"{words[:1].upper()}{words[1:]}.",
                }
            )
    return listed


def _tables(frame: pd.DataFrame, thresholds: Thresholds) -> list[dict[str, Any]]:
    """The tables at the end of the page."""
    detailed = summarise(
        frame[~frame["is_sign_twin"]], ("network", "scenario", "loss", "format"), thresholds
    )
    contents = {
        "Median relative errors": overview(frame),
        "Quartiles and failures by scenario": detailed.drop(columns="verdict"),
    }
    is_one = frame["network"].nunique() == 1
    return [
        _table(title, content.drop(columns="network") if is_one else content)
        for title, content in contents.items()
    ]


def _table(title: str, content: pd.DataFrame) -> dict[str, Any]:
    """A table with its title, column headings and cells, and as a file of values."""
    csv = content.to_csv(index=False).encode()
    return {
        "title": title,
        "file": f"{title.lower().replace(' ', '_')}.csv",
        "csv": base64.b64encode(csv).decode("ascii"),
        "columns": [str(name).replace("_", " ") for name in content.columns],
        "rows": [[_cell(value) for value in row] for row in content.itertuples(index=False)],
    }


def _cell(value: object) -> dict[str, str]:
    """The text of a table cell, and its value for sorting: the leading number of a text, if any."""
    if isinstance(value, float):
        sorted_by = "" if math.isnan(value) else repr(value)
        return {"kind": "number", "value": sorted_by, "text": number(value, 3)}
    if isinstance(value, int):
        return {"kind": "number", "value": str(value), "text": str(value)}
    text = "–" if value is None else str(value)
    leading = text.split(" ", 1)[0]
    try:
        sorted_by = repr(float(leading))
    except ValueError:
        sorted_by = text
    return {"kind": "words" if len(text) > 40 else "", "value": sorted_by, "text": typeset(text)}
