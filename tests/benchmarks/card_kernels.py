"""A card's kernels beside fperr's emulation of them, by operations and by gradients.

`python -m tests.benchmarks.card_kernels` prints tables in Markdown; docs/how_to/gpu_arithmetic.md
shows those of one card. The tests marked `gpu` hold what the page claims.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fperr import data, formats, losses, zoo
from fperr.bounds.kernels import DOCUMENTED, Accuracy
from fperr.emulated_kernels import emulated, rounded_to_bits
from fperr.errors import FperrError
from fperr.formats import Format, format_named
from fperr.kernel_switches import controlled
from fperr.losses import Context
from fperr.networks.in_format import FormatNetwork
from fperr.validation import logit_gradients
from fperr.validation.falsification import falsify
from fperr.validation.trial_logits import TrialLogits

CUDA = torch.device("cuda")
RULES = ("nearest_away", "nearest_even", "truncated")
BITS = 11  # of TF32's operands
HALVES = (formats.FLOAT16_CUDA, formats.BFLOAT16_CUDA)
NETWORKS = (
    "fashion_adversarial", "fashion_standard", "fashion_saturated", "mnist_fastat_pgd",
    "mnist_levelsets_eps0.4", "mnist_lenet5_advtrained",
)  # fmt: skip
PAIRS = (
    ("tf32", "tf32@cuda"), ("float16", "float16@cuda"), ("bfloat16", "bfloat16@cuda"),
    ("float32", "float32"),
)  # fmt: skip
AUTOCAST_PAIRS = (
    ("float16", "autocast-float16@cuda"), ("bfloat16", "autocast-bfloat16@cuda"),
)  # fmt: skip

ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div,
    "maximum": torch.maximum, "relu": lambda a, _: a.relu(), "sqrt": lambda a, _: a.abs().sqrt(),
    "exp": lambda a, _: a.exp(), "log": lambda a, _: a.abs().log(), "tanh": lambda a, _: a.tanh(),
    "erf": lambda a, _: a.erf(), "rsqrt": lambda a, _: a.abs().rsqrt(),
    "sigmoid": lambda a, _: a.sigmoid(), "gelu": lambda a, _: F.gelu(a),
    "silu": lambda a, _: F.silu(a), "softplus": lambda a, _: F.softplus(a),
}  # fmt: skip
REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "softmax": lambda a: a.softmax(1), "log_softmax": lambda a: a.log_softmax(1),
    "mean": lambda a: a.mean(1), "sum": lambda a: a.sum(1),
    "layer_norm": lambda a: F.layer_norm(a, a.shape[1:]),
}  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def products(operands: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Float32 operands (n, n) through each kind of product with the identity: one term a sum."""
    n = len(operands)
    identity = torch.eye(n, device=operands.device)
    yield "matrix product, left", operands @ identity
    yield "matrix product, right", identity @ operands
    image, kernel = operands.T.reshape(1, n, n, 1), identity.reshape(n, n, 1, 1)
    yield "convolution, input", F.conv2d(image, kernel).reshape(n, n).T
    weight = operands.reshape(n, n, 1, 1)
    ones = identity.reshape(1, n, n, 1)
    yield "convolution, weight", F.conv2d(ones, weight).reshape(n, n)
    leaf = torch.zeros_like(image).requires_grad_()
    (g,) = torch.autograd.grad(F.conv2d(leaf, kernel), leaf, image)
    yield "convolution, gradient of its output", g.reshape(n, n).T


def operand_rounding() -> pd.DataFrame:
    """By product: the share of TF32 operands that are cut as each rule cuts them."""
    operands = normal(128, 128) * torch.exp2(
        torch.randint(-20, 20, (128, 128), generator=generator(1)).float()
    )
    with controlled(formats.TF32):
        found = dict(products(operands.to(CUDA)))
    rules = {rule: rounded_to_bits(operands, BITS, rule) for rule in RULES} | {"none": operands}
    return pd.DataFrame(
        [
            {"operands": name}
            | {rule: float((cut == result.cpu()).double().mean()) for rule, cut in rules.items()}
            for name, result in found.items()
        ]
    )


def accumulation(sizes: tuple[int, ...] = (16, 64, 256, 1024, 4096)) -> pd.DataFrame:
    """Errors of sums of products, in 2^-24 of the sum of absolute terms, beyond output rounding.

    `rule` is how operands are cut; `bias` is the mean error of positive terms: truncated additions
    are below the sum.
    """
    rows = []
    for name in ("float32", "tf32", "float16", "bfloat16"):
        fmt = format_named(name)
        for n in sizes:
            a, b = (normal(64, n, seed=s).abs().to(fmt.dtype) for s in (0, 1))
            if name == "tf32":  # operands that no rule cuts
                a, b = (rounded_to_bits(t, BITS, "nearest_even") for t in (a, b))
            with controlled(fmt):
                found = (a.to(CUDA) @ b.to(CUDA).T).cpu().double()
            exact = a.double() @ b.double().T
            error = found - exact
            unit = 2.0**-24 * exact.abs()
            allowed = fmt.unit_roundoff * exact.abs() if fmt.is_half else torch.zeros(())
            rows.append(
                {
                    "format": name,
                    "n": n,
                    "largest": float(((error.abs() - allowed).clamp_min(0) / unit).max()),
                    "bias": float((error / unit).mean()),
                }
            )
    return pd.DataFrame(rows)


