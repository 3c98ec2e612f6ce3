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
from fperr.exact.double_word.comparisons import order_in_doubt
from fperr.exact.double_word_network import BatchedNetwork, BatchRun, to_mpmath
from fperr.exact.engines.vectors import DoubleWordVectors
from fperr.exact.logit_gradient import logit_gradient
from fperr.formats import Format, of_dtype
from fperr.losses.registry import Context
from fperr.networks.exactly import ExactNetwork, LossAtSample, NoExactSample
from fperr.networks.in_format import FormatNetwork

_SMALL = 2.0**-44  # relative error of the exact gradient
_DIGITS = 14
_WORKING = 106


class Source(ABC):
    """Logits and gradients at points x."""

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """(batch, K), by which success is judged."""

    @abstractmethod
    def running(self) -> AbstractContextManager[object]:
        """Inside, `both` computes as the format asks; entered once, because that takes time."""

    @abstractmethod
    def both(self, x: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        """Logits, and the gradient of the goal's objective, like x in shape."""


class FloatSource(Source):
    """The network in a format, as it would be attacked there.

    Args:
        model: in evaluation mode.
        fmt: the format; its dtype need not be that of x, which is rounded to it.
    """

    def __init__(self, model: nn.Module, fmt: Format) -> None:
        self._network = FormatNetwork(model, fmt, autocast=False)

    def logits(self, x: Tensor) -> Tensor:
        """See `Source`."""
        with pass_origin.attack_passes():
            return self._network.logits(x)

    def running(self) -> AbstractContextManager[object]:
        """See `Source`."""
        return self._network.running()

    def both(self, x: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        """See `Source`.

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


class ExactSource(Source):
    """Exact gradients at exact logits; success is judged by the network in the input's format.

    Pairs of float64 whose bound proves 2^-44; balls for the samples where it does not.

    Args:
        model: in evaluation mode.
        x: (batch, *shape), the shape of the inputs.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        own = FormatNetwork(model, of_dtype(x.dtype), autocast=False)
        self._own = FloatSource(model, of_dtype(x.dtype))
        self._network = BatchedNetwork(own.capture(x[:1]), _WORKING, x.device)
        self._balls = ExactNetwork(own, x[:1], _DIGITS, "ball", by_rows=False)
        self._vectors = DoubleWordVectors(x.device)

    def logits(self, x: Tensor) -> Tensor:
        """See `Source`."""
        return self._own.logits(x)

    def running(self) -> AbstractContextManager[object]:
        """See `Source`."""
        return self._own.running()

    def both(self, x: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        """See `Source`: a gradient in float64, each sample's times some power of two.

        Raises:
            ContradictedError: PyTorch in float64 computes something else.
        """
        logits = self._own.logits(x)
        _, _, finite = goal.reached(logits)
        judged = torch.nonzero(finite)[:, 0]  # others have no exact logits either
        gradient = torch.full(
            (len(x), x[0].numel()), torch.nan, dtype=torch.float64, device=x.device
        )
        for piece in self._network.pieces(len(judged)):
            samples = judged[piece]
            gradient[samples] = self._piece(x[samples], goal, samples.tolist())
        return logits, gradient.reshape(x.shape)

    def _piece(self, x: Tensor, goal: Goal, samples: Sequence[int]) -> Tensor:
        self._network.arithmetic.forget_doubts()
        forward = self._network.forward(x).run
        doubt = order_in_doubt(forward.logits)
        z = to_mpmath(forward.logits, self._vectors.context).reshape(len(x), -1)
        parts = []
        for i, radius in enumerate(forward.logits.radius.tolist()):
            asked = self._asked(z[i], goal, samples[i])
            v = logit_gradient(
                asked.kind, self._vectors.context, list(z[i]), asked.label, c=asked.c,
                targeted=asked.targeted, y=asked.y,
            )  # fmt: skip
            # a logit is off by the radius at most, a difference by twice that, a ratio of two
            # probabilities by four times it in the exponent
            known = v is not None and 4 * float(asked.c) * radius < _SMALL
            doubt[i] |= not known or goal.loss.kind == "dlr"
            parts.append(self._vectors.array(v if known else [0] * z.shape[1]).words)
        high, low, radius = (
            torch.cat([getattr(p, name) for p in parts]) for name in ("high", "low", "radius")
        )
        g = self._network.pullback(forward.saved_values, DoubleWords(high, low, radius, None))
        length = torch.linalg.vector_norm(g.high.flatten(1), dim=1)
        doubt |= self._network.in_doubt(len(x)) | ~(g.radius <= length * _SMALL)
        gradient = (g.high + g.low).flatten(1)
        batch = BatchRun(forward, len(x))
        self._network.audits(batch, x, high[:, 0], g, ~doubt, samples[0])
        for i in torch.nonzero(doubt).flatten().tolist():
            gradient[i] = self._by_balls(x[i : i + 1], goal, samples[i])
        return gradient

    def _asked(self, z: Any, goal: Goal, i: int) -> LossAtSample:
        """The loss of sample i with the scale that float64 computes for its exact logits."""
        logits = torch.tensor([[float(value) for value in z]], dtype=torch.float64)
        one = slice(i, i + 1)
        label, context = goal.label[one].cpu(), Context(goal.target is not None, goal.y[one].cpu())
        c = self._vectors.context.mpf(float(goal.loss.scale(logits, label, context).c))
        return LossAtSample(goal.loss.kind, int(label), c, goal.target is not None, int(goal.y[i]))

    def _by_balls(self, x: Tensor, goal: Goal, i: int) -> Tensor:
        sample = next(iter(self._balls.samples(x, lambda: None)))
        if isinstance(sample, NoExactSample):
            raise ReferenceNotCertifiedError(
                f"sample {i}: its exact gradient cannot be proved: {sample.reason}"
            )
        found = sample.gradient(self._asked(sample.z, goal, i))
        if found is None:  # undefined, as DLR's where its denominator is 0
            return torch.zeros(x[0].numel(), dtype=torch.float64, device=x.device)
        values, _ = self._balls.vectors.to_scaled(found.gradient)
        return values.reshape(-1).to(x.device)
