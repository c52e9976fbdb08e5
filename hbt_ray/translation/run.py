"""Translate a dataset into further languages: pieces, actors, gates, shards.

    dataset ─► work list (pieces) ─► units missing ─► actors (pipeline) ─► results, one file per unit
                                                                              │ lookup: pieces joined to cells
    <dataset>/<lang>/part-00000.parquet, manifest ◄── add_language ◄── gates ─┘  rejected/translation.<lang>.jsonl

The folder `<dataset>.translation` beside the dataset keeps work list and results. The same call after a kill translates
the units that are missing; a call with other gates translates nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import ray
import torch
import transformers

from hbt_ray.corpus.importers import Reject, RejectedRow
from hbt_ray.corpus.shards import Manifest, ShardedDataset, part_name
from hbt_ray.corpus.spill import scratch_folder
from hbt_ray.corpus.writer import Rejections, add_language
from hbt_ray.errors import ConfigError, CorpusError
from hbt_ray.model.encoder import TextEncoder
from hbt_ray.session import ray_session
from hbt_ray.storage import Folder
from hbt_ray.translation.answers import Answers
from hbt_ray.translation.gates import Cell, rejection
from hbt_ray.translation.lookup import Found, Lookup
from hbt_ray.translation.models import ModelFolder, direction, find_model, load_tokenizer
from hbt_ray.translation.pieces import (
    ROWS_AT_ONCE,
    Unit,
    is_translatable,
    split_text,
    work_key,
    work_list,
)
from hbt_ray.translation.pipeline import (
    CPU_TOKENS,
    GPU_SHARE_OF_GATES,
    GPU_TOKENS,
    Generation,
    Job,
    missing_units,
    placement,
    translated,
)
from hbt_ray.translation.sentences import join
from hbt_ray.translation.settings import GateSection, TranslationSettings

BLOCKS_UNDER_WAY = 8  # runs of rows at the gates while the next are joined

OnProgress: TypeAlias = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Translated:
    """What a call has done.

    Args:
        manifest: of the dataset with all languages.
        languages: added by this call; those that were complete before are not among them.
        pieces: distinct pieces of the source.
        translated: pieces translated by this call, over all languages.
        source_tokens: their tokens.
        padded_tokens: tokens of their batches with padding.
        seconds: of translating, over all actors.
        wall_seconds: of the call.
        rejected: language -> reason -> cells.
    """

    manifest: Manifest
    languages: tuple[str, ...]
    pieces: int
    translated: int
    source_tokens: int
    padded_tokens: int
    seconds: float
    wall_seconds: float
    rejected: Mapping[str, Mapping[str, int]]

    def summary(self) -> dict[str, Any]:
        """The last line of `hbt-ray data translate`."""
        return {
            "dataset": self.manifest.dataset,
            "languages": list(self.languages),
            "pieces": self.pieces,
            "translated": self.translated,
            "padding": round(1 - self.source_tokens / self.padded_tokens, 4) if self.padded_tokens else 0.0,
            "pieces_per_second": round(self.translated / self.wall_seconds, 2),
            "usable": {language: dict(self.manifest.usable[language]) for language in self.languages},
            "rejected": {language: dict(reasons) for language, reasons in self.rejected.items()},
        }


def translate(
    settings: TranslationSettings, on_progress: OnProgress = lambda done, total, language: None
) -> Translated:
    """Add the target languages to a dataset, each complete before the manifest names it.

    However this ends, every unit whose results are written stays translated. Languages that the dataset has from a
    call of the same settings, model and data are left as they are.

    Args:
        settings: what to translate, with which model.
        on_progress: told (pieces done, pieces in all, language), those of earlier calls included.

    Raises:
        ConfigError: a target language that the dataset has from elsewhere.
        CorpusError: no such dataset, or it lacks the source language.
        ModelError: no seq2seq model of the families, or a language it does not know.
        ResourceError: more actors than CPUs, or a storage that fails.
    """
    began = time.monotonic()
    dataset = _source_dataset(settings)
    model = find_model(settings.model, settings.revision)
    back_model = _back_model(settings, model)
    _check_directions(settings, model, back_model)
    counts = _Counts()
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder())
        answers = _answers(settings, scratch, stack.enter_context(Rejections(dataset.folder, "translation.answers")))
        stack.enter_context(ray_session(float(settings.actors or 1)))
        device, actors = placement(settings.actors)
        key = work_key(dataset, settings, answers.sha256)
        folder = Folder(settings.corpus) / f"{settings.dataset}.translation" / f"{settings.source}.{key[:12]}"
        work = work_list(dataset, settings, folder / "pieces", key, answers.texts())
        job = Job(work, folder, settings.source, model, back_model, generation(settings, device))
        wanted = [target for target in settings.targets if not _is_there(dataset, target, job, settings)]
        missing = {target: missing_units(job, target) for target in wanted}
        for target in _complete(job, missing, actors, settings.gates, on_progress, counts):
            manifest = _Assembly(dataset, target, settings, job, answers, scratch).added()
            dataset = ShardedDataset(dataset.folder, manifest)
            counts.rejected[target] = manifest.provenance["languages"][target]["rejected"]
    return Translated(
        manifest=dataset.manifest,
        languages=tuple(wanted),
        pieces=work.pieces,
        translated=counts.pieces,
        source_tokens=counts.source_tokens,
        padded_tokens=counts.padded_tokens,
        seconds=counts.seconds,
        wall_seconds=time.monotonic() - began,
        rejected=counts.rejected,
    )


def _source_dataset(settings: TranslationSettings) -> ShardedDataset:
    dataset = ShardedDataset.open(Folder(settings.corpus) / settings.dataset)
    if settings.source not in dataset.manifest.languages:
        expected = f"one of {', '.join(dataset.manifest.languages)}"
        raise CorpusError(dataset.folder.uri, f"no texts in {settings.source!r}", expected, "Correct `source`.")
    return dataset


def _answers(settings: TranslationSettings, scratch: Path, reject: Reject) -> Answers:
    file = Path(settings.answers) if settings.answers else None
    return Answers(file, settings.source, scratch / "answers.sqlite", reject)


def generation(settings: TranslationSettings, device: str) -> Generation:
    """How models write on a device."""
    chosen = settings.generation
    on_gpu = device == "cuda"
    return Generation(
        device=device,
        precision=chosen.precision or ("bf16" if on_gpu else "fp32"),
        beams=chosen.beams,
        batch_tokens=chosen.batch_tokens or (GPU_TOKENS if on_gpu else CPU_TOKENS),
        tokens_per_token=chosen.tokens_per_token,
    )


def _back_model(settings: TranslationSettings, model: ModelFolder) -> ModelFolder | None:
    if settings.gates.round_trip is None:
        return None
    return model if settings.back_model is None else find_model(settings.back_model)


def _check_directions(settings: TranslationSettings, model: ModelFolder, back_model: ModelFolder | None) -> None:
    """Refuse languages that a model does not know before anything is started."""
    tokenizer, family = load_tokenizer(model.path)
    for target in settings.targets:
        direction(tokenizer, family, settings.source, target, settings.model)
    if back_model is not None:
        tokenizer, family = load_tokenizer(back_model.path)
        for target in settings.targets:
            direction(tokenizer, family, target, settings.source, back_model.name)


def _is_there(dataset: ShardedDataset, target: str, job: Job, settings: TranslationSettings) -> bool:
    """Whether the dataset has the language from an equal call. Raises ConfigError if from elsewhere."""
    if target not in dataset.manifest.languages:
        return False
    origin = dataset.manifest.provenance.get("languages", {}).get(target, {})
    if origin.get("key") == _language_key(job, target, settings.gates):
        return True
    if not settings.replace:
        raise ConfigError(
            "targets",
            f"{target!r}, which {dataset.folder.uri} has already, not by these settings",
            "languages that it lacks",
            "Leave it out, or set replace=true.",
        )
    return False


def _language_key(job: Job, target: str, gates: GateSection) -> str:
    """Hash of everything that a language's cells depend on."""
    return hashlib.sha256(f"{job.key(target)} {gates.model_dump_json()}".encode()).hexdigest()


