"""Every column against an oracle that shares no code with fperr: mpmath, by the definitions.

The oracle runs a network of linear layers and ReLUs in exact arithmetic with weights of its
choice, takes the format's own numbers from plain PyTorch, and forms each column from scratch.
"""

import copy
import math

import mpmath
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fperr
from fperr.formats import FORMATS
from fperr.theory.scaling import margin, t_star
from tests.conftest import normal, tiny_mlp

MP = mpmath.MPContext()
MP.prec = 400
INPUTS, CLASSES, BATCH = 5, 4, 3
_RATIOS = ("delta", "max_norm", "stage", "logit_delta", "common_mode", "p_under", "sign")


def numbers(tensor):
    return [MP.mpf(v) for v in tensor.double().reshape(-1).tolist()]


def ranked(z):
    return sorted(range(len(z)), key=lambda i: (-z[i], i))


def norm(v, order=2):
    return MP.fsum(abs(a) for a in v) if order == 1 else MP.sqrt(MP.fsum(a * a for a in v))


def minus(a, b):
    return [x - y for x, y in zip(a, b, strict=True)]


class Exact:
    """Linear, ReLU, Linear in exact arithmetic, with the weights of `model` as they are."""

    def __init__(self, model):
        first, _, last = model
        self.w1 = [numbers(row) for row in first.weight]
        self.w2 = [numbers(row) for row in last.weight]
        self.b1, self.b2 = numbers(first.bias), numbers(last.bias)

    def run(self, x):
        hidden = [MP.fdot(w, x) + b for w, b in zip(self.w1, self.b1, strict=True)]
        mask = [h > 0 for h in hidden]
        active = [h if m else MP.zero for h, m in zip(hidden, mask, strict=True)]
        return [MP.fdot(w, active) + b for w, b in zip(self.w2, self.b2, strict=True)], mask

    def row(self, k, mask):
        return self.combine([MP.mpf(i == k) for i in range(CLASSES)], mask)

    def combine(self, v, mask):
        """J^T v with the ReLU signs of `mask`."""
        inner = [
            MP.fsum(v[k] * self.w2[k][h] for k in range(CLASSES)) if mask[h] else MP.zero
            for h in range(len(mask))
        ]
        return [MP.fsum(inner[h] * self.w1[h][j] for h in range(len(mask))) for j in range(INPUTS)]


def exact_v(z, label, c):
    weights = [MP.exp(c * (value - max(z))) for value in z]
    p = [w / MP.fsum(weights) for w in weights]
    v = [c * a for a in p]
    v[label] = -c * MP.fsum(a for i, a in enumerate(p) if i != label)
    return v


