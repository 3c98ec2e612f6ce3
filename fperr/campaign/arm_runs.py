"""Runs the arms of jobs on a batch of images; workers load this, with all that computes."""

import warnings
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any

import pandas as pd
from torch import Tensor

from fperr.attacks import AttackResult, AttackWarning, attack
from fperr.campaign.jobs import RUNS
from fperr.errors import UncertifiedGradientWarning
from fperr.measurement import measure
from fperr.networks.subjects import Subject
from fperr.reasons import UnmeasuredWarning

Made = tuple[pd.DataFrame, dict[str, Any]]
_COLUMNS = tuple(
    f.name
    for f in fields(AttackResult)
    if f.type is Tensor and f.name not in ("adversarial", "best")
)


def run_arm(kind: str, subject: Subject, rows: slice, options: Mapping[str, Any]) -> Made:
    """Run an arm on a batch.

    Args:
        kind: Key of `RUNS`.
        subject: Network and images.
        rows: Rows of the batch.
        options: Options of the arm.

    Returns:
        A row or more for each image, with its number in `sample`; and what the header adds.

    Raises:
        Exception: Whatever the network, or the job, raises.
    """
    module, _, function = RUNS[kind].partition(":")
    run: Any = getattr(import_module(module), function)
    made: Made = run(subject, rows, dict(options))
    return made


def attacked(subject: Subject, rows: slice, options: dict[str, Any]) -> Made:
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
    labels = images.y[rows].cpu().numpy()
    frame = pd.DataFrame({"sample": range(rows.start, rows.stop), "label": labels, **columns})
    return frame, {}


def measured(subject: Subject, rows: slice, options: dict[str, Any]) -> Made:
    """The rows of `fperr.measure` at the images of a batch."""
    images = subject.images
    is_observed = options["scenarios"] is None
    with warnings.catch_warnings():  # the column `reason` says it
        warnings.simplefilter("ignore", UnmeasuredWarning)
        report = measure(
            subject.model,
            images.x[rows],
            images.y[rows] if is_observed else None,
            logits=subject.logits,
            batch_size=rows.stop - rows.start,
            progress=False,
            name="network",  # the campaign's own name is put there when parts are collected
            **options,
        )
    frame = report.frame.assign(sample=report.frame["sample"] + rows.start)
    return frame, {"provenance": report.provenance["network"]}
