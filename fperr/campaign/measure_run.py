"""Measures a batch of a model's images, for a cell."""

import warnings
from typing import Any

import pyarrow as pa

from fperr.measurement import measure
from fperr.networks.subjects import Subject
from fperr.reasons import UnmeasuredWarning


def measured(
    subject: Subject, rows: slice, options: dict[str, Any]
) -> tuple[pa.Table, dict[str, Any]]:
    """The rows of `fperr.measure` at the images of a batch."""
    images = subject.images
    is_observed = options["scenarios"] is None
    with warnings.catch_warnings():  # the column `reason` says it
        warnings.simplefilter("ignore", UnmeasuredWarning)
        # in measure's own batches: 64 images, or one where a batch is not what a sample is, as in
        # float8; that depends on the model and the formats alone
        report = measure(
            subject.model,
            images.x[rows],
            images.y[rows] if is_observed else None,
            logits=subject.logits,
            progress=False,
            name="network",  # the campaign's own name is put there when parts are collected
            **options,
        )
    frame = report.frame.assign(sample=report.frame["sample"] + rows.start)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    return table, {"provenance": report.provenance["network"]}
