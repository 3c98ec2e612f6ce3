"""What recorded steps say of every sample, without any exact arithmetic."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from fperr.formats import of_dtype
from fperr.recording.recognition import Recognised
from fperr.recording.steps import Step
from fperr.theory.losses import Context
from fperr.theory.scaling import log2_G, margin, t_star
from fperr.theory.scenarios import SCENARIOS, ranked

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
        "zero_share": pa.float64(),
        "gradient_norm": pa.float64(),
        "logits": pa.list_(pa.float64()),
        "logit_gradient": pa.list_(pa.float64()),
    }
)


def step_table(steps: Sequence[Step], known: Sequence[Recognised]) -> pa.Table:
    """One row for each sample of each step, and the columns of `STEPS`.

    Args:
        steps: of logits of one format and one number of classes.
        known: the loss of each of them.
    """
    counts = [len(step.samples) for step in steps]
    z = torch.cat([step.logits for step in steps])
    y = torch.cat([step.y for step in steps])
    label = torch.cat([one.label for one in known])
    zero_share, norm = (torch.cat([getattr(s, n) for s in steps]) for n in ("zero_share", "norm"))
    wide = z.to(torch.float64)
    mine = wide.gather(1, y[:, None])[:, 0]
    numbers = {
        "label": label,
        "margin": margin(z),
        "label_margin": mine - wide.scatter(1, y[:, None], -math.inf).amax(1),
        "t_star": t_star(z),
        "log2_G": torch.cat([_log2_G(s, one) for s, one in zip(steps, known, strict=True)]),
        "is_finite": ~norm.isinf() & z.isfinite().all(1),
        "is_zero": zero_share == 1,
        "zero_share": zero_share,
        "gradient_norm": norm.where(norm.isfinite(), math.nan),
        "leads": ranked(z)[:, 0] == label,
    }
    moved = torch.stack([t.to(torch.float64) for t in numbers.values()]).cpu().numpy()
    found: dict[str, Any] = dict(zip(numbers, moved, strict=True))
    by_lead = {(s.targeted, s.label_leads): s.name for s in SCENARIOS.values()}
    targeted = np.repeat([one.targeted for one in known], counts)
    leads = found.pop("leads").astype(bool)
    names = {
        "scenario": [by_lead[key] for key in zip(targeted.tolist(), leads.tolist(), strict=True)],
        "loss": [
            one.name if fits or one.loss is None else "unknown"
            for one in known
            for fits in one.explained.tolist()
        ],
        "reduction": np.repeat([one.reduction for one in known], counts),
        "format": np.repeat([of_dtype(z.dtype).name], len(z)),
    }
    found |= {name: pa.array(words).dictionary_encode() for name, words in names.items()}
    found |= {
        "step": np.repeat([s.number for s in steps], counts),
        "forward": np.repeat([s.forward for s in steps], counts),
        "sample": torch.cat([s.samples for s in steps]).numpy(),
        "factor": np.repeat([one.factor for one in known], counts),
        "logits": _lists(wide),
        "logit_gradient": _lists(torch.cat([s.v for s in steps])),
    }
    arrays = [pa.array(found[f.name]).cast(f.type) for f in STEPS]
    return pa.table(arrays, schema=STEPS)


def _log2_G(step: Step, known: Recognised) -> Tensor:  # noqa: N802 (G is the papers')
    if known.loss is None or not known.loss.has_scale:
        return torch.full_like(step.norm, math.nan)
    context = Context(known.targeted, step.y)
    scale = known.loss.scale(step.logits, known.label, context)
    return log2_G(step.logits, known.label, scale.c)


def _lists(matrix: Tensor) -> pa.Array:
    """A list for each row (n, m)."""
    n, m = matrix.shape
    values = matrix.detach().to("cpu", torch.float64).contiguous().numpy().reshape(-1)
    return pa.ListArray.from_arrays(np.arange(n + 1, dtype=np.int32) * m, values)
