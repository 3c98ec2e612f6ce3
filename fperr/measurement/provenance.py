"""The provenance of a report: settings, versions, device and digests."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from fperr.data import digest
from fperr.emulated_kernels import TENSOR_CORE, Met, accumulation_bound
from fperr.formats import Format
from fperr.kernel_switches import keeps_subnormals
from fperr.measurement.arguments import MeasureRequest

_PACKAGES = ("fperr", "torch", "numpy", "mpmath", "gmpy2", "python-flint", "pandas")


def provenance(
    request: MeasureRequest,
    engine: str,
    network_digest: str,
    switches: dict[str, dict[str, str]],
    emulation: dict[str, dict[str, Any]],
    *,
    interrupted: bool,
    time_is_up: bool,
) -> dict[str, Any]:
    """The settings, versions, kernels, precision switches and digests, ready for JSON.

    Args:
        request: Checked request.
        engine: Engines that the exact network used, and for how many samples.
        network_digest: Digest of the captured operations and of every tensor in them.
        switches: Kernel switches that were set, by format.
        emulation: Notes on emulated formats, from `emulation_notes`.
        interrupted: True if rows of later samples are missing, or if the time was up.
        time_is_up: True if balls were left out because `max_seconds` were over.
    """
    device = request.x.device
    observed = "observed" if request.scenarios is None else [s.name for s in request.scenarios]
    return {
        "interrupted": interrupted,
        "time_is_up": time_is_up,
        "settings": {
            "losses": [loss.name for loss in request.losses],
            "formats": [fmt.name for fmt in request.formats],
            "arithmetics": {
                fmt.name: asdict(fmt.emulation) for fmt in request.formats if fmt.emulation
            },
            "scenarios": observed,
            "digits": request.digits,
            "bits": {fmt.name: request.bits_for(fmt) for fmt in request.formats},
            "certify": request.certify,
            "jacobian": request.jacobian,
            "reduction": "mean" if request.mean else "sum",
            "loss_scale": request.loss_scale,
            "autocast": request.autocast,
            "batch_size": request.batch_size,
            "epsilon_max": "u, the unit roundoff of the format",
        },
        "reference": {
            "engine": engine,
            "engines": list(request.engines),
            "chosen_because": request.engine_choice,
        },
        "inputs": {
            "samples": len(request.x),
            "shape": list(request.x.shape[1:]),
            "dtype": str(request.x.dtype),
            "digest_of_x": digest(request.x),
            "digest_of_labels": digest(*(t for t in (request.y, request.targets) if t is not None)),
        },
        "model": {
            "class": type(request.model).__name__,
            "classes": request.classes,
            "parameters": sum(p.numel() for p in request.model.parameters()),
            "digest": network_digest,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "device": {
            "name": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "keeps_subnormals": keeps_subnormals(device),
        },
        "precision_switches": switches,
        "emulation": emulation,
        "seeds": {"audit_probe": 0},
    }


def emulation_notes(fmt: Format, met: Met) -> dict[str, Any]:
    """The longest sum of an emulated format, upper bounds on its error, and what is not claimed.

    Args:
        fmt: Format whose kernels are emulated.
        met: What the network's runs met.
    """
    assert fmt.emulation is not None
    bounds = {
        "as emulated": accumulation_bound(fmt.emulation, met.longest_sum),
        "on tensor cores, which truncate": accumulation_bound(TENSOR_CORE, met.longest_sum),
    }
    return {
        "longest sum": met.longest_sum,
        "bounds on its error, relative to the sum of its terms' magnitudes": bounds,
        "emulated without a claim": sorted(met.unclaimed),
        "not emulated": "reduced-precision reductions of half matrix products",
    }


def merged_notes(
    formats: Sequence[Format], notes: Sequence[Mapping[str, Mapping[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """The notes on all batches of a measurement, by emulated format.

    Args:
        formats: Formats of the measurement.
        notes: Notes of its batches, by format, from `emulation_notes`.
    """
    merged = {}
    for fmt in formats:
        if fmt.emulation is None:
            continue
        met = Met()
        for of_batch in (n[fmt.name] for n in notes if fmt.name in n):
            unclaimed = set(of_batch["emulated without a claim"])
            met.add(Met(unclaimed, of_batch["longest sum"]))
        merged[fmt.name] = emulation_notes(fmt, met)
    return merged
