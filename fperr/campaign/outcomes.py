"""The attacks and measurements of a campaign by model, from its parts."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from fperr.attribution.arms import CE, CW, EXACT, MIFPE, STABLE_CE, TMIFPE, UNLIMITED_CE, arm_result
from fperr.attribution.outcomes import attack_words, outcome_frame, provenance_of
from fperr.attribution.parts import FLOOR, floor, parts_of
from fperr.attribution.result import Attribution
from fperr.campaign.cells import PlannedModel
from fperr.campaign.jobs import ATTRIBUTION_LOSSES, EXACT_LOSSES, JOBS, LADDER_LOSS, Arm
from fperr.campaign.spec import JobSpec
from fperr.campaign.view import View
from fperr.data import digest
from fperr.errors import FperrError
from fperr.formats import format_named
from fperr.measurement.provenance import merged_notes
from fperr.report.columns import MEASUREMENT, dtypes
from fperr.report.frame import Report

_ARMS = {arm.name: arm for arm in (CE, STABLE_CE, CW, MIFPE, TMIFPE, UNLIMITED_CE, *EXACT)}
_CONFIDENCE = 0.95
_MOST_ENGINES = 3  # descriptions of engines that a page lists


@dataclass(frozen=True, slots=True)
class AttackedArm:
    """The outcomes of one attack on a model, from one start.

    Attributes:
        arm: The attack.
        frame: Columns of `fperr.attack`, a row an image, of the finished cells.
    """

    arm: Arm
    frame: pd.DataFrame

    def first(self, n: int) -> pd.DataFrame | None:
        """The outcomes at the first n images, in order; None if some are missing."""
        frame = self.frame.sort_values("sample", ignore_index=True).head(n)
        return frame if np.array_equal(frame["sample"], np.arange(n)) else None


@dataclass(slots=True)
class ModelOutcomes:
    """What the parts of a model hold.

    Attributes:
        model: The model.
        arms: What is done with it.
        attacks: Its attacks.
        tables: Rows by kind of arm and part, with the columns that tell models and arms apart.
        measured: Rows of each measured part.
        missing: Number of cells without a part.
        unmeasured: Number of those that measure.
        cells: Number of cells.
        weights: Digests of the weights that workers had.
        machines: CPU capabilities and devices of the workers.
        provenances: Provenance of each measured part.
    """

    model: PlannedModel
    arms: list[Arm]
    attacks: list[AttackedArm] = field(default_factory=list)
    tables: list[tuple[str, pa.Table]] = field(default_factory=list)
    measured: list[pd.DataFrame] = field(default_factory=list)
    missing: int = 0
    unmeasured: int = 0
    cells: int = 0
    weights: set[str] = field(default_factory=set)
    machines: set[str] = field(default_factory=set)
    provenances: list[dict[str, Any]] = field(default_factory=list)

    def attack(self, arm: Arm, n: int) -> pd.DataFrame | None:
        """The outcomes of an attack at the first n images; None if some are missing."""
        for attacked in self.attacks:
            if attacked.arm.key == arm.key:
                return attacked.first(n)
        return None

    @property
    def report(self) -> Report | None:
        """The report of the model's measurement; None where nothing is measured."""
        if not self.measured:
            return None
        frame = pd.concat(self.measured, ignore_index=True).astype(dtypes(MEASUREMENT))
        first, images = self.provenances[0], self.model.images
        # several jobs may measure, each in formats of its own
        losses, formats = (
            list(dict.fromkeys(name for p in self.provenances for name in p["settings"][key]))
            for key in ("losses", "formats")
        )
        engines = list(dict.fromkeys(p["reference"]["engine"] for p in self.provenances))
        further = len(engines) - _MOST_ENGINES
        named = "; ".join(engines[:_MOST_ENGINES]) + (f"; {further} more" if further > 0 else "")
        n = max(self.model.size_of(arm) for arm in self.arms if arm.kind == "measure")
        provenance = {
            **first,
            "interrupted": self.unmeasured > 0,
            "inputs": {
                **first["inputs"],
                "samples": int(frame["sample"].nunique()),
                "digest_of_x": digest(images.x[:n]),
                "digest_of_labels": digest(images.y[:n]),
            },
            "reference": {**first["reference"], "engine": f"{named} (by cells)"},
            "settings": first["settings"] | {"losses": losses, "formats": formats},
            "emulation": merged_notes(
                [format_named(name) for name in formats],
                [p["emulation"] for p in self.provenances],
            ),
        }
        return Report(frame, {self.model.spec.name: provenance})


