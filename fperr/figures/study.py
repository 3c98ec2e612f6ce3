"""What figures are drawn from: networks, images, and results that are computed once."""

import hashlib
import io
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from fperr import data, storage, zoo
from fperr.attacks import AttackWarning, attack_in_batches
from fperr.errors import DamagedFileWarning
from fperr.report.file import content_of, parquet
from fperr.zoo.architectures import conv_small

PACKAGED = "fashion_mnist_1000"
_PACKAGED_IMAGES = 1000
_BATCH = 500
# A result of the cache is used as long as these stay: add one where what it holds, or how it is
# computed, has changed. Code that only moves, is renamed or draws differently keeps them.
VERSIONS = {
    "attack": 1,
    "autoattack": 1,
    "errors": 1,
    "layers": 1,
    "sign-map": 1,
    "sweep": 1,
    "tstar-trace": 1,
}


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
        """The images and labels; beyond the packaged thousand those of Debian's package."""
        dataset = zoo.entry(self.name).dataset
        if dataset == PACKAGED and self.n > _PACKAGED_IMAGES:
            return data.fashion_mnist("t10k").first(self.n)
        return data.images_named(dataset).first(self.n)

    @cached_property
    def logits(self) -> Tensor:
        """(n, K) of the images, float32."""
        with torch.no_grad():
            return torch.cat([self.model(x) for x in torch.split(self.images.x, _BATCH)])

    def at_most(self, n: int) -> "Subject":
        """The same network with no more than n images."""
        return self if self.n <= n else Subject(self.name, n)

    @cached_property
    def digests(self) -> dict[str, str]:
        """Of weights, images and labels."""
        weights = data.digest(*self.model.state_dict().values())
        return {"model": weights, "images": data.digest(self.images.x, self.images.y)}

    @property
    def about(self) -> dict[str, Any]:
        """Number of images and digests, for provenance."""
        return {"n": self.n, **self.digests}


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

    def at_most(self, n: int) -> "Study":
        """The same with no more than n images of each network."""
        return replace(self, subjects=tuple(s.at_most(n) for s in self.subjects))

    @property
    def about(self) -> dict[str, Any]:
        """Names, numbers of images and digests, for provenance."""
        return {s.name: s.about for s in self.subjects}

    def cached(
        self,
        name: str,
        settings: dict[str, Any],
        compute: Callable[[], pd.DataFrame],
        subject: Subject | None = None,
    ) -> pd.DataFrame:
        """The frame that `compute` returns, from the cache where it holds it.

        Args:
            name: The result's key in `VERSIONS`.
            settings: What it depends on, besides networks and code.
            compute: finds it.
            subject: the only one that it depends on; None: on all of them.
        """
        known = self.about if subject is None else {subject.name: subject.about}
        key = {"name": name, "settings": settings, "versions": _versions_for(name), **known}
        path = self.cache / f"{name}-{_digest(key)}.parquet"
        kept = _kept(path, key)
        if kept is not None:
            return kept
        storage.prepare(self.cache)
        frame = compute()
        table = pa.Table.from_pandas(frame, preserve_index=False)
        content = storage.sealed(parquet(table, {"key": key, "seal": storage.SEAL}))
        storage.write(path, content)
        return pq.read_table(io.BytesIO(content)).to_pandas()

    def of_each(
        self, name: str, compute: Callable[[Subject], pd.DataFrame], most: int, **settings: Any
    ) -> pd.DataFrame:
        """What is found for each subject, of which at most so many images are used; cached.

        Args:
            name: The result's key in `VERSIONS`.
            compute: finds it.
            most: images.
            settings: what it depends on, besides network and code.
        """
        few = [subject.at_most(most) for subject in self.subjects]
        parts = [
            self.cached(name, settings, partial(compute, one), one).assign(network=one.name)
            for one in few
        ]
        return pd.concat(parts, ignore_index=True)

    def attacked(
        self, subject: Subject, model: nn.Module | None = None, **options: Any
    ) -> pd.DataFrame:
        """The outcome of `fperr.attack` on a subject; batches that were finished are kept.

        Args:
            subject: network and images.
            model: made of the network and attacked in its place; its text tells it from others.
            options: of `fperr.attack`.
        """
        key = {**subject.digests, **options, "versions": _versions_for("attack")}
        if model is not None:
            key["text"] = str(model)
        folder = self.cache / "attacks" / f"{subject.name}-{options['loss']}-{_digest(key)}"
        images = subject.images
        attacked = model or subject.model
        with warnings.catch_warnings():  # the frame holds the counts, and the figures show them
            warnings.simplefilter("ignore", AttackWarning)
            return attack_in_batches(attacked, images.x, images.y, folder, wait=True, **options)


def paper_size(name: str, most: int | None) -> int:
    """How many images a network is attacked on at full size.

    All 10,000 for the small ones (of Fashion-MNIST, where Debian's package is installed), 2,000
    where an attack takes ten times as long; `most` at most.
    """
    entry = zoo.entry(name)
    if entry.dataset == PACKAGED:
        found = 10_000 if data.FASHION_FOLDER.is_dir() else _PACKAGED_IMAGES
    elif entry.dataset == "mnist_test":
        found = 10_000 if entry.architecture is conv_small else 2_000
    else:
        found = len(data.images_named(entry.dataset).x)
    return found if most is None else min(found, most)


def versions() -> dict[str, str]:
    """The versions of fperr and of the libraries that compute."""
    libraries = {name: version(name) for name in ("fperr", "numpy", "mpmath", "python-flint")}
    return {"torch": torch.__version__, **libraries}


def _versions_for(result: str) -> dict[str, object]:
    """What a kept result depends on, besides settings and networks: not on all of fperr's code."""
    libraries = {name: number for name, number in versions().items() if name != "fperr"}
    return {"result": VERSIONS[result], **libraries}


def _digest(key: object) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def _kept(path: Path, key: dict[str, Any]) -> pd.DataFrame | None:
    """A frame of the cache; None where there is none, or not that one: a warning names it."""
    try:
        content = storage.read(path)
    except FileNotFoundError:
        return None
    except OSError:
        content = b""
    if storage.is_whole(content):
        table = pq.read_table(io.BytesIO(content))
        if content_of(table).get("key") == json.loads(json.dumps(key)):
            return table.to_pandas()
    warnings.warn(
        f"{path} is damaged, or of something else: it is not used, and computed again",
        DamagedFileWarning,
        stacklevel=3,
    )
    return None
