"""Torchvision beside a torch of another build, where its own operators cannot be loaded.

Its networks need none of them. But its import registers what each of its operators (of detection:
`nms`, `roi_align`, ...) gives for shapes alone, and fails where the operator has no schema.
"""

import importlib.util
import re
from pathlib import Path

import torch

_REGISTRATIONS = ("_meta_registrations.py", "_autograd_registrations.py")
# a library takes its schemas along when it is collected
_LIBRARIES: list[torch.library.Library] = []


def define_missing_schemas() -> None:
    """Let torchvision be imported, by a schema for each operator that its binaries cannot bring."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None or _LIBRARIES:
        return
    folder = Path(found.origin).parent
    if _can_load_operators(folder):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    _LIBRARIES.append(library)
    for name in sorted(_named_operators(folder)):
        library.define(f"{name}(Tensor boxes) -> Tensor")


def _can_load_operators(folder: Path) -> bool:
    binaries = [*folder.glob("_C*.so"), *folder.glob("_C*.pyd")]
    try:
        for binary in binaries:
            torch.ops.load_library(binary)
    except OSError:
        return False
    return bool(binaries)


def _named_operators(folder: Path) -> set[str]:
    """Operators that the registrations name, as `torchvision::nms` or `register_meta("nms")`."""
    written = "".join(
        (folder / name).read_text() for name in _REGISTRATIONS if (folder / name).exists()
    )
    return set(re.findall(r"(?:torchvision::|register_meta\(\")(\w+)", written))
