"""Clusters that are started by hand: three processes in other folders, and what must be refused."""

import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from multiprocessing import forkserver
from pathlib import Path

import dask
import psutil
import pytest
from distributed import Client

import fperr
from fperr.campaign import cluster as cluster_module
from fperr.campaign.cluster import connected, security_of, slurm_cluster
from fperr.campaign.cluster_options import ClusterOptions
from fperr.campaign.folder import opened_folder
from fperr.campaign.run import run_cells
from fperr.campaign.spec import read_spec
from fperr.campaign.view import view_of
from fperr.errors import FperrError
from tests.campaign.test_faults import check_as_undisturbed, counted
from tests.makers.campaigns import Process, command, executions, make, names, until


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


LOST = "distributed.deploy.lost-worker-timeout"
DASK_SCHEDULER = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
DASK_WORKER = [sys.executable, "-m", "distributed.cli.dask_worker"]


def scheduler(folder, *options):
    """`dask scheduler` on a free port of this machine, once it listens; and its address."""
    port = free_port()
    kind = "tls" if options else "tcp"
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--no-dashboard", *options]
    process = Process([*DASK_SCHEDULER, *arguments], folder, "scheduler")
    until(lambda: "Scheduler at" in process.words, process)
    return process, f"{kind}://127.0.0.1:{port}"


def worker(folder, address, *options, name="worker", **environment):
    """`dask worker` of one thread, once it is connected."""
    arguments = [address, "--nthreads", "1", "--no-dashboard", "--name", name, *options]
    process = Process([*DASK_WORKER, *arguments], folder, name, **environment)
    until(lambda: "Registered to" in process.words, process)
    return process


@contextmanager
def cluster(folder, workers=2):
    """A scheduler and workers, each in a folder of its own."""
    with ExitStack() as stack:
        process, address = scheduler(folder / "s")
        stack.enter_context(process)
        started = [
            stack.enter_context(worker(folder / f"w{i}", address, name=f"w{i}"))
            for i in range(workers)
        ]
        yield process, address, started


def an_older_fperr(folder):
    """A folder that, on the path, makes fperr's installed version 0.0.1."""
    there = folder / "older" / "fperr-0.0.1.dist-info"
    there.mkdir(parents=True)
    (there / "METADATA").write_text("Metadata-Version: 2.1\nName: fperr\nVersion: 0.0.1\n")
    return {"PYTHONPATH": f"{there.parent}:{Path(fperr.__file__).parents[1]}"}


@pytest.mark.slow
def test_three_processes_in_other_folders_and_the_death_of_each(tmp_path):
    spec, out = make(tmp_path / "c", images=60, fault="time.sleep(0.1)"), tmp_path / "c" / "out"
    arguments = ["spec.toml", "--out", "out", "--scheduler"]
    with cluster(tmp_path) as (process, address, workers):
        with command("run", *arguments, address, folder=tmp_path / "c", name="a") as run:
            until(lambda: len(names(out)) >= 4, run)
            (nanny,) = (w for w in workers[:1])
            for child in psutil.Process(nanny.popen.pid).children(recursive=True):
                child.kill()  # the worker itself, below its nanny
            until(lambda: len(names(out)) >= 10, run)
            process.popen.kill()
            code, words = run.end()
        assert code == 2, words
        assert "the scheduler has gone. The cells that were finished in this run are kept" in words
        assert "of 30: start a scheduler, and the same again" in words
        assert " - distributed." not in words  # no words of Dask's own loggers
    finished = names(out)
    assert 10 <= len(finished) < 30
    with (
        cluster(tmp_path / "again") as (_, address, _),
        command("resume", *arguments, address, folder=tmp_path / "c", name="b") as run,
    ):
        code, words = run.end()
    assert code == 0, words
    assert f"30 of 30 cells are finished: {len(finished)} before" in words
    repeated = sum(count - 1 for count in counted(out).values())
    assert repeated <= 1 + 2  # the killed worker's cell, and those of both as the scheduler died
    check_as_undisturbed(spec, out, tmp_path, images=60)


