"""Attacks against other people's implementations and numbers, on real networks and images."""

import math

import pytest
import torch
from torch import nn

import fperr
from fperr import data, zoo
from tests.benchmarks.robust_accuracy import EXPECTED, robust_accuracies
from tests.makers.libraries import APGDAttack, torchattacks


def attacked(model, images, **options):
    return fperr.attack(model, images.x, images.y, **options)


def test_iterates_of_torchattacks_bit_by_bit(fashion):
    """Same start, steps, reduction and clamps: the same points, in every sample and step."""
    model, images = zoo.load("fashion_adversarial"), fashion.first(48)
    points = []
    attacked(
        model, images, loss="ce", radius=0.1, steps=6, step_size=0.02, momentum=0.0,
        schedule="constant", random_start=False, freeze=False, reduction="mean",
        projection="library", on_step=lambda *step: points.append(step[1]),
    )  # fmt: skip
    for steps, point in enumerate(points):
        theirs = images.x
        if steps:
            attack = torchattacks.PGD(model, eps=0.1, alpha=0.02, steps=steps, random_start=False)
            theirs = attack(images.x, images.y)
        assert torch.equal(point, theirs)
    # control: the exact projection is another one
    exact = []
    attacked(
        model, images, loss="ce", radius=0.1, steps=6, step_size=0.02, momentum=0.0,
        schedule="constant", random_start=False, freeze=False, reduction="mean",
        on_step=lambda *step: exact.append(step[1]),
    )  # fmt: skip
    assert not all(torch.equal(a, b) for a, b in zip(points, exact, strict=True))


@pytest.mark.parametrize(
    ("network", "radius"), [("fashion_adversarial", 0.12), ("fashion_standard", 0.01)]
)
def test_apgd_is_that_of_autoattack(network, radius, fashion):
    """The same share of images falls: no more apart than the two seeds of one attack are."""
    model, images = zoo.load(network), fashion.first(400)

    def theirs(seed):
        attack = APGDAttack(
            model, n_iter=25, norm="Linf", eps=radius, seed=seed, loss="ce", device="cpu"
        )
        with torch.no_grad():
            return model(attack.perturb(images.x, images.y)).argmax(1) != images.y

    def ours(seed):
        return attacked(
            model, images, radius=radius, method="apgd", loss="ce", steps=25, seed=seed
        ).success

    first, second, mine = theirs(0), theirs(1), ours(0)
    assert 100 < int(first.sum()) < 200
    # of d images that end differently, each is as likely won as lost if the attacks are alike:
    # the difference of the counts has standard deviation sqrt(d)
    for other in (first, second):
        apart = int((mine ^ other).sum())
        assert abs(int(mine.sum()) - int(other.sum())) <= 3 * math.sqrt(max(apart, 1))
    worse = attacked(model, images, radius=radius, method="fgsm", loss="ce").success
    apart = int((worse ^ first).sum())
    assert abs(int(worse.sum()) - int(first.sum())) > 3 * math.sqrt(apart)  # control


@pytest.fixture(scope="module")
def mnist(fperr_data):
    return data.images_named("mnist_test")


def test_the_published_errors_of_a_certified_network(mnist):
    """Wong and Kolter, ICML 2018, radius 0.1: clean 1.8 %, FGSM 3.9 %, certified 5.8 %."""
    model = zoo.load("mnist_wong_kolter")
    found = attacked(model, mnist, radius=0.1, method="fgsm", loss="ce")
    clean = float((found.first_success_step == 0).double().mean())
    assert round(100 * clean, 2) == 1.80
    assert round(100 * float(found.success.double().mean()), 1) == 3.9


@pytest.mark.slow
@pytest.mark.parametrize(("method", "loss"), [("apgd", "ce"), ("pgd", "tmifpe"), ("apgd", "dlr")])
def test_no_attack_exceeds_the_certificate(method, loss, mnist):
    model = zoo.load("mnist_wong_kolter")
    found = attacked(model, mnist, radius=0.1, method=method, loss=loss, steps=50)
    error = 100 * float(found.success.double().mean())
    assert error <= 5.8
    if (method, loss) == ("apgd", "ce"):
        assert error == pytest.approx(4.1, abs=0.1)


