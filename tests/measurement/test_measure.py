"""`fperr.measure` on small networks: scenarios, options, faults in the data, the report."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn

import fperr
from fperr.errors import ContradictedError
from fperr.exact import operations
from fperr.exact.audit.samples import SampleAudit
from fperr.formats import FORMATS
from fperr.gradient_error.stages import STAGES
from fperr.measurement.rounded_network import ExactFormatNetwork
from fperr.measurement.run import MeasurementRun
from fperr.report.frame import COLUMNS
from tests.conftest import integers, normal, seeded, tiny_mlp

ERRORS = ["delta", "sign_error_rate", "stage_backward", "stage_loss", "stage_forward", "stage_cast"]


def column(report, name, **selection):
    frame = report.frame
    for key, value in selection.items():
        frame = frame[frame[key] == value]
    return frame[name]


def test_one_row_for_each_sample_scenario_loss_and_format():
    report = fperr.measure(tiny_mlp(), normal(3, 6))
    assert list(report.frame.columns) == list(COLUMNS)
    assert len(report.frame) == 3 * 4 * 3 * 3
    assert not report.frame.duplicated(["sample", "scenario", "loss", "format"]).any()
    assert report.frame["is_certified"].all()
    assert report.frame["delta"].notna().all()
    first = report.frame.iloc[0]
    assert first[["scenario", "loss", "format"]].tolist() == [
        "untargeted_unsuccessful",
        "ce",
        "float16",
    ]


def test_errors_are_of_the_size_of_the_format():
    report = fperr.measure(tiny_mlp(), normal(6, 6), formats=["bfloat16", "float16", "float32"])
    for fmt, unit_roundoff in (("bfloat16", 2**-8), ("float16", 2**-11), ("float32", 2**-24)):
        errors = column(report, "delta", format=fmt, loss="mifpe")
        # 20 roundings in two small layers, and cancellation by less than 20
        assert ((errors > 0) & (errors < 400 * unit_roundoff)).all()


def assert_float64_is_right(report):
    """Backward stage, and everything where the scale is bounded: rounding size, never 0."""
    frame = report.frame[report.frame["format"] == "float64"]
    assert ((frame["stage_backward"] > 1e-17) & (frame["stage_backward"] < 1e-14)).all()
    scaled = frame[frame["loss"] != "ce"]
    assert ((scaled["delta"] > 1e-17) & (scaled["delta"] < 1e-14)).all()


def test_float64_differs_from_the_reference_by_rounding(fashion_standard, fashion):
    report = fperr.measure(fashion_standard, fashion.x[:2], formats=["float64"])
    assert_float64_is_right(report)


@pytest.mark.parametrize(
    "name", ["aten.threshold_backward.default", "aten.convolution.default", "aten.mm.default"]
)
def test_a_wrong_operation_in_the_interpreter_is_caught(
    name, monkeypatch, fashion_standard, fashion
):
    """Negative control of the test above: an operation that is off by one part in 1e9."""
    right = operations.OPERATIONS[name]

    def wrong(A, *arguments):
        return A.mul(right.meaning(A, *arguments), 1 + 1e-9)

    monkeypatch.setitem(operations.OPERATIONS, name, replace(right, meaning=wrong))
    options = {"formats": ["float64"], "scenarios": ["untargeted_unsuccessful"]}
    with pytest.raises(ContradictedError, match=name):
        fperr.measure(fashion_standard, fashion.x[:1], **options)
    # the audit apart, the numbers tell
    passed = SampleAudit("confirmed", 0.0, 0.0)
    monkeypatch.setattr("fperr.exact.engines.base.audit_sample", lambda *_: passed)
    monkeypatch.setattr("fperr.exact.double_word_network.audit_values", lambda *_, **__: [passed])
    report = fperr.measure(fashion_standard, fashion.x[:1], **options)
    with pytest.raises(AssertionError):
        assert_float64_is_right(report)


@pytest.mark.parametrize(
    ("engine", "place"),
    [("mpmath", "fperr.exact.engines.gradient"), ("ball", "fperr.exact.error_bound")],
)
def test_a_wrong_coefficient_in_the_reference_is_caught(
    monkeypatch, fashion_standard, fashion, engine, place
):
    def wrong(*arguments, **options):
        v = fperr.exact.logit_gradient.logit_gradient(*arguments, **options)
        return [v[0] * (1 + 2.0**-30), *v[1:]]

    monkeypatch.setattr(f"{place}.logit_gradient", wrong)
    report = fperr.measure(fashion_standard, fashion.x[:1], formats=["float64"], engine=engine)
    with pytest.raises(AssertionError):
        assert_float64_is_right(report)


def test_targeted_twins_are_what_a_computation_gives():
    """Scenario iv has i's gradient, and iii has ii's, with the sign changed: as computed alone."""
    model, x = tiny_mlp(), normal(4, 6)
    losses = ["ce", "mifpe", "tmifpe", "stable_ce", "cw", "dlr"]
    both = fperr.measure(model, x, losses=losses).frame
    for name in ("targeted_unsuccessful", "targeted_successful"):
        alone = fperr.measure(model, x, losses=losses, scenarios=[name]).frame
        together = both[both["scenario"] == name].reset_index(drop=True)
        assert not alone["is_sign_twin"].any()
        assert together["is_sign_twin"].tolist() == (together["loss"] != "dlr").tolist()
        pd.testing.assert_frame_equal(
            alone.drop(columns="is_sign_twin"), together.drop(columns="is_sign_twin")
        )


def test_observed_scenarios_follow_the_labels():
    model, x = tiny_mlp(), normal(5, 6)
    order = model(x).argsort(1, descending=True)
    y = torch.stack([order[i, i % 2] for i in range(5)])
    report = fperr.measure(model, x, y, losses=["ce"], formats=["float32"])
    names = ["untargeted_unsuccessful", "untargeted_successful"]
    assert column(report, "scenario").tolist() == [names[i % 2] for i in range(5)]
    assert column(report, "label").tolist() == y.tolist()
    aimed = fperr.measure(model, x, targets=y.tolist(), losses=["ce"], formats=["float32"])
    names = ["targeted_successful", "targeted_unsuccessful"]
    assert column(aimed, "scenario").tolist() == [names[i % 2] for i in range(5)]
    # the same gradient with the sign changed
    assert column(aimed, "delta").tolist() == column(report, "delta").tolist()


def test_targeted_dlr_uses_the_true_label():
    model, x = tiny_mlp(), normal(2, 6)
    order = model(x).argsort(1, descending=True)
    report = fperr.measure(
        model, x, order[:, 0], targets=order[:, 2], losses=["dlr"], formats=["float64"]
    )
    assert (column(report, "delta") < 1e-14).all()
    assert column(report, "T").isna().all()
    assert column(report, "log2_G").isna().all()


def test_stages_of_an_exact_computation_vanish():
    """Integer weights and inputs: the forward pass is exact in every format, and so is the cast."""
    model = integers(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)))
    x = torch.randint(-2, 3, (4, 5), generator=torch.Generator().manual_seed(0)).float()
    report = fperr.measure(
        model, x, formats=["float16", "bfloat16", "float32", "float64"], engine="mpmath", digits=50
    )
    curved = report.frame[~report.frame["truly_flat"]]
    assert len(curved) == len(report.frame)
    # two of the samples are nearly flat: rows cancel there, by up to 195 digits, so that balls took
    # their gradients; a stage is given where mpmath's digits still resolve it, and empty elsewhere
    raised = curved["certainty"] == "proved"
    assert 0 < raised.sum() <= len(curved) / 2
    assert (curved["stage_forward"][~raised] == 0).all()
    assert (curved["stage_cast"][~raised] == 0).all()
    given = curved[raised & curved["stage_forward"].notna()]
    finest = given["format"].map(lambda name: FORMATS[name].unit_roundoff) / 2**10
    assert (given["stage_forward"] <= finest).all()
    assert (given["stage_cast"] <= finest).all()
    empty = curved[curved["stage_forward"].isna()]
    stages = [f"{kind}_{name}" for kind in ("stage", "share") for name in STAGES]
    assert len(given) > 0
    assert empty[stages].isna().all(axis=None)
    assert {"float32", "float64"} == set(empty["format"])
    assert set(empty["loss"]) == {"tmifpe"}
    cw = fperr.measure(model, x, losses=["cw"])
    curved = cw.frame[~cw.frame["truly_flat"]]
    assert (curved["delta"] == 0).all()
    assert (curved["stage_loss"] == 0).all()
    assert cw.frame["share_loss"].isna().all()


def test_cast_vanishes_where_the_format_holds_the_weights():
    report = fperr.measure(tiny_mlp(), normal(3, 6))
    assert (column(report, "stage_cast", format="float32") == 0).all()
    assert (column(report, "stage_cast", format="float64") == 0).all()
    assert (column(report, "stage_cast", format="float16") > 0).all()
    assert (report.frame["stage_constants"] == 0).all()  # nothing is computed of weights alone


@pytest.mark.parametrize(
    ("fields", "seen"),
    [
        (["z", "constants_z"], ["stage_forward", "stage_cast"]),
        (["constants_z"], ["stage_forward", "stage_constants"]),
        (["z"], ["stage_constants", "stage_cast"]),
    ],
)
def test_a_stage_is_seen_where_it_was_planted(monkeypatch, fields, seen):
    """Wrong logits of a network show as errors on both sides of it, and nowhere else."""
    model, x = tiny_mlp(), normal(2, 6)
    honest = fperr.measure(model, x, losses=["mifpe"], formats=["float64"]).frame

    def planted(self, *arguments):
        return {
            i: replace(sample, **{name: [sample.z[0] + 1e-3, *sample.z[1:]] for name in fields})
            for i, sample in honest_samples(self, *arguments).items()
        }

    honest_samples = ExactFormatNetwork.samples
    monkeypatch.setattr(ExactFormatNetwork, "samples", planted)
    frame = fperr.measure(model, x, losses=["mifpe"], formats=["float64"]).frame
    others = [f"stage_{name}" for name in STAGES if f"stage_{name}" not in seen]
    assert (honest[seen] < 1e-14).all(axis=None)
    assert (frame[seen] > 1e-6).all(axis=None)
    assert (frame[others] < 1e-14).all(axis=None)


def test_loss_scale_and_mean_are_divided_out():
    model, x = tiny_mlp(), normal(4, 6)
    plain = fperr.measure(model, x, losses=["mifpe", "stable_ce"])
    scaled = fperr.measure(model, x, losses=["mifpe", "stable_ce"], loss_scale=2.0**6)
    mean = fperr.measure(model, x, losses=["mifpe", "stable_ce"], reduction="mean")
    for other in (scaled, mean):  # powers of two: nothing but underflow could differ
        assert other.frame["delta"].tolist() == plain.frame["delta"].tolist()
    odd = fperr.measure(model, x, losses=["mifpe"], formats=["float64"], loss_scale=3.0)
    assert odd.frame["delta"].max() < 1e-14


def test_a_loss_scale_cures_underflow_and_not_cancellation():
    model = seeded(nn.Sequential(nn.Linear(4, 3)), seed=1)
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([14.0, 0.0, -1.0]))
    options = {"losses": ["ce"], "formats": ["float16"], "scenarios": ["untargeted_unsuccessful"]}
    plain = fperr.measure(model, normal(3, 4), **options).frame
    scaled = fperr.measure(model, normal(3, 4), loss_scale=2.0**10, **options).frame
    assert (scaled["delta"] > 0.5).all()
    assert (scaled["stage_backward"] < plain["stage_backward"]).all()


def test_autocast_moves_the_cast_into_the_run():
    model, x = tiny_mlp(), normal(3, 6)
    report = fperr.measure(model, x, formats=["bfloat16", "float32"], autocast=True)
    half = report.frame[report.frame["format"] == "bfloat16"]
    assert (half["stage_cast"] == 0).all()
    assert (half["stage_constants"] > 1e-4).all()  # autocast rounds the weights in the run
    assert (half["delta"] > 1e-4).all()
    plain = fperr.measure(model, x, formats=["float32"]).frame["delta"].tolist()
    assert column(report, "delta", format="float32").tolist() == plain


def test_faults_in_the_data_mark_their_rows_only():
    model, x = tiny_mlp(), normal(4, 6)
    x[1, 0] = float("nan")
    x[2] *= 1e6  # overflows float16, not float32
    with (
        pytest.warns(UserWarning, match="x ranges from .* standardised values"),
        pytest.warns(UserWarning, match="^9 of 36 rows were not measured: its input is not finite"),
    ):
        report = fperr.measure(model, x, scenarios=["untargeted_unsuccessful"])
    honest = fperr.measure(model, x[:1], scenarios=["untargeted_unsuccessful"], batch_size=1)
    assert not column(report, "is_finite", sample=1).any()
    assert column(report, "delta", sample=1).isna().all()
    assert not column(report, "is_finite", sample=2, format="float16").any()
    assert column(report, "delta", sample=2, format="float16").isna().all()
    assert column(report, "is_finite", sample=2, format="float32").all()
    assert column(report, "delta", sample=2, format="float32").notna().all()
    for sample in (0, 3):
        assert column(report, "delta", sample=sample).notna().all()
    assert len(honest.frame) == 9
    summary = report.summary().set_index(["loss", "format"])
    assert summary.loc[("ce", "float16"), "not_finite"] == 2
    # the network cannot help the image that is not a number, but float16 the one that overflows
    assert "1 of 3 gradients is dead or weak" in summary.loc[("ce", "float16"), "verdict"]
    assert "1 not finite" in summary.loc[("ce", "float16"), "verdict"]
    assert summary.loc[("ce", "float16"), "verdict"].endswith(
        "; left out: 1 of 4 (1: its input is not finite)"
    )
    assert summary.loc[("ce", "float16"), ["unmeasured", "reason"]].tolist() == [
        1,
        "its input is not finite",
    ]


def test_weights_that_overflow_a_format_mark_its_rows_only():
    model = tiny_mlp()
    with torch.no_grad():
        model[2].bias[0] = 1e6
    report = fperr.measure(model, normal(2, 6), scenarios=["untargeted_unsuccessful"])
    assert not column(report, "is_finite", format="float16").any()
    assert column(report, "delta", format="float16").isna().all()
    assert column(report, "stage_cast", format="float16").isna().all()
    assert column(report, "delta", format="float64").notna().all()


def test_a_flat_gradient_is_flat_and_a_dead_one_is_dead():
    model = seeded(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)  # no unit is ever active
    flat = fperr.measure(model, normal(2, 3), losses=["mifpe"])
    assert flat.frame["truly_flat"].all()
    assert flat.frame["delta"].isna().all()
    linear = nn.Linear(3, 3).eval()
    with torch.no_grad():
        linear.weight.copy_(torch.eye(3))
        linear.bias.copy_(torch.tensor([200.0, 0.0, 0.0]))
    options = {"formats": ["float32"], "scenarios": ["untargeted_unsuccessful"]}
    dead = fperr.measure(linear, torch.zeros(1, 3), losses=["ce", "stable_ce"], **options)
    assert column(dead, "is_dead").tolist() == [True, False]
    assert column(dead, "truly_flat").tolist() == [False, False]
    assert column(dead, "delta", loss="ce").tolist() == [1.0]
    assert column(dead, "p_underflow_rate", loss="ce").tolist() == [1.0]


def test_a_tie_caps_the_scale():
    linear = nn.Linear(3, 3, bias=False).eval()
    with torch.no_grad():
        linear.weight.copy_(torch.eye(3))
    x = torch.tensor([[1.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
    report = fperr.measure(linear, x, losses=["mifpe", "tmifpe"], formats=["float32"])
    assert column(report, "scale_capped", sample=0).all()
    assert not column(report, "scale_capped", sample=1).any()
    assert (column(report, "T", sample=0) == 0).all()
    assert report.frame["delta"].notna().all()
    assert report.summary()["capped"].tolist() == [2, 2]


def test_the_scale_is_data_and_its_own_error_is_reported():
    report = fperr.measure(tiny_mlp(), normal(5, 6), losses=["ce", "mifpe", "tmifpe"])
    assert (column(report, "c_error", loss="ce") == 0).all()
    half = column(report, "c_error", loss="mifpe", format="float16")
    assert ((half > 0) & (half < 0.05)).all()
    assert (column(report, "c_error", loss="tmifpe", format="float64") < 1e-13).all()


def test_delta_sup_is_eps_over_g():
    frame = fperr.measure(tiny_mlp(), normal(3, 6), losses=["mifpe"], formats=["float32"]).frame
    total = frame["log2_delta_sup_logit"] + frame["log2_G"]
    # a difference and a sum of numbers below 64 in size, each rounded once
    assert ((total + 24).abs() <= 2 * 2.0**-48).all()
    assert (frame["log2_delta_sup_input"] > -40).all()


def test_the_batch_size_is_an_option_and_the_rows_do_not_depend_on_the_batch_otherwise():
    model, x = tiny_mlp(), normal(5, 6)
    one = fperr.measure(model, x, batch_size=1, formats=["float64"])
    all_at_once = fperr.measure(model, x, formats=["float64"])
    assert one.provenance["Sequential"]["settings"]["batch_size"] == 1
    assert all_at_once.provenance["Sequential"]["settings"]["batch_size"] == 5
    same = ["sample", "scenario", "label", "margin", "log2_reference_error"]
    pd.testing.assert_frame_equal(one.frame[same], all_at_once.frame[same])


def test_measuring_twice_gives_the_same_report_and_leaves_no_trace():
    model, x = tiny_mlp(), normal(2, 6)
    before = [p.clone() for p in model.parameters()]
    state = torch.random.get_rng_state()
    first, second = fperr.measure(model, x), fperr.measure(model, x)
    pd.testing.assert_frame_equal(first.frame, second.frame)
    assert first.provenance == second.provenance
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_numpy_inputs_and_float64_models():
    model = tiny_mlp().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.div_(3)  # no float32 numbers any more
    x = normal(2, 6).double()
    report = fperr.measure(model, x.numpy(), losses=["mifpe"])
    assert report.provenance["Sequential"]["inputs"]["dtype"] == "torch.float64"
    assert (column(report, "stage_cast", format="float32") > 0).all()
    assert (column(report, "stage_cast", format="float64") == 0).all()


def test_an_interruption_returns_the_finished_rows(monkeypatch):
    rows = MeasurementRun.rows

    def interrupted(self, *arguments):
        for number, sample in enumerate(rows(self, *arguments)):
            if number == 2:
                raise KeyboardInterrupt
            yield sample

    monkeypatch.setattr(MeasurementRun, "rows", interrupted)
    report = fperr.measure(tiny_mlp(), normal(5, 6))
    assert sorted(report.frame["sample"].unique()) == [0, 1]
    assert report.provenance["Sequential"]["interrupted"] is True


@pytest.mark.parametrize(
    ("fault", "kind", "text"),
    [
        (
            fperr.errors.StaleCaptureError("weights changed"),
            fperr.errors.StaleCaptureError,
            "^weig",
        ),
        (RuntimeError("no memory"), fperr.errors.FperrError, "after 2 samples.*Error: no memory"),
    ],
)
def test_a_fault_on_the_way_carries_what_was_finished(fault, kind, text, monkeypatch):
    rows = MeasurementRun.rows

    def failing(self, *arguments):
        for number, sample in enumerate(rows(self, *arguments)):
            if number == 2:
                raise fault
            yield sample

    monkeypatch.setattr(MeasurementRun, "rows", failing)
    with pytest.raises(kind, match=text) as raised:
        fperr.measure(tiny_mlp(), normal(5, 6))
    assert sorted(raised.value.report.frame["sample"].unique()) == [0, 1]


def test_parquet_keeps_everything(tmp_path):
    report = fperr.measure(tiny_mlp(), normal(2, 6))
    report.to_parquet(tmp_path / "m.parquet")
    again = fperr.Report.from_parquet(tmp_path / "m.parquet")
    pd.testing.assert_frame_equal(again.frame, report.frame)
    assert again.provenance == report.provenance
    json.dumps(report.provenance)


def test_other_files_are_refused(tmp_path, monkeypatch):
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="not one that fperr wrote"):
        fperr.Report.from_parquet(tmp_path / "other.parquet")
    report = fperr.measure(tiny_mlp(), normal(1, 6), formats=["float32"])
    monkeypatch.setattr("fperr.report.frame.SCHEMA_VERSION", 99)
    report.to_parquet(tmp_path / "new.parquet")
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match="has schema version 99, this fperr reads 10: measure again"
    ):
        fperr.Report.from_parquet(tmp_path / "new.parquet")
    monkeypatch.setattr("fperr.report.frame.SCHEMA_VERSION", 5)
    older = fperr.Report(report.frame.drop(columns=["value_audit", "reason"]), report.provenance)
    older.to_parquet(tmp_path / "older.parquet")
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match="has schema version 5, this fperr reads 10: measure again"
    ):
        fperr.Report.from_parquet(tmp_path / "older.parquet")
    with pytest.raises(ValueError, match="unknown columns"):
        fperr.Report.from_rows([{"detla": 1.0}], {})


def test_the_report_says_how_it_came_to_be():
    provenance = fperr.measure(tiny_mlp(), normal(2, 6), name="tiny").provenance["tiny"]
    assert provenance["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    engine = provenance["reference"]["engine"]
    assert engine.startswith("float64, errors by agreement with float32 for 2 of 2 samples; pairs")
    assert set(provenance["precision_switches"]) == {"float16", "float32", "float64"}
    assert provenance["device"]["keeps_subnormals"] is True
    assert len(provenance["model"]["digest"]) == 64


def test_summary_and_plots():
    report = fperr.measure(tiny_mlp(), normal(6, 6))
    summary = report.summary()
    assert len(summary) == 9
    assert (summary["rows"] == 12).all()  # twins are not counted
    assert len(report.summary(("scenario", "loss", "format"))) == 36
    verdicts = summary.set_index(["loss", "format"])["verdict"]
    assert verdicts[("mifpe", "float32")].startswith(
        "cannot tell from 6 images, about --n 59 would: none of 6 "
    )
    for draw, panels in (("relative_error", 2), ("sign_errors", 2), ("stages", 3)):
        figure = getattr(report.plot, draw)()
        assert len(figure.axes) == panels
        assert all(axis.has_data() for axis in figure.axes)
        figure.canvas.draw()
