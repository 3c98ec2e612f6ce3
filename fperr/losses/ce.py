"""Cross-entropy, which MIFPE and T-MIFPE rescale."""

from torch import Tensor
from torch.nn.functional import cross_entropy

from fperr.formats import of_dtype
from fperr.losses.base import Context, Loss
from fperr.theory.scaling import factor


def scaled_cross_entropy(loss: Loss, logits: Tensor, label: Tensor, context: Context) -> Tensor:
    """Cross-entropy of c (z - shift), with the loss's detached scale c; c = 1 where it has none."""
    z = logits
    if loss.is_shifted:
        z = z - logits.detach().amax(1, keepdim=True)
    if loss.is_scaled:
        fmt = of_dtype(logits.dtype)
        T = loss.temperature(logits, label, fmt, context.loss_scale)
        z = factor(logits, T, fmt, context.loss_scale)[:, None] * z
    values = cross_entropy(z, label, reduction="none")
    return -values if context.targeted else values


CE = Loss(
    "ce",
    "cross_entropy",
    scaled_cross_entropy,
    "CE",
    "#0173b2",
    full_name="Cross-entropy",
)
