"""Architectures that are attacked: their exact gradients beside float64's, and measurements."""

import re
from pathlib import Path

import pytest
import torch

import fperr
from fperr import exact
from fperr.exact.operations import OPERATIONS
from tests.conftest import slow_except
from tests.makers.architectures import ARCHITECTURES, MISSING, REFUSED
from tests.makers.float64_gradient import gradient_in_float64, relative_differences
from tests.makers.packaged_architectures import PACKAGED
from tests.makers.tried_architectures import TRIED

FAST = (
    "adaptive pooling, maximum", "replicated padding", "ECG, Conv1d", "GroupSort MLP",
    "SIREN", "Maxout", "text CNN", "message passing", "radial basis functions", "WGAN critic",
    "prototypical net, distance", "policy, tanh", "MeanSparse", "k winners take all",
    "spectral norm", "weight norm, old", "Cayley", "resize, nearest", "ensemble, vmap", "bfloat16",
    "parametric shifted SiLU",
)  # fmt: skip
MEASURED_FAST = (
    "replicated padding", "GroupSort MLP", "SIREN", "Maxout", "text CNN", "radial basis functions",
    "prototypical net, distance", "policy, tanh", "weight norm, old", "Cayley",
    "ConvNeXt", "DGCNN", "autocast inside",
)  # fmt: skip
# PyTorch's CPU kernels for these have no float16, or no float64
NO_KERNELS = {
    **dict.fromkeys(
        (
            "video, Conv3d", "RMS norm, LRN, PReLU, GLU", "prototypical net, distance",
            "prototypical net, square", "resize, antialiased", "Cayley", "autocast inside",
            "VQ-VAE encoder",
        ),
        ("float16",),
    ),
    "quantised by channel": ("float16", "float64"),
}  # fmt: skip
OF_PROBABILITIES = {
    "ensemble, DVERGE", "ensemble, mean of softmax", "ensemble, logsumexp", "MixedNUTS",
}  # fmt: skip

pytestmark = [
    # PyTorch multiplies one sample by a matrix in another way than a batch
    pytest.mark.filterwarnings("ignore:the graph for a batch:UserWarning"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning"),
]


def gradients(make):
    """The exact gradient, autograd's in float64, and how far they may be apart, by sample.

    Each may be off by what fperr says of it: the exact one by its own error, float64's by its
    estimate for the audit.
    """
    model, x = make()
    with torch.no_grad():
        logits = model(x)
    v = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).to(logits.dtype)
    result = exact.gradient(model, x, v)
    assert set(result.certainty) <= {"agreed", "proved"}
    allowed = [
        2.0**error + audit.estimate
        for error, audit in zip(result.log2_errors, result.audits, strict=True)
    ]
    computed = gradient_in_float64(model, x, v)
    return result.to_torch(), computed, torch.tensor(allowed, dtype=torch.float64)


def assert_same(computed, reference, allowed):
    differences = relative_differences(computed, reference)
    assert (differences <= allowed).all(), f"{differences} apart, {allowed} allowed"


def check_gradient(make):
    reference, computed, allowed = gradients(make)
    assert (allowed < 2.0**-20).all()  # an error of float32's size would be seen
    assert_same(computed, reference, allowed)


@pytest.mark.parametrize("name", slow_except(ARCHITECTURES, FAST))
def test_the_gradient_is_that_of_float64(name):
    check_gradient(ARCHITECTURES[name])


@pytest.mark.parametrize("name", ["text CNN", "bfloat16", "Cayley"])
@pytest.mark.parametrize("sample", [0, 1])
def test_one_wrong_entry_is_noticed(name, sample):
    """Negative control."""
    reference, computed, allowed = gradients(ARCHITECTURES[name])
    assert_same(computed, reference, allowed)
    size = reference[sample].norm()
    for factor in (2, -2):
        wrong = computed.clone(memory_format=torch.contiguous_format)
        wrong[sample].view(-1)[3] += factor * allowed[sample] * size
        with pytest.raises(AssertionError, match="apart"):
            assert_same(wrong, reference, allowed)


