"""The code in docs/snippets runs, does what the pages say, and stands in one of them."""

from pathlib import Path

import pytest
import torch

import tests.makers.libraries  # noqa: F401 (makes torchvision's absence harmless)

DOCS = Path(__file__).parents[2] / "docs"
SNIPPETS = sorted((DOCS / "snippets").glob("*.py"))
SETUP = (DOCS / "snippets" / "setup.py").read_text()
ATTACKS = [path for path in SNIPPETS if path.name != "setup.py"]


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # of pyautoattack
@pytest.mark.parametrize("path", ATTACKS, ids=lambda path: path.stem)
def test_a_snippet_breaks_the_network_that_is_sure_of_itself(path):
    torch.manual_seed(0)
    scope = {}
    exec(SETUP + path.read_text(), scope)
    model, x, y, adversarial = (scope[n] for n in ("model", "x", "y", "adversarial"))
    assert float((adversarial - x).abs().max()) <= 0.05 + 1e-6
    with torch.no_grad():
        robust = int((model(adversarial).argmax(1) == y).sum())
    assert robust <= 15  # 88 with the attacks as they are


@pytest.mark.parametrize("path", SNIPPETS, ids=lambda path: path.stem)
def test_a_snippet_stands_on_a_page(path):
    page = "own_attack.md" if path.stem == "loop" else "other_library.md"
    assert f"```python\n{path.read_text()}```" in (DOCS / "how_to" / page).read_text()
