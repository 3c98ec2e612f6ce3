"""The work of `fperr doctor`: what is installed, and what is found."""

import importlib.util
import json as json_text
import os
import platform
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

import pandas as pd
import torch
import typer

import fperr
from fperr import data
from fperr.cli.work import files
from fperr.cli.work.terminal import print_table

# distribution -> (module, what it enables)
_OPTIONAL = {
    "pyautoattack": ("pyautoattack", "fperr attribute --search autoattack; fperr.record of it"),
    "torchattacks": ("torchattacks", "its attacks, for fperr.record and the losses"),
    "foolbox": ("foolbox", "its attacks, for fperr.record and the losses"),
    "adversarial-robustness-toolbox": ("art", "its attacks, for fperr.record and the losses"),
    "adv-lib": ("adv_lib", "its attacks, for fperr.record and the losses"),
    "torchvision": ("torchvision", "its networks: fperr measure torchvision:NAME"),
    "timm": ("timm", "its networks: fperr measure timm:NAME"),
    "transformers": ("transformers", "its image classifiers: fperr measure hf:FOLDER"),
    "robustbench": ("robustbench", "its networks: fperr measure robustbench:DATASET/THREAT/NAME"),
    "jupyterlab": ("jupyterlab", "the notebooks"),
    "ipywidgets": ("ipywidgets", "progress bars in notebooks"),
}
_NO_FLOAT64 = (
    "mps: there, but it has no float64, which exact gradients need: measure on the CPU "
    "(model.cpu())"
)


def doctor_command(*, json: bool) -> None:
    """Say what is installed: versions, CPU, devices, data, and what optional packages enable."""
    diagnosis = diagnose()
    if json:
        typer.echo(json_text.dumps(diagnosis, indent=1))
        return
    for title, part in diagnosis.items():
        if title != "optional":
            rows = [(name, _text(value)) for name, value in part.items()]
            print_table(pd.DataFrame(rows, columns=[title, ""]))
            typer.echo("")
    rows_of_optional = [
        (name, _text(entry["version"]), entry["enables"])
        for name, entry in diagnosis["optional"].items()
    ]
    print_table(pd.DataFrame(rows_of_optional, columns=["optional", "version", "what it enables"]))


def diagnose() -> dict[str, dict[str, Any]]:
    """Versions, CPU, devices, data and optional packages, ready for JSON."""
    return {
        "versions": {"fperr": fperr.__version__, "python": platform.python_version()}
        | {name: _version(name) for name in _dependencies()},
        "cpu": {
            "capability": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "threads of torch": torch.get_num_threads(),
        },
        "devices": _devices(),
        "data": {
            "FPERR_DATA": os.environ.get("FPERR_DATA") or "not set: data has its usual folder",
            "folder": str(data.data_folder()),
        }
        | files.datasets(),
        "networks": files.networks(),
        "optional": {
            name: {"version": _installed(name, module), "enables": enables}
            for name, (module, enables) in _OPTIONAL.items()
        },
    }


def _devices() -> dict[str, str]:
    devices = {"cpu": "every format but tf32"}
    for index in range(torch.cuda.device_count()):
        devices[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    if torch.backends.mps.is_available():
        devices["mps"] = _NO_FLOAT64
    return devices


def _dependencies() -> list[str]:
    """The distributions that fperr needs, torch first; nothing where fperr is not installed."""
    try:
        needed = requires("fperr") or []
    except PackageNotFoundError:
        return ["torch", "numpy"]
    return [line.split(">")[0].split("=")[0].strip() for line in needed if "extra ==" not in line]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _installed(name: str, module: str) -> str | None:
    """The version of a package; None where it cannot be imported."""
    try:
        if importlib.util.find_spec(module) is None:
            return None
    except ValueError:  # a module that something put in its place has no origin
        return None
    return _version(name) or "unknown version"


def _text(value: object) -> str:
    return "not installed" if value is None else str(value)
