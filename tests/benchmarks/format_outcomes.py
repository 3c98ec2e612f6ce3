"""`make format-outcomes`: what formats do to the outcome of an attack, GPUs' emulated ones too.

PGD from the same starts in each format, beside exact gradients, which know no format and are
followed once. It writes as it goes, and goes on where it was cut off. docs/findings.md holds its
table. A format that a network refuses, and a network whose files FPERR_DATA does not have, are left
out, and named.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

import fperr
from fperr import data
from fperr.attribution.paired import PairedDifference, paired_difference
from fperr.errors import FperrError
from fperr.figures.attacks import ARITHMETICS, ATTACKED, IN_FLOAT8
from tests.benchmarks.evidence import STARTS, STEPS, subjects

IMAGES = 200
FOLDER = Path("out/format-outcomes")


def outcomes(
    name: str, model: torch.nn.Module, images: data.Images, radius: float, given: argparse.Namespace
) -> dict[str, pd.DataFrame]:
    """The attribution's frame in each format; exact arms in the first of them alone."""
    frames: dict[str, pd.DataFrame] = {}
    for format in given.formats:
        try:
            result = fperr.attribute(
                model, images.x, images.y, radius=radius, steps=given.steps, starts=given.starts,
                format=format, exact="none" if frames else "all", device=given.device,
                out=given.out / f"{name}-{format}-{given.steps}",
            )  # fmt: skip
        except FperrError as fault:
            tqdm.write(f"left out: {name} in {format} ({fault})")
            continue
        frames[format] = result.frame
    return frames


def paired(first: pd.DataFrame, column: str, second: pd.DataFrame, other: str) -> PairedDifference:
    """The paired difference of two columns, over the images that both frames judged."""
    both = first["is_judged"] & second["is_judged"]
    return paired_difference(first.loc[both, column], second.loc[both, other], 0.95)


def rows(name: str, frames: dict[str, pd.DataFrame]) -> list[dict[str, object]]:
    """A line for each format.

    N is what cross-entropy leaves in the format beyond what it leaves with exact gradients. As
    these are the same in all formats, its difference from the first format is cross-entropy's,
    image by image.
    """
    baseline, exact = next(iter(frames.items()))
    lines = []
    for format, frame in frames.items():
        error = paired(frame, "ce", exact, "exact_ce")
        changes = {
            loss: "" if frame is exact else str(paired(frame, loss, exact, loss))
            for loss in ("ce", "mifpe")
        }
        judged = frame[frame["is_judged"]]
        lines.append(
            {
                "network": f"{name}, {len(frame)}",
                "format": f"`{format}`",
                "CE leaves, % of the judged": f"{100 * judged['ce'].mean():.1f}",
                "N, points": str(error),
                "only without : only with rounding": f"{error.only_first} : {error.only_second}",
                f"N beside `{baseline}`": changes["ce"],
                "MIFPE leaves, % of the judged": f"{100 * judged['mifpe'].mean():.1f}",
                f"MIFPE beside `{baseline}`": changes["mifpe"],
                "not judged": len(frame) - len(judged),
            }
        )
    return lines


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", type=lambda text: text.split(","), default=list(ARITHMETICS))
    parser.add_argument("--networks", default=",".join([*ATTACKED, *IN_FLOAT8]))
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--starts", type=int, default=STARTS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=FOLDER)
    given = parser.parse_args()
    networks = subjects(given.networks.split(","), given.images)
    lines: list[dict[str, object]] = []
    for name in tqdm([n for n in given.networks.split(",") if n in networks], disable=None):
        lines += rows(name, outcomes(name, *networks[name], given))
        print(pd.DataFrame(lines).to_markdown(index=False), flush=True)


if __name__ == "__main__":
    main()