@dataclass
class _Counts:
    pieces: int = 0
    source_tokens: int = 0
    padded_tokens: int = 0
    seconds: float = 0.0
    rejected: dict[str, Mapping[str, int]] = field(default_factory=dict)


def _complete(
    job: Job,
    missing: Mapping[str, Sequence[Unit]],
    actors: int,
    gates: GateSection,
    on_progress: OnProgress,
    counts: _Counts,
) -> Iterator[str]:
    """The languages as their results become complete, in the order in which they were asked for."""
    units = {target: len(of_target) for target, of_target in missing.items()}
    done = {target: job.work.pieces - _num_pieces(job, of_target) for target, of_target in missing.items()}
    for target, pieces in done.items():
        on_progress(pieces, job.work.pieces, target)
    waiting = deque(missing)
    while waiting and not units[waiting[0]]:
        yield waiting.popleft()
    for unit in translated(job, missing, actors, gates.embedding is not None):
        counts.pieces += unit.pieces
        counts.source_tokens += unit.source_tokens
        counts.padded_tokens += unit.padded_tokens
        counts.seconds += unit.seconds
        units[unit.target] -= 1
        done[unit.target] += unit.pieces
        on_progress(done[unit.target], job.work.pieces, unit.target)
        while waiting and not units[waiting[0]]:
            yield waiting.popleft()


