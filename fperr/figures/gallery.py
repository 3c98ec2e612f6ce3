"""The figures by name: each a frame, which takes the time, and a drawing of it."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from fperr import storage, zoo
from fperr.figures import (
    accuracy,
    attacks,
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
from fperr.report.style import picture

DPI = 150
_FASHION = "fashion_adversarial", "fashion_standard", "fashion_saturated"
_LEVELSETS, _FASTAT, _CERTIFIED = "mnist_levelsets_eps0.4", "mnist_fastat_pgd", "mnist_wong_kolter"
_ATTACKED = (*_FASHION, _FASTAT, _LEVELSETS)  # of each kind of margins; some images withstand
_SIX = (*_ATTACKED, _CERTIFIED)


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
        networks: names of those that it is drawn from, if no others are asked for.
        text: of a table.
        most: images of each network at full size; None: all that there are.
        steps: of its attacks.
    """

    frame: Callable[[Study], pd.DataFrame]
    draw: Callable[[pd.DataFrame], Figure]
    networks: tuple[str, ...] = ()
    text: Text | None = None
    most: int | None = 1000
    steps: int = attacks.STEPS

    @property
    def available(self) -> list[str]:
        """Its networks; those of MNIST only where FPERR_DATA is set."""
        has_data = bool(os.environ.get("FPERR_DATA"))
        return [name for name in self.networks if has_data or _is_packaged(name)]


FIGURES = {
    "theory": Recipe(theory.frame, theory.draw),
    "regimes": Recipe(regimes.frame, regimes.draw),
    "margins": Recipe(margins.frame, margins.draw, _SIX, most=None),
    "density": Recipe(accuracy.density_frame, accuracy.density, _ATTACKED),
    "scale-sweep": Recipe(sweep.frame, sweep.draw, _ATTACKED, steps=sweep.STEPS),
    "precision": Recipe(accuracy.precision_frame, accuracy.precision, _ATTACKED),
    "convergence": Recipe(accuracy.convergence_frame, accuracy.convergence, _ATTACKED),
    "tstar-trace": Recipe(tstar.trace_frame, tstar.trace, (*_FASHION[1:], _LEVELSETS)),
    "phase": Recipe(tstar.phase_frame, tstar.phase, (*_FASHION, _FASTAT)),
    "table1": Recipe(
        table1.frame,
        table1.draw,
        tuple(e.name for e in zoo.REGISTRY.values() if e.dataset in (PACKAGED, "mnist_test")),
        Text(table1.cells, table1.TITLE, table1.NOTE),
        most=None,
    ),
    "boost": Recipe(
        boost.frame,
        boost.draw,
        (*_FASHION, _LEVELSETS),
        Text(boost.cells, boost.TITLE, boost.NOTE),
    ),
    "stages": Recipe(errors.frame, errors.stages, (*_FASHION[1:], _LEVELSETS)),
    "layers": Recipe(layers.frame, layers.plot, (_FASHION[1], _LEVELSETS)),
    "bound": Recipe(errors.frame, errors.bound, _SIX),
    "sign-map": Recipe(signs.frame, signs.draw, (_FASHION[1], _LEVELSETS)),
    "cost": Recipe(cost.frame, cost.draw),
}


def make(name: str, study: Study, out: Path, command: str, formats: tuple[str, ...]) -> list[Path]:
    """Draw a figure and write it, with its provenance.

    Args:
        name: of `FIGURES`.
        study: what it is drawn from.
        out: folder.
        command: that makes it again.
        formats: of the picture: png, svg, pdf.

    Returns:
        The files.

    Raises:
        ValueError: no such figure, lists the known ones; or `out` cannot be a folder.
        StorageError: a file cannot be written.
    """
    if name not in FIGURES:
        raise ValueError(f"unknown figure {name!r}: expected one of {', '.join(FIGURES)}")
    recipe = FIGURES[name]
    storage.prepare(out)
    frame = recipe.frame(study)
    figure = recipe.draw(frame)
    about = {
        "command": command,
        "images": images_in(frame),
        "networks": study.about,
        "attacks": attacks.settings_of(study, recipe.steps),
        "threads": torch.get_num_threads(),
        "cpu": cost.cpu(),
        "versions": versions(),
    }
    cut = None if recipe.text is None else "tight"
    contents = {
        out / f"{name}.{extension}": picture(figure, format=extension, dpi=DPI, bbox_inches=cut)
        for extension in formats
    }
    if recipe.text is not None:
        text = recipe.text
        contents |= table.contents(text.cells(frame), text.title, text.note, out / name)
    provenance = out / f"{name}.json"
    storage.remove(provenance)  # a kill leaves a picture without provenance, not with another one's
    for path, content in contents.items():
        storage.write(path, content)
    storage.write(provenance, (json.dumps(about, indent=1) + "\n").encode())
    return [provenance, *contents]


def images_in(frame: pd.DataFrame) -> dict[str, int]:
    """How many images of each network a frame was made from."""
    if "network" not in frame or not {"n", "sample"} & set(frame):
        return {}
    groups = frame.groupby("network", sort=False)
    counts = groups["n"].max() if "n" in frame else groups["sample"].nunique()
    return {str(name): int(count) for name, count in counts.items()}


def _is_packaged(name: str) -> bool:
    return zoo.entry(name).dataset == PACKAGED
