"""Where a campaign runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Where a campaign runs.

    Attributes:
        workers: Number of worker processes, of this machine or of SLURM.
        scheduler: Address of a running scheduler; None for workers of our own.
        is_slurm: Whether workers are jobs of SLURM.
        slurm: Options of `dask_jobqueue.SLURMCluster`.
        memory: Memory of each worker, as `"4GB"`; None for an equal share of the machine's.
        tls: Files `ca_file`, `cert` and `key` for an encrypted connection, or nothing.
    """

    workers: int = 1
    scheduler: str | None = None
    is_slurm: bool = False
    slurm: Mapping[str, Any] = field(default_factory=dict)
    memory: str | None = None
    tls: Mapping[str, Path] = field(default_factory=dict)
