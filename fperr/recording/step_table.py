"""The table of an attack's steps: what they say of every sample, without exact arithmetic."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from fperr.formats import of_dtype
from fperr.losses import Context
from fperr.recording.attack_step import AttackStep
from fperr.recording.loss_fit import RecognisedLoss
from fperr.theory.scaling import log2_G, margin, t_star
from fperr.theory.scenarios import SCENARIOS

_NAME = pa.dictionary(pa.int16(), pa.string())
STEPS = pa.schema(
    {
        "step": pa.int32(),
        "forward": pa.int32(),
        "sample": pa.int32(),
        "label": pa.int32(),
        "scenario": _NAME,
        "margin": pa.float64(),
        "label_margin": pa.float64(),
        "t_star": pa.float64(),
        "log2_G": pa.float64(),
        "loss": _NAME,
        "reduction": _NAME,
        "factor": pa.float64(),
        "format": _NAME,
        "is_finite": pa.bool_(),
        "is_zero": pa.bool_(),
        "is_logit_gradient_zero": pa.bool_(),
        "is_training": pa.bool_(),
        "zero_share": pa.float64(),
        "gradient_norm": pa.float64(),
        "logits": pa.list_(pa.float64()),
        "logit_gradient": pa.list_(pa.float64()),
    }
)


def step_table(steps: Sequence[AttackStep], losses: Sequence[RecognisedLoss]) -> pa.Table:
    """The table of some steps: a row for each sample of each step, and the columns of `STEPS`.

    Args:
        steps: Steps, with logits of one dtype and one number of classes.
        losses: Loss that each step follows.
    """
    counts = [len(step.samples) for step in steps]
    z = torch.cat([step.logits for step in steps])
    y = torch.cat([step.y for step in steps])
    label = torch.cat([loss.label for loss in losses])
    v, norm = (torch.cat([getattr(step, name) for step in steps]) for name in ("v", "norm"))
    shares = [1 - step.nonzeros.to(torch.float64) / step.components for step in steps]
    zero_share = torch.cat(shares).where(norm < math.inf, math.nan)  # false for NaN
    wide = z.to(torch.float64)
    label_logit = wide.gather(1, y[:, None])[:, 0]
    numbers = {
        "label": label,
        "margin": margin(z),
        "label_margin": label_logit - wide.scatter(1, y[:, None], -math.inf).amax(1),
        "t_star": t_star(z),
        "log2_G": _log2_G(steps, losses),
        # minus infinity is the logit of a class that is absent
        "is_finite": ~norm.isinf() & ~(z.isnan() | z.isposinf()).any(1),
        "is_zero": zero_share == 1,
        "is_logit_gradient_zero": ~v.any(1),
        "zero_share": zero_share,
        "gradient_norm": norm.where(norm.isfinite(), math.nan),
        "factor": torch.cat([loss.factor for loss in losses]),
        "leads": z.argmax(1) == label,  # the lower index of a tie
    }
    # one copy from the device for all numbers; float64 holds integers and booleans exactly
    on_cpu = torch.stack([t.to(torch.float64) for t in numbers.values()]).cpu().numpy()
    columns: dict[str, Any] = dict(zip(numbers, on_cpu, strict=True))
    # a scenario is two booleans, coded as the number 2 * targeted + leads
    name_of_code = {2 * s.targeted + s.label_leads: s.name for s in SCENARIOS.values()}
    targeted = np.repeat([loss.targeted for loss in losses], counts)
    codes = 2 * targeted + columns.pop("leads").astype(np.int16)
    columns["scenario"] = _dictionary_array([name_of_code[code] for code in range(4)], codes)
    explained = torch.cat([loss.explained for loss in losses]).cpu().numpy()
    has_exact_gradient = np.repeat([loss.has_exact_gradient for loss in losses], counts)
    names, codes = _names_and_codes([loss.name for loss in losses], counts)
    codes[has_exact_gradient & ~explained] = len(names)  # the code of "unknown", appended below
    columns |= {
        "loss": _dictionary_array([*names, "unknown"], codes),
        "reduction": _dictionary_array(
            *_names_and_codes([loss.reduction for loss in losses], counts)
        ),
        "format": _dictionary_array([of_dtype(z.dtype).name], np.zeros(len(z), dtype=np.int16)),
        "step": np.repeat([s.number for s in steps], counts),
        "forward": np.repeat([s.forward for s in steps], counts),
        "sample": torch.cat([s.samples for s in steps]).numpy(),
        "is_training": np.repeat([s.is_training for s in steps], counts),
        "logits": _list_array(wide),
        "logit_gradient": _list_array(v),
    }
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in STEPS]
    return pa.table(arrays, schema=STEPS)


def _names_and_codes(
    names: Sequence[str], counts: Sequence[int]
) -> tuple[list[str], NDArray[np.int16]]:
    """The distinct names, and the number of its name for each row of each step."""
    distinct = list(dict.fromkeys(names))
    return distinct, np.repeat([distinct.index(name) for name in names], counts).astype(np.int16)


def _dictionary_array(names: list[str], codes: NDArray[np.int16]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(codes.astype(np.int16), names)


def _log2_G(steps: Sequence[AttackStep], losses: Sequence[RecognisedLoss]) -> Tensor:  # noqa: N802
    """G with the scale of each step's loss; steps with the same loss are computed together."""
    values = []
    pairs = zip(steps, losses, strict=True)
    for (loss, targeted), alike in groupby(
        pairs, key=lambda pair: (pair[1].loss, pair[1].targeted)
    ):
        group = list(alike)
        z, y = (torch.cat([getattr(step, name) for step, _ in group]) for name in ("logits", "y"))
        label = torch.cat([recognised.label for _, recognised in group])
        if loss is None or not loss.has_scale:
            values.append(torch.full(z.shape[:1], math.nan, dtype=torch.float64, device=z.device))
        else:
            scale = loss.scale(z, label, Context(targeted, y))
            values.append(log2_G(z, label, scale.c))
    return torch.cat(values)


def _list_array(matrix: Tensor) -> pa.Array:
    """A list for each row of the matrix (n, m)."""
    n, m = matrix.shape
    values = matrix.detach().to("cpu", torch.float64).contiguous().numpy().reshape(-1)
    # list i holds the values from offset i m to offset (i + 1) m
    return pa.ListArray.from_arrays(np.arange(n + 1, dtype=np.int32) * m, values)
