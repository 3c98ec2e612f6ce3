"""A net under moves and renames: numbers of every door, kept before and compared after.

    python -m tests.net keep out/net.pkl     # before
    python -m tests.net compare out/net.pkl  # after: equal to the last bit?

Numbers are those of one machine and one set of library versions: keep and compare on the same.
"""

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import fperr
from fperr import bounds, exact, zoo
from tests.makers.networks import build

ENGINES = "mpmath", "ball", "double_word"
FORMATS = "float16", "bfloat16", "float32", "float64"
LOSSES = "ce", "stable_ce", "mifpe", "tmifpe", "pmifpe", "cw", "dlr", "mifpe_shifted"
_TIMES = ("seconds", "time")  # columns that differ from run to run


def subjects() -> dict[str, tuple[nn.Module, Tensor, Tensor]]:
    """By name: a network, three inputs, their labels: one packaged, two with random weights."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.rand(3, 3, 8, 8, generator=generator)
    images = fperr.data.images_named("fashion_mnist_1000").first(3)
    found = {"fashion_standard": (zoo.load("fashion_standard"), images.x, images.y)}
    for name in ("lenet", "resnet"):
        model = build(name).eval()
        with torch.no_grad():
            found[name] = model, noise, model(noise).argmax(1)
    return found


def measured() -> Iterator[tuple[str, object]]:
    """Frames of `measure` and of `trace_layers`."""
    for name, (model, x, y) in subjects().items():
        for engine in ENGINES:
            few = 1 if engine == "mpmath" else len(x)
            report = fperr.measure(
                model,
                x[:few],
                losses=LOSSES,
                formats=FORMATS,
                scenarios="all",
                engine=engine,
                progress=False,
            )
            yield f"measure {name} {engine}", frame(report.frame)
        for loss, form in (("ce", "float32"), ("tmifpe", "float16")):
            layers = fperr.trace_layers(model, x, y, loss=loss, format=form, progress=False)
            yield f"layers {name} {loss} {form}", frame(layers.frame)
    model, x, y = subjects()["fashion_standard"]
    report = fperr.measure(
        model, x, y, certify=True, targets=(y + 1) % 10, scenarios="observed", progress=False
    )
    yield "measure certified", frame(report.frame)


def exactly() -> Iterator[tuple[str, object]]:
    """Midpoints and radii of exact gradients."""
    for name, (model, x, _) in subjects().items():
        with torch.no_grad():
            v = torch.softmax(model(x).double(), 1)
        for engine in ENGINES:
            few = 1 if engine == "mpmath" else len(x)
            found = exact.gradient(model, x[:few], v[:few], engine=engine)
            radius = None if found.radius is None else [str(r) for r in found.radius.ravel()]
            yield (
                f"gradient {name} {engine}",
                ([str(m) for m in found.midpoint.ravel()], radius, found.log2_error),
            )


def attacked() -> Iterator[tuple[str, object]]:
    """Twenty steps of PGD and APGD in every arithmetic; a recorded attack."""
    for name, (model, x, y) in subjects().items():
        for method in ("pgd", "apgd"):
            for loss in ("ce", "tmifpe", "dlr"):
                if loss == "dlr" and name != "fashion_standard":
                    continue
                for arithmetic in ("float16", "float32", "float64", "exact"):
                    steps = 4 if arithmetic == "exact" else 20
                    result = fperr.attack(
                        model,
                        x,
                        y,
                        radius=0.05,
                        method=method,
                        loss=loss,
                        steps=steps,
                        format=arithmetic,
                    )
                    tensors = (n for n in result.__slots__ if n != "settings")
                    parts = {n: getattr(result, n) for n in tensors}
                    yield f"attack {name} {method} {loss} {arithmetic}", parts
        yield f"trace {name}", recorded(model, x, y)


def recorded(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, pd.DataFrame]:
    """The tables of a plain PGD with cross-entropy."""
    with TemporaryDirectory() as folder:
        with fperr.record(model, x, y, every=3, out=Path(folder) / "trace") as trace:
            x_adv = x.clone()
            for _ in range(6):
                x_adv.requires_grad_()
                loss = nn.functional.cross_entropy(model(x_adv), y)
                (gradient,) = torch.autograd.grad(loss, x_adv)
                x_adv = (x_adv.detach() + 0.01 * gradient.sign()).clamp(0, 1)
        return {name: frame(getattr(trace, name)()) for name in ("steps", "errors", "points")}


def bounded() -> Iterator[tuple[str, object]]:
    """Bounds on logit gradients."""
    logits = torch.linspace(-30, 30, 50, dtype=torch.float64).reshape(5, 10).sin() * 20
    label = torch.arange(5)
    for form in FORMATS:
        z = logits.to(fperr.formats.format_named(form).dtype)
        yield f"bound {form}", bounds.logit_gradient(z, label, 1.0, form)
        yield f"paper {form}", bounds.paper(z, label, 1.0, format=form)
        yield f"stable {form}", bounds.stable_ce_logit_gradient(z, label, form)
        yield f"check {form}", frame(bounds.check(z, label, form))


def frame(of: pd.DataFrame) -> pd.DataFrame:
    """Without times."""
    return of[[c for c in of.columns if not any(t in c for t in _TIMES)]]


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit; NaN is NaN."""
    if isinstance(a, pd.DataFrame):
        if list(a.columns) != list(b.columns):
            return False
        return all(_same_column(a[c], b[c]) for c in a.columns)
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(7.25), b.nan_to_num(7.25))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def _same_column(a: pd.Series, b: pd.Series) -> bool:
    if a.dtype != b.dtype or len(a) != len(b):
        return False
    if a.dtype == np.float64:
        return bool(np.array_equal(a.to_numpy(), b.to_numpy(), equal_nan=True))
    return all(map(_same_cell, a, b))


def _same_cell(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b, equal_nan=True))
    if a is None or b is None or a is pd.NA or b is pd.NA:
        return a is b
    return bool(a == b or (a != a and b != b))


def everything() -> dict[str, object]:
    """All of it, by what it is."""
    parts = measured, exactly, attacked, bounded
    return {name: value for part in parts for name, value in part()}


def main() -> int:
    """Keep, or compare."""
    verb, path = sys.argv[1], Path(sys.argv[2])
    found = everything()
    if verb == "keep":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(found))
        print(f"{len(found)} results kept in {path}")
        return 0
    before = pickle.loads(path.read_bytes())
    different = [n for n in before if n not in found or not same(before[n], found[n])]
    for name in different:
        print("differs:", name)
    print(f"{len(before) - len(different)} of {len(before)} results are equal")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
