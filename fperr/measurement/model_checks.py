"""Is the model a function of one sample? Randomness and batch statistics are refused."""

import math

import torch
from torch import Tensor

from fperr.errors import ModelError
from fperr.formats import of_dtype
from fperr.measurement.network import FormatNetwork

_PROBED_SAMPLES = 8


def check_function_of_sample(network: FormatNetwork, x: Tensor) -> None:
    """Run the model twice at equal shape, and samples alone and in company.

    Args:
        network: the model in its own dtype.
        x: (n, *shape), the batch as it will be run.

    Raises:
        ModelError: two equal runs differ; or a sample's logits depend on its batch by more than
            64 u sqrt(depth) in relative norm, depth the number of convolutions and matrix
            products: kernels that add in another order stay below that.
    """
    first, second = network.logits(x), network.logits(x)
    if not torch.equal(first.nan_to_num(), second.nan_to_num()):
        raise ModelError(
            "two runs of the model on the same batch differ: it depends on randomness. "
            "Remove it, or make it a function of the input"
        )
    unit_roundoff = of_dtype(network.dtype).unit_roundoff
    allowed = 64 * unit_roundoff * math.sqrt(max(1, network.capture(x[:1]).depth))
    company = x if len(x) > 1 else torch.cat([x, 0.5 * x])
    together = network.logits(company)
    for i in range(min(len(x), _PROBED_SAMPLES)):
        alone = network.logits(x[i : i + 1])[0].double()
        difference = float((together[i].double() - alone).norm() / alone.norm())
        if difference > allowed:
            raise ModelError(
                f"the logits of sample {i} differ by {difference:.2g} in relative norm between a "
                f"batch of {len(company)} and a batch of 1, more than the {allowed:.2g} that "
                "rounding explains: the model depends on the batch. Use running statistics"
            )
