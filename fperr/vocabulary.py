"""The words of the public functions: names to choose from, and today's names of renamed arguments.

Every public function uses the same word for the same thing: `targets` for classes to reach,
`format` or `formats` for floating-point formats, `engine` for what computes exact gradients,
`digits` for correct decimal digits, and `model, x, y` in this order. A spelling of earlier versions
raises an error that names today's.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

FormatName = Literal[
    "float16", "bfloat16", "tf32", "float32", "float64", "float32@cuda", "tf32@cuda",
    "float16@cuda", "bfloat16@cuda", "autocast-float16@cuda", "autocast-bfloat16@cuda",
    "float8@tensorwise",
]  # fmt: skip
FORMAT_NAMES: tuple[FormatName, ...] = get_args(FormatName)
AttackFormat = Literal[FormatName, "exact"]
ATTACK_FORMATS: tuple[AttackFormat, ...] = get_args(AttackFormat)
EngineName = Literal["float64", "double_word", "ball", "mpmath"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
"""The names of the engines that compute exact gradients; `fperr.exact.gradient` describes them.

Example:
    >>> from fperr import exact
    >>> exact.ENGINES
    ('float64', 'double_word', 'ball', 'mpmath')
"""
EngineChoice = Literal["auto", EngineName]
ENGINE_CHOICES: tuple[EngineChoice, ...] = get_args(EngineChoice)
JacobianChoice = Literal["auto", "rows", "products"]
Method = Literal["pgd", "fgsm", "apgd"]
Norm = Literal["linf", "l2"]
Projection = Literal["exact", "library"]
Reduction = Literal["sum", "mean"]
ScenarioName = Literal[
    "untargeted_unsuccessful", "untargeted_successful", "targeted_unsuccessful",
    "targeted_successful",
]  # fmt: skip
Schedule = Literal["cosine", "linear", "constant"]

# function -> argument of an earlier version -> today's
_RENAMED_ARGUMENTS = {
    "measure": {"target": "targets", "reference": "engine"},
    "estimate": {"target": "targets", "reference": "engine"},
    "trace_layers": {"target": "targets"},
    "attack": {"arithmetic": "format"},
    "attack_in_batches": {"arithmetic": "format"},
    "gradient": {"bits": "digits", "largest_bits": "largest_digits"},
    "paper": {"label": "labels"},
    "logit_gradient": {"z": "logits", "label": "labels"},
    "stable_ce_logit_gradient": {"z": "logits", "label": "labels"},
}
RENAMED_OPTIONS = {"--reference": "--engine", "--arithmetic": "--format"}
RENAMED_CHOICES = {"multiword": "double_word"}


def refuse_old_spelling(
    function: Callable[..., Any], arguments: tuple[object, ...], options: Mapping[str, object]
) -> None:
    """Refuse a call in the spelling of an earlier version, and name today's spelling.

    Args:
        function: Public function.
        arguments: Positional arguments of the call.
        options: Keyword arguments of the call.

    Raises:
        TypeError: An argument has its old name, or `record` gets y before x.
    """
    name = function.__name__
    for old, new in _RENAMED_ARGUMENTS.get(name, {}).items():
        if old in options:
            raise TypeError(f"{name}() has no argument {old!r}: it is {new!r} now, give {new}=...")
    if name == "record" and len(arguments) == 2 and "y" not in options:
        raise TypeError(
            "record() takes (model, x, y) in this order, got two arguments: give "
            "record(model, x, y), or record(model, None, y) where x is not known"
        )
