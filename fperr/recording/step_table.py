"""What recorded steps say of every sample, without any exact arithmetic."""

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
from fperr.recording.recognition import Recognised
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


def step_table(steps: Sequence[AttackStep], known: Sequence[Recognised]) -> pa.Table:
    """One row for each sample of each step, and the columns of `STEPS`.

    Args:
        steps: of logits of one format and one number of classes.
        known: the loss of each of them.
    """
    counts = [len(step.samples) for step in steps]
    z = torch.cat([step.logits for step in steps])
    y = torch.cat([step.y for step in steps])
    label = torch.cat([one.label for one in known])
    v, norm = (torch.cat([getattr(step, name) for step in steps]) for name in ("v", "norm"))
    shares = [1 - step.nonzeros.to(torch.float64) / step.components for step in steps]
    zero_share = torch.cat(shares).where(norm < math.inf, math.nan)  # false for NaN
    wide = z.to(torch.float64)
    mine = wide.gather(1, y[:, None])[:, 0]
    numbers = {
        "label": label,
        "margin": margin(z),
        "label_margin": mine - wide.scatter(1, y[:, None], -math.inf).amax(1),
        "t_star": t_star(z),
        "log2_G": _log2_G(steps, known),
        # minus infinity is the logit of a class that is absent
        "is_finite": ~norm.isinf() & ~(z.isnan() | z.isposinf()).any(1),
        "is_zero": zero_share == 1,
        "is_logit_gradient_zero": ~v.any(1),
        "zero_share": zero_share,
        "gradient_norm": norm.where(norm.isfinite(), math.nan),
        "factor": torch.cat([one.factor for one in known]),
        "leads": z.argmax(1) == label,  # the lower index of a tie
    }
    moved = torch.stack([t.to(torch.float64) for t in numbers.values()]).cpu().numpy()
    found: dict[str, Any] = dict(zip(numbers, moved, strict=True))
    by_lead = {2 * s.targeted + s.label_leads: s.name for s in SCENARIOS.values()}
    targeted = np.repeat([one.targeted for one in known], counts)
    codes = 2 * targeted + found.pop("leads").astype(np.int16)
    found["scenario"] = _coded([by_lead[code] for code in range(4)], codes)
    explained = torch.cat([one.explained for one in known]).cpu().numpy()
    named = np.repeat([one.is_known for one in known], counts)
    losses, codes = _numbered([one.name for one in known], counts)
    codes[named & ~explained] = len(losses)
    found |= {
        "loss": _coded([*losses, "unknown"], codes),
        "reduction": _coded(*_numbered([one.reduction for one in known], counts)),
        "format": _coded([of_dtype(z.dtype).name], np.zeros(len(z), dtype=np.int16)),
        "step": np.repeat([s.number for s in steps], counts),
        "forward": np.repeat([s.forward for s in steps], counts),
        "sample": torch.cat([s.samples for s in steps]).numpy(),
        "is_training": np.repeat([s.is_training for s in steps], counts),
        "logits": _lists(wide),
        "logit_gradient": _lists(v),
    }
    arrays = [pa.array(found[f.name]).cast(f.type) for f in STEPS]
    return pa.table(arrays, schema=STEPS)


def _numbered(names: Sequence[str], counts: Sequence[int]) -> tuple[list[str], NDArray[np.int16]]:
    """The different names, and for each row of each step the number of its name."""
    listed = list(dict.fromkeys(names))
    return listed, np.repeat([listed.index(name) for name in names], counts).astype(np.int16)


def _coded(names: list[str], codes: NDArray[np.int16]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(codes.astype(np.int16), names)


def _log2_G(steps: Sequence[AttackStep], known: Sequence[Recognised]) -> Tensor:  # noqa: N802
    """G with the scale of each step's loss; steps with the same loss together."""
    parts = []
    pairs = zip(steps, known, strict=True)
    for (loss, targeted), alike in groupby(
        pairs, key=lambda pair: (pair[1].loss, pair[1].targeted)
    ):
        some = list(alike)
        z, y = (torch.cat([getattr(step, name) for step, _ in some]) for name in ("logits", "y"))
        label = torch.cat([one.label for _, one in some])
        if loss is None or not loss.has_scale:
            parts.append(torch.full(z.shape[:1], math.nan, dtype=torch.float64, device=z.device))
        else:
            scale = loss.scale(z, label, Context(targeted, y))
            parts.append(log2_G(z, label, scale.c))
    return torch.cat(parts)


def _lists(matrix: Tensor) -> pa.Array:
    """A list for each row (n, m)."""
    n, m = matrix.shape
    values = matrix.detach().to("cpu", torch.float64).contiguous().numpy().reshape(-1)
    return pa.ListArray.from_arrays(np.arange(n + 1, dtype=np.int32) * m, values)