class Gradients:
    """The first gradient of an attack."""

    def __call__(self, *step):
        number, _, _, gradient = step
        if number == 1:
            self.zero = int((~gradient.flatten(1).any(1)).sum())


@pytest.mark.parametrize(
    ("loss", "arithmetic", "count", "spread"),
    [
        pytest.param("ce", "float16", 297, 3, marks=pytest.mark.slow),
        ("ce", "float32", 290, 3),
        ("ce", "float64", 80, 3),
        ("tmifpe", "float32", 0, 0),
        ("tmifpe", "float64", 0, 0),
    ],
)
def test_gradients_that_are_exactly_zero(loss, arithmetic, count, spread, mnist):
    """Of the first 300 images; kernels of other processors move a few images across the edge."""
    seen = Gradients()
    attacked(
        zoo.load("mnist_levelsets_eps0.4"), mnist.first(300), radius=0.3, steps=1, loss=loss,
        format=arithmetic, random_start=False, freeze=False, on_step=seen,
    )  # fmt: skip
    assert abs(seen.zero - count) <= spread


def two_sided(gained, lost):
    """Exact McNemar: the chance of a split as uneven, if both ways are alike."""
    n, k = gained + lost, max(gained, lost)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k, n + 1)) / 2**n)


@pytest.mark.slow
def test_exact_gradients_do_what_stable_cross_entropy_does(mnist):
    """PGD on exact gradients is the counterfactual: the gap was floating-point error.

    Of the first 100 images 6 end differently, which no test of 6 calls significant: so 200.
    """
    model: nn.Module = zoo.load("mnist_levelsets_eps0.4")
    images = mnist.first(200)
    ends = {
        name: attacked(model, images, radius=0.3, loss=loss, format=arithmetic).success
        for name, loss, arithmetic in (
            ("exact", "ce", "exact"),
            ("blind", "ce", "float32"),
            ("stable", "stable_ce", "float32"),
        )
    }
    differ = ends["blind"] ^ ends["stable"]
    unlike_stable = int((ends["exact"] ^ ends["stable"])[differ].sum())
    gained = int((ends["exact"] & ~ends["blind"]).sum())
    lost = int((ends["blind"] & ~ends["exact"]).sum())
    print(f"{int(differ.sum())} differ, {unlike_stable} of them not as stable, +{gained} -{lost}")
    assert unlike_stable <= 1
    assert two_sided(gained, lost) < 0.01


@pytest.mark.slow
def test_robust_accuracies_are_those_of_another_implementation(mnist, tmp_path):
    """Means of three seeds; what floating point costs here is nothing (the other network: 7)."""
    network = "mnist_fastat_pgd"
    found = {}
    for loss, (other, tolerance) in EXPECTED[network][1].items():
        found[loss] = robust_accuracies(network, loss, tmp_path)
        mean = sum(found[loss]) / len(found[loss])
        print(f"{network} {loss}: {found[loss]}, mean {mean:.2f}; {other} ± {tolerance}")
        assert abs(mean - other) <= tolerance
    for ce, stable in zip(found["ce"], found["stable_ce"], strict=True):
        assert abs(ce - stable) <= 0.1


@pytest.mark.slow
def test_what_floating_point_costs(mnist):
    """The same images and starts: cross-entropy's robust accuracy minus its stable form's."""
    model, images = zoo.load("mnist_levelsets_eps0.4"), mnist.first(1000)
    ends = [attacked(model, images, radius=0.3, loss=name) for name in ("ce", "stable_ce")]
    ce, stable = (100 * end.robust_accuracy for end in ends)
    print(f"cross-entropy {ce:.1f} %, stable cross-entropy {stable:.1f} %")
    assert ce - stable >= 6
