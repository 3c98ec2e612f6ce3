"""Formats of a user's own: every door, what contradicts itself, sums with a rule, strictness."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import fperr
from fperr.emulated_kernels import Met, accumulation_bound, emulated
from fperr.errors import ModelError
from fperr.formats import BFLOAT16_CUDA, FLOAT16, FORMATS, TF32_CUDA, Emulation, Format
from fperr.measurement.provenance import emulation_notes, merged_notes
from tests.conftest import normal, seeded, tiny_mlp

BOUNDS = "bounds on its error, relative to the sum of its terms' magnitudes"
MINE = Format("mine", torch.float32, 8, -126, 127, 63, Emulation(8, 8, "truncated"))


def conv_net() -> nn.Module:
    layers = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4)
    return seeded(nn.Sequential(*layers)).eval()


def test_every_door_takes_a_record():
    model, x, y = conv_net(), torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    report = fperr.measure(model, x, y, losses=["ce"], formats=["float32", MINE], progress=False)
    delta = report.frame.set_index("format")["delta"]
    assert delta["float32"].max() < 2.0**-15 < delta["mine"].min()
    traced = fperr.trace_layers(model, x[:1], format=MINE, progress=False)
    assert traced.format == "mine"
    result = fperr.attribute(
        model, x, y, radius=0.1, steps=2, starts=1, format=MINE, exact="all", progress=False
    )
    assert result.frame["is_judged"].all()
    with fperr.record(model, x, y, formats=[MINE], losses=["mifpe"]) as trace:
        attacked = fperr.attack(model, x, y, radius=0.1, steps=1, format=MINE)
    assert attacked.settings.format == "mine"
    assert set(trace.errors()["format"]) == {"mine"}


def test_a_report_in_ones_own_format_is_kept_and_shown(tmp_path):
    model, x, y = conv_net(), torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    report = fperr.measure(model, x, y, losses=["ce"], formats=[MINE], progress=False)
    report.to_parquet(tmp_path / "report.parquet")
    again = fperr.Report.from_parquet(tmp_path / "report.parquet")
    assert again.frame["format"].tolist() == ["mine", "mine"]
    assert "mine" in report.to_html()
    (details,) = again.provenance.values()
    assert details["settings"]["arithmetics"]["mine"]["operand_rounding"] == "truncated"
    unknown = again.frame.assign(format="theirs")
    with pytest.raises(ValueError, match="expected a format out of"):
        fperr.Report.from_bytes(fperr.Report(unknown, again.provenance).to_bytes(), "here")


CONTRADICTIONS = {
    "no bits": (
        lambda: Emulation(convolution_bits=0), "must be 1 to 24 significand bits.*got 0",
        lambda: Emulation(convolution_bits=1),
    ),
    "more than float32's": (
        lambda: Emulation(matrix_product_bits=25), "got 25: give as many, or leave it out",
        lambda: Emulation(matrix_product_bits=24),
    ),
    "an accumulation of nothing": (
        lambda: Emulation(accumulation_bits=0, terms_at_once=1), "accumulation_bits must be 1 to",
        lambda: Emulation(accumulation_bits=1, terms_at_once=1),
    ),
    "an unknown rounding": (
        lambda: Emulation(operand_rounding="up"), "one of nearest_away, .*, got 'up': name one",
        lambda: Emulation(operand_rounding="truncated"),
    ),
    "an unknown rounding of sums": (
        lambda: Emulation(accumulation_rounding="down", terms_at_once=4), "got 'down'",
        lambda: Emulation(accumulation_rounding="truncated", terms_at_once=4),
    ),
    "sums without blocks": (
        lambda: Emulation(accumulation_rounding="truncated"), "give terms_at_once",
        lambda: Emulation(accumulation_rounding="truncated", terms_at_once=8),
    ),
    "blocks of nothing": (
        lambda: Emulation(terms_at_once=0), "terms_at_once must be a number of terms from 1 on",
        lambda: Emulation(terms_at_once=None),
    ),
    "float8 under autocast": (
        lambda: Emulation(computes_in_float32=True, is_autocast=True, has_float8_layers=True),
        "leave one of them out", lambda: Emulation(computes_in_float32=True, is_autocast=True),
    ),
    "no name": (
        lambda: replace(MINE, name=""), "must be a text without commas, got ''",
        lambda: replace(MINE, name="ours"),
    ),
    "integers": (
        lambda: replace(MINE, dtype=torch.int32), "stored in float16, .*, got torch.int32",
        lambda: replace(MINE, dtype=torch.float32),
    ),
    "more bits than the dtype": (
        lambda: replace(FLOAT16, precision=12), "1 to 11 significand bits .*, got 12",
        lambda: replace(FLOAT16, precision=11),
    ),
    "operands of halves": (
        lambda: replace(FLOAT16, emulation=Emulation(8)), "cut operands in float32, got torch.f",
        lambda: replace(FLOAT16, emulation=Emulation(computes_in_float32=True)),
    ),
    "autocast without a half": (
        lambda: replace(MINE, emulation=Emulation(is_autocast=True)), "is_autocast of .* half",
        lambda: replace(FLOAT16, emulation=Emulation(is_autocast=True)),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("wrong", "words", "right"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_what_contradicts_itself_is_refused(wrong, words, right):
    with pytest.raises(ValueError, match=words) as fault:
        wrong()
    assert "\n" not in str(fault.value)
    right()  # the remedy


def test_a_report_shows_the_longest_sum_and_its_bounds():
    model, x, y = conv_net(), torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    formats = ["float32", "float16@cuda", MINE]
    report = fperr.measure(model, x, y, losses=["ce"], formats=formats, progress=False)
    (details,) = report.provenance.values()
    for name in ("float16@cuda", "mine"):
        shown = details["emulation"][name]
        assert shown["longest sum"] == 72  # of the linear layer
        as_emulated, on_a_card = shown[BOUNDS].values()
        assert as_emulated == accumulation_bound(FORMATS.get(name, MINE).emulation, 72)
        assert on_a_card == pytest.approx(8.6e-06, rel=0.01)  # 2 * 2**-24 * 72, and a little
        assert "reduced-precision reductions" in shown["not emulated"]
    assert "float32" not in details["emulation"]
    # what nothing is claimed of is listed without any product, too
    assert emulation_notes(MINE, Met({"aten.special"}, 0))["emulated without a claim"] == [
        "aten.special"
    ]


def test_a_folder_keeps_what_its_runs_met(tmp_path):
    """Also of batches that an earlier run has finished, and of cells of a campaign."""
    model, x, y = conv_net(), torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 2])
    options = {"losses": ["ce"], "formats": ["float16@cuda"], "batch_size": 1, "progress": False}
    plain = fperr.measure(model, x, y, **options)
    (in_memory,) = plain.provenance.values()
    for _ in range(2):  # the second reads back
        report = fperr.measure(model, x, y, out=tmp_path, **options)
        (details,) = report.provenance.values()
        assert details["emulation"] == in_memory["emulation"]
        assert details["emulation"]["float16@cuda"]["longest sum"] == 72
    assert details["samples_read_back"] == 3
    page = report.to_html()
    assert "The kernels of float16@cuda are emulated" in page
    assert "float16@cuda: the longest sum has 72 products, and its error is at most 4.2" in page
    unclaimed = [
        {"float16@cuda": emulation_notes(FORMATS["float16@cuda"], Met({name}, size))}
        for name, size in (("a", 3), ("b", 2))
    ]
    merged = merged_notes([FORMATS["float16@cuda"], FLOAT16], unclaimed)
    assert merged["float16@cuda"]["emulated without a claim"] == ["a", "b"]
    assert merged["float16@cuda"]["longest sum"] == 3
    assert list(merged) == ["float16@cuda"]


@pytest.mark.parametrize("groups", [1, 2])
def test_terms_of_convolutions_are_counted(groups):
    x, weight = normal(1, 4, 6, 6).requires_grad_(), normal(6, 4 // groups, 3, 3, seed=1)
    with emulated(TF32_CUDA) as met:
        z = F.conv2d(x, weight, groups=groups)
    assert met.longest_sum == weight[0].numel()
    with emulated(TF32_CUDA) as met:
        torch.autograd.grad(z.sum(), x)
    assert met.longest_sum == 9 * 6 // groups
    with emulated(TF32_CUDA) as met:
        F.conv_transpose2d(z.detach(), weight, groups=groups)
    assert met.longest_sum == 9 * 6 // groups


def test_another_record_by_the_name_of_fperrs_own():
    model, x = tiny_mlp(), torch.rand(2, 6)
    other = replace(MINE, name="float32")
    with pytest.raises(ValueError, match=re.escape("another name, by dataclasses.replace(")):
        fperr.measure(model, x, formats=[other], progress=False)
    with pytest.raises(ValueError, match="names something twice"):
        fperr.measure(model, x, formats=[MINE, MINE], progress=False)
    assert len(fperr.measure(model, x, losses=["ce"], formats=[MINE], progress=False).frame)


class Unusual(nn.Module):
    def forward(self, x):
        return torch.digamma(1 + x.sigmoid())


def test_operations_without_a_claim_are_listed_or_refused():
    with emulated(BFLOAT16_CUDA) as met:
        x = torch.rand(3).bfloat16()
        found = torch.digamma(x + 1)
    assert met.unclaimed == {"aten.digamma.default"}
    assert torch.equal(found, torch.digamma((x + 1).float()).bfloat16())  # float32 inside
    strict = replace(BFLOAT16_CUDA, name="strict", emulation=Emulation(
        computes_in_float32=True, is_strict=True
    ))  # fmt: skip
    with (
        pytest.raises(ModelError, match=r"is strict, and nothing is claimed of aten.digamma"),
        emulated(strict),
    ):
        torch.digamma(x)
    with emulated(replace(strict, emulation=BFLOAT16_CUDA.emulation)):  # the remedy
        torch.digamma(x)


@pytest.mark.parametrize("build", [conv_net, tiny_mlp])
def test_usual_networks_are_claimed_throughout(build):
    strict = replace(BFLOAT16_CUDA, name="strict", emulation=Emulation(
        computes_in_float32=True, is_strict=True
    ))  # fmt: skip
    x = torch.rand(2, 6) if build is tiny_mlp else torch.rand(2, 1, 8, 8)
    report = fperr.measure(
        build(), x, torch.tensor([0, 1]), losses=["ce", "mifpe"], formats=[strict], progress=False
    )
    assert report.frame["delta"].notna().all()


def summed_by_hand(a: np.ndarray, b: np.ndarray, emulation: Emulation) -> np.ndarray:
    """Blocks of a dot product's terms in exact fractions of integers, each partial sum cut."""
    total, size = 0, emulation.terms_at_once
    unit = 2**400  # all terms are integers over it
    terms = [int(x * 2.0**200) * int(y * 2.0**200) for x, y in zip(a, b, strict=True)]
    for start in range(0, len(terms), size):
        total += sum(terms[start : start + size])
        total = cut(total, emulation.accumulation_bits, emulation.accumulation_rounding)
    return float(np.float32(total / unit))


