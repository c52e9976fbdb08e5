"""Benchmarks in LAReQA format (Roy et al. 2020): XQuAD-R, MLQA-R and the sample.

A question has the same id in every language that has it, and exactly one relevant candidate in each: so the
relevant candidates of a question in all languages are found by its id alone.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hbt_ray.errors import BenchmarkError, ConfigError
from hbt_ray.evaluation.benchmarks.collection import Benchmark, Collection, Texts, chosen_languages, qrels_of
from hbt_ray.evaluation.benchmarks.lines import unreadable
from hbt_ray.languages import checked_codes

XQUAD_R_LANGUAGES = ("ar", "de", "el", "en", "es", "hi", "ru", "th", "tr", "vi", "zh")
MLQA_R_LANGUAGES = ("ar", "de", "en", "es", "hi", "vi", "zh")
LAREQA_LANGUAGES = {"xquad-r": XQUAD_R_LANGUAGES, "mlqa-r": MLQA_R_LANGUAGES, "sample": XQUAD_R_LANGUAGES}

SENTENCE, SENTENCE_CONTEXT = "sentence", "sentence+context"  # what a candidate's text is

_FILE_ENDINGS = (".json", ".json.gz")


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


def load_published(
    name: str, data: Path, languages: Sequence[str] | None = None, *, candidate_text: str = SENTENCE
) -> Benchmark:
    """The benchmark `xquad-r`, `mlqa-r` or `sample`, from `data` itself or its subfolder of that name.

    Args:
        name: a key of LAREQA_LANGUAGES, which also gives the languages when none are asked for.
        data: the folder with the language files, or the folder above it. The sample is also found in
            `data/benchmark`.
        languages: the languages to load, among those of the benchmark.
        candidate_text: as `load_lareqa`.

    Raises:
        ConfigError: a language that the benchmark lacks, or as `load_lareqa`.
        BenchmarkError: no folder with language files, or as `load_lareqa`.
    """
    wanted = chosen_languages(languages, LAREQA_LANGUAGES[name], name)
    return load_lareqa(_benchmark_folder(name, data, wanted), name, wanted, candidate_text=candidate_text)


def load_lareqa(
    folder: Path, name: str, languages: Sequence[str] | None = None, *, candidate_text: str = SENTENCE
) -> Benchmark:
    """A benchmark from `<lang>.json` or `<lang>.json.gz` (the plain file wins) in LAReQA format.

    Candidates are all sentences `context[start:end]` of all paragraphs in file order, with the ids
    `{language}_{paragraph}_{sentence}`. The relevant candidate of a question is the sentence of its own paragraph
    with `start <= answer_start < end`: the start of the answer counts, not its span.

    Args:
        folder: where the language files are.
        name: the name given to the benchmark; `+context` is appended for "sentence+context".
        languages: the languages to load; by default every language with a file, in alphabetical order.
        candidate_text: "sentence", or "sentence+context" for the sentence, one space and its whole paragraph
            (LAReQA encodes a sentence together with its paragraph). Ids and relevance are the same.

    Raises:
        ConfigError: no language, an unknown one or one named twice; an unknown `candidate_text`.
        BenchmarkError: a missing folder or file, an unreadable file, a missing or ill-typed key, a sentence
            outside its context, a question id used twice, a question without exactly one relevant sentence,
            or a file without questions.
    """
    if candidate_text not in (SENTENCE, SENTENCE_CONTEXT):
        raise ConfigError(
            "candidate_text", repr(candidate_text), f"{SENTENCE!r} or {SENTENCE_CONTEXT!r}", "Choose one of the two."
        )
    if not folder.is_dir():
        raise BenchmarkError(
            str(folder), "no such folder", "a folder of language files", "Give the folder that holds them."
        )
    codes = checked_codes(_languages_in(folder) if languages is None else languages)
    if not codes:
        raise ConfigError("languages", "none", "at least one language", f"Name a language that {folder} has.")
    with_context = candidate_text == SENTENCE_CONTEXT
    files = {code: _language_file(folder, code) for code in codes}
    parts = {code: _read_language(file, code, with_context) for code, file in files.items()}
    candidates = {code: part.candidates for code, part in parts.items()}
    full_name = f"{name}+context" if with_context else name
    collection = Collection(
        name=full_name,
        queries={code: part.queries for code, part in parts.items()},
        candidates=candidates,
        qrels={
            code: qrels_of(part.queries, _judgements(part.queries.ids, parts), candidates, str(files[code]))
            for code, part in parts.items()
        },
        merged_pool=len(codes) > 1,
        parallel=True,
    )
    return Benchmark(full_name, (collection,))


@dataclass(frozen=True)
class _LanguagePart:
    queries: Texts
    candidates: Texts
    relevant: dict[str, str]  # question id -> candidate id


def _judgements(questions: Sequence[str], parts: dict[str, _LanguagePart]) -> dict[str, dict[tuple[str, str], int]]:
    """Every language's relevant candidate of each question that it has, with grade 1."""
    return {
        question: {(code, part.relevant[question]): 1 for code, part in parts.items() if question in part.relevant}
        for question in questions
    }


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


def _read_language(path: Path, language: str, with_context: bool) -> _LanguagePart:
    questions: list[str] = []
    candidates: dict[str, str] = {}
    relevant: dict[str, str] = {}
    paragraphs = [paragraph for article in _parse(path).data for paragraph in article.paragraphs]
    for number, paragraph in enumerate(paragraphs):
        for position, sentence in enumerate(_sentences(paragraph, f"{path}: paragraph {number}")):
            text = f"{sentence} {paragraph.context}" if with_context else sentence
            candidates[f"{language}_{number}_{position}"] = text
        for question in paragraph.qas:
            where = f"{path}: paragraph {number}: question {question.id!r}"
            if question.id in relevant:
                raise BenchmarkError(where, "this id twice", "unique ids", "Remove or rename one question.")
            relevant[question.id] = f"{language}_{number}_{_relevant_sentence(paragraph, question, where)}"
            questions.append(question.question)
    if not questions:
        raise BenchmarkError(str(path), "no question", "at least one", "Leave this language out.")
    return _LanguagePart(
        Texts(tuple(relevant), tuple(questions)), Texts(tuple(candidates), tuple(candidates.values())), relevant
    )


def _parse(path: Path) -> _LareqaFile:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error
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
