"""Small campaigns: a spec, a network of its own and its images, and commands in processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fperr.campaign.cell_store import BEGUN, PARTS, store_at
from fperr.campaign.folder import opened_folder
from fperr.campaign.spec import read_spec
from fperr.campaign.tasks import task_of
from fperr.campaign.view import view_of
from fperr.campaign.worker import execute

ROOT = Path(__file__).parents[2]
# `how` of an image's first number: what the network does there, for faults. Only real batches meet
# it: the campaign itself never runs a network.
NETWORK = """
import os, signal, time
from pathlib import Path
import torch
from torch import nn

HERE = Path(__file__).parent

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.inner = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x):
        {fault}
        return self.inner(x)

def build():
    return Net()
"""


def make(
    folder: Path,
    *,
    images: int = 12,
    batch_size: int = 4,
    fault: str = "pass",
    jobs: str = '[[jobs]]\njob = "attack"\nlosses = ["ce", "mifpe"]\nsteps = 2\nradius = 0.1\n',
    more: str = "",
    of_model: str = "",
) -> Path:
    """Write a spec with a network of two layers and random images; returns the spec's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.py").write_text(NETWORK.format(fault=fault))
    generator = np.random.default_rng(5)
    x = generator.random((images, 6), dtype=np.float32)
    x[:, 0] = np.linspace(0.05, 0.95, images, dtype=np.float32)  # tells an image's number
    np.savez(folder / "images.npz", x=x, y=generator.integers(0, 4, images))
    spec = folder / "spec.toml"
    spec.write_text(
        f'name = "small"\nbatch_size = {batch_size}\n{more}\n[[models]]\nsource = "net.py:build"\n'
        f'data = "images.npz"\nimages = {images}\n{of_model}\n{jobs}'
    )
    return spec


def run_here(spec: Path, out: Path, skipped: int = 0) -> list[dict[str, object]]:
    """Run the cells that are not finished in this process; what a worker answers to each."""
    content = read_spec(spec)
    with opened_folder(content, out) as folder:
        cells = view_of(content, out).plan.cells
        left = [cell for digest, cell in cells.items() if digest not in folder.finished(cells)]
        before = torch.get_num_threads()
        try:
            return [
                json.loads(execute(task_of(cell, folder.store, "here")))
                for cell in left[: len(left) - skipped]
            ]
        finally:
            torch.set_num_threads(before)


def environment(**more: str) -> dict[str, str]:
    """The environment of a process that runs this checkout."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more


class Process:
    """A process whose words go to a file; it and its children are ended at the end."""

    def __init__(self, arguments: list[str], folder: Path, name: str, **more: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                arguments,
                cwd=folder,
                env=environment(**more),
                stdout=log,
                stderr=log,
                # a shell's background jobs, and what they start, ignore Ctrl-C
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    @property
    def words(self) -> str:
        return self.log.read_text()

    def end(self) -> tuple[int, str]:
        """The exit code, once it has ended, and its words."""
        return self.popen.wait(timeout=600), self.words

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()


def command(*arguments: str, folder: Path, name: str = "command", **more: str) -> Process:
    """`fperr campaign ...` in a process of its own."""
    return Process(
        [sys.executable, "-m", "fperr.cli", "campaign", *arguments], folder, name, **more
    )


def until(condition, process: Process | None = None, seconds: float = 300.0) -> None:
    """Wait until something is so; fails where the process has ended before."""
    deadline = time.monotonic() + seconds
    while not condition():
        has_ended = process is not None and process.popen.poll() is not None
        assert not (has_ended and not condition()), process.words if process else ""
        assert time.monotonic() < deadline, process.words if process else "too long"
        time.sleep(0.02)


def names(out: Path, kind: str = PARTS) -> list[str]:
    """The names of a campaign's files of a kind."""
    return sorted(store_at(out).names(kind))


def executions(out: Path) -> list[str]:
    """The cell of each execution, in all runs."""
    return sorted(name.partition("-")[0] for name in names(out, BEGUN))


def rows_of(spec: Path, out: Path) -> dict[str, pd.DataFrame]:
    """The rows of every finished cell."""
    view = view_of(read_spec(spec), out)
    parts = {digest: view.part(cell) for digest, cell in view.plan.cells.items()}
    return {digest: part.table.to_pandas() for digest, part in parts.items() if part is not None}


def check_equal(there: dict[str, pd.DataFrame], alone: dict[str, pd.DataFrame]) -> None:
    """Check that campaigns have the same cells, with the same bits."""
    assert there.keys() == alone.keys()
    for digest, frame in alone.items():
        pd.testing.assert_frame_equal(there[digest], frame, check_exact=True)


def leftovers(out: Path) -> list[str]:
    """Temporary files below a folder."""
    return [str(path) for path in out.rglob("*.partial")]
