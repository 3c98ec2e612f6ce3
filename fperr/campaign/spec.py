"""The spec of a campaign: a TOML file, checked; errors name file, line, key, expected and got."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fperr import data, zoo
from fperr.campaign.jobs import COMMON_KEYS, JOBS
from fperr.campaign.spec_keys import (
    BOX,
    FLAG,
    POSITIVE,
    TABLE,
    TEXT,
    TEXTS,
    Key,
    choice,
    whole,
)
from fperr.campaign.spec_lines import line_of
from fperr.checks import shown

CAMPAIGN_KEYS = (
    Key("name", TEXT, "name of the campaign, and of its folder", is_required=True),
    Key("batch_size", whole(1), "number of images of a cell, which fixes the bits of its results"),
    Key("cell_seconds", POSITIVE, "seconds of a cell at most, by a forecast; not with batch_size"),
    Key("threads", whole(1), "threads of each worker, which fix the bits, too", 1),
    Key("device", TEXT, "where workers compute: cpu, cuda, cuda:1, or auto", "cpu"),
    Key("storage", TEXT, "folder or fsspec URL of the finished cells; by default the campaign's"),
    Key(
        "missing", choice("refuse", "skip"),
        "what is done if files of a model are missing: nothing, or the other models", "refuse",
    ),
    Key("figures", TEXTS, "figures that `collect` draws, as precision or table1", ()),
    Key("slurm", TABLE, "options of dask_jobqueue.SLURMCluster", {}),
)  # fmt: skip
MODEL_KEYS = (
    Key(
        "source", TEXT, "name that `fperr zoo` lists, module.py:factory, or timm:NAME and its like",
        is_required=True,
    ),
    Key("name", TEXT, "name of the model in tables; by default from its source"),
    Key("checkpoint", TEXT, "file of the weights"),
    Key("logits", TEXT, "where the output holds the logits: name, index, or function"),
    Key("data", TEXT, "data set, file or folder of images; by default that of the zoo"),
    Key("images", whole(1), "number of images, the first ones", 60),
    Key("radius", POSITIVE, "radius of the attacks' ball"),
    Key("box", BOX, "lowest and highest value of an input", (0.0, 1.0)),
    Key("accept_probabilities", FLAG, "take a model that ends in softmax", False),
    Key("where", TEXT, "where missing files can be had, for messages"),
)  # fmt: skip
_TABLES = ("models", "jobs")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model of a spec.

    Attributes:
        name: Name in tables; different for each model.
        options: Values of the keys of `MODEL_KEYS`; paths are absolute.
    """

    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A job of a spec.

    Attributes:
        name: Name of the job, a key of `JOBS`.
        options: Values of `COMMON_KEYS` and of the job's keys.
    """

    name: str
    options: Mapping[str, Any]

    def is_for(self, model: ModelSpec) -> bool:
        """Whether the job is for a model."""
        return self.options["models"] is None or model.name in self.options["models"]

    def size_of(self, n: int) -> int:
        """The number of images out of n of a model."""
        return min(n, self.options["images"] or n)


@dataclass(frozen=True, slots=True)
class Spec:
    """A checked spec.

    Attributes:
        path: Path of the file.
        options: Values of the keys of `CAMPAIGN_KEYS`.
        models, jobs: Its tables, in order.
    """

    path: Path
    options: Mapping[str, Any]
    models: tuple[ModelSpec, ...]
    jobs: tuple[JobSpec, ...]

    @property
    def name(self) -> str:
        """Name of the campaign."""
        return str(self.options["name"])

    @property
    def folder(self) -> Path:
        """The spec's folder, to which paths in it are relative."""
        return self.path.absolute().parent


