"""What is loaded when: `import fperr` costs next to nothing beside `import torch`."""

import subprocess
import sys

import pytest

import fperr

HEAVY = ("pandas", "matplotlib", "seaborn", "pyarrow", "flint", "scipy", "jinja2", "typer")
DASK = {"dask", "distributed"}
LOADED = """
import sys, torch
before = set(sys.modules)
{code}
print(*sorted(set(sys.modules) - before))
"""


def loaded(code):
    """The modules that the code loads beside torch's own."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(code=code)], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in done.stdout.split()}, done.stdout.split()


@pytest.mark.parametrize("code", ["import fperr", "import fperr.losses", "import fperr.repair"])
def test_plots_frames_and_exact_numbers_are_loaded_when_they_are_used(code):
    packages, _ = loaded(code)
    assert packages.isdisjoint(HEAVY)


def test_the_bare_import_loads_no_module_of_its_own():
    _, modules = loaded("import fperr")
    assert [name for name in modules if name.startswith("fperr.")] == []


def test_measuring_loads_what_it_needs():
    """Negative control of the tests above."""
    packages, _ = loaded("import fperr; fperr.measure")
    assert {"pandas", "flint"} <= packages


def test_dask_is_loaded_by_campaigns_alone():
    packages, _ = loaded("import fperr; fperr.measure, fperr.attack, fperr.attribute, fperr.record")
    assert packages.isdisjoint(DASK)
    assert loaded("import fperr.campaign.run")[0] >= DASK  # negative control


def test_every_public_name_is_there():
    for name in fperr.__all__:
        assert getattr(fperr, name) is not None
        assert name in dir(fperr)
    with pytest.raises(AttributeError, match="module 'fperr' has no attribute 'nothing'"):
        fperr.nothing  # noqa: B018
