"""What the head of the report page says about the measurement, from its provenance."""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from fperr.report.numbers import joined

_BOUNDS = "bounds on its error, relative to the sum of its terms' magnitudes"
_HERE, _ON_A_CARD = "as emulated", "on tensor cores, which truncate"
_TIMES = "\u00a0×\u00a0"  # no line breaks there
_DEFAULTS = {  # settings of `fperr.measure` that its call names only where they differ
    "digits": None,
    "certify": False,
    "reduction": "sum",
    "loss_scale": 1.0,
    "autocast": False,
}


def is_observed(provenance: Mapping[str, Any]) -> bool:
    """Whether the images were classified by labels or targets that were given."""
    return bool(provenance["settings"].get("scenarios") == "observed")


def model(provenance: Mapping[str, Any], samples: int) -> str:
    """A network and its inputs in a line.

    Args:
        provenance: Provenance of the network.
        samples: Number of images that were measured.
    """
    about, inputs = provenance["model"], provenance.get("inputs", {})
    words = [str(about["class"])] if "class" in about else []
    if "parameters" in about:
        words.append(f"{about['parameters']:,} parameters")
    if "shape" in inputs:
        words.append(f"input {_TIMES.join(map(str, inputs['shape']))}")
    words.append(f"{samples} image{'s' * (samples != 1)}")
    words.append(f"{about['classes']} classes")
    if "data" in inputs:
        words.append(f"data {inputs['data']}")
    return ", ".join(words)


def versions(provenance: Mapping[str, Any]) -> str:
    """The versions, and the device, in a line."""
    numbers, device = provenance.get("versions", {}), provenance.get("device", {})
    words = [
        f"{title} {numbers[name]}"
        for name, title in (("fperr", "fperr"), ("torch", "PyTorch"), ("python", "Python"))
        if name in numbers
    ]
    on = f" on {device['name']}" if "name" in device else ""
    return f"{joined(words)}{on}" if words else ""


def emulation(provenance: Mapping[str, Any]) -> list[str]:
    """A sentence on each emulated format: its longest sum, and what bounds the sum's error.

    Args:
        provenance: Provenance of the network.
    """
    sentences = []
    for name, notes in provenance.get("emulation", {}).items():
        size, unclaimed = notes["longest sum"], notes["emulated without a claim"]
        words = []
        if size:
            bounds = notes[_BOUNDS]
            words.append(
                f"the longest sum has {size:,} products, and its error is at most "
                f"{bounds[_HERE]:.1e} of its terms' magnitudes ({bounds[_ON_A_CARD]:.1e} "
                f"{_ON_A_CARD})"
            )
        if unclaimed:
            words.append(f"emulated without a claim: {', '.join(unclaimed)}")
        sentences += [f"{name}: {'; '.join(words)}."] if words else []
    return sentences


def call(provenance: Mapping[str, Any], frame: pd.DataFrame) -> str:
    """The call of `fperr.measure` that measures the same.

    Args:
        provenance: Provenance of the network.
        frame: Its rows.
    """
    settings = provenance["settings"]
    arguments = ["model", "x"]
    if is_observed(provenance):
        is_targeted = frame["scenario"].str.startswith("targeted").any()
        arguments.append("targets=targets" if is_targeted else "y")
    arguments += [
        f"{name}={_literal(settings[name])}" for name in ("losses", "formats") if name in settings
    ]
    if "scenarios" in settings and not is_observed(provenance):
        arguments.append(f"scenarios={_literal(settings['scenarios'])}")
    arguments += [
        f"{name}={settings[name]!r}"
        for name, default in _DEFAULTS.items()
        if settings.get(name, default) != default
    ]
    return f"fperr.measure({', '.join(arguments)})"


def _literal(names: list[str]) -> str:
    """A list as Python writes it, with double quotes."""
    return json.dumps(names)
