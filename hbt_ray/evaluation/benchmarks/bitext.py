"""Bitext retrieval in the format of the Tatoeba test set (LASER, Artetxe and Schwenk 2019): line n translates line n.

The English sides of two languages are different sentences, so each language is a pair with English of its own, and
each pair two collections: foreign sentences search English ones, and the reverse.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from babel.core import get_global

from hbt_ray.errors import BenchmarkError
from hbt_ray.evaluation.benchmarks.collection import Benchmark, Collection, Qrels, Texts, chosen_languages
from hbt_ray.evaluation.benchmarks.lines import present, read_lines

_PIVOT = "en"
_FILE = re.compile(r"tatoeba\.(?P<code>[a-z]{3})-eng\.(?P=code)(\.gz)?")

# CLDR merges Coastal Kadazan into Central Dusun (dtp), which has a file of its own.
_CLDR_CODES = {"kzj": "kzj"}


def load_tatoeba(data: Path, languages: Sequence[str] | None = None) -> Benchmark:
    """The benchmark from `tatoeba.{xxx}-eng.{xxx}[.gz]` and `tatoeba.{xxx}-eng.eng[.gz]`, one sentence per line.

    Collections are called "de-en" (German searches English) and "en-de", two per language. Query and candidate ids are
    line numbers from 1; the relevant candidate is the line of the same number, and no other: sentences that occur twice
    stay two candidates.

    Args:
        data: the folder with the files, or the one above its subfolder `tatoeba`.
        languages: CLDR codes; by default all found, in alphabetical order. English itself is part of every pair and
            may be named or not.

    Raises:
        ConfigError: a language without files, one named twice, or none but English.
        BenchmarkError: no files, an unreadable file, an empty line, or files of unequal length.
    """
    folder = next((folder for folder in (data, data / "tatoeba") if _codes_in(folder)), None)
    if folder is None:
        raise BenchmarkError(
            "benchmark tatoeba",
            f"no such file in {data} or {data / 'tatoeba'}",
            "tatoeba.{xxx}-eng.{xxx}[.gz] files",
            "Give the folder that holds them.",
        )
    codes = _codes_in(folder)
    foreign = None if languages is None else [language for language in languages if language != _PIVOT]
    chosen = chosen_languages(foreign, sorted(codes), "tatoeba")
    pairs = ((language, _read_pair(folder, codes[language])) for language in chosen)
    return Benchmark(
        "tatoeba",
        tuple(
            collection
            for language, (foreign_side, english_side) in pairs
            for collection in (
                _direction(language, foreign_side, _PIVOT, english_side),
                _direction(_PIVOT, english_side, language, foreign_side),
            )
        ),
    )


def cldr_code(iso: str) -> str:
    """The CLDR code of an ISO 639-3 code ("deu" -> "de", "cmn" -> "zh"); the code itself where CLDR has no other."""
    return _CLDR_CODES.get(iso) or str(get_global("language_aliases").get(iso, iso))


def _codes_in(folder: Path) -> dict[str, str]:
    """CLDR code -> ISO 639-3 code of the files in a folder."""
    codes: dict[str, str] = {}
    for match in map(_FILE.fullmatch, sorted(path.name for path in folder.glob("tatoeba.*-eng.*"))):
        if match is None or match["code"] == "eng":  # not ours, or the English side
            continue
        iso = match["code"]
        if codes.setdefault(cldr_code(iso), iso) != iso:
            raise BenchmarkError(
                str(folder),
                f"files of {codes[cldr_code(iso)]} and {iso}, both {cldr_code(iso)!r}",
                "one pair of files per language",
                "Remove one pair.",
            )
    return codes


def _read_pair(folder: Path, iso: str) -> tuple[Texts, Texts]:
    foreign, english = (_read_side(folder / f"tatoeba.{iso}-eng.{side}") for side in (iso, "eng"))
    if len(foreign) != len(english):
        raise BenchmarkError(
            str(folder / f"tatoeba.{iso}-eng.*"),
            f"{len(foreign)} lines of {iso} and {len(english)} of eng",
            "as many in both files",
            "Take both files of the same version.",
        )
    return foreign, english


def _read_side(path: Path) -> Texts:
    sentences = []
    for where, line in read_lines(present(path) or path):
        if not line.strip():
            raise BenchmarkError(where, "an empty line", "a sentence on every line", "Remove this line in both files.")
        sentences.append(line)
    return Texts(tuple(str(number) for number in range(1, len(sentences) + 1)), tuple(sentences))


def _direction(query_language: str, queries: Texts, candidate_language: str, candidates: Texts) -> Collection:
    rows = np.arange(len(queries), dtype=np.int64)
    first = np.zeros_like(rows)
    qrels = Qrels(np.arange(len(queries) + 1, dtype=np.int64), first, rows, np.ones_like(rows))
    return Collection(
        name=f"{query_language}-{candidate_language}",
        queries={query_language: queries},
        candidates={candidate_language: candidates},
        qrels={query_language: qrels},
        merged_pool=False,
        parallel=False,
    )
