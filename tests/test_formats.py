import pytest
import torch

from fperr import formats


@pytest.mark.parametrize("fmt", formats.FORMATS.values(), ids=lambda f: f.name)
def test_constants_are_torchs_own(fmt):
    info = torch.finfo(fmt.dtype)
    assert fmt.storage_unit_roundoff == info.eps / 2
    assert fmt.smallest_normal == info.smallest_normal
    assert fmt.largest == info.max
    assert 2.0**fmt.emax <= info.max < 2.0**fmt.emax * 2
    # of the others, precision is that of operands
    if fmt not in (formats.TF32, formats.TF32_CUDA, formats.FLOAT8_TENSORWISE):
        assert fmt.unit_roundoff == info.eps / 2


@pytest.mark.parametrize("fmt", formats.FORMATS.values(), ids=lambda f: f.name)
def test_smallest_subnormal_is_the_smallest_positive_number(fmt):
    eta = torch.tensor(fmt.smallest_subnormal, dtype=torch.float64).to(fmt.dtype)
    assert eta > 0
    assert eta / 2 == 0


def test_tf32_has_ten_stored_significand_bits():
    assert formats.TF32.unit_roundoff == 2.0**-11


def test_an_unknown_format_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"unknown format 'fp8': expected one of float16, bfloat16"
    ):
        formats.format_named("fp8")
    with pytest.raises(ValueError, match=r"a floating-point dtype is needed .* got torch.int64"):
        formats.of_dtype(torch.int64)
