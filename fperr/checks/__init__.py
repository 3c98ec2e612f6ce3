"""Checks of arguments: each kind is checked in one place, and refused in one wording."""

from fperr.checks.formats import format_of, formats_of
from fperr.checks.tensors import (
    INPUT_DTYPES,
    check_classes,
    check_targets,
    class_labels,
    class_name,
    inputs,
    logits,
    model,
)
from fperr.checks.values import (
    choice,
    distinct_names,
    flag,
    names,
    optional_flag,
    path,
    real_number,
    shown,
    text,
    whole_number,
)

__all__ = [
    "INPUT_DTYPES",
    "check_classes",
    "check_targets",
    "choice",
    "class_labels",
    "class_name",
    "distinct_names",
    "flag",
    "format_of",
    "formats_of",
    "inputs",
    "logits",
    "model",
    "names",
    "optional_flag",
    "path",
    "real_number",
    "shown",
    "text",
    "whole_number",
]
