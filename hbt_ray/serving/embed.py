"""Embed the texts of Parquet files: units of rows through an actor pool of Ray Data, a file of the output for each.

    <output>/_settings.json       written first: model, prompt, input; an output of other settings is not mixed with
    <output>/part-00000.parquet   the input's columns and `embedding`, rows in the order of the input
    <output>/_SUCCESS             written last, JSON: the output is whole

A part has its name once it is complete, and is not made again: the same command goes on after whatever ended it.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from numpy.typing import NDArray

from hbt_ray.actor_pool import through_actors
from hbt_ray.errors import ConfigError, ResourceError
from hbt_ray.model.encoder import TextEncoder, embedding_width
from hbt_ray.serving.models import ServedModel, find_model, prefix_of
from hbt_ray.serving.parquet_texts import ParquetTexts, Unit, open_texts
from hbt_ray.session import SPARE_CPUS, ray_session
from hbt_ray.storage import Folder, absolute_address
from hbt_ray.train.run_folder import check_unchanged

EMBEDDING = "embedding"
SETTINGS_FILE = "_settings.json"
SUCCESS_FILE = "_SUCCESS"
UNIT_ROWS = 16_384  # 25 MB of vectors of 384 dimensions: seconds of a GPU, minutes of a core
DEVICES = ("auto", "cpu", "cuda")

OnProgress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class Embedded:
    """What a call has done.

    Args:
        output: the folder.
        model: its address.
        model_hash: of its files.
        prompt: query, passage or none.
        rows: of the output.
        parts: its files.
        width: D, the length of an embedding.
        encoded_rows: rows that this call encoded; the others were there.
        seconds: of this call.
    """

    output: str
    model: str
    model_hash: str
    prompt: str
    rows: int
    parts: int
    width: int
    encoded_rows: int
    seconds: float


@dataclass(frozen=True)
class _Job:
    """What an actor needs to know."""

    texts: ParquetTexts
    model: ServedModel
    prefix: str
    device: str
    output: Folder
    metadata: dict[str, str]


def embed(
    model: str,
    source: str,
    output: str,
    *,
    column: str = "text",
    prompt: str = "passage",
    batch_rows: int = UNIT_ROWS,
    actors: int | None = None,
    device: str = "auto",
    on_progress: OnProgress = lambda done, total: None,
) -> Embedded:
    """Write the rows of Parquet files with `embedding` beside them: unit-length float32 vectors, a fixed-size list.

    Args:
        model: folder, `package:NAME` or `models:/` address.
        source: a Parquet file or a folder of them, local or `s3://`.
        output: folder to write to, local or `s3://`.
        column: with the texts.
        prompt: query, passage or none: which of the model's prefixes stands before every text.
        batch_rows: rows that are encoded and written together.
        actors: encoding actors; None: one per GPU, or one per CPU but those left for other tasks.
        device: cuda, cpu, or auto: GPUs where the cluster has them.
        on_progress: told (rows done, rows in all).

    Raises:
        ConfigError: an unknown prompt or device, an output of other settings or with other files in it, an output
            inside the source.
        CorpusError: files that cannot be read, no such column, a null text.
        ModelError: no such model.
        ResourceError: GPUs asked for and none there, more actors than CPUs, a storage or registry that fails.
    """
    began = time.monotonic()
    source, output = absolute_address(source), absolute_address(output)
    _check_arguments(source, output, device)
    served = find_model(model)
    prefix = prefix_of(served.settings, prompt)
    texts = open_texts(source, column)
    if EMBEDDING in texts.schema.names:
        raise ConfigError("--input", f"a column {EMBEDDING!r}", "a column name that is free", "Rename that column.")
    folder = Folder(output)
    settings = {
        "model_hash": served.model_hash,
        "prompt": prompt,
        "column": column,
        "input": texts.sha256,
        "batch_rows": batch_rows,
    }
    units = texts.units(batch_rows)
    missing = _missing(folder, units) if _claim(folder, settings) else []
    total = sum(texts.rows.values())
    done = total - sum(unit.stop - unit.start for unit in missing)
    on_progress(done, total)
    if missing:
        with ray_session():
            chosen, count = _placement(actors, device)
            origin = {"model": served.address, "model_hash": served.model_hash, "prompt": prompt, "prefix": prefix}
            metadata = {f"hbt_ray.{key}": value for key, value in origin.items()}
            job = _Job(texts, served, prefix, chosen, folder, metadata)
            for rows in _embedded(job, missing, count):
                done += rows
                on_progress(done, total)
    width = embedding_width(served.folder)
    encoded = sum(unit.stop - unit.start for unit in missing)
    result = Embedded(
        output, served.address, served.model_hash, prompt, total, len(units), width, encoded, time.monotonic() - began
    )
    summary = {"rows": total, "parts": len(units), "width": width, "model": served.address, **settings}
    folder.write_final(SUCCESS_FILE, (json.dumps(summary, indent=2, ensure_ascii=False) + "\n").encode())
    return result


def part_name(unit: Unit) -> str:
    """The file of a unit."""
    return f"part-{unit.number:05d}.parquet"


def _check_arguments(source: str, output: str, device: str) -> None:
    if device not in DEVICES:
        raise ConfigError("--device", repr(device), f"one of {', '.join(DEVICES)}", "Choose one of these.")
    above, below = (Folder(address).path() for address in (source, output))
    if below == above or below.startswith(f"{above}/"):
        received = f"{output}, inside {source}"
        raise ConfigError("--output", received, "a folder outside of the input", "Choose another folder.")


def _claim(folder: Folder, settings: Mapping[str, Any]) -> bool:
    """Whether something is left to do in an output folder, which from now on belongs to these settings.

    Raises ConfigError for a folder of other settings or with other files in it.
    """
    names = folder.entries()
    if SETTINGS_FILE in names:
        known = json.loads(folder.read(SETTINGS_FILE))
        check_unchanged(
            known, settings, f"--output {folder.uri}", "the work in it", "Choose another folder, or the old value."
        )
        return SUCCESS_FILE not in names
    if names:
        received = f"a folder with {names[0]} in it"
        raise ConfigError("--output", received, "a new or empty folder", "Choose another folder.")
    folder.write_final(SETTINGS_FILE, (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode())
    return True


def _missing(folder: Folder, units: Sequence[Unit]) -> list[Unit]:
    there = set(folder.entries())
    return [unit for unit in units if part_name(unit) not in there]


def _placement(actors: int | None, device: str) -> tuple[str, int]:
    """Device of the actors, and how many there are. Raises ResourceError."""
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if device == "cuda" and not gpus:
        raise ResourceError(
            "--device", "cuda", "a GPU in the cluster, which has none", "Use --device cpu, or leave it out."
        )
    on_gpu = gpus > 0 and device != "cpu"
    count = actors or (gpus if on_gpu else max(1, cpus - SPARE_CPUS))
    count = min(count, gpus) if on_gpu else count
    if count >= cpus:
        received = f"{count}, and a CPU to read the input"
        raise ResourceError("--actors", received, f"at most the {cpus} CPUs of the cluster", "Lower --actors.")
    return "cuda" if on_gpu else "cpu", count


def _embedded(job: _Job, units: Sequence[Unit], actors: int) -> Iterator[int]:
    """Embed units; the rows of each as it is written. Raises CorpusError, ModelError, ResourceError."""
    numbers = [{"unit": place} for place in range(len(units))]
    gpus = 1 if job.device == "cuda" else None
    for row in through_actors(numbers, _UnitEncoder, (job, units), actors=actors, gpus=gpus):
        yield int(row["rows"])


class _UnitEncoder:
    """An actor of the pool; the model is loaded with the first unit."""

    def __init__(self, job: _Job, units: Sequence[Unit]) -> None:
        self._job = job
        self._units = units
        if job.device == "cpu":  # one core each: torch and the tokenizer would each start a thread per core of the node
            torch.set_num_threads(1)
            os.environ["TOKENIZERS_PARALLELISM"] = "false"

    @cached_property
    def _encoder(self) -> TextEncoder:
        if self._job.device == "cuda" and not torch.cuda.is_available():
            raise ResourceError("--device", "cuda", "a torch that sees the node's GPU", "Install one built for CUDA.")
        return TextEncoder(str(self._job.model.here()), self._job.device)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[int]]:
        return {"rows": [self._embed(self._units[int(place)]) for place in batch["unit"]]}

    def _embed(self, unit: Unit) -> int:
        table, texts = self._job.texts.read(unit)
        vectors = self._encoder.encode(texts, self._job.prefix)
        self._job.output.write_final(part_name(unit), _part(table, vectors, self._job.metadata))
        return len(texts)


def _part(table: pa.Table, vectors: NDArray[np.float32], metadata: Mapping[str, str]) -> bytes:
    """A Parquet file of the rows with their vectors [rows, D]."""
    names = table.column_names
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    whole = table.append_column(pa.field(EMBEDDING, column.type, nullable=False), column)
    whole = whole.replace_schema_metadata({**(table.schema.metadata or {}), **metadata})
    buffer = io.BytesIO()
    pq.write_table(whole, buffer, use_dictionary=names)  # of vectors, a dictionary would only cost time
    return buffer.getvalue()
