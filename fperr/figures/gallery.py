"""The figures by name: each computes a frame, which takes the time, and draws it."""

import json
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
    gpu,
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
_LEVELSETS, _FASTAT = "mnist_levelsets_eps0.4", "mnist_fastat_pgd"
_ALL_KINDS = (*attacks.ATTACKED, "mnist_wong_kolter")  # certified


@dataclass(frozen=True, slots=True)
class TableText:
    """The text of a figure that is a table.

    Attributes:
        cells: Function that turns the frame into the cells' text.
        title: Title, a single line.
        note: Lines below the title.
    """

    cells: Callable[[pd.DataFrame], pd.DataFrame]
    title: str
    note: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a figure is made.

    Attributes:
        frame: Function that computes the frame.
        draw: Function that draws the frame.
        networks: Names of the networks, unless the caller names others.
        text: Text of the table; None for a figure that is no table.
        images: Number of images of each network, unless the caller gives another.
        max_images: Largest number of images of each network at full size; None for no limit.
        steps: Number of steps of the attacks.
    """

    frame: Callable[[Study], pd.DataFrame]
    draw: Callable[[pd.DataFrame], Figure]
    networks: tuple[str, ...] = ()
    text: TableText | None = None
    images: int = 100
    max_images: int | None = 1000
    steps: int = attacks.STEPS

    @property
    def available(self) -> list[str]:
        """The figure's networks; the published ones where their files are."""
        return [name for name in self.networks if zoo.is_at_hand(name)]


FIGURES = {
    "theory": Recipe(theory.frame, theory.draw),
    "regimes": Recipe(regimes.frame, regimes.draw),
    "margins": Recipe(margins.frame, margins.draw, _ALL_KINDS, max_images=None),
    "density": Recipe(accuracy.density_frame, accuracy.density, attacks.ATTACKED),
    "scale-sweep": Recipe(sweep.frame, sweep.draw, attacks.ATTACKED, steps=sweep.STEPS),
    "precision": Recipe(accuracy.precision_frame, accuracy.precision, attacks.ATTACKED),
    "convergence": Recipe(accuracy.convergence_frame, accuracy.convergence, attacks.ATTACKED),
    "tstar-trace": Recipe(tstar.trace_frame, tstar.trace, (*_FASHION[1:], _LEVELSETS)),
    "phase": Recipe(tstar.phase_frame, tstar.phase, (*_FASHION, _FASTAT)),
    "table1": Recipe(
        table1.frame,
        table1.draw,
        tuple(e.name for e in zoo.REGISTRY.values() if e.dataset in (PACKAGED, "mnist_test")),
        TableText(table1.cells, table1.TITLE, table1.NOTE),
        images=200,
        max_images=None,
    ),
    "boost": Recipe(
        boost.frame,
        boost.draw,
        (*_FASHION, _LEVELSETS),
        TableText(boost.cells, boost.TITLE, boost.NOTE),
    ),
    "stages": Recipe(errors.frame, errors.stages, (*_FASHION[1:], _LEVELSETS)),
    "layers": Recipe(layers.frame, layers.plot, (_FASHION[1], _LEVELSETS)),
    "bound": Recipe(errors.frame, errors.bound, _ALL_KINDS),
    "sign-map": Recipe(signs.frame, signs.draw, (_FASHION[1], _LEVELSETS)),
    "gpu": Recipe(gpu.frame, gpu.draw, (*attacks.ATTACKED, *attacks.IN_FLOAT8), steps=gpu.STEPS),
    "cost": Recipe(cost.frame, cost.draw),
}


def make(name: str, study: Study, out: Path, command: str, formats: tuple[str, ...]) -> list[Path]:
    """Draw a figure and write it, with its provenance.

    Args:
        name: Key of `FIGURES`.
        study: Networks and images, and the cache of results.
        out: Folder to write to.
        command: Command line that makes the figure again.
        formats: File formats of the picture: png, svg, pdf.

    Returns:
        The files written.

    Raises:
        ValueError: No figure has that name, or `out` cannot be a folder.
        StorageError: A file cannot be written.
    """
    if name not in FIGURES:
        raise ValueError(f"unknown figure {name!r}: expected one of {', '.join(FIGURES)}")
    recipe = FIGURES[name]
    storage.prepare(out)
    frame = recipe.frame(study)
    figure = recipe.draw(frame)
    provenance = {
        "command": command,
        "images": images_in(frame),
        "networks": study.provenance,
        "attacks": attacks.settings_of(study, recipe.steps),
        "threads": torch.get_num_threads(),
        "cpu": cost.cpu(),
        "versions": versions(),
    }
    bounding_box = None if recipe.text is None else "tight"
    contents = {
        out / f"{name}.{extension}": picture(
            figure, format=extension, dpi=DPI, bbox_inches=bounding_box
        )
        for extension in formats
    }
    if recipe.text is not None:
        text = recipe.text
        contents |= table.contents(text.cells(frame), text.title, text.note, out / name)
    provenance_file = out / f"{name}.json"
    # removed first: a kill leaves a picture without provenance, not with another one's
    storage.remove(provenance_file)
    for path, content in contents.items():
        storage.write(path, content)
    storage.write(provenance_file, (json.dumps(provenance, indent=1) + "\n").encode())
    return [provenance_file, *contents]


def images_in(frame: pd.DataFrame) -> dict[str, int]:
    """Count the images of each network from which a frame was made."""
    if "network" not in frame or not {"n", "sample"} & set(frame):
        return {}
    groups = frame.groupby("network", sort=False)
    counts = groups["n"].max() if "n" in frame else groups["sample"].nunique()
    return {str(name): int(count) for name, count in counts.items()}
