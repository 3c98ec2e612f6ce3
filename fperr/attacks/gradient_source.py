"""The gradient that an attack follows: in a floating-point format, or exact."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from fperr import pass_origin
from fperr.attacks.goal import Goal
from fperr.errors import ModelError, ReferenceNotCertifiedError
from fperr.exact.double_word import DoubleWords
from fperr.exact.double_word.comparisons import order_undecided
from fperr.exact.double_word_network import BatchedNetwork, to_mpmath
from fperr.exact.engines.vectors import DoubleWordVectors
from fperr.exact.graph import probe
from fperr.exact.logit_direction import KINDS, is_order_unclear, logit_direction
from fperr.exact.logit_gradient import logit_gradient
from fperr.exact.monitored_network import MonitoredNetwork
from fperr.formats import Format, of_dtype
from fperr.losses import Context
from fperr.networks.exact_gradient import LossAtSample
from fperr.networks.exact_network import ExactNetwork, NoExactSample
from fperr.networks.in_format import FormatNetwork

_RELATIVE_ERROR = 2.0**-44  # in norm, proved where pairs of float64 are used
_DIGITS = 14  # that balls prove where pairs of float64 do not prove 44 bits: 46 bits
_LOG2_AGREED_ERROR = -29.0  # largest estimated relative error of float64's gradients, log2
_OPEN_SIGNS = 2.0**-20  # largest share of ||g||_1 of the components whose signs are open
_PRODUCT_BITS = 106  # accuracy of the products of matrices: all that a pair of float64 holds


class GradientSource(ABC):
    """The logits and gradients of a network at points x."""

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """The logits (batch, K) by which success is judged."""

    @abstractmethod
    def running(self) -> AbstractContextManager[object]:
        """A context in which `logits_and_gradient` computes as the format asks.

        Entered once for all steps, because entering takes time.
        """

    @abstractmethod
    def logits_and_gradient(self, x: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        """The logits (batch, K), and the gradient of the goal's objective, (batch, *shape)."""


