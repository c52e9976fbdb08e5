"""Evaluation benchmarks in LAReQA format (Roy et al. 2020): queries, candidate sentences, qrels per language.

A question has the same id in every language that has it, and exactly one relevant candidate in each: so the
multilingual relevant set of a question is found by its id alone.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hbt_ray.errors import BenchmarkError, ConfigError
from hbt_ray.languages import checked_codes

XQUAD_R_LANGUAGES = ("ar", "de", "el", "en", "es", "hi", "ru", "th", "tr", "vi", "zh")
MLQA_R_LANGUAGES = ("ar", "de", "en", "es", "hi", "vi", "zh")
BENCHMARK_LANGUAGES = {"xquad-r": XQUAD_R_LANGUAGES, "mlqa-r": MLQA_R_LANGUAGES, "sample": XQUAD_R_LANGUAGES}

_FILE_ENDINGS = (".json", ".json.gz")


@dataclass(frozen=True)
class Benchmark:
    """Queries, candidates and relevance of several languages; all lists are in file order.

    Args:
        name: what reports call it.
        languages: the languages, in the order of every matrix over them.
        query_ids: language -> question ids, unique within the language.
        queries: language -> question texts, parallel to `query_ids`.
        candidates: language -> candidate texts, not de-duplicated, at least one.
        relevant: language -> question id -> index of its one relevant candidate in `candidates[language]`;
            holds every id of that language's `query_ids`.
    """

    name: str
    languages: tuple[str, ...]
    query_ids: Mapping[str, tuple[str, ...]]
    queries: Mapping[str, tuple[str, ...]]
    candidates: Mapping[str, tuple[str, ...]]
    relevant: Mapping[str, Mapping[str, int]]

    @property
    def query_count(self) -> int:
        """Queries of all languages together."""
        return sum(len(self.queries[language]) for language in self.languages)

    @property
    def candidate_count(self) -> int:
        """Candidates of all languages together: the size of the multilingual pool."""
        return sum(len(self.candidates[language]) for language in self.languages)

    @cached_property
    def data_hash(self) -> str:
        """sha256 (hex) of texts, ids and relevance; the order in which languages were named does not matter."""
        digest = sha256()
        for language in sorted(self.languages):
            ids = self.query_ids[language]
            indices = [self.relevant[language][query_id] for query_id in ids]
            content = [language, ids, self.queries[language], self.candidates[language], indices]
            digest.update(json.dumps(content).encode())
        return digest.hexdigest()

    def relevant_indices(self, query_language: str) -> NDArray[np.int64]:
        """Relevant candidates of the queries of one language, int64 [queries, languages].

        Column l holds the index in `candidates[languages[l]]`, -1 where that language lacks the question.
        """
        return np.array(
            [
                [self.relevant[language].get(query_id, -1) for language in self.languages]
                for query_id in self.query_ids[query_language]
            ],
            dtype=np.int64,
        ).reshape(-1, len(self.languages))


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class _Answer(_Record):
    answer_start: int


class _Question(_Record):
    id: str
    question: str
    answers: list[_Answer] = Field(min_length=1)


class _Paragraph(_Record):
    context: str
    sentence_breaks: list[tuple[int, int]]
    qas: list[_Question]


class _Article(_Record):
    paragraphs: list[_Paragraph]


class _LareqaFile(_Record):
    data: list[_Article]


def load_benchmark(name: str, data: Path, languages: Sequence[str] | None = None) -> Benchmark:
    """The benchmark `xquad-r`, `mlqa-r` or `sample`, from `data` itself or its subfolder of that name.

    Args:
        name: a key of BENCHMARK_LANGUAGES, which also gives the languages when none are asked for.
        data: the folder with the language files, or the folder above it. The sample is also found in
            `data/benchmark`.
        languages: the languages to load.

    Raises:
        ConfigError: an unknown benchmark or language.
        BenchmarkError: no folder with language files, or as `load_lareqa`.
    """
    if name not in BENCHMARK_LANGUAGES:
        raise ConfigError(
            "benchmark", repr(name), f"one of {', '.join(BENCHMARK_LANGUAGES)}", "Choose one of these names."
        )
    wanted = BENCHMARK_LANGUAGES[name] if languages is None else tuple(languages)
    return load_lareqa(_benchmark_folder(name, data, wanted), name, wanted)


def load_lareqa(folder: Path, name: str, languages: Sequence[str] | None = None) -> Benchmark:
    """A benchmark from `<lang>.json` or `<lang>.json.gz` (the plain file wins) in LAReQA format.

    Candidates are all sentences `context[start:end]` of all paragraphs in file order. The relevant candidate
    of a question is the sentence of its own paragraph with `start <= answer_start < end`: the start of the
    answer counts, not its span.

    Args:
        folder: where the language files are.
        name: the name given to the benchmark.
        languages: the languages to load; by default every language with a file, in alphabetical order.

    Raises:
        ConfigError: no language, an unknown one or one named twice.
        BenchmarkError: a missing folder or file, an unreadable file, a missing or ill-typed key, a sentence
            outside its context, a question id used twice, a question without exactly one relevant sentence,
            or a file without questions.
    """
    if not folder.is_dir():
        raise BenchmarkError(
            str(folder), "no such folder", "a folder of language files", "Give the folder that holds them."
        )
    codes = checked_codes(_languages_in(folder) if languages is None else languages)
    if not codes:
        raise ConfigError("languages", "none", "at least one language", f"Name a language that {folder} has.")
    parsed = {code: _read_language(_language_file(folder, code)) for code in codes}
    return Benchmark(
        name=name,
        languages=codes,
        query_ids={code: part.query_ids for code, part in parsed.items()},
        queries={code: part.queries for code, part in parsed.items()},
        candidates={code: part.candidates for code, part in parsed.items()},
        relevant={code: part.relevant for code, part in parsed.items()},
    )


def _benchmark_folder(name: str, data: Path, languages: Sequence[str]) -> Path:
    folders = [data, data / name] + ([data / "benchmark"] if name == "sample" else [])
    for folder in folders:
        if any((folder / f"{code}{ending}").is_file() for code in languages for ending in _FILE_ENDINGS):
            return folder
    raise BenchmarkError(
        f"benchmark {name}",
        f"no file of the languages {', '.join(languages)} in {' or '.join(map(str, folders))}",
        "<lang>.json or <lang>.json.gz files",
        "Give the folder that holds the language files.",
    )


def _languages_in(folder: Path) -> list[str]:
    return sorted({path.name.split(".")[0] for ending in _FILE_ENDINGS for path in folder.glob(f"*{ending}")})


def _language_file(folder: Path, language: str) -> Path:
    for ending in _FILE_ENDINGS:
        path = folder / f"{language}{ending}"
        if path.is_file():
            return path
    raise BenchmarkError(
        str(folder),
        f"no file for language {language!r}, only for {', '.join(_languages_in(folder)) or 'none'}",
        f"{language}.json or {language}.json.gz",
        f"Add the file or leave {language!r} out of the languages.",
    )


@dataclass(frozen=True)
class _LanguagePart:
    query_ids: tuple[str, ...]
    queries: tuple[str, ...]
    candidates: tuple[str, ...]
    relevant: dict[str, int]


def _read_language(path: Path) -> _LanguagePart:
    queries: list[str] = []
    candidates: list[str] = []
    relevant: dict[str, int] = {}
    paragraphs = [paragraph for article in _parse(path).data for paragraph in article.paragraphs]
    for number, paragraph in enumerate(paragraphs):
        offset = len(candidates)
        candidates += _sentences(paragraph, f"{path}: paragraph {number}")
        for question in paragraph.qas:
            where = f"{path}: paragraph {number}: question {question.id!r}"
            if question.id in relevant:
                raise BenchmarkError(where, "this id twice", "unique ids", "Remove or rename one question.")
            relevant[question.id] = offset + _relevant_sentence(paragraph, question, where)
            queries.append(question.question)
    if not queries:
        raise BenchmarkError(str(path), "no question", "at least one", "Leave this language out.")
    return _LanguagePart(tuple(relevant), tuple(queries), tuple(candidates), relevant)


def _parse(path: Path) -> _LareqaFile:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise BenchmarkError(str(path), error, "a readable file", "Fetch the file again.") from error
    try:
        return _LareqaFile.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "file"
        raise BenchmarkError(
            f"{path}: {key}", repr(first["input"])[:80], f"LAReQA format ({first['msg']})", "Mend this key."
        ) from error


def _sentences(paragraph: _Paragraph, where: str) -> list[str]:
    length = len(paragraph.context)
    for start, end in paragraph.sentence_breaks:
        if not 0 <= start < end <= length:
            raise BenchmarkError(
                f"{where}: sentence_breaks",
                [start, end],
                f"0 <= start < end <= {length}, the length of the context",
                "Give character offsets into `context`, end exclusive.",
            )
    return [paragraph.context[start:end] for start, end in paragraph.sentence_breaks]


def _relevant_sentence(paragraph: _Paragraph, question: _Question, where: str) -> int:
    """Number, within its paragraph, of the one sentence in which the answers of a question start."""
    starts = [answer.answer_start for answer in question.answers]
    hits = [
        number
        for number, (start, end) in enumerate(paragraph.sentence_breaks)
        if any(start <= answer_start < end for answer_start in starts)
    ]
    if len(hits) != 1:
        raise BenchmarkError(
            where,
            f"{len(hits)} relevant sentences for answer_start {starts}",
            "exactly one sentence with start <= answer_start < end",
            "Mend answer_start or sentence_breaks.",
        )
    return hits[0]
