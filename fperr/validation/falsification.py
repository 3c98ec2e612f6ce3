"""Attempts to refute the bounds on the logit gradient, with random cases and by search."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from fperr.bounds import kernels
from fperr.bounds.arguments import format_of
from fperr.bounds.cross_entropy import Bound, enclosed
from fperr.bounds.kernels import Accuracy, Kernel
from fperr.caller_state import in_neutral_state
from fperr.formats import Format
from fperr.theory.scaling import log2_G
from fperr.theory.scenarios import SCENARIOS, classify, ranked
from fperr.validation import logit_gradients
from fperr.validation.hill_climbing import climb
from fperr.validation.trial_logits import KINDS, TrialLogits, draw, with_absent_classes

FORMATS = ("float16", "bfloat16", "float32", "float64")
# Nine numbers of classes, and four or five kinds of logits: 9 is coprime to both, so that taking
# the next of each at every turn meets every pair.
_CLASSES = (2, 3, 5, 10, 10, 10, 30, 100, 1000)
_LOGITS_PER_BATCH, _LARGEST_BATCH, _SMALLEST_BATCH = 160_000, 4000, 100
_SEARCHED = 256  # worst cases with which a search begins
_STEPS = 60  # of a search
_SEARCH_EVERY = 3  # batches of random cases for each search
GradientFunction = Callable[[TrialLogits], Tensor]


@in_neutral_state
def falsify(
    formats: Sequence[str] = FORMATS,
    cases: int = 100_000,
    *,
    logits: Tensor | None = None,
    kernel: str | Kernel = "cpu",
    accuracy: Accuracy | None = None,
    computed: GradientFunction = logit_gradients.pytorch_gradient,
    is_masked: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Try to refute the bounds, on at least `cases` logit vectors of each format.

    Args:
        formats: Names of the formats.
        cases: Number of logit vectors for each format, those of the search included.
        logits: Logits (any, K) of real networks, as a fifth kind of cases.
        kernel: Model of the kernel, or its name, e.g. `"cpu"`.
        accuracy: Accuracy of exp and log. None takes what `sweep` has measured on this machine, or
            else what is documented.
        computed: Function that computes the gradient under test: PyTorch's. A negative control puts
            another function in its place.
        is_masked: Whether classes at random are absent, with logits of -inf.
        seed: Seed of the random numbers.
        progress: Whether to show a progress bar.

    Returns:
        A row for each case. Columns: `format`, `kind`, `K`, `scenario`, `is_searched`, `is_plain`
        (c = 1), `ratio` (the largest |v_hat - v|_i / bound_i), `normwise` (|v_hat - v|_2 /
        |bound|_2), `relative_error` and `relative_bound` (both divided by |v|_2), `is_capped` (the
        bound at the label is its cap), and for the papers' bound `paper_u`, `paper_eta` and
        `paper_normal`: |v_hat - v|_1 / |v|_1 divided by epsilon_max / G.
    """
    kernel_model, batch = (
        kernels.kernel_named(kernel),
        max(_SMALLEST_BATCH, min(_LARGEST_BATCH, cases // 60)),
    )
    frames = []
    with tqdm(total=cases * len(formats), disable=not progress, unit="case") as bar:
        for name in formats:
            fmt = format_of(name)
            kernel_accuracy = (
                kernels.accuracy(fmt, torch.device("cpu"), kernel_model)
                if accuracy is None
                else accuracy
            )
            case_count, trials = (
                0,
                _trials(
                    fmt, logits, kernel_model, kernel_accuracy, computed, is_masked, seed, batch
                ),
            )
            while case_count < cases:
                trial = next(trials)
                frames.append(
                    trial.assign(format=pd.Categorical([name] * len(trial), list(formats)))
                )
                case_count += len(trial)
                bar.update(len(trial))
    return pd.concat(frames, ignore_index=True)


def _trials(
    fmt: Format,
    logits: Tensor | None,
    kernel: Kernel,
    accuracy: Accuracy,
    computed: GradientFunction,
    is_masked: bool,
    seed: int,
    batch: int,
) -> Iterator[pd.DataFrame]:
    """Yield the columns of batches without end: random cases, and after every third a search.

    A search starts from the worst of another batch of random cases.

    Args:
        fmt: Format of the logits.
        logits: Logits (any, K) of real networks, or None.
        kernel: Model of the kernel.
        accuracy: Accuracy of exp and log.
        computed: Function that computes the gradient under test.
        is_masked: Whether classes at random are absent.
        seed: Seed of the random numbers.
        batch: Largest number of cases in a batch.
    """
    generator = torch.Generator().manual_seed(seed)
    kinds: list[tuple[str, str | Tensor]] = [(name, name) for name in KINDS]
    if logits is not None:
        kinds.append(("real", logits))

    def ratio(cases: TrialLogits) -> Tensor:
        error, _ = logit_gradients.absolute_error(cases, computed(cases))
        return _ratio(error, _bound(cases, fmt, kernel, accuracy).error)

    def drawn(turn: int) -> tuple[str, TrialLogits]:
        name, kind = kinds[turn % len(kinds)]
        K = kind.shape[1] if isinstance(kind, Tensor) else _CLASSES[turn % len(_CLASSES)]
        cases = draw(kind, min(batch, _LOGITS_PER_BATCH // K), K, fmt, generator)
        return name, with_absent_classes(cases, generator) if is_masked else cases

    for turn in itertools.count():
        name, cases = drawn(turn)
        frame = trial_columns(cases, fmt, kernel, accuracy, computed)
        yield frame.assign(kind=_kind_column(name, frame), is_searched=False)
        if turn % _SEARCH_EVERY == 0:
            name, cases = drawn(turn // _SEARCH_EVERY)
            best = ratio(cases).argsort(descending=True)[: min(_SEARCHED, batch // 10)]
            climbed = climb(cases.select(best), ratio, fmt, _STEPS, generator)
            frame = trial_columns(climbed, fmt, kernel, accuracy, computed)
            yield frame.assign(kind=_kind_column(name, frame), is_searched=True)


def _kind_column(kind: str, frame: pd.DataFrame) -> pd.Categorical:
    return pd.Categorical([kind] * len(frame), [*KINDS, "real"])


def trial_columns(
    cases: TrialLogits,
    fmt: Format,
    kernel: Kernel,
    accuracy: Accuracy,
    computed: GradientFunction = logit_gradients.pytorch_gradient,
) -> pd.DataFrame:
    """The columns of `falsify` that depend on the cases alone: all but format, kind and search."""
    error, size = logit_gradients.absolute_error(cases, computed(cases))
    bound = _bound(cases, fmt, kernel, accuracy)
    length, order = size.sum(1), ranked(cases.z)
    by_sign = [classify(order, cases.label, targeted=targeted) for targeted in (False, True)]
    scenarios = [
        by_sign[int(targeted)][i].name for i, targeted in enumerate(cases.targeted.tolist())
    ]
    relative = error.sum(1) / length
    sup = torch.exp2(-log2_G(cases.z, cases.label, cases.c))
    sizes = {
        "paper_u": fmt.unit_roundoff,
        "paper_eta": fmt.smallest_subnormal / 2,
        "paper_normal": fmt.smallest_normal,
    }
    return pd.DataFrame(
        {
            "K": cases.z.shape[1],
            "scenario": pd.Categorical(scenarios, list(SCENARIOS)),
            "is_plain": (cases.c == 1).tolist(),
            "ratio": _ratio(error, bound.error).tolist(),
            "normwise": (_norm(error) / _norm(bound.error)).tolist(),
            "relative_error": (_norm(error) / _norm(size)).tolist(),
            "relative_bound": (_norm(bound.error) / _norm(size)).tolist(),
            "is_capped": bound.is_capped.gather(1, cases.label[:, None])[:, 0].tolist(),
        }
        | {name: (relative / (sup * value)).tolist() for name, value in sizes.items()}
    )


def _bound(cases: TrialLogits, fmt: Format, kernel: Kernel, accuracy: Accuracy) -> Bound:
    return enclosed(
        cases.z,
        cases.label,
        cases.c,
        fmt,
        kernel=kernel,
        upstream=cases.upstream,
        shifted=cases.is_shifted,
        accuracy=accuracy,
    )


def _ratio(error: Tensor, bound: Tensor) -> Tensor:
    """The largest error/bound over the components of each case; 0/0 is 0."""
    return torch.where(error > 0, error / bound, 0.0).amax(1)


def _norm(t: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(t, dim=1)
    return norm
