"""The figures by name: each a frame, which takes the time, and a drawing of it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from fperr.figures import accuracy, margins, theory
from fperr.figures.study import Study, versions

DPI = 150


@dataclass(frozen=True, slots=True)
class Recipe:
    """A figure.

    Attributes:
        frame: computes what is drawn.
        draw: draws it.
        says: what it shows, for lists.
    """

    frame: Callable[[Study], pd.DataFrame]
    draw: Callable[[pd.DataFrame], Figure]
    says: str


FIGURES = {
    "theory": Recipe(theory.frame, theory.draw, "G(t) and the papers' bound, t* marked"),
    "margins": Recipe(margins.frame, margins.draw, "margins against the formats' thresholds"),
    "density": Recipe(accuracy.density_frame, accuracy.density, "the label's margin after attacks"),
    "precision": Recipe(
        accuracy.precision_frame, accuracy.precision, "robust accuracy by arithmetic"
    ),
    "convergence": Recipe(
        accuracy.convergence_frame, accuracy.convergence, "robust accuracy by step"
    ),
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
    about = {"command": command, "networks": study.about, "versions": versions()}
    paths = [out / f"{name}.json"]
    paths[0].write_text(json.dumps(about, indent=1) + "\n")
    for extension in formats:
        paths.append(out / f"{name}.{extension}")
        figure.savefig(paths[-1], dpi=DPI)
    return paths
