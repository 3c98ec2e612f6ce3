"""The lowest versions that are allowed: `python -m tests.lowest > constraints-lowest.txt`."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def lowest() -> str:
    """A line `name==version` for each dependency, at its lower limit."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    limits = [re.fullmatch(r"([\w-]+)>=([\w.]+)", d) for d in project["dependencies"]]
    assert all(limits), project["dependencies"]
    lines = [f"{limit[1]}=={limit[2]}" for limit in limits]
    header = (
        "# The lower limits of pyproject.toml, by `python -m tests.lowest`; see make test-lowest"
    )
    return "\n".join([header, *lines]) + "\n"


if __name__ == "__main__":
    print(lowest(), end="")