def _num_pieces(job: Job, units: Iterable[Unit]) -> int:
    return sum(job.work.units[unit.bucket][unit.number] for unit in units)


# --- from results to shards ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where a translated text goes: row of the block, column, and place in the list of negatives (else 0)."""

    row: int
    column: str
    number: int


@dataclass(frozen=True)
class _Block:
    """A run of rows on its way through the gates."""

    part: int
    pair_ids: list[str]
    places: list[_Place]
    cells: list[Cell]


class _Assembly:
    """The shards of one language, made of its results."""

    def __init__(
        self,
        dataset: ShardedDataset,
        target: str,
        settings: TranslationSettings,
        job: Job,
        answers: Answers,
        scratch: Path,
    ) -> None:
        self._dataset = dataset
        self._target = target
        self._settings = settings
        self._job = job
        self._answers = answers
        self._scratch = scratch
        self._provenance = _provenance(settings, job, target)

    def added(self) -> Manifest:
        """The manifest once the language is in it."""
        with TemporaryDirectory(dir=self._scratch) as scratch:
            self._lookup = Lookup(self._job.work, self._job.folder(self._target), Path(scratch))
            return add_language(self._dataset, self._target, self._tables(), self._provenance)

    def _tables(self) -> Iterator[pa.Table]:
        """A table per part; rejections are written, and counted in the provenance, before the last call returns."""
        cells = 0
        with Rejections(self._dataset.folder, f"translation.{self._target}") as rejections:
            for _, blocks in groupby(_judged(self._blocks(), self._settings.gates), lambda judged: judged[0].part):
                tables = []
                for block, reasons in blocks:
                    tables.append(self._table(block, reasons, rejections))
                    cells += len(reasons)
                yield pa.concat_tables(tables)
        self._provenance["cells"] = cells
        self._provenance["rejected"] = dict(sorted(rejections.counts.items()))

    def _table(self, block: _Block, reasons: Sequence[str | None], reject: Rejections) -> pa.Table:
        """The block's rows in the target language; a rejected text is missing."""
        rows: list[dict[str, Any]] = [{"query": None, "passage": None, "negatives": []} for _ in block.pair_ids]
        for place, cell, reason in zip(block.places, block.cells, reasons, strict=True):
            if reason is not None:
                name = part_name(self._settings.source, block.part)
                row = f"{block.pair_ids[place.row]}, {place.column}"
                reject(RejectedRow(name, row, self._target, reason, cell.translation))
            elif place.column == "negatives":
                rows[place.row]["negatives"].append(cell.translation)
            else:
                rows[place.row][place.column] = cell.translation
        return pa.Table.from_pylist(rows, schema=_ROWS)

    def _blocks(self) -> Iterator[_Block]:
        """The source's rows in order, with their texts' translations."""
        for part in range(len(self._dataset.manifest.rows_per_part)):
            table = self._dataset.read_part(self._settings.source, part)
            for start in range(0, table.num_rows, ROWS_AT_ONCE):
                yield self._block(part, table.slice(start, ROWS_AT_ONCE).to_pylist())

    def _block(self, part: int, rows: Sequence[Mapping[str, Any]]) -> _Block:
        pair_ids = [row["pair_id"] for row in rows]
        texts = [
            (_Place(number, column, i), text)
            for number, row in enumerate(rows)
            for column in self._settings.texts
            for i, text in enumerate(row[column] if column == "negatives" else [row[column]])
            if text is not None
        ]
        of_pair = self._answers.of(pair_ids)
        answers = [answer for pair_id in pair_ids for answer in of_pair.get(pair_id, ())]
        joined = self._translated([text for _, text in texts] + answers)
        by_answer = {answer: found.text for answer, found in zip(answers, joined[len(texts) :], strict=True)}
        cells = [
            Cell(
                source=text,
                translation=found.text,
                source_language=self._settings.source,
                target_language=self._target,
                fault=found.fault if self._settings.gates.cut_off or not found.text else None,
                answers=[(answer, by_answer[answer]) for answer in of_pair.get(pair_ids[place.row], ())]
                if place.column == "passage"
                else [],
                back=found.back,
            )
            for (place, text), found in zip(texts, joined[: len(texts)], strict=True)
        ]
        return _Block(part, pair_ids, [place for place, _ in texts], cells)

    def _translated(self, texts: Sequence[str]) -> list[Found]:
        """Texts put together from their pieces' translations; the first piece's fault is the text's."""
        splits = [split_text(text, self._settings.pieces) for text in texts]
        wanted = list(dict.fromkeys(piece for split in splits for piece in split.pieces if is_translatable(piece)))
        found = dict(zip(wanted, self._lookup.find(wanted), strict=True))
        results = []
        for split in splits:
            parts = [found.get(piece, Found(piece, None, piece)) for piece in split.pieces]
            fault = next((part.fault for part in parts if part.fault), None)
            whole = all(part.text for part in parts)
            text = join([part.text for part in parts], split.separators, self._target) if whole else ""
            backs = [part.back for part in parts]
            back = None
            if None not in backs:
                back = join([str(b) for b in backs], split.separators, self._settings.source)
            results.append(Found(text, fault, back))
        return results


