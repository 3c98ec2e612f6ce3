"""How long the cells of a campaign take, by the forecasts behind `--dry-run`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from fperr.attribution.arms import CE, EXACT_CE, Setting
from fperr.attribution.forecast import seconds_per_image_and_step
from fperr.campaign.cells import Plan, PlannedModel, size_name
from fperr.campaign.jobs import Arm
from fperr.measurement import estimate
from fperr.networks.subjects import Subject, subject_of
from fperr.vocabulary import Norm

SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500)
_TIMED_IMAGES = 32
_PART_BYTES = 8_000  # of a part without rows: its header
_ROW_BYTES = {"attack": 30, "measure": 400}  # of a row in a part, about


@dataclass(frozen=True, slots=True)
class ArmForecast:
    """The forecast of the arms of a model that are cut alike.

    Attributes:
        model: Name of the model.
        key: `Arm.size_key` of the arms.
        cells: Number of cells.
        images: Number of images of a cell.
        seconds: Seconds of a cell.
        bytes: Size of all parts, about.
    """

    model: str
    key: str
    cells: int
    images: int
    seconds: float
    bytes: float

    @property
    def all_seconds(self) -> float:
        """Seconds of all cells, one after the other."""
        return self.cells * self.seconds


def sizes_of(plan: Plan, fixed: Mapping[str, int]) -> dict[str, int]:
    """The number of images of the cells of each kind of arm, by `size_name`.

    Args:
        plan: The plan.
        fixed: Sizes of an earlier forecast, which stay.

    Returns:
        The fixed sizes and new ones: the largest of `SIZES` that takes no more than the spec's
        `cell_seconds`, or 1.
    """
    limit = plan.spec.options["cell_seconds"]
    sizes = dict(fixed)
    for model in plan.models:
        lacking = {
            size_name(model.spec, arm): arm
            for arm in plan.arms_of(model.spec)
            if size_name(model.spec, arm) not in sizes
        }
        if lacking:
            subject = _subject(model, plan)
            for name, arm in lacking.items():
                each = _seconds_per_image(arm, subject, plan)
                sizes[name] = max((s for s in SIZES if s * each <= limit), default=1)
    return sizes


def forecasts(plan: Plan) -> list[ArmForecast]:
    """Time a few images of each model in each kind of arm."""
    return [
        forecast for model in plan.models for forecast in _forecasts(model, plan)
    ]  # fmt: skip


def _forecasts(model: PlannedModel, plan: Plan) -> list[ArmForecast]:
    subject = _subject(model, plan)
    by_key: dict[str, list[Arm]] = {}
    for arm in plan.arms_of(model.spec):
        by_key.setdefault(arm.size_key, []).append(arm)
    results = []
    for key, arms in by_key.items():
        each = _seconds_per_image(arms[0], subject, plan)
        cells = [cell for arm in arms for cell in plan.cells_of(model, arm)]
        images = max(cell.rows[1] - cell.rows[0] for cell in cells)
        rows = sum(model.size_of(arm) * _rows_per_image(arm) for arm in arms)
        size = len(cells) * _PART_BYTES + rows * _ROW_BYTES[arms[0].kind]
        results.append(ArmForecast(model.spec.name, key, len(cells), images, each * images, size))
    return results


def _rows_per_image(arm: Arm) -> int:
    if arm.kind == "attack":
        return 1
    scenarios = arm.options["scenarios"]
    count = 1 if scenarios is None else len(scenarios)
    return count * len(arm.options["losses"]) * len(arm.options["formats"])


def _subject(model: PlannedModel, plan: Plan) -> Subject:
    options = model.spec.options
    return subject_of(
        options["source"],
        None if options["checkpoint"] is None else Path(options["checkpoint"]),
        options["logits"],
        options["data"],
        options["images"],
        plan.spec.options["device"],
        notify=lambda _: None,
    )


def _seconds_per_image(arm: Arm, subject: Subject, plan: Plan) -> float:
    torch.set_num_threads(plan.spec.options["threads"])
    options, images = arm.options, subject.images
    if arm.kind == "measure":
        n = min(_TIMED_IMAGES, len(images.x))
        labels = images.y[:n] if options["scenarios"] is None else None
        times = estimate(subject.model, images.x[:n], labels, logits=subject.logits, **options)
        return float(times.seconds) / n
    is_exact = options["format"] == "exact"
    setting = Setting(
        subject.usable, images.x, images.y, None, options["radius"], cast(Norm, options["norm"]),
        (options["box"][0], options["box"][1]), options["steps"], 1,
        "float32" if is_exact else options["format"], options["seed"], _TIMED_IMAGES,
        options["accept_probabilities"],
    )  # fmt: skip
    each = seconds_per_image_and_step(EXACT_CE if is_exact else CE, setting)
    return float(each * options["steps"])
