"""A model whose logits are divided by their margin, for code whose loss cannot be reached."""

import torch
from torch import Tensor, nn

from fperr.formats import of_dtype
from fperr.losses.arguments import check_logits_type, check_number
from fperr.losses.attack_loss import first_order_only
from fperr.theory.scaling import factor


class Rescaled(nn.Module):
    """A model with the logits c z, c = T/Delta: MIFPE for an attack that hard-codes cross-entropy.

    Delta, the margin between the two largest logits of a sample, counts as a constant, so that a
    second derivative is refused. Predictions stay what they are; probabilities, and values of
    losses, do not.

    Args:
        model: Module that maps (batch, *shape) to logits (batch, K).
        T: Margin after rescaling, positive.

    Raises:
        TypeError, ValueError: T is no positive number, or the model returns no logits (batch, K).

    Source: Yu and Xu, CVPR 2023.

    Example:
        >>> import fperr, torch
        >>> from fperr import zoo
        >>> model = fperr.Rescaled(zoo.load("fashion_saturated"))
        >>> z = model(torch.rand(2, 1, 28, 28)).topk(2).values
        >>> bool((z[:, 0] - z[:, 1] - 1).abs().max() < 1e-3)
        True
    """

    def __init__(self, model: nn.Module, T: float = 1.0) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"model must be a torch.nn.Module, got {type(model).__name__}: give the module"
            )
        self.model, self.T = model, check_number("T", T, least=0, is_above=True)
        self.training = model.training  # train() would also change frozen parts of the model

    def forward(self, x: Tensor) -> Tensor:
        """The rescaled logits (batch, K).

        Args:
            x: Inputs (batch, *shape).
        """
        z: Tensor = self.model(x)
        check_logits_type(z)
        T = torch.full(z.shape[:1], self.T, dtype=torch.float64, device=z.device)
        with torch.no_grad():
            c = factor(z, T, of_dtype(z.dtype))
        return c[:, None] * first_order_only(z, "fperr.Rescaled(model)")
