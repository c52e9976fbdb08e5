"""The translating itself: units of the work list through an actor pool of Ray Data, results as files of their own.

    <work>/<language>.<job>/bucket-00000-unit-00000.parquet     text, fault, back: row i is piece i of the unit

A unit's file has its name once it is complete, and a unit that has a file is never translated again. Which actor takes
which unit, and in what order, changes no byte.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from hbt_ray.actor_pool import through_actors
from hbt_ray.errors import ResourceError
from hbt_ray.session import SPARE_CPUS
from hbt_ray.storage import Folder
from hbt_ray.translation.models import ModelFolder, Translation, Translator
from hbt_ray.translation.pieces import Unit, WorkList

CPU_TOKENS = 4_096  # of a batch with its beams: under a gigabyte of attention for a model of 400 million weights
GPU_TOKENS = 65_536
GPU_SHARE_OF_GATES = 0.1  # left beside a translator for an encoder that judges what it wrote

RESULTS = pa.schema({"text": pa.large_string(), "fault": pa.string(), "back": pa.large_string()})


@dataclass(frozen=True)
class Generation:
    """How models write, with all that was left open decided."""

    device: str
    precision: str
    beams: int
    batch_tokens: int
    tokens_per_token: float

    def translator(self, model: ModelFolder) -> Translator:
        """A model that writes so, on this machine."""
        return Translator(
            model.here(), self.device, self.precision, self.beams, self.batch_tokens, self.tokens_per_token
        )


@dataclass(frozen=True)
class Job:
    """What an actor needs to know.

    Args:
        work: the units.
        results: folder of the languages' results.
        source: language of the pieces.
        model: that translates.
        back_model: that translates back for comparison; None for no way back.
        generation: how both write.
    """

    work: WorkList
    results: Folder
    source: str
    model: ModelFolder
    back_model: ModelFolder | None
    generation: Generation

    def key(self, target: str) -> str:
        """Hash of everything that the translations into a language depend on."""
        content = [
            *(self.work.key, self.source, target, self.model.sha256),
            *(self.back_model and self.back_model.sha256, asdict(self.generation)),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def folder(self, target: str) -> Folder:
        """Where the translations into a language are."""
        return self.results / f"{target}.{self.key(target)[:12]}"


@dataclass(frozen=True)
class Done:
    """A unit that an actor has written.

    Args:
        target: language.
        pieces: translated.
        source_tokens: that they have.
        padded_tokens: that the batches had with padding.
        seconds: that it took.
    """

    target: str
    pieces: int
    source_tokens: int
    padded_tokens: int
    seconds: float


def missing_units(job: Job, target: str) -> list[Unit]:
    """The units without a file of results."""
    there = set(job.folder(target).entries())
    return [unit for unit in job.work.all_units() if unit.name not in there]


def translated(job: Job, missing: Mapping[str, Sequence[Unit]], actors: int, gates_on_gpu: bool) -> Iterator[Done]:
    """Translate the missing units of every language, all of a language before the next; each as it is written.

    Raises:
        ModelError: a node cannot load the model.
        ResourceError: results cannot be written.
    """
    rows = [
        {"target": target, "bucket": unit.bucket, "number": unit.number}
        for target, units in missing.items()
        for unit in units
    ]
    if not rows:
        return
    on_gpu = job.generation.device == "cuda"
    gpus = (1 - GPU_SHARE_OF_GATES * gates_on_gpu) if on_gpu else None
    for row in through_actors(rows, _UnitTranslator, (job,), actors=actors, gpus=gpus):
        yield Done(**row)


def placement(actors: int | None) -> tuple[str, int]:
    """Device of the actors ("cuda" where the cluster has GPUs) and how many there are. Raises ResourceError."""
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    count = actors or gpus or max(1, cpus - SPARE_CPUS)
    count = min(count, gpus) if gpus else count
    if count >= cpus:
        received = f"{count}, and a CPU for the gates"
        raise ResourceError("actors", received, f"at most the {cpus} CPUs of the cluster", "Lower `actors`.")
    return "cuda" if gpus else "cpu", count


class _UnitTranslator:
    """An actor of the pool; the models are loaded with the first unit."""

    def __init__(self, job: Job) -> None:
        self._job = job
        logging.getLogger("transformers").setLevel(logging.ERROR)
        if job.generation.device == "cpu":  # one core each, and sums in one order
            torch.set_num_threads(1)
            os.environ["TOKENIZERS_PARALLELISM"] = "false"

    @cached_property
    def _forth(self) -> Translator:
        return self._job.generation.translator(self._job.model)

    @cached_property
    def _back(self) -> Translator | None:
        model = self._job.back_model
        if model is None:
            return None
        return self._forth if model == self._job.model else self._job.generation.translator(model)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        rows = zip(batch["target"], batch["bucket"], batch["number"], strict=True)
        done = [self._translate(str(target), Unit(int(bucket), int(number))) for target, bucket, number in rows]
        return {field.name: [getattr(unit, field.name) for unit in done] for field in fields(Done)}

    def _translate(self, target: str, unit: Unit) -> Done:
        job, work = self._job, self._forth.work
        start, source_tokens, padded_tokens = time.monotonic(), work.source_tokens, work.padded_tokens
        texts = job.work.texts(unit)
        translations = self._forth.translate(texts, job.source, target)
        backs = self._translated_back(translations, target)
        table = pa.table(
            [[t.text for t in translations], [t.fault for t in translations], backs],
            schema=RESULTS,
        )
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        job.folder(target).write_final(unit.name, buffer.getvalue())
        return Done(
            target,
            len(texts),
            work.source_tokens - source_tokens,
            work.padded_tokens - padded_tokens,
            time.monotonic() - start,
        )

    def _translated_back(self, translations: Sequence[Translation], target: str) -> list[str | None]:
        """Translations back into the source language; None where there is no way back or nothing to translate."""
        backs: list[str | None] = [None] * len(translations)
        if self._back is None:
            return backs
        rows = [row for row, translation in enumerate(translations) if translation.text]
        texts = [translations[row].text for row in rows]
        for row, back in zip(rows, self._back.translate(texts, target, self._job.source), strict=True):
            backs[row] = back.text
        return backs