class FloatSource(GradientSource):
    """The network in a format, as it would be attacked there.

    Args:
        model: Model to logits (batch, K), in evaluation mode.
        fmt: Format of the network; x may have another dtype, and is rounded to it.
    """

    def __init__(self, model: nn.Module, fmt: Format) -> None:
        self._network = FormatNetwork(model, fmt, autocast=False)

    def logits(self, x: Tensor) -> Tensor:
        """See `GradientSource`."""
        with pass_origin.attack_passes():
            return self._network.logits(x)

    def running(self) -> AbstractContextManager[object]:
        """See `GradientSource`."""
        return self._network.running()

    def logits_and_gradient(self, x: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        """See `GradientSource`.

        Raises:
            ModelError: no gradient reaches x, or the model is in training mode now.
        """
        self._network.check_mode()
        with torch.enable_grad(), pass_origin.attack_passes():
            leaf = self._network.cast(x).detach().requires_grad_()
            logits = self._network.model(leaf)
            if not logits.requires_grad:
                raise ModelError(
                    "no gradient reaches the input: the model detaches its graph, or runs under "
                    "torch.no_grad(); expected logits that depend on x"
                )
            (gradient,) = torch.autograd.grad(goal.objective(logits), leaf)
        return logits.detach(), gradient


class ExactSource(GradientSource):
    """Exact gradients at exact logits; success is judged by the network in the input's format.

    A ladder: float64 where float32 agrees and the signs are decided; else pairs of float64 whose
    bound proves a relative error of 2^-44; balls for the samples where it does not. PyTorch's own
    float64 is compared at the inputs, and wherever pairs of float64 are used.

    Args:
        model: Model to logits (batch, K), in evaluation mode.
        x: (batch, *shape), the inputs.

    Raises:
        ContradictedError: PyTorch in float64 computes something else at the inputs.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        float_network = FormatNetwork(model, of_dtype(x.dtype), autocast=False)
        self._float_source = FloatSource(model, of_dtype(x.dtype))
        capture = float_network.capture(x[:1])
        self._float64 = MonitoredNetwork(capture, x.device)
        self._network = BatchedNetwork(capture, _PRODUCT_BITS, x.device)
        self._balls = ExactNetwork(float_network, x[:1], _DIGITS, "ball", by_rows=False)
        self._vectors = DoubleWordVectors(x.device)
        classes = capture.shapes[capture.results[0].name][1]
        self._network.audited_gradient(x, probe(x.new_empty((len(x), classes)).double()))

    def logits(self, x: Tensor) -> Tensor:
        """See `GradientSource`."""
        return self._float_source.logits(x)

    def running(self) -> AbstractContextManager[object]:
        """See `GradientSource`."""
        return self._float_source.running()

    def logits_and_gradient(self, x: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        """See `GradientSource`: a gradient in float64, each sample's times some positive number.

        NaN for samples whose logits are not finite.

        Raises:
            ContradictedError: PyTorch in float64 computes something else.
        """
        logits = self._float_source.logits(x)
        _, _, is_finite = goal.verdict(logits)
        judged = torch.nonzero(is_finite)[:, 0]  # others have no exact logits either
        gradient = torch.full(
            (len(x), x[0].numel()), torch.nan, dtype=torch.float64, device=x.device
        )
        if goal.loss.kind in KINDS and len(judged):
            agreed, is_decided = self._agreed(x[judged], goal, judged)
            gradient[judged[is_decided]] = agreed[is_decided]
            judged = judged[~is_decided]
        for piece in self._network.pieces(len(judged)):
            samples = judged[piece]
            gradient[samples] = self._gradients_of_piece(x[samples], goal, samples.tolist())
        return logits, gradient.reshape(x.shape)

    def _agreed(self, x: Tensor, goal: Goal, samples: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients (len(x), entries) by float64, and where float32 agrees, and on the signs.

        Args:
            x: Points of the judged samples.
            goal: Goal of the attack.
            samples: Numbers of these samples.
        """
        unclear = torch.zeros(len(x), dtype=torch.bool, device=x.device)

        def directions(rows: Tensor, z: Tensor, leading: Tensor) -> Tensor:
            numbers = samples[rows]
            label, is_targeted = goal.label[numbers], goal.targets is not None
            context = Context(is_targeted, goal.y[numbers])
            c = goal.loss.scale(leading, label, context).c
            unclear[rows] = is_order_unclear(goal.loss.kind, leading, label)
            return logit_direction(
                goal.loss.kind, z, leading, label, c.to(torch.float64), targeted=is_targeted
            )

        found = self._float64.gradient(x, directions)
        size = torch.linalg.vector_norm(found.gradient, dim=1)
        tolerance = size * torch.exp2(found.log2_error)
        magnitudes = found.gradient.abs()
        open_signs = torch.where(magnitudes <= tolerance[:, None], magnitudes, 0.0).sum(1)
        are_signs_decided = open_signs <= _OPEN_SIGNS * magnitudes.sum(1)
        is_close = found.log2_error <= _LOG2_AGREED_ERROR
        return found.gradient, is_close & are_signs_decided & ~unclear & (size > 0)

    def _gradients_of_piece(self, x: Tensor, goal: Goal, samples: Sequence[int]) -> Tensor:
        """The gradients (len(x), entries) in float64 of the samples with these numbers."""
        forward = self._network.forward(x)
        logits = forward.run.logits
        undecided = forward.undecided | order_undecided(logits)
        z = to_mpmath(logits, self._vectors.context).reshape(len(x), -1)
        logit_gradients = []
        for i, logit_radius in enumerate(logits.radius.tolist()):
            loss = self._loss_at_sample(z[i], goal, samples[i])
            v = logit_gradient(
                loss.kind, self._vectors.context, list(z[i]), loss.label, c=loss.c,
                targeted=loss.targeted, y=loss.y,
            )  # fmt: skip
            # a logit is off by the radius at most, a difference by twice that, a ratio of two
            # probabilities by four times it in the exponent
            is_accurate = v is not None and 4 * float(loss.c) * logit_radius < _RELATIVE_ERROR
            undecided[i] |= not is_accurate or goal.loss.kind == "dlr"
            numbers = v if v is not None and is_accurate else [0] * z.shape[1]
            logit_gradients.append(self._vectors.array(numbers).words)
        high, low, radius = (
            torch.cat([getattr(words, name) for words in logit_gradients])
            for name in ("high", "low", "radius")
        )
        g, undecided_backward = self._network.pullback(
            forward.run.saved_values, DoubleWords(high, low, radius, None)
        )
        length = torch.linalg.vector_norm(g.high.flatten(1), dim=1)
        undecided |= undecided_backward | ~(g.radius <= length * _RELATIVE_ERROR)
        gradient = (g.high + g.low).flatten(1)
        self._network.audits(forward, x, high[:, 0], g, ~undecided, samples[0])
        for i in torch.nonzero(undecided).flatten().tolist():
            gradient[i] = self._gradient_in_balls(x[i : i + 1], goal, samples[i])
        return gradient

    def _loss_at_sample(self, z: Any, goal: Goal, i: int) -> LossAtSample:
        """The loss of sample i with the scale that float64 computes for its exact logits."""
        logits = torch.tensor([[float(value) for value in z]], dtype=torch.float64)
        row, is_targeted = slice(i, i + 1), goal.targets is not None
        label, context = goal.label[row].cpu(), Context(is_targeted, goal.y[row].cpu())
        c = self._vectors.context.mpf(float(goal.loss.scale(logits, label, context).c))
        return LossAtSample(goal.loss.kind, int(label), c, is_targeted, int(goal.y[i]))

    def _gradient_in_balls(self, x: Tensor, goal: Goal, i: int) -> Tensor:
        """The gradient (entries,) in float64 of sample i, x (1, *shape).

        Raises:
            ReferenceNotCertifiedError: not even balls prove it.
        """
        sample = next(iter(self._balls.samples(x, lambda: None)))
        if isinstance(sample, NoExactSample):
            raise ReferenceNotCertifiedError(
                f"sample {i}: its exact gradient cannot be proved: {sample.reason}"
            )
        exact = sample.gradient(self._loss_at_sample(sample.z, goal, i))
        if exact is None:  # undefined, as DLR's where its denominator is 0
            return torch.zeros(x[0].numel(), dtype=torch.float64, device=x.device)
        values, _ = self._balls.vectors.to_scaled(exact.gradient)
        return values.reshape(-1).to(x.device)
