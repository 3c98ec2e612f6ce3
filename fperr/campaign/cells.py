"""The cells of a campaign: a model, a batch of its images, and an arm of a job.

A cell is named by the digest of its identity: everything that its result depends on. So a cell
whose model, images, options or versions have changed is another cell, and equal cells are one.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from fperr import data
from fperr.campaign.identities import identity_of, versions
from fperr.campaign.jobs import JOBS, Arm
from fperr.campaign.spec import ModelSpec, Spec
from fperr.errors import FperrError
from fperr.networks.subject_images import images_of

USUAL_BATCH = 50


@dataclass(frozen=True, slots=True)
class Cell:
    """A piece of a campaign that is run at once, and finished whole or not at all.

    Attributes:
        digest: Name of the cell: of its identity.
        identity: What its result depends on, ready for JSON.
        model: Model of the spec, which says where the files are.
        rows: Numbers of the images, from the first to before the last.
        arm: What is done with them.
    """

    digest: str
    identity: Mapping[str, Any]
    model: ModelSpec
    rows: tuple[int, int]
    arm: Arm

    @property
    def words(self) -> str:
        """The cell in words, for messages."""
        first, stop = self.rows
        return f"{self.model.name}, images {first} to {stop - 1}, {self.arm.words}"


@dataclass(frozen=True)
class PlannedModel:
    """A model whose files are there, with its images.

    Attributes:
        spec: The model of the spec.
        identity: Its digests.
        images: Its first images.
    """

    spec: ModelSpec
    identity: Mapping[str, Any]
    images: data.Images
    _digests: dict[tuple[int, int], str] = field(default_factory=dict)

    def size_of(self, arm: Arm) -> int:
        """The number of images of an arm."""
        n = len(self.images.x)
        return n if arm.images is None else min(n, arm.images)

    def digest_of(self, rows: tuple[int, int]) -> str:
        """The digest of the images and labels of a batch."""
        if rows not in self._digests:
            batch = slice(*rows)
            self._digests[rows] = data.digest(self.images.x[batch], self.images.y[batch])
        return self._digests[rows]


@dataclass(frozen=True)
class Plan:
    """The cells of a campaign.

    Attributes:
        spec: The spec.
        models: Models whose files are there.
        absent: Model whose files are missing -> why, and where they can be had.
        sizes: Number of images of a cell, by model and `Arm.size_key`; elsewhere that of the spec.
    """

    spec: Spec
    models: tuple[PlannedModel, ...]
    absent: Mapping[str, str]
    sizes: Mapping[str, int]

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """The cells by digest, those of a model together; equal ones once."""
        ordered: dict[str, Cell] = {}
        for model in self.models:
            for arm in self.arms_of(model.spec):
                for cell in self.cells_of(model, arm):
                    ordered.setdefault(cell.digest, cell)
        return ordered

    def arms_of(self, model: ModelSpec) -> list[Arm]:
        """The different arms of a model, in the order of the spec."""
        different: dict[str, Arm] = {}
        for job in self.spec.jobs:
            if not job.is_for(model):
                continue
            for made in JOBS[job.name].arms(job.options, model.options):
                arm = replace(made, images=job.options["images"])
                first = different.setdefault(arm.key, arm)
                if first.images is not None and (arm.images or math.inf) > first.images:
                    different[arm.key] = arm
        return list(different.values())

    def cells_of(self, model: PlannedModel, arm: Arm) -> Iterator[Cell]:
        """The cells of an arm, by rows."""
        size = self.size_of(model.spec, arm)
        n = model.size_of(arm)
        options = self.spec.options
        for first in range(0, n, size):
            rows = first, min(first + size, n)
            identity = {
                "model": model.identity,
                "images": {"rows": list(rows), "digest": model.digest_of(rows)},
                "arm": {"kind": arm.kind, **arm.options},
                "threads": options["threads"],
                "device": options["device"],
                "versions": versions(),
            }
            yield Cell(_digest(identity), identity, model.spec, rows, arm)

    def size_of(self, model: ModelSpec, arm: Arm) -> int:
        """The number of images of the cells of an arm."""
        size = self.sizes.get(size_name(model, arm), self.spec.options["batch_size"])
        return USUAL_BATCH if size is None else int(size)


def size_name(model: ModelSpec, arm: Arm) -> str:
    """The key of `Plan.sizes` for a model and an arm."""
    return f"{model.name} {arm.size_key}"


def plan_of(spec: Spec, sizes: Mapping[str, int] | None = None) -> Plan:
    """Look at the files of all models, and cut the campaign into cells.

    Raises:
        FperrError: Files of models are missing, and the spec says `missing = "refuse"`; lists all.
        ValueError: No model is left.
    """
    models: list[PlannedModel] = []
    absent: dict[str, str] = {}
    loaded: dict[tuple[str, int], data.Images] = {}  # once for all models with the same images
    for model in spec.models:
        try:
            identity = identity_of(model.options)
            models.append(PlannedModel(model, identity, _images(model, loaded)))
        except (FperrError, ValueError) as fault:
            where = model.options["where"]
            absent[model.name] = f"{fault}" + (f". To be had: {where}" if where else "")
    listed = "".join(f"\n  {name}: {why}" for name, why in absent.items())
    if absent and spec.options["missing"] == "refuse":
        raise FperrError(
            f"{len(absent)} of {len(spec.models)} models cannot be had: get them, or write "
            f'missing = "skip" into the spec, which runs the others{listed}'
        )
    if not models:
        raise FperrError(f"no model of {spec.path} is there: get one{listed}")
    return Plan(spec, tuple(models), absent, sizes or {})


def _images(model: ModelSpec, loaded: dict[tuple[str, int], data.Images]) -> data.Images:
    options = model.options
    key = (options["data"] or options["source"], options["images"])
    if key not in loaded:
        loaded[key] = images_of(options["source"], options["data"], options["images"])
    return loaded[key]


def _digest(identity: Mapping[str, Any]) -> str:
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]
