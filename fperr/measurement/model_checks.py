"""Is the model a function of one sample? Randomness and batch statistics are refused."""

from torch import Tensor

from fperr.exact.function_of_sample import check_function_of_sample as check_logits
from fperr.exact.function_of_sample import check_repeatable
from fperr.formats import of_dtype
from fperr.measurement.network import FormatNetwork


def check_function_of_sample(network: FormatNetwork, x: Tensor) -> None:
    """Run the model in its own dtype twice at equal shape, and samples alone and in company.

    Args:
        network: the model in its own dtype.
        x: (n, *shape), the batch as it will be run.

    Raises:
        ModelError: two equal runs differ, or a sample's logits depend on its batch.
    """
    check_repeatable(network.logits, x)  # what is random cannot be captured
    depth = network.capture(x[:1]).depth
    check_logits(network.logits, x, depth, of_dtype(network.dtype).unit_roundoff)