def cut(number: int, bits: int, rounding: str) -> int:
    size, sign = abs(number), (number > 0) - (number < 0)
    dropped = max(size.bit_length() - bits, 0)
    kept, rest = size >> dropped, size & ((1 << dropped) - 1)
    half = (1 << dropped) // 2
    if dropped and rounding != "truncated":
        kept += rest > half or (rest == half and (rounding == "nearest_away" or kept & 1))
    return sign * (kept << dropped)


SUMS = {
    "float32": Emulation(terms_at_once=1),
    "truncated": Emulation(accumulation_rounding="truncated", terms_at_once=1),
    "tensor core": Emulation(accumulation_rounding="truncated", terms_at_once=8),
    "14 bits": Emulation(accumulation_bits=14, accumulation_rounding="truncated", terms_at_once=4),
}


def in_format(emulation: Emulation) -> Format:
    return replace(TF32_CUDA, name="sums", emulation=emulation)


@pytest.mark.parametrize("emulation", SUMS.values(), ids=SUMS)
def test_sums_are_those_by_hand(emulation):
    a, b = normal(6, 40), normal(40, 5, seed=1)
    with emulated(in_format(emulation)):
        found = a @ b
    expected = [
        [summed_by_hand(row, column, emulation) for column in b.T.double().numpy()]
        for row in a.double().numpy()
    ]
    assert found.tolist() == expected
    for other in SUMS.values():  # planted: another rule, another block
        if other != emulation:
            with emulated(in_format(other)):
                assert (a @ b).tolist() != expected


