"""Connects to workers: of this machine, of a Dask scheduler, or of a SLURM cluster."""

import importlib
import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

import dask
from distributed import Client, LocalCluster, Security
from distributed.client import ClosedClientError
from distributed.utils import get_mp_context

from fperr.campaign.cluster_options import ClusterOptions
from fperr.campaign.identities import versions
from fperr.errors import FperrError

_HERE = "127.0.0.1"
TRIES_ELSEWHERE = 3  # of a cell whose worker has died
_PATIENCE = 30  # seconds in which a scheduler must answer
_LOGGERS = ("distributed", "distributed.client", "distributed.gc")  # to which Dask gives levels
# what Dask's client raises when its scheduler is gone
UNREACHED = (CancelledError, ClosedClientError, OSError)
# A worker of ours has one cell at a time, and holds nothing for others: so a death is that of the
# cell that ran, and memory is what cells need. At 95 % of its limit a worker is ended.
_SETTINGS: Mapping[str, Any] = {
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.allowed-failures": TRIES_ELSEWHERE,
    "distributed.worker.multiprocessing-method": "forkserver",
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    # So many seconds after a worker has gone, Dask closes its nanny for good if no worker of that
    # name is there at that moment: also if one has just died again, and the next is being started.
    "distributed.deploy.lost-worker-timeout": "365d",
    "distributed.comm.timeouts.connect": f"{_PATIENCE}s",
}


@contextmanager
def connected(cluster_options: ClusterOptions, modules: Sequence[str] = ()) -> Iterator[Client]:
    """A client of the workers, all of which have our versions.

    Args:
        cluster_options: Where the workers are.
        modules: Modules that our own workers need, loaded once for all of them.

    Raises:
        ValueError: A package or a file is missing.
        FperrError: No scheduler or worker answers, or a worker has other versions.
    """
    with dask.config.set(_SETTINGS), _silent_dask():
        if cluster_options.scheduler is not None:
            with _client(cluster_options.scheduler, security_of(cluster_options)) as client:
                check_versions(client)
                yield client
            return
        with _cluster(cluster_options, modules) as cluster, Client(cluster) as client:
            check_versions(client)
            yield client


@contextmanager
def _silent_dask() -> Iterator[None]:
    """Without the words of Dask's loggers: tracebacks of what an error's sentence says."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _client(address: str, security: Security | None) -> Client:
    try:
        client = Client(address, security=security, timeout=_PATIENCE)
    except (OSError, ValueError, TypeError) as fault:  # TimeoutError is an OSError
        raise FperrError(
            f"no scheduler answers at {address} ({type(fault).__name__}: {fault}): start one with "
            "`dask scheduler`, give --tls options where it is encrypted, or leave --scheduler out"
        ) from fault
    try:
        client.wait_for_workers(1, timeout=_PATIENCE)
    except TimeoutError as fault:
        client.close()
        raise FperrError(
            f"no worker has come to {address}: start one with `dask worker {address} --nthreads 1`"
        ) from fault
    return client


def security_of(cluster_options: ClusterOptions) -> Security | None:
    """Dask's own record of the TLS files; None where there are none.

    Raises:
        ValueError: Some of the files are not given, or missing.
    """
    if not cluster_options.tls:
        return None
    for name in ("ca_file", "cert", "key"):
        path = cluster_options.tls.get(name)
        if path is None or not path.is_file():
            raise ValueError(
                f"--tls-{name.replace('_', '-')} must be a file, beside the other --tls options, "
                f"got {path}"
            )
    return Security(
        tls_ca_file=str(cluster_options.tls["ca_file"]),
        tls_client_cert=str(cluster_options.tls["cert"]),
        tls_client_key=str(cluster_options.tls["key"]),
        require_encryption=True,
    )


@contextmanager
def _cluster(cluster_options: ClusterOptions, modules: Sequence[str]) -> Iterator[Any]:
    """Workers of our own."""
    if cluster_options.is_slurm:
        with slurm_cluster(cluster_options) as jobs:
            jobs.scale(cluster_options.workers)
            yield jobs
        return
    # workers are forks of a server that has loaded what they need: one that died is back at once
    get_mp_context().set_forkserver_preload(["distributed", "fperr.campaign.worker", *modules])
    with LocalCluster(
        n_workers=cluster_options.workers,
        threads_per_worker=1,  # of Dask's: fperr's functions run one at a time in a process
        processes=True,
        host=_HERE,
        dashboard_address=f"{_HERE}:0",
        worker_dashboard_address=f"{_HERE}:0",
        memory_limit=cluster_options.memory or "auto",
        silence_logs=50,
    ) as cluster:
        yield cluster


def slurm_cluster(cluster_options: ClusterOptions) -> Any:
    """The cluster of dask-jobqueue, before any job is sent.

    Raises:
        ValueError: dask-jobqueue is not installed, or refuses the options.
    """
    if importlib.util.find_spec("dask_jobqueue") is None:
        raise ValueError("--slurm needs dask-jobqueue: `pip install 'fperr[slurm]'`")
    options = {
        "cores": 1,
        "processes": 1,
        "memory": cluster_options.memory or "4GB",
        **cluster_options.slurm,
    }
    try:
        return importlib.import_module("dask_jobqueue").SLURMCluster(**options)
    except (TypeError, ValueError) as fault:
        raise ValueError(
            f"[slurm] of the spec is not what dask_jobqueue.SLURMCluster takes ({fault}): see "
            "jobqueue.dask.org"
        ) from fault


def check_versions(client: Client) -> None:
    """Refuse workers that have other versions of fperr or torch.

    Raises:
        FperrError: Names the workers, with what is there and here; or the scheduler has gone.
    """
    here = versions()
    try:
        client.wait_for_workers(1)
        replies: Mapping[str, Any] = client.run(versions, on_error="return")
    except UNREACHED as fault:
        raise FperrError(
            f"the scheduler has gone ({type(fault).__name__}: {fault}): start one, and the same "
            "again"
        ) from fault
    wrong = [words for words in (_wrong(a, there, here) for a, there in replies.items()) if words]
    if wrong:
        raise FperrError(
            f"{'; '.join(wrong)}: results would not be the same. Start workers with these versions"
        )


def retire_others(client: Client) -> None:
    """Send away the workers that have other versions."""
    here = versions()
    replies: Mapping[str, Any] = client.run(versions, on_error="return")
    wrong = [address for address, there in replies.items() if there != here]
    if wrong:
        client.retire_workers(wrong, close_workers=True)


def _wrong(address: str, there: Any, here: Mapping[str, str]) -> str | None:
    if isinstance(there, BaseException):
        return f"worker {address} cannot load fperr's campaigns ({type(there).__name__}: {there})"
    different = [f"{name} {there[name]} there, {here[name]} here" for name in here
                 if there[name] != here[name]]  # fmt: skip
    return f"worker {address} has another version: {', '.join(different)}" if different else None
