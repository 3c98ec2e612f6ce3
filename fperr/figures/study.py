"""What figures are drawn from: networks, images, and results that are computed once."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from fperr import data, zoo
from fperr.attacks import attack_in_batches

_KEY = b"fperr"


@dataclass(frozen=True)
class Subject:
    """A network of the zoo and its first n images.

    Attributes:
        name: of the network.
        n: how many images.
    """

    name: str
    n: int

    @cached_property
    def model(self) -> nn.Module:
        """The network."""
        return zoo.load(self.name)

    @cached_property
    def images(self) -> data.Images:
        """The images, with their labels."""
        return data.named(zoo.entry(self.name).dataset).first(self.n)

    @cached_property
    def digests(self) -> dict[str, str]:
        """Of weights, images and labels."""
        weights = data.digest(*self.model.state_dict().values())
        return {"model": weights, "images": data.digest(self.images.x, self.images.y)}


@dataclass(frozen=True)
class Study:
    """What a run of `fperr figures` works on.

    Attributes:
        subjects: networks and images.
        cache: folder of results; one is used if network, images, settings and versions are those
            that it was computed with.
    """

    subjects: tuple[Subject, ...]
    cache: Path

    @property
    def about(self) -> dict[str, Any]:
        """Names, numbers of images and digests, for provenance."""
        return {s.name: {"n": s.n, **s.digests} for s in self.subjects}

    def cached(
        self, name: str, settings: dict[str, Any], compute: Callable[[], pd.DataFrame]
    ) -> pd.DataFrame:
        """The frame that `compute` returns, from the cache where it holds it."""
        key = {"name": name, "settings": settings, "versions": versions(), **self.about}
        path = self.cache / f"{name}-{_digest(key)}.parquet"
        if path.exists() and _key_of(path) == key:
            return pd.read_parquet(path)
        frame = compute()
        table = pa.Table.from_pandas(frame, preserve_index=False)
        metadata = {**(table.schema.metadata or {}), _KEY: json.dumps(key).encode()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        pq.write_table(table.replace_schema_metadata(metadata), partial)
        os.replace(partial, path)
        return pd.read_parquet(path)

    def attacked(self, subject: Subject, **options: Any) -> pd.DataFrame:
        """The outcome of `fperr.attack` on a subject; batches that were finished are kept."""
        key = {**subject.digests, **options, "versions": versions()}
        folder = self.cache / "attacks" / f"{subject.name}-{options['loss']}-{_digest(key)}"
        images = subject.images
        return attack_in_batches(subject.model, images.x, images.y, folder, **options)


def versions() -> dict[str, str]:
    """Of what results depend on."""
    return {"fperr": version("fperr"), "torch": torch.__version__}


def _digest(key: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def _key_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(pq.read_schema(path).metadata.get(_KEY, b"{}"))
    return found
