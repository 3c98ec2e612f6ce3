"""Attempts to refute the bounds on the logit gradient: random cases, then a search."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from fperr.bounds import kernels
from fperr.bounds.cross_entropy import Bound, enclosed
from fperr.bounds.kernels import Accuracy, Kernel
from fperr.caller_state import in_neutral_state
from fperr.formats import Format, format_named
from fperr.theory.scaling import log2_G
from fperr.theory.scenarios import SCENARIOS, classify, ranked
from fperr.validation import logit_gradients
from fperr.validation.hill_climbing import climb
from fperr.validation.trial_logits import KINDS, TrialLogits, draw, masked

FORMATS = ("float16", "bfloat16", "float32", "float64")
# Nine, so that in turn with four or five kinds of logits every pair comes up
_CLASSES = (2, 3, 5, 10, 10, 10, 30, 100, 1000)
_NUMBERS, _MOST, _FEWEST = 160_000, 4000, 100
_SEARCHED, _STEPS, _SEARCH_EVERY = 256, 60, 3
Computed = Callable[[TrialLogits], Tensor]


@in_neutral_state
def falsify(
    formats: Sequence[str] = FORMATS,
    cases: int = 100_000,
    *,
    logits: Tensor | None = None,
    kernel: str | Kernel = "cpu",
    accuracy: Accuracy | None = None,
    computed: Computed = logit_gradients.computed,
    is_masked: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Try the bounds on at least so many logit vectors a format.

    Args:
        formats: names.
        cases: how many for each of them, those of the search included.
        logits: (any, K), of real networks, as a fifth kind.
        kernel: the model of the kernel, e.g. `"cpu"`.
        accuracy: of exp and log; None: as swept on this machine, else as documented.
        computed: what is tried: PyTorch's gradient; a control may put another in its place.
        is_masked: classes at random are absent: their logits are -inf.
        seed: of the random numbers.
        progress: show a bar.

    Returns:
        One row a case. Columns: `format`, `kind`, `K`, `scenario`, `is_searched`, `is_plain` (c =
        1), `ratio` (the largest |v_hat - v|_i / bound_i), `normwise` (|v_hat - v|_2 / |bound|_2),
        `relative_error` and `relative_bound` (over |v|_2), `is_capped` (the bound at the label sits
        at its cap), and for the papers' bound `paper_u`, `paper_eta`, `paper_normal`: |v_hat - v|_1
        / |v|_1 over epsilon_max / G.
    """
    k, batch = kernels.kernel_named(kernel), max(_FEWEST, min(_MOST, cases // 60))
    found = []
    with tqdm(total=cases * len(formats), disable=not progress, unit="case") as bar:
        for name in formats:
            fmt = format_named(name)
            known = kernels.accuracy(fmt, torch.device("cpu")) if accuracy is None else accuracy
            done, trials = 0, _trials(fmt, logits, k, known, computed, is_masked, seed, batch)
            while done < cases:
                trial = next(trials)
                found.append(
                    trial.assign(format=pd.Categorical([name] * len(trial), list(formats)))
                )
                done += len(trial)
                bar.update(len(trial))
    return pd.concat(found, ignore_index=True)


def _trials(
    fmt: Format,
    logits: Tensor | None,
    k: Kernel,
    known: Accuracy,
    computed: Computed,
    is_masked: bool,
    seed: int,
    largest: int,
) -> Iterator[pd.DataFrame]:
    """Batches of random cases, each followed by what a search makes of the worst of them."""
    generator = torch.Generator().manual_seed(seed)
    kinds: list[tuple[str, str | Tensor]] = [(name, name) for name in KINDS]
    if logits is not None:
        kinds.append(("real", logits))

    def ratio(cases: TrialLogits) -> Tensor:
        error, _ = logit_gradients.absolute_error(cases, computed(cases))
        return _ratio(error, _bound(cases, fmt, k, known).error)

    def drawn(turn: int) -> tuple[str, TrialLogits]:
        name, kind = kinds[turn % len(kinds)]
        K = kind.shape[1] if isinstance(kind, Tensor) else _CLASSES[turn % len(_CLASSES)]
        cases = draw(kind, min(largest, _NUMBERS // K), K, fmt, generator)
        return name, masked(cases, generator) if is_masked else cases

    for turn in itertools.count():
        name, cases = drawn(turn)
        frame = tried(cases, fmt, k, known, computed)
        yield frame.assign(kind=_constant(name, frame), is_searched=False)
        if turn % _SEARCH_EVERY == 0:
            name, cases = drawn(turn // _SEARCH_EVERY)
            best = ratio(cases).argsort(descending=True)[: min(_SEARCHED, largest // 10)]
            climbed = climb(cases.of(best), ratio, fmt, _STEPS, generator)
            frame = tried(climbed, fmt, k, known, computed)
            yield frame.assign(kind=_constant(name, frame), is_searched=True)


def _constant(kind: str, frame: pd.DataFrame) -> pd.Categorical:
    return pd.Categorical([kind] * len(frame), [*KINDS, "real"])


def tried(
    cases: TrialLogits,
    fmt: Format,
    k: Kernel,
    known: Accuracy,
    computed: Computed = logit_gradients.computed,
) -> pd.DataFrame:
    """The columns of `falsify` that the cases themselves give."""
    error, size = logit_gradients.absolute_error(cases, computed(cases))
    bound = _bound(cases, fmt, k, known)
    one, order = size.sum(1), ranked(cases.z)
    by_sign = [classify(order, cases.label, targeted=targeted) for targeted in (False, True)]
    scenarios = [
        by_sign[int(targeted)][i].name for i, targeted in enumerate(cases.targeted.tolist())
    ]
    relative = error.sum(1) / one
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


def _bound(cases: TrialLogits, fmt: Format, k: Kernel, known: Accuracy) -> Bound:
    return enclosed(
        cases.z,
        cases.label,
        cases.c,
        fmt,
        kernel=k,
        upstream=cases.upstream,
        shifted=cases.is_shifted,
        accuracy=known,
    )


def _ratio(error: Tensor, bound: Tensor) -> Tensor:
    """The largest error/bound of each case; 0/0 is 0."""
    return torch.where(error > 0, error / bound, 0.0).amax(1)


def _norm(t: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(t, dim=1)
    return norm
