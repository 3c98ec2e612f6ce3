"""GAMA: the margin of the probabilities, and their distance from the clean ones."""

from torch import Tensor

from fperr.losses.base import Context, Loss
from fperr.losses.classes import best_other, gather


def guided_margin(loss: Loss, logits: Tensor, label: Tensor, context: Context) -> Tensor:
    """GAMA (Sriramanan et al., NeurIPS 2020), anchored on the clean image as in the paper.

    max_{i != y} p_i - p_y (targeted: p_t - max_{i != t} p_i) + weight |p - p_clean|_2^2.
    """
    del loss
    if context.clean is None:
        raise ValueError("'gama' needs the probabilities at the clean inputs: use fperr.attack")
    p = logits.softmax(1)
    gap = gather(p, best_other(logits, label)) - gather(p, label)
    distance = (p - context.clean.to(p.dtype)).square().sum(1)
    return (-gap if context.targeted else gap) + context.weight * distance


GAMA = Loss("gama", "gama", guided_margin, "GAMA", "#56b4e9", weight=50.0)
