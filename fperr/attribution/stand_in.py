"""How far stable cross-entropy stands in for exact gradients of cross-entropy."""

from dataclasses import dataclass

import numpy as np

from fperr.shares import clopper_pearson_limit

RANDOM_IMAGES = 30
_MOST_STARTS = 0.05


@dataclass(frozen=True, slots=True)
class StandIn:
    """A comparison of stable cross-entropy in the format with exact gradients, on some images.

    Attributes:
        random: Number of images taken at random from those where cross-entropy and stable
            cross-entropy have the same outcome.
        random_differing: Number of those where exact gradients have another outcome than stable
            cross-entropy.
        discordant: Number of images where the two have different outcomes; all are compared.
        discordant_differing: Number of those where exact gradients have another outcome.
        differing_starts: Share of the starts of these images whose outcomes differ, at least: the
            mean difference of the shares that withstand.
        limit: Upper 95 % limit for the share of concordant images that differ.
    """

    random: int
    random_differing: int
    discordant: int
    discordant_differing: int
    differing_starts: float
    limit: float

    @property
    def is_upheld(self) -> bool:
        """Whether no random image, and at most one in twenty starts of the others, differs."""
        return not self.random_differing and self.differing_starts <= _MOST_STARTS

    @property
    def sentence(self) -> str:
        """The comparison in words."""
        return (
            "Exact gradients and stable cross-entropy have other outcomes on "
            f"{self.random_differing} of {self.random} random images where cross-entropy and it "
            f"agree (at most {100 * self.limit:.0f} % of all those), and on "
            f"{self.discordant_differing} of the {self.discordant} where they do not "
            f"({100 * self.differing_starts:.0f} % of their starts)."
        )


def chosen_images(ce: np.ndarray, stable: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The discordant images, and random ones of the concordant, as numbers of images.

    Args:
        ce: Outcomes (n,) of cross-entropy; NaN where an image is not judged.
        stable: Outcomes (n,) of stable cross-entropy.
        seed: Seed of the choice.
    """
    is_judged = ~np.isnan(ce) & ~np.isnan(stable)
    discordant = np.nonzero(is_judged & (ce != stable))[0]
    concordant = np.nonzero(is_judged & (ce == stable))[0]
    generator = np.random.default_rng(seed)
    number = min(RANDOM_IMAGES, len(concordant))
    return discordant, np.sort(generator.choice(concordant, number, replace=False))


def compared(
    stable: np.ndarray, exact: np.ndarray, discordant: np.ndarray, random: np.ndarray
) -> StandIn:
    """Compare the outcomes on both sets of images; unjudged exact outcomes count as differing.

    Args:
        stable: Outcomes (n,) of stable cross-entropy.
        exact: Outcomes (n,) on exact gradients.
        discordant: Numbers of images where cross-entropy and stable cross-entropy differ.
        random: Numbers of images at random from the others.
    """
    differing = [int((stable[images] != exact[images]).sum()) for images in (random, discordant)]
    distances = np.abs(stable - exact)[discordant]
    return StandIn(
        len(random),
        differing[0],
        len(discordant),
        differing[1],
        float(np.nan_to_num(distances, nan=1.0).mean()) if len(discordant) else 0.0,
        clopper_pearson_limit(differing[0], len(random)),
    )
