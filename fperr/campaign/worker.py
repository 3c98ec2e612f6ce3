"""What a worker does: it runs a cell, writes its part, and tells how that went.

A worker keeps one model and its images, as long as cells need them: cells of a model come one after
the other, so that each is loaded once, and the memory is that of the largest.
"""

import json
import os
import platform
import sys
import time
import traceback
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from fperr.campaign.cell_store import PARTS, CellStore, store_at
from fperr.campaign.identities import code_files, identity_of, versions
from fperr.campaign.jobs import RUNS
from fperr.campaign.parts import file_name, is_part, to_bytes
from fperr.data import digest
from fperr.errors import FperrError, StorageError
from fperr.networks.subjects import Subject, subject_of

_MOST_WARNINGS = 10  # texts of a cell's warnings that are kept


@dataclass(frozen=True, slots=True)
class _Held:
    """A network and its images on this worker, and the digest of its weights."""

    subject: Subject
    weights: str


_held: dict[str, _Held] = {}  # at most one, by what it was loaded from


def execute(task: str) -> str:
    """Run a cell; Dask calls this on a worker. Texts only go to and fro, and no code.

    Args:
        task: JSON of `fperr.campaign.tasks.task_of`.

    Returns:
        JSON of the outcome, with one of the keys `finished`, `failed` (a traceback), `refused`
        (another version; what is where), and `unwritten` (why the part could not be written).
    """
    cell_task = json.loads(task)
    outcome: dict[str, Any] = {"worker": f"{platform.node()}:{os.getpid()}"}
    different = differences(cell_task["identity"]["versions"])
    if different:
        return json.dumps(outcome | {"refused": different})
    started = time.perf_counter()
    try:
        store = store_at(cell_task["store"])
        if _is_finished(store, cell_task["cell"]):
            # Dask runs a cell again if its worker dies before the answer has been fetched
            return json.dumps(outcome | {"finished": True, "seconds": 0.0})
        store.mark(f"{cell_task['cell']}-{cell_task['session']}-{uuid.uuid4().hex[:8]}")
        content = _content(cell_task, outcome["worker"])
        store.write(PARTS, file_name(cell_task["cell"]), content)
    except StorageError as fault:
        return json.dumps(outcome | {"unwritten": str(fault)})
    except (Exception, SystemExit) as fault:
        text = f"{type(fault).__name__}: {fault}"
        return json.dumps(outcome | {"failed": traceback.format_exc(), "error": text})
    seconds = time.perf_counter() - started
    return json.dumps(outcome | {"finished": True, "seconds": seconds})


def _is_finished(store: CellStore, cell: str) -> bool:
    try:
        return is_part(store.read(PARTS, file_name(cell)), cell)
    except OSError:
        return False


def differences(expected: Mapping[str, str]) -> str:
    """How versions differ from this worker's, in words; empty where they do not."""
    return ", ".join(
        f"{name} {there} here, expected {expected[name]}"
        for name, there in versions().items()
        if there != expected[name]
    )


def _content(cell_task: Mapping[str, Any], worker: str) -> bytes:
    """Run the cell; the content of its part."""
    identity = cell_task["identity"]
    torch.set_num_threads(identity["threads"])
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        held = _loaded(cell_task)
        rows = slice(*identity["images"]["rows"])
        options = dict(identity["arm"])
        module, _, function = RUNS[options.pop("kind")].partition(":")
        run: Any = getattr(import_module(module), function)
        table, further = run(held.subject, rows, options)
    made = {
        "worker": worker,
        "seconds": time.perf_counter() - started,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": _device_name(held.subject),
        "weights": held.weights,
        "warnings": list(dict.fromkeys(str(w.message) for w in given))[:_MOST_WARNINGS],
    }
    return to_bytes(cell_task["cell"], table, {"identity": identity, "made": made, **further})


def _loaded(cell_task: Mapping[str, Any]) -> _Held:
    """The cell's network and images, loaded where they are not yet.

    Raises:
        FperrError: Files are others than those that the campaign saw.
    """
    identity, options = cell_task["identity"], cell_task["model"]
    key = json.dumps([identity["model"], options, identity["device"]], sort_keys=True)
    if key not in _held:
        _held.clear()
        there = identity_of(options)
        if there != identity["model"]:
            raise FperrError(
                f"files of {options['source']} are not those that the campaign saw "
                f"({_changed(identity['model'], there)}): start the same again, which sees them "
                "anew"
            )
        _forget_code(options["source"])
        subject = subject_of(
            options["source"],
            None if options["checkpoint"] is None else Path(options["checkpoint"]),
            options["logits"],
            options["data"],
            options["images"],
            identity["device"],
            notify=lambda _: None,
        )
        weights = digest(*subject.model.state_dict().values())
        _held[key] = _Held(subject, weights)
    rows = slice(*identity["images"]["rows"])
    images = _held[key].subject.images
    if digest(images.x[rows], images.y[rows]) != identity["images"]["digest"]:
        _held.clear()
        raise FperrError(
            f"images {rows.start} to {rows.stop - 1} of {options['source']} are not those that the "
            "campaign saw: start the same again, which sees them anew"
        )
    return _held[key]


def _changed(expected: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    names = sorted(expected.keys() | there.keys())
    return ", ".join(name for name in names if expected.get(name) != there.get(name))


def _forget_code(source: str) -> None:
    """Forget the modules of a source, so that a file that has changed is read again."""
    files = set(code_files(source))
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is not None and Path(file).resolve() in files:
            del sys.modules[name]


def _device_name(subject: Subject) -> str:
    device = subject.images.x.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