def check_measurement(name):
    model, x = ARCHITECTURES[name]()
    formats = ["float16", "float32", "float64"]
    frame = fperr.measure(
        model,
        x,
        torch.tensor([0, 1]),
        losses=["ce"],
        formats=[f for f in formats if f not in NO_KERNELS.get(name, ())],
        accept_probabilities=name in OF_PROBABILITIES,
        progress=False,
    ).frame
    assert frame["delta"].notna().all()
    assert frame["is_certified"].all()
    assert set(frame["value_audit"]) == {"confirmed"}


@pytest.mark.parametrize("name", slow_except(ARCHITECTURES, MEASURED_FAST))
def test_every_row_is_measured(name):
    check_measurement(name)


# what the models themselves warn of
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:quantized..linear_dynamic:UserWarning")
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_its_cause(name):
    make, words = REFUSED[name]
    model, x = make()
    with pytest.raises((fperr.errors.FperrError, TypeError, ValueError), match=re.escape(words)):
        exact.gradient(model, x, torch.ones(2, 4))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.xfail(reason=reason, strict=True))
        for name, (_, reason) in MISSING.items()
    ],
)
def test_what_is_missing(name):
    check_gradient(MISSING[name][0])


ROOT = Path(__file__).parents[2]


def listed_in(page):
    """The names that the page lists: in plain PyTorch, and refused."""
    plain = page.partition("## In plain PyTorch")[2].partition("## Of other packages")[0]
    listed = []
    for paragraph in plain.split("\n\n"):
        found = re.fullmatch(r"\*\*.+\*\* \((\d+)\): (.+)\.", " ".join(paragraph.split()))
        if found:
            names = found[2].split(" · ")
            assert len(names) == int(found[1])
            listed += names
    refused = page.partition("## Rightly refused")[2]
    return listed, re.findall(r"^\| (?!network|--)([^|]+) \| .+ \|$", refused, re.MULTILINE)


def test_the_page_lists_the_networks():
    page = (ROOT / "docs" / "architectures.md").read_text()
    listed, refused = listed_in(page)
    assert sorted(listed) == sorted(ARCHITECTURES)
    assert sorted(refused) == sorted(REFUSED)
    with pytest.raises(AssertionError):  # negative control: a name that is left out
        listed_in(page.replace("SqueezeNet ·", "", 1))


def test_the_page_lists_the_networks_of_packages():
    page = (ROOT / "docs" / "architectures.md").read_text()
    section = page.partition("## Of other packages")[2].partition("## Rightly refused")[0]
    listed = []
    for item in section.split("\n* ")[1:]:
        package, count, names = re.fullmatch(
            r"\*\*(\w+)\*\* \((\d+)\): (.+?)", " ".join(item.split())
        ).groups()
        assert len(names.split(" · ")) == int(count)
        listed += [f"{package}:{name}" for name in names.split(" · ")]
    assert sorted(listed) == sorted(PACKAGED)


def test_the_count_is_that_of_the_networks_which_were_tried():
    works = [here for here in TRIED.values() if here in ARCHITECTURES or here in PACKAGED]
    refused = [here for here in TRIED.values() if here in REFUSED]
    assert len(works) + len(refused) == len(TRIED)
    count = f"{len(TRIED)} architectures of robustness and"
    for page, words in [
        ("README.md", f"Of {count} deep-learning practice {len(works)} work,"),
        ("docs/architectures.md", f"was tried on {count} of deep-learning practice"),
        ("docs/architectures.md", f"Of the same kinds {len(works)} work now."),
        ("CHANGELOG.md", f"{len(works)} of {len(TRIED)} architectures work"),
    ]:
        assert words in " ".join((ROOT / page).read_text().split())


@pytest.mark.parametrize(
    "page",
    ["README.md", "docs/limits.md", "docs/how_to/own_network.md", "docs/decisions/capture.md"],
)
def test_the_number_of_operations_is_that_of_the_table(page):
    numbers = re.findall(r"(\d+) (?:ATen (?:names|operations)|now\))", (ROOT / page).read_text())
    assert numbers == [str(len(OPERATIONS))]
