"""Networks that are captured, and weights that are prepared, once for many calls."""

from functools import cached_property

import torch
from torch import Tensor, nn

from fperr import checks
from fperr.caller_state import in_neutral_state
from fperr.errors import StaleCaptureError
from fperr.exact.adaptive_precision import AdaptivePrecision
from fperr.exact.double_word_network import BatchedNetwork
from fperr.exact.graph import Capture, capture, digest_of
from fperr.exact.monitored_network import MonitoredNetwork


class PreparedNetwork:
    """A captured network in each arithmetic, made when it is first used.

    Args:
        capture: Network, captured for a single sample.
        device: Device of the float arithmetics.
    """

    def __init__(self, capture: Capture, device: torch.device) -> None:
        self.capture, self._device = capture, device
        self._double_words: dict[tuple[int, bool], BatchedNetwork] = {}
        self._balls: dict[tuple[int, int], AdaptivePrecision] = {}

    @cached_property
    def monitored(self) -> MonitoredNetwork:
        """The network in float64, beside float32."""
        return MonitoredNetwork(self.capture, self._device)

    def double_words(self, bits: int, *, is_control: bool = False) -> BatchedNetwork:
        """The network in pairs of float64; arguments as for `BatchedNetwork`."""
        key = bits, is_control
        if key not in self._double_words:
            self._double_words[key] = BatchedNetwork(
                self.capture, bits, self._device, is_control=is_control
            )
        return self._double_words[key]

    def balls(self, bits: int, largest_bits: int) -> AdaptivePrecision:
        """The network in balls; arguments as for `AdaptivePrecision`."""
        key = bits, largest_bits
        if key not in self._balls:
            self._balls[key] = AdaptivePrecision(self.capture, bits, largest_bits)
        return self._balls[key]


class PreparedModel:
    """A model whose captures and prepared weights serve many calls of `fperr.exact.gradient`.

    Made by `prepare`. It holds copies of the weights in several arithmetics: some ten times the
    model's memory.

    Args:
        model: Module in evaluation mode.

    Attributes:
        model: The module.

    Example:
        >>> import torch
        >>> from fperr import exact
        >>> prepared = exact.prepare(torch.nn.Linear(4, 3).eval())
        >>> type(prepared.model).__name__
        'Linear'
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._digest = _digest_of(model)
        self._networks: dict[object, PreparedNetwork] = {}

    def network_for(self, x: Tensor) -> PreparedNetwork:
        """The network for inputs like x, captured when a shape is first seen.

        Args:
            x: Inputs (batch, *shape), in the model's dtype.

        Raises:
            StaleCaptureError: The model is not as it was when it was prepared.
            ModelError, UnsupportedOperationError, CaptureAuditError: As `fperr.exact.capture`.
        """
        if _digest_of(self.model) != self._digest:
            raise StaleCaptureError(
                "parameters, buffers or modules of the model were changed after it was prepared: "
                "prepare it again, with exact.prepare(model)"
            )
        key = x.shape[1:], x.dtype, x.device
        if key not in self._networks:
            self._networks[key] = PreparedNetwork(capture(self.model, x[:1]), x.device)
        return self._networks[key]


@in_neutral_state
def prepare(model: nn.Module) -> PreparedModel:
    """Prepare a model for many exact gradients: captures and weights are kept between calls.

    The object is given to `fperr.exact.gradient` in place of the model. Before each use, the bytes
    of all parameters and buffers, the modules and their modes are compared with those that were
    prepared: a change, however it was made, is an error.

    Args:
        model: Module in evaluation mode that maps (batch, *shape) to logits (batch, K).

    Raises:
        TypeError, ValueError: The model is no usable module; says what to do.

    Example:
        >>> import torch
        >>> from fperr import exact
        >>> prepared = exact.prepare(torch.nn.Linear(4, 3).eval())
        >>> x, v = torch.rand(2, 4), torch.eye(3)[:2]
        >>> exact.gradient(prepared, x, v).certainty
        ('agreed', 'agreed')
    """
    return PreparedModel(checks.model("model", model))


def _digest_of(model: nn.Module) -> str:
    """A digest of all parameters and buffers, and of the modules and their modes."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    modules = [
        f"{name} {type(module).__module__}.{type(module).__qualname__} {module.training}"
        for name, module in model.named_modules()
    ]
    return "\n".join([digest_of(tensors), *modules])