@pytest.mark.slow
def test_a_scheduler_that_dies_as_a_cell_is_taken_has_gone(tmp_path):
    """The next thing said to it fails, long before Dask's client knows that it is gone."""
    spec, out = read_spec(make(tmp_path)), tmp_path / "out"
    with (
        cluster(tmp_path, workers=1) as (process, address, _),
        dask.config.set({"distributed.comm.timeouts.connect": "3s"}),
        Client(address, timeout=3) as client,
        opened_folder(spec, out) as folder,
    ):
        cells = view_of(spec, out).plan.cells.values()

        def advance(tally):
            if tally.finished == 1:
                process.popen.kill()

        with pytest.raises(FperrError, match="are kept, 1 of 6: start a scheduler, and the same"):
            run_cells(client, folder, cells, advance, print)
    assert len(names(out)) >= 1


@pytest.mark.slow
def test_workers_of_other_versions_are_refused_by_name(tmp_path):
    make(tmp_path / "c", images=60, fault="time.sleep(0.1)")
    out = tmp_path / "c" / "out"
    (tmp_path / "torch_patch.py").write_text("import torch\ntorch.__version__ = '2.0.0'\n")
    other_torch = ["--preload", str(tmp_path / "torch_patch.py")]
    arguments = ["run", "spec.toml", "--out", "out", "--scheduler"]
    process, address = scheduler(tmp_path / "s")
    with process:
        with worker(tmp_path / "old", address, name="old", **an_older_fperr(tmp_path)):
            with command(*arguments, address, folder=tmp_path / "c") as run:
                code, words = run.end()
            assert code == 2, words
            assert "has another version: fperr 0.0.1 there, " in words
            assert "Start workers with these versions" in words
            assert not executions(out)
        with worker(tmp_path / "good", address, name="good"):
            with command(*arguments, address, folder=tmp_path / "c") as run:
                until(lambda: len(names(out)) >= 2, run)
                with worker(tmp_path / "late", address, *other_torch, name="late"):
                    code, words = run.end()
            assert code == 0, words
            assert "has another version: torch 2.0.0 here, expected" in words
            assert ": it is refused" in words
    assert set(counted(out).values()) == {1}
    assert len(names(out)) == 30


@pytest.mark.slow
def test_a_worker_that_does_not_see_the_folder_is_told(tmp_path):
    """Its parts are elsewhere: here, because it is another root."""
    make(tmp_path / "c")
    process, address = scheduler(tmp_path / "s")
    with process, worker(tmp_path / "w", address):
        (tmp_path / "c" / "blind.py").write_text("")
        net = tmp_path / "c" / "net.py"
        text = "shutil.rmtree(HERE / 'out' / 'parts', ignore_errors=True)"
        net.write_text("import shutil\n" + net.read_text().replace("pass\n", f"{text}\n", 1))
        arguments = ["run", "spec.toml", "--out", "out", "--scheduler", address]
        with command(*arguments, folder=tmp_path / "c") as run:
            code, words = run.end()
    assert code == 2, words
    assert "could not be written" in words


def certificates(folder):
    """An authority, and a certificate that it has signed, by openssl."""
    folder.mkdir()
    steps = [
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout ca.key -out ca.pem -subj /CN=ca",
        "openssl req -newkey rsa:2048 -nodes -keyout own.key -out own.csr -subj /CN=127.0.0.1",
        "openssl x509 -req -in own.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 "
        "-out own.pem",
    ]
    for step in steps:
        subprocess.run(step.split(), cwd=folder, check=True, capture_output=True)
    files = {"ca-file": "ca.pem", "cert": "own.pem", "key": "own.key"}
    return [t for name, file in files.items() for t in (f"--tls-{name}", str(folder / file))]


