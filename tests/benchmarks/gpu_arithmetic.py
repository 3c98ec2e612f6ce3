"""`make gpu-arithmetic`: what a GPU's arithmetic does to gradients, emulated.

With `--device cuda` the card's own kernels stand beside the emulated ones. A table in Markdown,
which docs/how_to/gpu_arithmetic.md shows: medians of the gradient's error by network, loss and
format. What it does to attacks: `make format-outcomes`.
"""

import argparse

import pandas as pd
import torch
from tqdm import tqdm

import fperr
from fperr import data, zoo
from fperr.errors import FperrError
from fperr.figures import Subject
from fperr.figures.attacks import ATTACKED, IN_FLOAT8, check_arithmetic

FORMATS = (
    "float32", "float32@cuda", "tf32@cuda", "float16", "float16@cuda", "autocast-float16@cuda",
    "bfloat16", "bfloat16@cuda", "autocast-bfloat16@cuda", "float8@tensorwise",
)  # fmt: skip
CARD_FORMATS = ("float32", "tf32", "float16", "bfloat16")  # the device's own kernels
LOSSES = ("ce", "mifpe", "tmifpe")


def gradients(name: str, n: int, formats: tuple[str, ...], device: str) -> pd.DataFrame:
    """Medians of relative error, wrong signs and step gain: a row for each loss and format."""
    images = data.images_named(zoo.entry(name).dataset).first(n)
    frame = fperr.measure(
        zoo.load(name), images.x, images.y, losses=LOSSES, formats=formats, progress=False,
        device=device,
    ).frame  # fmt: skip
    medians = frame.groupby(["format", "loss"], sort=False)[
        ["delta", "sign_error_rate", "step_gain"]
    ].median()
    cells = medians.apply(
        lambda row: (
            f"{row['delta']:.1e}; {100 * row['sign_error_rate']:.0f} %; {row['step_gain']:.2f}"
        ),
        axis=1,
    ).unstack("loss")[list(LOSSES)]
    return cells.loc[list(formats)].reset_index().assign(network=f"{name}, {n}")


def is_changed(name: str, format: str) -> bool:
    """Whether a format changes a network: float8 takes some linear layers only."""
    try:
        check_arithmetic(Subject(name, 1), format)
    except FperrError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", default=",".join([*ATTACKED, *IN_FLOAT8]))
    parser.add_argument("--measured", type=int, default=24)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    formats = FORMATS
    if given.device != "cpu":
        formats = tuple(dict.fromkeys([*CARD_FORMATS, *FORMATS]))
    torch.set_num_threads(1)
    tables = []
    for name in tqdm(given.networks.split(","), disable=None):
        try:
            those = tuple(format for format in formats if is_changed(name, format))
            tables.append(gradients(name, given.measured, those, given.device))
        except FperrError as fault:
            print(f"left out: {name} ({fault})")
            continue
        columns = ["network", "format", *LOSSES]
        print(pd.concat(tables)[columns].to_markdown(index=False), flush=True)


if __name__ == "__main__":
    main()
