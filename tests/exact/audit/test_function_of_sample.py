"""Whether logits depend on their batch, told from roundings that the model makes larger."""

import pytest
import torch

from fperr.errors import ModelError
from fperr.exact.audit.function_of_sample import check_function_of_sample

U = 2.0**-24
X = 1 + torch.arange(1, 13).reshape(3, 4) / 1000


def logits(amplified, shift):
    """Differences to 1, or the numbers themselves; moved by `shift` wherever there is a batch."""
    return lambda x: (x - 1 if amplified else x) + shift * (len(x) > 1)


def test_roundings_that_the_model_amplifies_are_not_taken_for_a_batch():
    # logits of about 0.01 move by 2 u with the input: 200 times their own unit roundoff
    shift = 0.01 * 64 * U * 20
    check_function_of_sample(logits(True, shift), X, 1, U)
    with pytest.raises(ModelError, match="depend"):  # a model that amplifies nothing
        check_function_of_sample(lambda x: logits(False, 100 * shift)(x), X, 1, U)


def test_a_batch_that_matters_shows_in_a_model_that_amplifies():
    with pytest.raises(ModelError, match="the model depends on the batch"):
        check_function_of_sample(logits(True, 0.001), X, 1, U)