@pytest.mark.parametrize("emulation", SUMS.values(), ids=SUMS)
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_sum_as_matrix_products(emulation, groups):
    """A convolution is the product with its patches, in the weight's order."""
    x, weight = normal(2, 4, 5, 5), normal(6, 4 // groups, 3, 3, seed=1)
    leaf, g = x.clone().requires_grad_(), normal(2, 6, 3, 3, seed=2)
    with emulated(in_format(emulation)):
        z = F.conv2d(leaf, weight, groups=groups)
        (gradient,) = torch.autograd.grad(z, leaf, g)
        patches = F.unfold(x, 3).reshape(2, groups, -1, 9)
        matrices = weight.reshape(groups, 6 // groups, -1)
        expected = torch.stack(
            [matrices[k] @ patches[n, k] for n in range(2) for k in range(groups)]
        ).reshape(2, 6, 3, 3)
        leaf = x.clone().requires_grad_()
        (by_transposed,) = torch.autograd.grad(F.conv2d(leaf, weight, groups=groups), leaf, g)
        forward_again = F.conv_transpose2d(g, weight, groups=groups)
    assert torch.equal(z, expected)
    assert torch.equal(gradient, by_transposed)
    assert torch.equal(gradient, forward_again)  # the pullback is the transposed convolution
    exact = F.conv_transpose2d(g.double(), weight.double(), groups=groups)
    size = F.conv_transpose2d(g.double().abs(), weight.double().abs(), groups=groups)
    allowed = accumulation_bound(emulation, 9 * 6 // groups) * size
    assert bool(((gradient.double() - exact).abs() <= allowed + 2.0**-24 * exact.abs()).all())


@pytest.mark.parametrize("name", SUMS)
@given(seed=st.integers(0, 2**32 - 1), terms=st.integers(1, 60))
@example(seed=0, terms=16)
@settings(deadline=None, max_examples=50)
def test_sums_stay_within_their_bound(name, seed, terms):
    emulation, generator = SUMS[name], torch.Generator().manual_seed(seed)
    a, b = (torch.randn(4, terms, generator=generator) for _ in range(2))
    with emulated(in_format(emulation)):
        found = (a @ b.T).double()
    exact, size = a.double() @ b.double().T, a.double().abs() @ b.double().abs().T
    allowed = accumulation_bound(emulation, terms) + terms * 2.0**-53
    assert bool(((found - exact).abs() <= allowed * size + 2.0**-24 * exact.abs()).all())


def worst_terms(emulation: Emulation, terms: int) -> torch.Tensor:
    """Terms that lose as much as they can: 1, and then just below what a partial sum keeps.

    Each block's sum is just too small to be kept, or for rounding to nearest just enough to be
    rounded up by half a place.
    """
    place = 2.0 ** (1 - emulation.accumulation_bits)
    size = emulation.terms_at_once
    is_truncated = emulation.accumulation_rounding == "truncated"
    lost = place * (1 - 2.0**-10) if is_truncated else place / 2 * (1 + 2.0**-10)
    numbers = torch.zeros(terms)
    numbers[0] = 1.0
    numbers[size::size] = lost
    return numbers


@pytest.mark.parametrize("emulation", SUMS.values(), ids=SUMS)
@pytest.mark.parametrize("blocks", [16, 64])
def test_the_worst_sums_come_near_their_bound(emulation, blocks):
    terms = blocks * emulation.terms_at_once
    numbers = worst_terms(emulation, terms)
    with emulated(in_format(emulation)):
        found = float(numbers[None] @ torch.ones(terms, 1))
    exact = math.fsum(numbers.tolist())
    allowed = accumulation_bound(emulation, terms) * exact
    assert 0.8 * allowed < abs(found - exact) <= allowed