@pytest.mark.slow
def test_an_encrypted_cluster_and_a_client_without_keys(tmp_path):
    tls = certificates(tmp_path / "keys")
    make(tmp_path / "c")
    process, address = scheduler(tmp_path / "s", *tls)
    with process, worker(tmp_path / "w", address, *tls):
        arguments = ["run", "spec.toml", "--out", "out", "--scheduler"]
        with command(*arguments, address, folder=tmp_path / "c") as run:
            code, words = run.end()
        assert code == 2, words
        assert f"no scheduler answers at {address}" in words
        with command(*arguments, address, *tls, folder=tmp_path / "c") as run:
            code, words = run.end()
    assert code == 0, words
    assert "6 of 6 cells are finished" in words


def listening(process):
    """The addresses at which a process and its children listen."""
    family = [process, *process.children(recursive=True)]
    return {
        connection.laddr.ip
        for member in family
        for connection in member.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


@pytest.mark.slow
def test_a_cluster_of_our_own_listens_on_this_machine_only(tmp_path):
    make(tmp_path, images=40, fault="time.sleep(0.1)")
    out = tmp_path / "out"
    with command("run", "spec.toml", "--workers", "2", "--out", "out", folder=tmp_path) as run:
        until(lambda: len(names(out)) >= 1, run)
        addresses = listening(psutil.Process(run.popen.pid))
        assert "Dashboard: http://127.0.0.1:" in run.words
    assert addresses == {"127.0.0.1"}
    # control: a scheduler that is told to listen everywhere is seen to
    open_one = [*DASK_SCHEDULER, "--port", str(free_port()), "--no-dashboard"]
    with Process(open_one, tmp_path / "open", "open") as process:
        until(lambda: "Scheduler at" in process.words, process)
        assert listening(psutil.Process(process.popen.pid)) - {"127.0.0.1", "::1"}


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["ours", "2s"])
def test_a_worker_that_is_long_in_coming_back_is_not_given_up(monkeypatch, setting):
    """It may have died again: the campaign would wait for ever. Control: as Dask does it."""
    if setting != "ours":
        monkeypatch.setitem(cluster_module._SETTINGS, LOST, setting)
    with connected(ClusterOptions(workers=1)) as client:
        ((address, _),) = client.nthreads().items()
        server = psutil.Process(forkserver._forkserver._forkserver_pid)
        server.suspend()  # so that no worker can be started
        try:
            psutil.Process(client.run(os.getpid)[address]).kill()
            until(lambda: not client.nthreads())
            time.sleep(4)
        finally:
            server.resume()
        if setting == "ours":
            client.wait_for_workers(1, timeout=60)
            assert client.submit(sum, [1, 2]).result(timeout=60) == 3
        else:
            with pytest.raises(TimeoutError):
                client.wait_for_workers(1, timeout=10)


def test_tls_files_belong_together(tmp_path):
    (tmp_path / "ca.pem").touch()
    with pytest.raises(ValueError, match="--tls-cert must be a file, beside the other --tls op"):
        security_of(ClusterOptions(tls={"ca_file": tmp_path / "ca.pem"}))
    assert security_of(ClusterOptions()) is None


# a cluster that dask-jobqueue could not make is not closed by it
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_slurm_needs_its_package_and_hands_options_on():
    cluster_options = ClusterOptions(
        is_slurm=True, slurm={"queue": "gpu", "walltime": "01:00:00"}, memory="8GB"
    )
    try:
        import dask_jobqueue  # noqa: F401, PLC0415
    except ImportError:
        with pytest.raises(ValueError, match=r"--slurm needs dask-jobqueue: `pip install"):
            slurm_cluster(cluster_options)
        pytest.skip("needs the extra [slurm]")
    with slurm_cluster(cluster_options) as jobs:
        script = jobs.job_script()
    assert "#SBATCH -p gpu" in script
    assert "#SBATCH -t 01:00:00" in script
    assert "--nthreads 1" in script
    with pytest.raises(ValueError, match=r"\[slurm\] of the spec is not what"):
        slurm_cluster(ClusterOptions(is_slurm=True, slurm={"quoue": "gpu"}))