def read_spec(path: Path, *, allows_code: bool = False) -> Spec:
    """Read and check a spec; nothing of it is run.

    Args:
        path: Path of the TOML file.
        allows_code: Whether `module.py:` may lie outside the spec's folder.

    Raises:
        ValueError: The file is missing or wrong; says where, what was expected and what was got.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise ValueError(
            f"{path} cannot be read ({getattr(fault, 'strerror', None) or fault}): expected a "
            "campaign's spec, a TOML file; docs/how_to/campaigns.md begins with one"
        ) from fault
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        raise ValueError(f"{path} is not TOML: {fault}") from fault
    return _Reader(path, text, allows_code).spec(content)


@dataclass(frozen=True, slots=True)
class _Reader:
    path: Path
    text: str
    allows_code: bool

    def spec(self, content: dict[str, Any]) -> Spec:
        tables = {name: content.pop(name, None) for name in _TABLES}
        options = self.values(content, CAMPAIGN_KEYS, ())
        if options["batch_size"] is not None and options["cell_seconds"] is not None:
            raise self.fault(("cell_seconds",), "batch_size or cell_seconds", "both: leave one out")
        for name, value in tables.items():
            is_list = isinstance(value, list) and value and all(isinstance(v, dict) for v in value)
            if not is_list:
                raise self.fault((name,), f"at least one table [[{name}]]", shown(value))
        models = [self.model(i, table) for i, table in enumerate(tables["models"])]
        names = [model.name for model in models]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise self.fault(
                    ("models", i, "name"), "another name than those before", f"{name!r} again"
                )
        jobs = [self.job(i, table, models) for i, table in enumerate(tables["jobs"])]
        return Spec(self.path, options, tuple(models), tuple(jobs))

    def model(self, i: int, table: dict[str, Any]) -> ModelSpec:
        options = self.values(table, MODEL_KEYS, ("models", i))
        source = options["source"]
        if ":" not in source and source not in zoo.REGISTRY:
            near = difflib.get_close_matches(source, zoo.REGISTRY, n=3) or list(zoo.REGISTRY)
            raise self.fault(
                ("models", i, "source"),
                f"path/to/module.py:factory, timm:NAME, or a name as {', '.join(near)}",
                repr(source),
            )
        if ":" in source and options["data"] is None:
            raise self.fault(("models", i), "data, as data = 'images.npz': the images", "none")
        options["source"] = self.located(("models", i, "source"), source)
        if options["data"] is not None:
            options["data"] = self.located(("models", i, "data"), options["data"])
        if options["checkpoint"] is not None:
            options["checkpoint"] = str(self.path.absolute().parent / options["checkpoint"])
        return ModelSpec(options["name"] or _short_name(source), options)

    def located(self, path: tuple[str | int, ...], value: str) -> str:
        """The value, where it is a path with an absolute one; refuses code from elsewhere."""
        folder = self.path.absolute().parent
        file, colon, function = value.rpartition(":")
        if colon and file.endswith(".py"):
            module = folder / file
            is_inside = module.resolve().is_relative_to(folder.resolve())
            if not is_inside and not self.allows_code:
                raise self.fault(
                    path,
                    "a module in the spec's folder, or --allow-code, which runs this one",
                    repr(value),
                )
            return f"{module}:{function}"
        package, colon, rest = value.partition(":")
        if colon:
            return f"hf:{folder / rest}" if package == "hf" else value
        is_name = value in (zoo.REGISTRY if path[-1] == "source" else data.DATASETS)
        return value if is_name else str(folder / value)

    def job(self, i: int, table: dict[str, Any], models: Sequence[ModelSpec]) -> JobSpec:
        name = table.pop("job", None)
        if name not in JOBS:
            path = ("jobs", i, "job") if name is not None else ("jobs", i)
            raise self.fault(path, f"job, one of {', '.join(JOBS)}", shown(name))
        options = self.values(table, (*COMMON_KEYS, *JOBS[name].keys), ("jobs", i))
        names = [model.name for model in models]
        own_models = options["models"] or names
        for unknown in (name for name in own_models if name not in names):
            raise self.fault(
                ("jobs", i, "models"), f"names of models out of {', '.join(names)}", repr(unknown)
            )
        if "radius" in options and options["radius"] is None:
            for k, model in enumerate(models):
                if model.name in own_models and model.options["radius"] is None:
                    raise self.fault(
                        ("models", k), f"radius, in the model or in the job {name}", "none"
                    )
        return JobSpec(name, options)

    def values(
        self, table: dict[str, Any], keys: Sequence[Key], path: tuple[str | int, ...]
    ) -> dict[str, Any]:
        """The values of a table by key, with defaults; other keys are refused."""
        names = [key.name for key in keys]
        for name in table:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f", did you mean {near[0]}?" if near else ""
                raise self.fault((*path, name), f"a key out of {', '.join(names)}", f"{name}{hint}")
        return {key.name: self.value(table, key, path) for key in keys}

    def value(self, table: dict[str, Any], key: Key, path: tuple[str | int, ...]) -> Any:
        if key.name not in table:
            if key.is_required:
                raise self.fault(path, f"{key.name}: {key.meaning}", "none")
            return key.default
        try:
            return key.kind.read(table[key.name])
        except (TypeError, ValueError, AttributeError, ZeroDivisionError) as fault:
            raise self.fault((*path, key.name), key.kind.words, f"{table[key.name]!r}") from fault

    def fault(self, path: Sequence[str | int], expected: str, got: str) -> ValueError:
        """The error about a value."""
        line = line_of(self.text, path) if path else 1
        line_words = f", line {line}" if line is not None else ""
        words = "".join(
            f"[{step + 1}]" if isinstance(step, int) else f".{step}" for step in path
        ).lstrip(".")
        subject = f" {words}:" if words else ""
        return ValueError(f"{self.path}{line_words}:{subject} expected {expected}, got {got}")


def _short_name(source: str) -> str:
    """The name of a model that the spec does not name: the factory's, or the source's own."""
    file, _, function = source.rpartition(":")
    return function if file.endswith(".py") else source
