"""A campaign as it is on disk now: which cells are finished, failed or missing; nothing is run."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fperr.campaign.cells import Cell, Plan, PlannedModel, plan_of
from fperr.campaign.folder import SETTINGS_FILE, CampaignFolder, store_of
from fperr.campaign.jobs import Arm
from fperr.campaign.parts import Part, read_part
from fperr.campaign.spec import Spec
from fperr.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class View:
    """A campaign that was begun.

    Attributes:
        plan: Its cells.
        folder: Its folder, not locked: a run may be at work in it.
    """

    plan: Plan
    folder: CampaignFolder

    def part(self, cell: Cell) -> Part | None:
        """The part of a cell; None if it is missing, or damaged, which a warning says."""
        content = self.folder.read_part(cell.digest)
        if content is None:
            return None
        part = read_part(content, cell.digest)
        # a stamp can be forged, an identity must fit
        if part is None or part.header.get("identity") != json.loads(json.dumps(cell.identity)):
            self.folder.distrust(cell.digest)
            return None
        return part

    def parts(self, model: PlannedModel, arm: Arm) -> Iterator[tuple[Cell, Part | None]]:
        """The cells of an arm of a model, each with its part."""
        for cell in self.plan.cells_of(model, arm):
            yield cell, self.part(cell)


def view_of(spec: Spec, folder: Path) -> View:
    """The view of a campaign that was begun.

    Raises:
        ValueError: Nothing was begun in the folder, or another campaign.
        FperrError: Files of models are missing.
    """
    run = RunFolder(folder, SETTINGS_FILE, f"`fperr campaign run {spec.path}` begins one")
    if not (folder / SETTINGS_FILE).exists():
        raise ValueError(
            f"{folder} holds no campaign: `fperr campaign run {spec.path}` begins one there, or "
            "name another folder with --out"
        )
    run.load(is_new=False)
    settings: Mapping[str, Any] = run.settings or {}
    if settings.get("campaign") != spec.name:
        raise ValueError(
            f"{folder} holds the campaign {settings.get('campaign')!r}, and {spec.path} is "
            f"{spec.name!r}: name another folder with --out"
        )
    campaign = CampaignFolder(run, store_of(spec, folder))
    plan = plan_of(spec)
    if spec.options["cell_seconds"] is not None:
        plan = replace(plan, sizes=campaign.sizes())
    return View(plan, campaign)
