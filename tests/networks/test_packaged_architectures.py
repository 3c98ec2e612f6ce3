"""Networks that other packages define: their gradients are those that float64 gives."""

import importlib.util

import pytest
import torch

import fperr
from fperr import exact
from tests.conftest import normal
from tests.makers.float64_gradient import gradient_in, gradient_in_float64, relative_differences
from tests.makers.packaged.untrained import CLASSES
from tests.makers.packaged_architectures import MEASURED, PACKAGED
from tests.makers.torchvision_schemas import define_missing_schemas

# float64 rounds 2**-29 times as much as float32, in the same operations; 2**10 is for the luck that
# either has
_OF_FLOAT32 = 2.0**-19

pytestmark = [
    pytest.mark.slow,
    # RobustBench's Swish
    pytest.mark.filterwarnings("ignore:'saved_variables' is deprecated:DeprecationWarning"),
    # a few samples of a few networks: seconds
    pytest.mark.filterwarnings("ignore:[0-9]+ samples? needs? balls:UserWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def torchvision_can_be_imported():
    define_missing_schemas()


def built(name):
    """The network and two inputs, or a skip that names the package that is not installed."""
    package = name.split(":")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    return PACKAGED[name]()


def differences_and_allowed(name, gradient, v):
    """From float64, relative to the norm, by networks of their own: some keep what they ran."""
    (first, x), (second, _) = built(name), built(name)
    in_float64 = gradient_in_float64(first, x, v)
    in_float32 = gradient_in(torch.float32, second, x, v)
    allowed = _OF_FLOAT32 * relative_differences(in_float32, in_float64)
    return relative_differences(gradient, in_float64), allowed


@pytest.mark.parametrize("name", PACKAGED)
def test_a_packaged_network_has_the_gradient_that_float64_has(name):
    model, x = built(name)
    v = normal(len(x), CLASSES)
    assert exact.capture(model, x).forward
    result = exact.gradient(model, x, v)
    assert set(result.certainty) <= {"agreed", "proved"}
    differences, allowed = differences_and_allowed(name, result.to_torch(), v)
    assert (differences <= allowed).all(), (differences, allowed)


def test_the_comparison_notices_a_change_of_a_weight_by_two_millionths():
    name = "timm:resnet10t"
    model, x = built(name)
    v = normal(len(x), CLASSES)
    with torch.no_grad():
        next(model.parameters()).mul_(1 + 2.0**-19)
    differences, allowed = differences_and_allowed(name, exact.gradient(model, x, v).to_torch(), v)
    assert (differences > allowed).all()


@pytest.mark.parametrize("name", MEASURED)
def test_a_packaged_network_is_measured_everywhere(name):
    model, x = built(name)
    report = fperr.measure(
        model, x[:1], losses=["ce", "mifpe"], formats=["float32"], progress=False
    )
    assert report.frame["reason"].isna().all()
    assert set(report.frame["certainty"]) <= {"agreed", "proved"}