def all_halves(fmt: Format, seed: int) -> Tensor:
    """Every finite number of a half format, in a random order; ones for the others."""
    bits = torch.randperm(2**16, generator=generator(seed)).to(torch.int32) - 2**15
    numbers = bits.to(torch.int16).view(fmt.dtype)
    return torch.where(numbers.isfinite(), numbers, torch.ones((), dtype=fmt.dtype))


def ordered(numbers: Tensor) -> Tensor:
    """The place of a number among all of its format, so that differences count units."""
    bits = numbers.view({2: torch.int16, 4: torch.int32}[numbers.element_size()]).to(torch.int64)
    top = 2 ** (8 * numbers.element_size() - 1)
    return torch.where(bits < 0, -top - bits, bits)


def compared(found: Tensor, expected: Tensor) -> dict[str, object]:
    """The share of equal numbers (NaN is NaN, -0 is 0), and how many places the others are off."""
    both_nan = found.isnan() & expected.isnan()
    same = (found == expected) | both_nan
    one_nan = found.isnan() ^ expected.isnan()
    places = (ordered(found) - ordered(expected)).abs()[~same & ~one_nan]
    return {
        "equal": float(same.double().mean()),
        "places off": int(places.max()) if len(places) else 0,
        "NaN on one side": int(one_nan.sum()),
    }


def half_operations() -> pd.DataFrame:
    """Every operation in half formats on the card, beside the emulation on the CPU."""
    rows = []
    for fmt in HALVES:
        plain = format_named(fmt.name.removesuffix("@cuda"))
        a, b = all_halves(fmt, 0), all_halves(fmt, 1)
        matrix = (3 * normal(512, 100)).to(fmt.dtype)
        trials = [(name, f, (a, b)) for name, f in ELEMENTWISE.items()]
        trials += [(name, f, (matrix,)) for name, f in REDUCTIONS.items()]
        for name, run, operands in trials:
            with controlled(plain):
                found = run(*(t.to(CUDA) for t in operands)).cpu()
            with emulated(fmt):
                expected = run(*operands)
            rows.append({"format": fmt.name, "operation": name, **compared(found, expected)})
    return pd.DataFrame(rows)


def float32_operations() -> pd.DataFrame:
    """Elementwise operations in float32 on the card, beside the CPU's."""
    a, b = 10 * normal(2**20), 10 * normal(2**20, seed=1)
    rows = []
    for name, f in ELEMENTWISE.items():
        with controlled(formats.FLOAT32):
            found, expected = f(a.to(CUDA), b.to(CUDA)).cpu(), f(a, b)
        correct = f(a.double(), b.double()).float()
        rows.append(
            {
                "operation": name,
                **compared(found, expected),
                "card, places off": compared(found, correct)["places off"],
                "CPU, places off": compared(expected, correct)["places off"],
            }
        )
    return pd.DataFrame(rows)


@contextmanager
def pytorch_defaults() -> Iterator[None]:
    """The precision that PyTorch starts with: TF32 in convolutions, not in matrix products."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def directions(gradients: Tensor) -> Tensor:
    """Gradients of norm 1: a scale that depends on the logits' format is no error of theirs."""
    return F.normalize(gradients.double().cpu().flatten(1), eps=0.0)


def gradient_in(
    model: nn.Module,
    images: data.Images,
    name: str,
    device: torch.device,
    loss: str,
    *,
    autocast: bool = False,
) -> Tensor:
    """The direction of a loss's gradient in a format on a device, in float64, on the CPU."""
    network = FormatNetwork(model.to(device), format_named(name), autocast=autocast)
    x, y = images.x.to(device), images.y.to(device)
    found = network.gradient(x, y, losses.loss_named(loss), Context(), mean=False)
    return directions(found.gradient)


def default_gradient(model: nn.Module, images: data.Images, loss: str) -> Tensor:
    """The same on the card with PyTorch's defaults."""
    x = images.x.to(CUDA).requires_grad_()
    with pytorch_defaults():
        z = model.to(CUDA)(x)
        value = losses.loss_named(loss)(z, images.y.to(CUDA), Context()).sum()
        (gradient,) = torch.autograd.grad(value, x)
    return directions(gradient)


