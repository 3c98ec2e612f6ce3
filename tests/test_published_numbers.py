"""Real networks, MNIST test images, label = true class: the numbers that were known before.

They were measured with an exact logit gradient and a float64 Jacobian; medians over images 0-39.
Half-precision kernels differ between CPUs, and medians of plain CE depend on single images.
"""

import pytest

import fperr
from fperr import data, zoo

TEMPERATURES = ("mifpe:T=0.01", "mifpe:T=0.1", "mifpe", "tmifpe", "mifpe:T=4", "mifpe:T=8")
TEMPERATURES += ("mifpe:T=16",)
FASTAT_DELTA = {
    "float32": (2.2e-7, 2.2e-7, 2.5e-7, 2.5e-7, 1.2e-6, 5.3e-5, 5.7e-2),
    "float16": (7.5e-4, 7.3e-4, 8.0e-4, 8.6e-4, 5.9e-3, 0.53, 0.99),
}
FASTAT_SIGNS = {  # float16: the range between two machines
    "mifpe:T=0.01": (0.68, 0.70),
    "mifpe:T=0.1": (0.20, 0.22),
    "mifpe": (0.084, 0.101),
    "tmifpe": (0.086, 0.101),
    "mifpe:T=4": (0.14, 0.16),
    "mifpe:T=8": (0.77, 0.77),
    "mifpe:T=16": (0.99, 0.99),
    "ce": (0.94, 0.94),
}


def medians(report, column):
    return report.frame.groupby(["loss", "format"])[column].median()


@pytest.fixture(scope="module")
def fastat(fperr_data):
    images = data.mnist_test().first(40)
    return fperr.measure(
        zoo.load("mnist_fastat_pgd"), images.x, images.y, losses=["ce", *TEMPERATURES]
    )


@pytest.mark.slow
@pytest.mark.parametrize("fmt", ["float32", "float16"])
@pytest.mark.parametrize(("column", "loss"), list(enumerate(TEMPERATURES)))
def test_fastat_pgd_medians_of_delta(fastat, fmt, column, loss):
    known = FASTAT_DELTA[fmt][column]
    assert known / 1.5 < medians(fastat, "delta")[loss, fmt] < known * 1.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fmt", "known"), [("float32", 9.6e-3), ("float16", 0.91), ("float64", 1.4e-11)]
)
def test_fastat_pgd_medians_of_cross_entropy(fastat, fmt, known):
    assert known / 2 < medians(fastat, "delta")["ce", fmt] < known * 2


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "known"), FASTAT_SIGNS.items())
def test_fastat_pgd_sign_errors(fastat, loss, known):
    assert known[0] - 0.05 < medians(fastat, "sign_error_rate")[loss, "float16"] < known[1] + 0.05


@pytest.mark.slow
def test_fastat_pgd_float64(fastat):
    scaled = fastat.frame[
        (fastat.frame["format"] == "float64") & fastat.frame["loss"].isin(["mifpe", "tmifpe"])
    ]
    assert scaled["delta"].between(1e-16, 1e-14).all()
    assert fastat.frame["is_certified"].all()
    assert (
        fastat.frame[fastat.frame["format"] == "float64"]["stage_backward"]
        .between(1e-16, 1e-14)
        .all()
    )


@pytest.mark.slow
def test_fastat_pgd_violates_the_papers_bound_at_four_images(fastat):
    """float32 CE, epsilon_max = u: |v_hat - v|_1/|v|_1 > u/G at 4 of 40 images."""
    ce = fastat.frame[(fastat.frame["loss"] == "ce") & (fastat.frame["format"] == "float32")]
    assert (ce["logit_delta"] > 2 ** ce["log2_delta_sup_logit"]).sum() == 4


@pytest.mark.slow
def test_levelsets(fperr_data):
    images = data.mnist_test().first(2)
    report = fperr.measure(
        zoo.load("mnist_levelsets_eps0.4"), images.x, images.y, losses=["ce", "mifpe"]
    )
    frame = report.frame.set_index(["loss", "format", "sample"])
    for sample, known in ((0, 2.3e-3), (1, 9.7e-4)):
        assert known / 2 < frame.loc[("mifpe", "float16", sample), "delta"] < known * 2
        for fmt in ("float16", "float32"):
            assert frame.loc[("ce", fmt, sample), "is_dead"]
            assert frame.loc[("ce", fmt, sample), "delta"] == 1
    doubles = report.frame[report.frame["format"] == "float64"]
    assert doubles[doubles["loss"] == "mifpe"]["delta"].between(1e-16, 1e-14).all()


def test_a_published_network_from_the_outside(fperr_data):
    """Two images of a real checkpoint, in time for every run of the tests."""
    images = data.mnist_test().first(2)
    report = fperr.measure(zoo.load("mnist_wong_kolter"), images.x, images.y)
    frame = report.frame.set_index(["loss", "format"])
    assert (frame.loc[("mifpe", "float32"), "delta"] < 1e-5).all()
    assert (frame.loc[("mifpe", "float64"), "delta"].between(1e-17, 1e-14)).all()
    assert frame["is_certified"].all()