def expected(model, x, i, label, name, fmt):
    """The columns of sample i, by definition; losses ce and mifpe, untargeted."""
    net = copy.deepcopy(model).to(fmt.dtype)
    leaf = x.to(fmt.dtype).requires_grad_()
    hidden = net[0](leaf)
    z_hat = net[2](hidden.relu())
    top = z_hat.detach().double().topk(2).values
    wanted = 1 / (top[:, 0] - top[:, 1]) if name == "mifpe" else torch.ones(len(x)).double()
    c_hat = wanted.to(fmt.dtype)
    scaled = c_hat[:, None] * z_hat if name == "mifpe" else z_hat
    loss = cross_entropy(scaled, label, reduction="sum")
    v_hat, g_hat = (numbers(t[i]) for t in torch.autograd.grad(loss, (z_hat, leaf)))
    own, cast, c, y = Exact(model), Exact(net), MP.mpf(float(c_hat[i])), int(label[i])
    z, mask = own.run(numbers(x[i]))
    z_c, mask_c = cast.run(numbers(leaf[i].detach()))
    z_f, mask_f = numbers(z_hat[i].detach()), (hidden[i] > 0).tolist()
    v, v_f, v_c = exact_v(z, y, c), exact_v(z_f, y, c), exact_v(z_c, y, c)
    g = own.combine(v, mask)
    products = {
        "backward": minus(g_hat, cast.combine(v_hat, mask_f)),
        "loss": cast.combine(minus(v_hat, v_f), mask_f),
        "forward": minus(cast.combine(v_f, mask_f), cast.combine(v_c, mask_c)),
        "cast": minus(cast.combine(v_c, mask_c), g),
    }
    error, order, order_f = minus(g_hat, g), ranked(z), ranked(z_f)
    margin = z[order[0]] - z[order[1]]
    big_g = c * MP.fsum(a for k, a in enumerate(v) if k != y) / c
    wrong = sum(MP.sign(a) != MP.sign(b) for a, b in zip(g, g_hat, strict=True))
    others = [k for k in range(CLASSES) if k != y]
    rows = [norm(own.row(k, mask)) for k in range(CLASSES)]
    columns = {
        "margin": margin,
        "T": 1 if name == "mifpe" else z_f[order_f[0]] - z_f[order_f[1]],
        "c": c,
        "c_error": abs(c * margin - 1) if name == "mifpe" else 0,
        "log2_G": MP.log(big_g, 2),
        "delta": norm(error) / norm(g),
        "max_norm_delta": max(map(abs, error)) / max(map(abs, g)),
        "sign_error_rate": MP.mpf(wrong) / INPUTS,
        "logit_delta": norm(minus(v_hat, v_f), 1) / norm(v_f, 1),
        "p_underflow_rate": MP.mpf(sum(v_hat[k] == 0 for k in others)) / len(others),
        "common_mode_factor": rows[y] / norm(g),
        "log2_delta_sup_logit": MP.log(fmt.unit_roundoff / big_g, 2),
        "log2_delta_sup_input": MP.log(fmt.unit_roundoff * MP.fsum(rows) / norm(g), 2),
        "prediction_differs": order[0] != order_f[0],
        "format_scenario": "untargeted_" + ("unsuccessful" if order_f[0] == y else "successful"),
        "scenario": "untargeted_" + ("unsuccessful" if order[0] == y else "successful"),
    }
    for stage, vector in products.items():
        columns[f"stage_{stage}"] = norm(vector) / norm(g)
        columns[f"share_{stage}"] = MP.fdot(vector, error) / norm(error) ** 2
    return columns


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("fmt", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("offset", [0.0, 9.0, 30.0], ids=lambda o: f"margin about {o:g}")
def test_columns_are_what_the_definitions_say(fmt, offset, reduction):
    model = tiny_mlp(INPUTS, CLASSES)
    with torch.no_grad():
        model[2].bias[1] += offset
    x = normal(BATCH, INPUTS)
    order = model(x).argsort(1, descending=True)
    label = torch.tensor([int(order[i, i % 2]) for i in range(BATCH)])
    frame = fperr.measure(
        model,
        x,
        label,
        losses=["ce", "mifpe"],
        formats=[fmt],
        reduction=reduction,
        engine="mpmath",
        digits=50,
    ).frame
    for _, row in frame.iterrows():
        i = int(row["sample"])
        wanted = expected(model, x, i, label, row["loss"], FORMATS[fmt])
        for name, value in wanted.items():
            if reduction == "mean" and name.startswith(("delta", "max", "stage", "share", "sign")):
                continue  # a third is rounded into the gradient itself
            if reduction == "mean" and name in ("logit_delta", "p_underflow_rate"):
                continue
            if isinstance(value, str | bool):
                assert row[name] == value, name
            else:
                # A ratio of norms is accurate however small: its vectors have 207 bits, so what
                # should be zero is below 2**-150. The others are float64 sums of terms of size 1
                # to 100 (margins, logarithms, c/c - 1, shares that sum to 1).
                slack = 2.0**-150 if name.startswith(_RATIOS) else 1e-13
                assert row[name] == pytest.approx(float(value), rel=1e-12, abs=slack), name


def test_the_error_of_c_is_against_the_exact_logits():
    """t* of the exact logits and not of the format's; float64 logits are exact to 1e-15 here."""
    model, x = tiny_mlp(INPUTS, CLASSES), normal(BATCH, INPUTS)
    options = {"losses": ["tmifpe"], "formats": ["float16"]}
    frame = fperr.measure(model, x, scenarios=["untargeted_unsuccessful"], **options).frame
    with torch.no_grad():
        z = copy.deepcopy(model).double()(x.double())
    wanted = (t_star(z) / margin(z)).numpy()
    expected_error = abs(frame["c"].to_numpy() / wanted - 1)
    assert frame["c_error"].to_numpy() == pytest.approx(expected_error, rel=0, abs=1e-12)
    assert (frame["c_error"] > 1e-6).all()


def test_the_predictions_of_a_format_can_differ():
    """float16 rounds 2049 to 2048: a tie, which the lower index wins."""
    linear = nn.Linear(2, 2, bias=False).eval()
    with torch.no_grad():
        linear.weight.copy_(torch.eye(2))
    x = torch.tensor([[2048.0, 2049.0]])
    with pytest.warns(UserWarning, match="x ranges from"):
        frame = fperr.measure(
            linear, x, [1], losses=["ce"], formats=["float16", "float32"]
        ).frame.set_index("format")
    assert frame["prediction_differs"].to_dict() == {"float16": True, "float32": False}
    assert frame["scenario"].unique().tolist() == ["untargeted_unsuccessful"]
    assert frame.loc["float16", "format_scenario"] == "untargeted_successful"
    assert not math.isnan(frame.loc["float16", "delta"])


@pytest.mark.parametrize("reduction", ["mean"])
def test_a_mean_is_divided_out_of_the_gradient(reduction):
    """In float64 a third costs a rounding: the error stays of rounding size."""
    model, x = tiny_mlp(INPUTS, CLASSES), normal(3, INPUTS)
    frame = fperr.measure(
        model, x, losses=["mifpe"], formats=["float64"], reduction=reduction
    ).frame
    assert frame["delta"].max() < 1e-14
    assert frame["logit_delta"].max() < 1e-14