def gradients(count: int = 64, loss: str = "mifpe") -> pd.DataFrame:
    """Whole gradients: the errors of the card's and of the emulated ones, and their distance.

    Medians over images of distances between directions; shares of wrong signs. The exact direction
    is float64's.
    """
    cpu, rows = torch.device("cpu"), []
    for name in NETWORKS:
        try:
            images = data.images_named(zoo.entry(name).dataset).first(count)
            model = zoo.load(name)
        except FperrError as fault:
            print(f"left out: {name} ({fault})")
            continue
        exact = gradient_in(model, images, "float64", cpu, loss)

        def row(
            label: str, card: Tensor, ours: Tensor, exact: Tensor = exact, name: str = name
        ) -> dict[str, object]:
            return {
                "network": name,
                "kernels": label,
                "card": float((card - exact).norm(dim=1).nanmedian()),
                "emulated": float((ours - exact).norm(dim=1).median()),
                "apart": float((card - ours).norm(dim=1).median()),
                "wrong signs, card": float((card.sign() != exact.sign()).double().mean()),
                "wrong signs, emulated": float((ours.sign() != exact.sign()).double().mean()),
            }

        ours = gradient_in(model, images, "float32@cuda", cpu, loss)
        rows.append(row("PyTorch's defaults", default_gradient(model, images, loss), ours))
        for plain, emulation in PAIRS:
            card = gradient_in(model, images, plain, CUDA, loss)
            rows.append(row(plain, card, gradient_in(model.cpu(), images, emulation, cpu, loss)))
        for plain, emulation in AUTOCAST_PAIRS:
            card = gradient_in(model, images, plain, CUDA, loss, autocast=True)
            ours = gradient_in(model.cpu(), images, emulation, cpu, loss)
            rows.append(row(f"autocast to {plain}", card, ours))
    return pd.DataFrame(rows)


def on_the_card(cases: TrialLogits) -> Tensor:
    """The logit gradient that the card's cross-entropy computes, on the CPU."""
    there = replace(
        cases, z=cases.z.to(CUDA), label=cases.label.to(CUDA), c=cases.c.to(CUDA),
        targeted=cases.targeted.to(CUDA),
    )  # fmt: skip
    return logit_gradients.pytorch_gradient(there).cpu()


def bounds(accuracy: Accuracy | None = None, cases: int = 20_000) -> pd.DataFrame:
    """By format: the card's largest error of a logit gradient over its bound, searched or not.

    Without an accuracy of exp and log it is what is documented of CUDA's.
    """
    frame = falsify(cases=cases, kernel="cuda", accuracy=accuracy, computed=on_the_card)
    return frame.groupby(["format", "is_searched"], observed=True)["ratio"].max().reset_index()


def convolutions() -> pd.DataFrame:
    """By channels: the error of a convolution with PyTorch's defaults over TF32's and float32's.

    About 1 in the third column: it ran in TF32; about 1 in the last: in float32.
    """
    rows = []
    for inputs, outputs, size in ((1, 16, 28), (1, 32, 28), (3, 16, 32), (16, 32, 14), (32, 64, 14),
                                  (64, 128, 8), (256, 256, 8)):  # fmt: skip
        x, weight = normal(64, inputs, size, size), normal(outputs, inputs, 3, 3, seed=1)
        exact = F.conv2d(x.double(), weight.double())
        cut = (rounded_to_bits(t, BITS, "nearest_away").double() for t in (x, weight))
        in_tf32 = float((F.conv2d(*cut) - exact).norm() / exact.norm())
        in_float32 = float((F.conv2d(x, weight).double() - exact).norm() / exact.norm())
        for batch in (1, 64):
            with pytorch_defaults():
                found = F.conv2d(x[:batch].to(CUDA), weight.to(CUDA)).cpu().double()
            error = float((found - exact[:batch]).norm() / exact[:batch].norm())
            rows.append(
                {
                    "channels": f"{inputs} to {outputs}, {size} x {size}",
                    "batch": batch,
                    "error, of TF32's": error / in_tf32,
                    "error, of float32's": error / in_float32,
                }
            )
    return pd.DataFrame(rows)


def tables() -> str:
    """All comparisons, in Markdown."""
    parts = {
        "How TF32's operands are cut": operand_rounding(),
        "Sums of products": accumulation(),
        "Operations in half formats": half_operations(),
        "Operations in float32": float32_operations(),
        "Whole gradients": gradients(),
        "Convolutions with PyTorch's defaults": convolutions(),
        "Logit gradients over their bounds": bounds(),
        "The same with 1 ulp for exp": bounds(DOCUMENTED),
    }
    return "\n\n".join(
        f"### {title}\n\n{frame.to_markdown(index=False, floatfmt='.3g')}"
        for title, frame in parts.items()
    )


if __name__ == "__main__":
    print(tables())