def outcomes_of(view: View, model: PlannedModel) -> ModelOutcomes:
    """Read the parts of a model.

    Raises:
        FperrError: Parts were made with different weights.
    """
    outcomes = ModelOutcomes(model, view.plan.arms_of(model.spec))
    name = model.spec.name
    for arm in outcomes.arms:
        frames = []
        for _, part in view.parts(model, arm):
            outcomes.cells += 1
            if part is None:
                outcomes.missing += 1
                outcomes.unmeasured += arm.kind == "measure"
                continue
            made = part.header["made"]
            outcomes.weights.add(made["weights"])
            outcomes.machines.add(f"{made['cpu']}, {made['device']}")
            outcomes.tables.append((arm.kind, _named(part.table, name, arm)))
            if arm.kind == "attack":
                frames.append(part.table.to_pandas())
            else:
                outcomes.measured.append(part.table.to_pandas().assign(network=name))
                outcomes.provenances.append(part.header["provenance"])
        if frames:
            frame = pd.concat(frames, ignore_index=True)
            outcomes.attacks.append(AttackedArm(arm, frame))
    if len(outcomes.weights) > 1:
        raise FperrError(
            f"the parts of {name} were made with {len(outcomes.weights)} different sets of "
            "weights, though its files are the same: its factory depends on something else. Make "
            "it return the same network each time, and begin anew in another folder"
        )
    return outcomes


def _named(table: pa.Table, model: str, arm: Arm) -> pa.Table:
    """The rows of a part with columns that tell the model and the arm."""
    if arm.kind != "attack":
        position = table.column_names.index("network")
        return table.set_column(position, "network", pa.array([model] * len(table), pa.string()))
    options = arm.options
    constants = {
        "model": model,
        **{name: options[name] for name in ("loss", "format", "method", "norm")},
        "radius": float(options["radius"]),
        "steps": options["steps"],
        "seed": options["seed"],
    }
    columns = {name: pa.array([value] * len(table)) for name, value in constants.items()}
    return pa.table({**columns, **dict(zip(table.column_names, table.columns, strict=True))})


def attributions_of(
    outcomes: ModelOutcomes, jobs: tuple[JobSpec, ...]
) -> Iterator[tuple[JobSpec, Attribution | None]]:
    """The attribution of each job `attribute`; None where cells of it are missing."""
    for job in jobs:
        if job.name == "attribute" and job.is_for(outcomes.model.spec):
            yield job, _attribution(outcomes, job)


def _attribution(outcomes: ModelOutcomes, job: JobSpec) -> Attribution | None:
    options, n = job.options, job.size_of(len(outcomes.model.images.x))
    is_exact = options["exact"] == "all"
    frames: dict[str, list[pd.DataFrame]] = {}
    names = [
        *(f"exact_{loss}" for loss in (EXACT_LOSSES if is_exact else ())),
        *ATTRIBUTION_LOSSES,
        *((LADDER_LOSS,) if options["why"] else ()),
    ]
    arms = iter(JOBS["attribute"].arms(options, outcomes.model.spec.options))
    for name in names:
        for _ in range(options["starts"]):
            frame = outcomes.attack(next(arms), n)
            if frame is None:
                return None
            frames.setdefault(name, []).append(frame)
    results = {name: arm_result(starts, np.arange(n), n) for name, starts in frames.items()}
    labels = outcomes.model.images.y[:n].cpu().numpy()
    frame = outcome_frame(labels, results, [_ARMS[name] for name in names])
    if options["search"] is not None:
        lowest = floor(frame[list(results)], np.zeros(n, bool))
        frame[FLOOR] = np.where(frame["is_judged"], lowest, np.nan)
    radius = options["radius"] or outcomes.model.spec.options["radius"]
    words = attack_words(
        options["format"], options["norm"], radius, options["steps"], options["starts"],
        is_targeted=False,
    )  # fmt: skip
    parts = parts_of(frame, is_exact=is_exact, confidence=_CONFIDENCE)
    model, images = outcomes.model.spec, outcomes.model.images
    provenance = provenance_of(
        model.name,
        weights=", ".join(outcomes.weights),
        images=digest(images.x[:n], images.y[:n]),
        n=n,
        box=model.options["box"],
        attack=words,
        seed=options["seed"],
        exact=options["exact"],
        device="; ".join(sorted(outcomes.machines)),
    )
    return Attribution(frame, parts, words, None, options["search"], None, provenance)
