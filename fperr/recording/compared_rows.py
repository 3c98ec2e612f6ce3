"""The rows of an attack's batch that are compared with exact gradients, and their reruns."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fperr.emulated_kernels import Float8Layers, emulated, float8_layers
from fperr.exact.replays import without_autocast
from fperr.networks.in_format import copied, device_and_dtype
from fperr.recording.hooks import BackwardPass, ForwardPass


@dataclass(frozen=True, slots=True)
class ComparedRows:
    """The rows of a forward pass whose gradients are compared with exact ones.

    Attributes:
        x: (batch, *shape), the complete batch, a copy: a rerun needs all of it.
        rows: Numbers of the rows of the batch that are compared.
        samples: Number of the sample that each of those rows is.
    """

    x: Tensor
    rows: list[int]
    samples: list[int]


class Rerun:
    """Runs the network again at the attack's points, to see whether it alone gives the gradient.

    Args:
        model: Copy of the model without hooks, in evaluation mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._dtype = model, device_and_dtype(model)[1]
        self._copies: dict[torch.dtype, nn.Module] = {}

    def equality(
        self, compared: ComparedRows, backward: BackwardPass
    ) -> tuple[list[bool] | None, list[bool] | None]:
        """Compare the attack's gradients and logits with those of the network alone, bit by bit.

        Where the gradient differs and the logits do not, the attack's objective has terms beside
        the network, or its kernels vary; where the logits differ, the model is another one. The
        network runs as in the attack: in the dtype of its input, under its autocast, by the kernels
        that were emulated.

        Returns:
            Whether the gradients are equal, and whether the logits are, each for every compared
            row; None where the network could not be run so.
        """
        gradient, forward = backward.gradient, backward.forward
        z, autocast = forward.logits, forward.autocast
        model = self._in_dtype(self._dtype if autocast is not None else compared.x.dtype)
        device = compared.x.device.type
        # without the cache, whose casts of weights would be one gradient's and another's
        mode = torch.autocast(
            device, dtype=autocast, enabled=autocast is not None, cache_enabled=False
        )
        try:
            with torch.enable_grad():
                leaf = compared.x.clone().requires_grad_()
                with emulated(forward.emulated, layers=self._layers(model, forward)):
                    with mode:
                        z_again = model(leaf)
                    if z_again.dtype != z.dtype:
                        return None, None
                    with without_autocast():
                        (gradient_again,) = torch.autograd.grad(
                            z_again, leaf, backward.logit_gradient
                        )
        except RuntimeError:  # no such operation in that dtype, or no such cast
            return None, None
        is_equal = (z_again == z) | (z_again.isnan() & z.isnan())
        are_logits_equal = is_equal.all(1)[compared.rows].tolist()
        if gradient is None:
            return None, are_logits_equal
        are_equal = [torch.equal(gradient_again[row], gradient[row]) for row in compared.rows]
        return are_equal, are_logits_equal

    @staticmethod
    def _layers(model: nn.Module, forward: ForwardPass) -> Float8Layers:
        fmt = forward.emulated
        has_float8 = fmt is not None and fmt.emulation and fmt.emulation.has_float8_layers
        return float8_layers(model) if has_float8 else Float8Layers()

    def _in_dtype(self, dtype: torch.dtype) -> nn.Module:
        """The model, or a copy of it in another dtype: an attack may run one."""
        if dtype == self._dtype:
            return self._model
        if dtype not in self._copies:
            self._copies[dtype] = copied(self._model).to(dtype)
        return self._copies[dtype]
