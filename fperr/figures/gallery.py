"""The figures by name: each a frame, which takes the time, and a drawing of it."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from fperr import zoo
from fperr.figures import (
    accuracy,
    boost,
    cost,
    errors,
    layers,
    margins,
    regimes,
    signs,
    sweep,
    table,
    table1,
    theory,
    tstar,
)
from fperr.figures.study import PACKAGED, Study, versions

DPI = 150
_FASHION = "fashion_adversarial", "fashion_standard", "fashion_saturated"
_LEVELSETS, _FASTAT, _CERTIFIED = "mnist_levelsets_eps0.4", "mnist_fastat_pgd", "mnist_wong_kolter"
_SIX = (*_FASHION, _FASTAT, _LEVELSETS, _CERTIFIED)  # of each kind of margins


@dataclass(frozen=True, slots=True)
class Text:
    """What a table is besides a picture.

    Attributes:
        cells: the text of its cells.
        title: a line.
        note: lines.
    """

    cells: Callable[[pd.DataFrame], pd.DataFrame]
    title: str
    note: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """A figure.

    Attributes:
        frame: computes what is drawn.
        draw: draws it.
        says: what it shows, for lists.
        networks: names of those that it is drawn from, if no others are asked for.
        text: of a table.
        most: images of each network at most; None: all that there are.
    """

    frame: Callable[[Study], pd.DataFrame]
    draw: Callable[[pd.DataFrame], Figure]
    says: str
    networks: tuple[str, ...] = ()
    text: Text | None = None
    most: int | None = 1000

    @property
    def available(self) -> list[str]:
        """Its networks; those of MNIST only where FPERR_DATA is set."""
        has_data = bool(os.environ.get("FPERR_DATA"))
        names = [name for name in self.networks if has_data or _is_packaged(name)]
        return names or list(_FASHION[1:] if self.networks else ())


FIGURES = {
    "theory": Recipe(theory.frame, theory.draw, "G(t) and the papers' bound, t* marked"),
    "regimes": Recipe(regimes.frame, regimes.draw, "underflow and cancellation by temperature"),
    "margins": Recipe(
        margins.frame, margins.draw, "margins against the formats' thresholds", _SIX, most=None
    ),
    "density": Recipe(
        accuracy.density_frame, accuracy.density, "the label's margin after attacks", _SIX
    ),
    "scale-sweep": Recipe(
        sweep.frame,
        sweep.draw,
        "errors and robust accuracy by temperature",
        (*_FASHION, _FASTAT, _LEVELSETS),
    ),
    "precision": Recipe(
        accuracy.precision_frame, accuracy.precision, "robust accuracy by arithmetic", _SIX
    ),
    "convergence": Recipe(
        accuracy.convergence_frame, accuracy.convergence, "robust accuracy by step", _SIX
    ),
    "tstar-trace": Recipe(
        tstar.trace_frame, tstar.trace, "T-MIFPE along an attack", (*_FASHION[1:], _LEVELSETS)
    ),
    "phase": Recipe(
        tstar.phase_frame, tstar.phase, "what a misdetected scenario costs", (*_FASHION, _FASTAT)
    ),
    "table1": Recipe(
        table1.frame,
        table1.draw,
        "robust accuracies, ours and published",
        tuple(zoo.REGISTRY),
        Text(table1.cells, table1.TITLE, table1.NOTE),
        most=None,
    ),
    "boost": Recipe(
        boost.frame,
        boost.draw,
        "(T-)MIFPE inside other attacks",
        (*_FASHION, _LEVELSETS),
        Text(boost.cells, boost.TITLE, boost.NOTE),
    ),
    "stages": Recipe(
        errors.frame, errors.stages, "where the error arises", (*_FASHION[1:], _LEVELSETS)
    ),
    "layers": Recipe(
        layers.frame, layers.plot, "bits lost along the network", (_FASHION[1], _LEVELSETS)
    ),
    "bound": Recipe(errors.frame, errors.bound, "errors against their bounds", _SIX),
    "sign-map": Recipe(
        signs.frame, signs.draw, "an image's wrong signs", (_FASHION[1], _LEVELSETS)
    ),
    "cost": Recipe(cost.frame, cost.draw, "time for an exact gradient, by engine"),
}


def make(name: str, study: Study, out: Path, command: str, formats: tuple[str, ...]) -> list[Path]:
    """Draw a figure and write it, with its provenance and its data.

    Args:
        name: of `FIGURES`.
        study: what it is drawn from.
        out: folder.
        command: that makes it again.
        formats: of the picture: png, svg, pdf.

    Returns:
        The files.

    Raises:
        ValueError: no such figure; lists the known ones.
    """
    if name not in FIGURES:
        raise ValueError(f"unknown figure {name!r}: expected one of {', '.join(FIGURES)}")
    recipe = FIGURES[name]
    frame = recipe.frame(study)
    figure = recipe.draw(frame)
    out.mkdir(parents=True, exist_ok=True)
    about = {"command": command, "seed": accuracy.SEED, "networks": study.about}
    paths = [out / f"{name}.json"]
    paths[0].write_text(json.dumps({**about, "versions": versions()}, indent=1) + "\n")
    cut = None if recipe.text is None else "tight"
    for extension in formats:
        paths.append(out / f"{name}.{extension}")
        figure.savefig(paths[-1], dpi=DPI, bbox_inches=cut)
    if recipe.text is not None:
        text = recipe.text
        paths += table.write(text.cells(frame), text.title, text.note, out / name)
    return paths


def _is_packaged(name: str) -> bool:
    return zoo.entry(name).dataset == PACKAGED
