"""The provenance of a report: settings, versions, device and digests."""

import importlib.metadata
import platform
from typing import Any

import torch

from fperr.data import digest
from fperr.kernel_switches import keeps_subnormals
from fperr.measurement.arguments import MeasureRequest

_PACKAGES = ("fperr", "torch", "numpy", "mpmath", "gmpy2", "python-flint", "pandas")


def provenance(
    job: MeasureRequest,
    engine: str,
    network_digest: str,
    switches: dict[str, dict[str, str]],
    *,
    interrupted: bool,
) -> dict[str, Any]:
    """The settings, versions, kernels, precision switches and digests, ready for JSON.

    Args:
        job: Checked request.
        engine: Name and precision of the exact network's engine.
        network_digest: Digest of the captured operations and of every tensor in them.
        switches: Kernel switches that were set, by format.
        interrupted: True if rows of later samples are missing.
    """
    device = job.x.device
    observed = "observed" if job.scenarios is None else [s.name for s in job.scenarios]
    return {
        "interrupted": interrupted,
        "settings": {
            "losses": [loss.name for loss in job.losses],
            "formats": [fmt.name for fmt in job.formats],
            "scenarios": observed,
            "digits": job.digits,
            "certify": job.certify,
            "jacobian": job.jacobian,
            "reduction": "mean" if job.mean else "sum",
            "loss_scale": job.loss_scale,
            "autocast": job.autocast,
            "batch_size": job.batch_size,
            "epsilon_max": "u, the unit roundoff of the format",
        },
        "reference": {"engine": engine, "chosen_because": job.engine_choice},
        "inputs": {
            "samples": len(job.x),
            "shape": list(job.x.shape[1:]),
            "dtype": str(job.x.dtype),
            "digest_of_x": digest(job.x),
            "digest_of_labels": digest(*(t for t in (job.y, job.targets) if t is not None)),
        },
        "model": {
            "class": type(job.model).__name__,
            "classes": job.classes,
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
