"""Articles that training documents and a benchmark share, by their titles.

Sources spell one title in several ways: `Group_(mathematics)`, `Group (mathematics)`, `Beyonc%C3%A9`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, ValidationError

from hbt_ray.corpus.cleaning import folded
from hbt_ray.corpus.documents import document_names
from hbt_ray.corpus.importers import invalid, opened
from hbt_ray.corpus.shards import ShardedDataset, WholeReader
from hbt_ray.errors import BenchmarkError
from hbt_ray.evaluation.benchmarks.lareqa import LAREQA_LANGUAGES

_ENDINGS = (".json", ".json.gz")
# Their documents are web sites, or ids of articles. Where a document is called as its passage is, that shows by itself.
_FORMATS_WITHOUT_TITLES = ("mfaq", "mr-tydi", "wikiqa")


class _Article(BaseModel):
    model_config = ConfigDict(frozen=True)
    title: str | None = None


class _Articles(BaseModel):
    model_config = ConfigDict(frozen=True)
    data: list[_Article]


def read_titles(name: str, data: Path, languages: Sequence[str]) -> frozenset[str] | None:
    """The titles of a benchmark's articles in all its languages, as `plain_title` makes them.

    Args:
        name: of the benchmark; those in LAReQA format have titles.
        data: the folder with the language files, or the folder above, as for `load_benchmark`.
        languages: of the benchmark.

    Returns:
        None where the files have no titles.

    Raises:
        CorpusError: a file that is damaged or not in LAReQA format.
        BenchmarkError: no file of these languages.
    """
    if name not in LAREQA_LANGUAGES:
        return None
    files = _files(name, data, languages)
    titles = {article.title for file in files for article in _articles(file)} - {None}
    return frozenset(plain_title(title) for title in titles if title) or None


def plain_title(title: str) -> str:
    """The title as titles are compared: percent-encoding undone, underscores as spaces, case aside."""
    return folded(unquote(title).replace("_", " "))


def shared_documents(dataset: ShardedDataset, titles: Collection[str]) -> list[tuple[int, str]] | None:
    """Number and name of every document that has one of the titles; None where documents have no names."""
    names = document_names(dataset)
    if names is None:
        return None
    return [(number, str(name)) for number, name in enumerate(names) if plain_title(str(name)) in titles]


def untitled_documents(dataset: ShardedDataset) -> int:
    """How many documents have no title to compare: no name at all, or an id for a name.

    Importers give a passage without an article a document of its own, named by the passage's id.
    """
    names = document_names(dataset)
    if names is None or dataset.manifest.provenance.get("format") in _FORMATS_WITHOUT_TITLES:
        return dataset.manifest.groups
    reader, lang = WholeReader(dataset), dataset.manifest.languages[0]
    documents = dataset.groups()
    untitled = np.zeros(dataset.manifest.groups, dtype=bool)
    for group, (start, stop) in enumerate(pairwise(dataset.group_starts.tolist())):
        numbers = documents[start:stop]
        ids = reader.read_group(lang, group, ["passage_id"])["passage_id"].combine_chunks()
        untitled[numbers[np.asarray(pc.equal(names.take(pa.array(numbers)), ids))]] = True
    return int(untitled.sum())


def _files(name: str, data: Path, languages: Sequence[str]) -> list[Path]:
    """One file per language, of the first folder that has any; the plain file wins, as where the texts are read."""
    for folder in (data, data / name, data / "benchmark"):
        candidates = [[folder / f"{lang}{ending}" for ending in _ENDINGS] for lang in languages]
        found = [file for pair in candidates if (file := next(filter(Path.is_file, pair), None))]
        if found:
            return found
    received = f"no file of the languages {', '.join(languages)} in {data}"
    raise BenchmarkError(f"benchmark {name}", received, "<lang>.json or <lang>.json.gz files", "Check the folder.")


def _articles(file: Path) -> list[_Article]:
    with opened(file) as content:
        text = content.read()
    try:
        return _Articles.model_validate_json(text).data
    except ValidationError as error:
        raise invalid(str(file), error) from error
