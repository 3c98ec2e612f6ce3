"""Campaigns from Python: what the commands `fperr campaign run` and `resume` do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from fperr.campaign.cells import Cell, Plan, plan_of
from fperr.campaign.cluster_options import ClusterOptions
from fperr.campaign.folder import CampaignFolder, opened_folder
from fperr.campaign.jobs import RUNS
from fperr.campaign.spec import Spec
from fperr.campaign.tally import Advance, Tally

Notify = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run of a campaign has ended.

    Attributes:
        tally: What this run has done.
        cells: Number of all cells.
        before: Number of cells that were finished before.
        failures: Recorded failures, by cell.
        absent: Models whose files are missing -> why.
    """

    tally: Tally
    cells: int
    before: int
    failures: Mapping[str, Mapping[str, Any]]
    absent: Mapping[str, str]

    @property
    def is_complete(self) -> bool:
        """Whether every cell of every model is finished."""
        return self.before + self.tally.finished == self.cells and not self.absent


def run_campaign(
    spec: Spec,
    folder: Path,
    cluster_options: ClusterOptions,
    *,
    retries_failed: bool = False,
    advance: Advance = lambda _: None,
    notify: Notify = lambda _: None,
) -> Ended:
    """Run what is not finished of a campaign; workers are started only if something is.

    Args:
        spec: The spec.
        folder: Folder of the campaign, new or that of an earlier run.
        cluster_options: Where it runs.
        retries_failed: Whether cells that are recorded as failed are run again.
        advance: Called with the tally at the beginning, whenever a cell has ended, and every few
            seconds; what it raises ends the run.
        notify: Called with sentences.

    Raises:
        ValueError: The folder holds something else.
        StorageError: Another run is at work in the folder, or parts cannot be written.
        FperrError: Files of models are missing, or workers are unusable; what was finished stays.
    """
    with opened_folder(spec, folder) as campaign:
        plan = planned(spec, campaign)
        cells = plan.cells
        finished = campaign.finished(cells)
        failed = campaign.failures(cells)
        left = [
            cell for digest, cell in cells.items()
            if digest not in finished and (retries_failed or digest not in failed)
        ]  # fmt: skip
        tally = Tally(len(left))
        advance(tally)
        if left:
            tally = _run(campaign, left, cluster_options, advance, notify)
        return Ended(
            tally,
            len(cells),
            len(finished),
            {c: r for c, r in campaign.failures(cells).items() if c not in finished},
            plan.absent,
        )


def _run(
    campaign: CampaignFolder,
    left: list[Cell],
    cluster_options: ClusterOptions,
    advance: Advance,
    notify: Notify,
) -> Tally:
    modules = {RUNS[cell.arm.kind].partition(":")[0] for cell in left}
    with _module("cluster").connected(cluster_options, sorted(modules)) as client:
        notify(f"Dashboard: {client.dashboard_link}")
        tally: Tally = _module("run").run_cells(client, campaign, left, advance, notify)
    return tally


def _module(name: str) -> Any:
    """A module that takes seconds to load, and that a finished campaign does not need."""
    return import_module(f"fperr.campaign.{name}")


def planned(spec: Spec, campaign: CampaignFolder) -> Plan:
    """The plan of a campaign; with `cell_seconds`, sizes come from the folder or a forecast."""
    plan = plan_of(spec)
    if spec.options["cell_seconds"] is None:
        return plan
    kept_sizes = campaign.sizes()
    sizes: Mapping[str, int] = _module("forecast").sizes_of(plan, kept_sizes)
    if sizes != kept_sizes:
        campaign.keep_sizes(sizes)
    return replace(plan, sizes=sizes)
