"""What a recorded step says of every sample, without any exact arithmetic."""

import math

import pyarrow as pa
import torch
from torch import Tensor

from fperr.recording.recognition import Recognised
from fperr.recording.taps import Gradient
from fperr.theory.losses import Context
from fperr.theory.scaling import log2_G, margin, t_star
from fperr.theory.scenarios import classify, ranked

STEPS = pa.schema(
    {
        "step": pa.int32(),
        "forward": pa.int32(),
        "sample": pa.int32(),
        "label": pa.int32(),
        "scenario": pa.dictionary(pa.int8(), pa.string()),
        "margin": pa.float64(),
        "label_margin": pa.float64(),
        "t_star": pa.float64(),
        "log2_G": pa.float64(),
        "loss": pa.dictionary(pa.int8(), pa.string()),
        "reduction": pa.dictionary(pa.int8(), pa.string()),
        "factor": pa.float64(),
        "format": pa.dictionary(pa.int8(), pa.string()),
        "is_finite": pa.bool_(),
        "is_zero": pa.bool_(),
        "zero_share": pa.float64(),
        "gradient_norm": pa.float64(),
        "logits": pa.list_(pa.float64()),
        "logit_gradient": pa.list_(pa.float64()),
    }
)


def step_table(
    event: Gradient, rows: Tensor, y: Tensor, known: Recognised, format_name: str
) -> pa.Table:
    """One row for each sample of a backward pass; the columns are those of `STEPS`.

    Args:
        event: the backward pass.
        rows: (batch,) int64 on the CPU, which sample each row is.
        y: (batch,), the true labels.
        known: the loss that was recognised.
        format_name: of the attack's logits.
    """
    z, v, g = event.of.logits, event.logit_gradient, event.gradient
    n = len(z)
    wide = z.to(torch.float64)
    mine = wide.gather(1, y[:, None])[:, 0]
    order = ranked(z)
    numbers = {
        "margin": margin(z),
        "label_margin": mine - wide.scatter(1, y[:, None], -math.inf).amax(1),
        "t_star": t_star(z),
        "log2_G": torch.full_like(mine, math.nan),
        "zero_share": torch.full_like(mine, math.nan),
        "gradient_norm": torch.full_like(mine, math.nan),
    }
    if known.loss is not None and known.loss.has_scale:
        c = known.loss.scale(z, known.label, Context(known.targeted, y)).c
        numbers["log2_G"] = log2_G(z, known.label, c)
    flags = {"is_finite": v.isfinite().all(1), "is_zero": ~v.ne(0).any(1)}
    if g is not None:
        flat = g.flatten(1)
        nonzero = torch.count_nonzero(flat, 1)
        numbers["zero_share"] = 1 - nonzero.to(torch.float64) / flat.shape[1]
        numbers["gradient_norm"] = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
        flags = {"is_finite": flags["is_finite"] & flat.isfinite().all(1), "is_zero": nonzero == 0}
    moved = torch.stack([t.double() for t in (*numbers.values(), *flags.values())]).cpu().numpy()
    scenarios = classify(order, known.label, targeted=known.targeted)
    columns = {
        "step": pa.array([event.number] * n, pa.int32()),
        "forward": pa.array([event.of.number] * n, pa.int32()),
        "sample": pa.array(rows.numpy(), pa.int32()),
        "label": pa.array(known.label.cpu().numpy(), pa.int32()),
        "scenario": _words([s.name for s in scenarios]),
        "loss": _words([known.name] * n),
        "reduction": _words([known.reduction] * n),
        "factor": pa.array([known.factor] * n, pa.float64()),
        "format": _words([format_name] * n),
        "logits": _lists(wide),
        "logit_gradient": _lists(v),
    }
    columns |= {name: pa.array(row) for name, row in zip(numbers, moved, strict=False)}
    columns |= {
        name: pa.array(row.astype(bool))
        for name, row in zip(flags, moved[len(numbers) :], strict=True)
    }
    return pa.table([columns[name] for name in STEPS.names], schema=STEPS)


def _words(words: list[str]) -> pa.Array:
    return pa.array(words).dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string()))


def _lists(matrix: Tensor) -> pa.Array:
    """A list for each row (n, m)."""
    n, m = matrix.shape
    values = matrix.detach().to("cpu", torch.float64).contiguous().numpy().reshape(-1)
    offsets = pa.array(range(0, (n + 1) * m, m) if m else [0] * (n + 1), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(values))
