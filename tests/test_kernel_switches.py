import pytest
import torch
from torch import nn

import fperr
import fperr.theory.scaling
from fperr import exact
from fperr.formats import FLOAT32, TF32
from fperr.kernel_switches import controlled, keeps_subnormals
from tests.conftest import normal, seeded, tiny_mlp
from tests.exact.operations.test_operations import ResNetLike

needs_new_switches = pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch < 2.9"
)


@needs_new_switches
def test_switches_are_set_recorded_and_restored():
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, conv.fp32_precision, torch.backends.cudnn.benchmark
    with controlled(FLOAT32) as record:
        assert record["cuda.matmul.fp32_precision"] == matmul.fp32_precision == "ieee"
        assert record["cudnn.conv.fp32_precision"] == conv.fp32_precision == "ieee"
        assert record["cudnn.benchmark"] == "False"
    with controlled(TF32) as record:
        assert record["cuda.matmul.fp32_precision"] == matmul.fp32_precision == "tf32"
    assert before == (matmul.fp32_precision, conv.fp32_precision, torch.backends.cudnn.benchmark)


@needs_new_switches
def test_switches_are_restored_after_a_fault():
    torch.backends.cudnn.benchmark = True
    try:
        with pytest.raises(ZeroDivisionError), controlled(FLOAT32):
            raise ZeroDivisionError
        assert torch.backends.cudnn.benchmark is True
    finally:
        torch.backends.cudnn.benchmark = False


@needs_new_switches
def test_a_users_fast_matmul_on_the_cpu_is_switched_off_while_measuring():
    """bfloat16 inside float32 products would be measured as float32's error."""
    switch = torch.backends.mkldnn.matmul
    before = switch.fp32_precision
    model, x = tiny_mlp(), normal(2, 6)
    honest = fperr.measure(model, x, formats=["float32"]).frame["delta"]
    try:
        switch.fp32_precision = "bf16"
        found = fperr.measure(model, x, formats=["float32"])
        assert switch.fp32_precision == "bf16"
    finally:
        switch.fp32_precision = before
    assert found.frame["delta"].tolist() == honest.tolist()


class Watched(nn.Module):
    """Notes the switches at every forward pass."""

    def __init__(self):
        super().__init__()
        self.inner, self.seen = tiny_mlp(), set()

    def forward(self, x):
        self.seen.add(
            (torch.backends.cudnn.deterministic, torch.backends.cudnn.conv.fp32_precision)
        )
        return self.inner(x)


@needs_new_switches
@pytest.mark.parametrize("door", ["capture", "gradient"])
def test_exact_gradients_run_on_kernels_that_repeat(door):
    """On an H200 the capture of a network differed from its eager run: kernels with atomic sums."""
    model, x = Watched().eval(), normal(1, 6)
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.conv.fp32_precision
    if door == "capture":
        exact.capture(model, x)
    else:
        exact.gradient(model, x, torch.ones(1, 4))
    assert model.seen == {(True, "ieee")}
    assert before == (torch.backends.cudnn.deterministic, torch.backends.cudnn.conv.fp32_precision)
    model.seen.clear()
    model(x)  # negative control: PyTorch's own
    assert model.seen == {before} != {(True, "ieee")}


def test_flushing_to_zero_is_noticed():
    device = torch.device("cpu")
    assert keeps_subnormals(device)
    if torch.set_flush_denormal(True):
        try:
            assert not keeps_subnormals(device)
        finally:
            torch.set_flush_denormal(False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["float16", "bfloat16", "tf32", "float32", "float64"])
def test_formats_on_cuda(name, fashion_standard, fashion):
    report = fperr.measure(
        fashion_standard, fashion.x[:2], formats=[name], losses=["mifpe"], device="cuda"
    )
    fmt = fperr.formats.format_named(name)
    assert report.frame["is_certified"].all()
    # four layers, with sums of at most 1,568 terms, and routing flips in the narrow formats
    assert (report.frame["delta"] < 300 * fmt.unit_roundoff).all()
    assert (report.frame["delta"] > 0).all()
    assert next(fashion_standard.parameters()).device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batch_norm_on_cuda():
    report = fperr.measure(
        seeded(ResNetLike()), normal(2, 2, 9, 9), formats=["float64"], device="cuda"
    )
    assert report.frame["is_certified"].all()
    assert (report.frame[report.frame["loss"] == "mifpe"]["delta"] < 1e-13).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_t_star_does_not_synchronise_on_cuda():
    logits = normal(100, 10).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = fperr.theory.scaling.t_star(logits)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # 1e-12 is what t* promises (`t_star`); random logits are far from two equal maxima
    assert torch.allclose(
        found.cpu(), fperr.theory.scaling.t_star(logits.cpu()), rtol=1e-12, atol=0
    )