_ROWS = pa.schema({"query": pa.large_string(), "passage": pa.large_string(), "negatives": pa.list_(pa.large_string())})


def _provenance(settings: TranslationSettings, job: Job, target: str) -> dict[str, Any]:
    """What the manifest says of a translated language; counts are added when they are known."""
    return {
        "translated_from": settings.source,
        "model": job.model.name,
        "revision": job.model.revision,
        "model_sha256": job.model.sha256,
        "back_model_sha256": job.back_model and job.back_model.sha256,
        "generation": vars(job.generation),
        "pieces": settings.pieces.model_dump(),
        "texts": list(settings.texts),
        "gates": settings.gates.model_dump(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "key": _language_key(job, target, settings.gates),
    }


# --- the gates on the cluster ----------------------------------------------------------------------------------------


def _judged(blocks: Iterable[_Block], gates: GateSection) -> Iterator[tuple[_Block, list[str | None]]]:
    """Each block with the reasons to reject its cells, in order; the next blocks are under way meanwhile."""
    on_gpu = gates.encoder is not None and ray.cluster_resources().get("GPU", 0) > 0
    judge: Any = ray.remote(num_cpus=1, num_gpus=GPU_SHARE_OF_GATES if on_gpu else 0)(_reasons)
    under_way: deque[tuple[_Block, Any]] = deque()
    for block in blocks:
        under_way.append((block, judge.remote(block.cells, gates, "cuda" if on_gpu else "cpu")))
        if len(under_way) >= BLOCKS_UNDER_WAY:
            first, reasons = under_way.popleft()
            yield first, ray.get(reasons)
    for block, reasons in under_way:
        yield block, ray.get(reasons)


def _reasons(cells: Sequence[Cell], gates: GateSection, device: str) -> list[str | None]:
    """Why each cell is rejected, or None."""
    if gates.encoder is None:
        return [rejection(cell, gates) for cell in cells]
    encoder = _encoder(gates.encoder, device)
    distinct = list(dict.fromkeys(text for cell in cells for text in (cell.source, cell.translation)))
    vectors = dict(zip(distinct, encoder.encode(distinct), strict=True))
    similarities = [float(np.dot(vectors[cell.source], vectors[cell.translation])) for cell in cells]
    return [
        rejection(replace(cell, similarity=similarity), gates)
        for cell, similarity in zip(cells, similarities, strict=True)
    ]


@lru_cache(maxsize=1)
def _encoder(folder: str, device: str) -> TextEncoder:
    if device == "cpu":
        torch.set_num_threads(1)
    return TextEncoder(folder, device)
