"""Attacks a batch of a model's images, for a cell."""

import warnings
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from fperr.attacks import AttackResult, AttackWarning, attack
from fperr.errors import UncertifiedGradientWarning
from fperr.networks.subjects import Subject

_POINTS = ("adversarial", "best")  # as large as the images: not kept
_COLUMNS = tuple(f.name for f in fields(AttackResult) if f.type is Tensor and f.name not in _POINTS)


def attacked(
    subject: Subject, rows: slice, options: dict[str, Any]
) -> tuple[pa.Table, dict[str, Any]]:
    """The columns of `fperr.attack` at the images of a batch."""
    images = subject.images
    options["box"] = tuple(options["box"])
    with warnings.catch_warnings():  # the columns say it
        warnings.simplefilter("ignore", AttackWarning)
        warnings.simplefilter("ignore", UncertifiedGradientWarning)
        # in one piece: where the device's memory does not do, halves would have other bits
        result = attack(
            subject.model, images.x[rows], images.y[rows], logits=subject.logits, **options
        )
    columns = {name: getattr(result, name).cpu().numpy() for name in _COLUMNS}
    samples = np.arange(rows.start, rows.stop)
    # no data frame: making one of a small batch takes longer than all else that writes a part
    return pa.table({"sample": samples, "label": images.y[rows].cpu().numpy(), **columns}), {}
