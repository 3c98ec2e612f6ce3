"""The networks and images that figures are drawn from, and a cache of results."""

import hashlib
import io
import json
import warnings
from collections.abc import Callable, Sequence
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
from fperr.errors import DamagedFileWarning, FperrError
from fperr.formats import format_named
from fperr.measurement import measure
from fperr.parquet import content_of, parquet
from fperr.vocabulary import FormatName
from fperr.zoo.architectures import conv_small

PACKAGED = "fashion_mnist_1000"
GRADIENT_COLUMNS = "sample", "loss", "delta", "step_gain"
_PACKAGED_IMAGES = 1000
_BATCH = 500
_CPU = torch.device("cpu")
# A result of the cache is used as long as these stay: add one where what it holds, or how it is
# computed, has changed. Code that only moves, is renamed or draws differently keeps them.
VERSIONS = {
    "attack": 1,
    "autoattack": 1,
    "errors": 1,
    "gpu": 1,
    "layers": 1,
    "sign-map": 1,
    "sweep": 1,
    "tstar-trace": 1,
}


class MissingResultError(FperrError):
    """A study of results that were computed elsewhere lacks one that a figure asks for."""


@dataclass(frozen=True)
class Subject:
    """A network of the zoo and its first n images.

    Attributes:
        name: Name of the network.
        n: Number of images.
        device: Device on which all is computed.
    """

    name: str
    n: int
    device: torch.device = _CPU

    @cached_property
    def model(self) -> nn.Module:
        """The trained network."""
        return zoo.load(self.name).to(self.device)

    @cached_property
    def images(self) -> data.Images:
        """The images and labels: packaged, or Debian's if more than the packaged 1,000."""
        dataset = zoo.entry(self.name).dataset
        whole = (
            data.fashion_mnist("t10k")
            if dataset == PACKAGED and self.n > _PACKAGED_IMAGES
            else data.images_named(dataset)
        )
        first = whole.first(self.n)
        return data.Images(first.name, first.x.to(self.device), first.y.to(self.device))

    @cached_property
    def logits(self) -> Tensor:
        """The logits (n, K) of the images, float32, on the CPU."""
        with torch.no_grad():
            return torch.cat([self.model(x) for x in torch.split(self.images.x, _BATCH)]).cpu()

    def at_most(self, n: int) -> "Subject":
        """The same network with no more than n images."""
        return self if self.n <= n else replace(self, n=n)

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the weights, and of images and labels; the device, if it is not the CPU."""
        weights = data.digest(*self.model.state_dict().values())
        digests = {"model": weights, "images": data.digest(self.images.x, self.images.y)}
        is_cpu = self.device.type == "cpu"  # its results are kept under the names they had
        return digests if is_cpu else {**digests, "device": _name_of(self.device)}

    @property
    def provenance(self) -> dict[str, Any]:
        """The number of images, and what `digests` has."""
        return {"n": self.n, **self.digests}


@dataclass(frozen=True)
class Study:
    """The networks, images and cached results of a run of `fperr figures`.

    Attributes:
        subjects: Networks and images.
        cache: Folder of results. A result is used again if network, images, settings and versions
            are those with which it was computed.
    """

    subjects: tuple[Subject, ...]
    cache: Path

    def at_most(self, n: int) -> "Study":
        """The same with no more than n images of each network."""
        return replace(self, subjects=tuple(s.at_most(n) for s in self.subjects))

    @property
    def provenance(self) -> dict[str, Any]:
        """The number of images and the digests, by network."""
        return {s.name: s.provenance for s in self.subjects}

    def cached(
        self,
        name: str,
        settings: dict[str, Any],
        compute: Callable[[], pd.DataFrame],
        subject: Subject | None = None,
    ) -> pd.DataFrame:
        """The frame that `compute` returns, from the cache if it is there.

        Args:
            name: Key of the result in `VERSIONS`.
            settings: Settings on which the result depends, besides networks and code.
            compute: Function that computes the frame.
            subject: Subject on which the result depends; None for all of them.
        """
        networks = self.provenance if subject is None else {subject.name: subject.provenance}
        key = {"name": name, "settings": settings, "versions": _versions_for(name), **networks}
        path = self.cache / f"{name}-{_digest(key)}.parquet"
        cached = _read_cached(path, key)
        if cached is not None:
            return cached
        storage.prepare(self.cache)
        frame = compute()
        table = pa.Table.from_pandas(frame, preserve_index=False)
        content = storage.sealed(parquet(table, {"key": key, "seal": storage.SEAL}))
        storage.write(path, content)
        return pq.read_table(io.BytesIO(content)).to_pandas()

    def for_each_subject(
        self,
        name: str,
        compute: Callable[[Subject], pd.DataFrame],
        max_images: int,
        **settings: Any,
    ) -> pd.DataFrame:
        """Compute a frame for each subject, or take it from the cache, and join them.

        The column `network` of the result names the subject.

        Args:
            name: Key of the result in `VERSIONS`.
            compute: Function that computes the frame of a subject.
            max_images: Largest number of images of each subject.
            settings: Settings on which the result depends, besides network and code.
        """
        subjects = [subject.at_most(max_images) for subject in self.subjects]
        frames = [
            self.cached(name, settings, partial(compute, subject), subject).assign(
                network=subject.name
            )
            for subject in subjects
        ]
        return pd.concat(frames, ignore_index=True)

    def gradient_errors(
        self, subject: Subject, losses: Sequence[str], fmt: FormatName
    ) -> pd.DataFrame:
        """The rows of `fperr.measure` on a subject in one format; they are cached.

        Args:
            subject: Network and images.
            losses: Names of losses.
            fmt: Name of a format: one, so that a further one costs its own time alone.

        Returns:
            Columns sample, loss, delta, step_gain.
        """

        def compute() -> pd.DataFrame:
            images = subject.images
            emulation = format_named(fmt).emulation
            is_by_sample = emulation is not None and emulation.has_float8_layers
            report = measure(
                subject.model,
                images.x,
                images.y,
                losses=losses,
                formats=[fmt],
                batch_size=1 if is_by_sample else None,  # as `measure` does, with a warning
                progress=False,
            )
            return report.frame[list(GRADIENT_COLUMNS)]

        return self.cached("gpu", {"format": fmt, "losses": losses}, compute, subject)

    def attack_outcomes(
        self, subject: Subject, model: nn.Module | None = None, **options: Any
    ) -> pd.DataFrame:
        """The outcome of `fperr.attack` on a subject; finished batches are cached.

        Args:
            subject: Network and images.
            model: Network attacked in place of the subject's, and made from it. Its `str` is part
                of the cache's key, and must tell it from others.
            options: Options of `fperr.attack`.
        """
        key = {**subject.digests, **options, "versions": _versions_for("attack")}
        if model is not None:
            key["text"] = str(model)
        folder = self.cache / "attacks" / f"{subject.name}-{options['loss']}-{_digest(key)}"
        images = subject.images
        network = model or subject.model
        with warnings.catch_warnings():  # the frame holds the counts, and the figures show them
            warnings.simplefilter("ignore", AttackWarning)
            return attack_in_batches(network, images.x, images.y, folder, wait=True, **options)


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def paper_size(name: str, max_images: int | None) -> int:
    """The number of images on which a network is attacked at full size.

    It is 10,000 for small networks (of Fashion-MNIST, if Debian's package is installed), and 2,000
    for networks on which an attack takes ten times as long; not more than `max_images`.
    """
    entry = zoo.entry(name)
    if entry.dataset == PACKAGED:
        size = 10_000 if data.FASHION_FOLDER.is_dir() else _PACKAGED_IMAGES
    elif entry.dataset == "mnist_test":
        size = 10_000 if entry.architecture is conv_small else 2_000
    else:
        size = len(data.images_named(entry.dataset).x)
    return size if max_images is None else min(size, max_images)


def versions() -> dict[str, str]:
    """The versions of fperr and of the libraries that compute."""
    libraries = {name: version(name) for name in ("fperr", "numpy", "mpmath", "python-flint")}
    return {"torch": torch.__version__, **libraries}


def _versions_for(result: str) -> dict[str, object]:
    """The versions that a cached result depends on: its own, and those of the libraries.

    fperr's own version is left out: it changes far more often than the results do.
    """
    libraries = {name: number for name, number in versions().items() if name != "fperr"}
    return {"result": VERSIONS[result], **libraries}


def _digest(key: object) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def _read_cached(path: Path, key: dict[str, Any]) -> pd.DataFrame | None:
    """Read a frame of the cache; None if it is missing, or damaged, which a warning says."""
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
