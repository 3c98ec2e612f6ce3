"""The provenance of a report: settings, versions, device and digests."""

import importlib.metadata
import platform
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
        "seeds": {"audit_probe": 0},
    }


def emulation_notes(fmt: Format, met: Met) -> dict[str, str]:
    """The longest sum of an emulated format, bounds on its error, and what is not claimed.

    Args:
        fmt: Format whose kernels may be emulated.
        met: What the network's runs met.
    """
    notes = {}
    if fmt.emulation is not None and met.longest_sum:
        performed = accumulation_bound(fmt.emulation, met.longest_sum)
        on_a_card = accumulation_bound(TENSOR_CORE, met.longest_sum)
        notes = {
            "longest sum": f"{met.longest_sum} products",
            "its error, of its terms' magnitudes, as emulated": f"at most {performed:.1e}",
            "the same on tensor cores, which truncate": f"at most {on_a_card:.1e}",
            "not emulated": "reduced-precision reductions of half matrix products",
        }
    if met.unclaimed:
        notes["emulated without a claim"] = ", ".join(sorted(met.unclaimed))
    return notes
