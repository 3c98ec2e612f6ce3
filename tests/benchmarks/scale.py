"""`make bench-scale`: what campaigns cost beside their computing; see docs/performance.md.

Cells of the last two parts are made up: no network computes them, and their files are as real ones.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from fperr.campaign.cell_store import PARTS
from fperr.campaign.cells import Cell
from fperr.campaign.cluster_options import ClusterOptions
from fperr.campaign.collect import collect
from fperr.campaign.entry import run_campaign
from fperr.campaign.folder import opened_folder
from fperr.campaign.parts import file_name, to_bytes
from fperr.campaign.spec import read_spec
from fperr.campaign.view import view_of
from tests.makers.campaigns import make

COMPUTING = """\
name = "computing"
batch_size = 20
[[models]]
source = "fashion_standard"
images = 1000
radius = 0.015
[[jobs]]
job = "attack"
losses = ["ce", "mifpe", "tmifpe"]
steps = {steps}
"""
# the plan: 100 models, 10,000 images, 9 arms (7 in a format, 2 exact), 3 starts, 100 steps
MODELS, IMAGES, IN_FORMAT, EXACT, STARTS, STEPS, BATCH, GPUS = 100, 10_000, 7, 2, 3, 100, 250, 32
GRADIENTS_PER_SECOND = 1500.0  # assumed: of a WRN-28-10 in float32 on one GPU
EXACT_FACTOR = 8.0  # assumed: an exact gradient beside one in float32; see the ladder's table


class Clock:
    """Wall time from the first finished cell to the last: without the start of the workers."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, tally: object) -> None:
        if getattr(tally, "finished", 0):
            self.times.append(time.perf_counter())

    @property
    def each(self) -> float:
        """Seconds of wall time for each cell."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)


def computing(folder: Path, steps: int) -> Path:
    """The spec of cells that need a core each."""
    spec = folder / "computing.toml"
    spec.write_text(COMPUTING.format(steps=steps))
    return spec


def two_workers(spec: Path, folder: Path) -> None:
    """The ratio of the times of one worker and of two, one thread each."""
    each = {}
    for workers in (1, 2):
        clock = Clock()
        ended = run_campaign(
            read_spec(spec), folder / f"by{workers}", ClusterOptions(workers), advance=clock
        )
        each[workers] = clock.each
        print(
            f"{workers} workers: {ended.tally.finished} cells, "
            f"{clock.times[-1] - clock.times[0]:.0f} s, {1000 * clock.each:.0f} ms a cell"
        )
    print(f"1 worker / 2 workers: {each[1] / each[2]:.2f} (aim 1.7)")


def overhead(folder: Path, cells: int) -> float:
    """Milliseconds of a cell beside its computing: sending, writing, reading back, counting."""
    spec = make(folder, images=cells, batch_size=1)
    spec.write_text(spec.read_text().replace('losses = ["ce", "mifpe"]', 'losses = ["ce"]'))
    clock = Clock()
    run_campaign(read_spec(spec), folder / "out", ClusterOptions(1), advance=clock)
    view = view_of(read_spec(spec), folder / "out")
    parts = filter(None, (view.part(cell) for cell in view.plan.cells.values()))
    computing = float(np.median([part.header["made"]["seconds"] for part in parts]))
    beside = 1000 * (float(np.median(np.diff(clock.times))) - computing)
    print(f"overhead of a cell: {beside:.1f} ms beside {1000 * computing:.1f} ms (aim 20 ms)")
    return beside


def made_up(cell: Cell) -> bytes:
    """The part of a cell, with outcomes that nothing computed."""
    first, stop = cell.rows
    n = stop - first
    draw = np.random.default_rng(first)
    columns = {name: draw.integers(0, 100, n) for name in ("gradient_steps", "zero_gradient_steps")}
    yes = np.ones(n, bool)
    table = pa.table(
        {
            "sample": np.arange(first, stop),
            "label": draw.integers(0, 4, n),
            "success": draw.random(n) < 0.5,
            "first_success_step": draw.integers(-1, 100, n),
            "best_margin": draw.random(n),
            "is_finite": yes,
            "is_judged": yes,
            "is_clean_correct": yes,
            **columns,
            "broken_gradient_steps": np.zeros(n, int),
            "excess_ulps": draw.random(n),
        }
    )
    made = {"weights": "0", "cpu": "none", "device": "none", "seconds": 0.0}
    return to_bytes(cell.digest, table, {"identity": cell.identity, "made": made})


def fill(spec: Path, out: Path) -> int:
    """Write made-up parts for all cells; their number."""
    content = read_spec(spec)
    with opened_folder(content, out) as folder:
        cells = view_of(content, out).plan.cells
        for digest, cell in cells.items():  # without flushing each to the disk
            (out / PARTS / file_name(digest)).write_bytes(made_up(cell))
        assert len(folder.finished(cells)) == len(cells)
    return len(cells)


def resume(folder: Path, cells: int) -> float:
    """Seconds of resuming a finished campaign: in this process, and as a command."""
    spec = make(folder, images=cells // 2, batch_size=1)
    count = fill(spec, folder / "out")
    started = time.perf_counter()
    ended = run_campaign(read_spec(spec), folder / "out", ClusterOptions(1))
    seconds = time.perf_counter() - started
    assert ended.is_complete
    assert ended.tally.begun == 0
    command = [sys.executable, "-m", "fperr.cli", "campaign", "resume", str(spec)]
    started = time.perf_counter()
    subprocess.run([*command, "--out", str(folder / "out")], check=True, capture_output=True)
    whole = time.perf_counter() - started
    print(
        f"resuming {count} finished cells: {seconds:.1f} s, and as a command, which loads torch, "
        f"{whole:.1f} s (aim 5 s)"
    )
    return seconds / count


def collecting(folder: Path, models: int) -> None:
    """Seconds and memory of collecting: a million rows of attacks for two models."""
    job = '[[jobs]]\njob = "attack"\nlosses = ["ce", "mifpe", "cw", "dlr", "tmifpe"]\nstarts = 2\n'
    spec = make(folder, images=50_000, batch_size=50_000, jobs=job + "radius = 0.1\n")
    table = spec.read_text().partition("[[models]]")[2].partition("[[jobs]]")[0]
    more = "".join(f'[[models]]{table}name = "m{i}"\n' for i in range(1, models))
    spec.write_text(spec.read_text().replace("[[jobs]]", f"{more}[[jobs]]", 1))
    fill(spec, folder / "out")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    collected = collect(view_of(read_spec(spec), folder / "out"), folder / "collected")
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {
                "rows": sum(collected.rows.values()), "seconds": round(seconds, 1),
                "peak_MB": peak // 1024, "before_MB": before // 1024,
            }
        )
    )  # fmt: skip


def plan(overhead_ms: float, seconds_of_part: float) -> None:
    """The computed plan of a large campaign, and where it breaks first."""
    cells = MODELS * (IN_FORMAT + EXACT) * STARTS * -(-IMAGES // BATCH)
    gradients = MODELS * IMAGES * STARTS * STEPS
    in_format = gradients * IN_FORMAT / GRADIENTS_PER_SECOND
    exact = gradients * EXACT * EXACT_FACTOR / GRADIENTS_PER_SECOND
    hours = (in_format + exact + cells * overhead_ms / 1000) / GPUS / 3600
    size = cells * (8_000 + 30 * BATCH)
    print(
        f"{MODELS} models x {IMAGES} images x {IN_FORMAT + EXACT} arms x {STARTS} starts: {cells} "
        f"cells of {BATCH} images, {(in_format + exact) / 3600:.0f} GPU hours ("
        f"{exact / 3600:.0f} of them exact), {hours:.1f} h on {GPUS} GPUs, {size / 1e9:.1f} GB in "
        f"{2 * cells} files; the overhead is {cells * overhead_ms / 3.6e6:.1f} h of all, the one "
        f"client settles {1000 / max(overhead_ms, 0.1):.0f} cells a second where "
        f"{cells / hours / 3600:.1f} are needed, and a resume reads them in "
        f"{cells * seconds_of_part:.0f} s"
    )  # fmt: skip


def main() -> None:
    """All parts; sizes are such that they take less than ten minutes on two free cores."""
    if sys.argv[1:2] == ["collect"]:
        with tempfile.TemporaryDirectory() as folder:
            collecting(Path(folder), int(sys.argv[2]))
        return
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f} before the beginning")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        of_cell = overhead(folder / "overhead", 300)
        of_part = resume(folder / "resume", 10_000)
        for models in (2, 20):  # a million rows, and ten: the memory must not grow with them
            command = [sys.executable, "-m", "tests.benchmarks.scale", "collect", str(models)]
            subprocess.run(command, check=True)
        # cells that only wait tell what Dask does on a busy machine, too; the others need two cores
        waiting = make(folder / "waiting", images=120, batch_size=4, fault="time.sleep(0.1)")
        two_workers(waiting, folder / "waiting")
        two_workers(computing(folder, 20), folder)
        plan(of_cell, of_part)


if __name__ == "__main__":
    main()
