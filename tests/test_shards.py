from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.shards import (
    GROUPS,
    MANIFEST,
    SCHEMA,
    ShardedDataset,
    open_corpus,
    part_name,
    presence_name,
)
from hbt_ray.corpus.validate import validate
from hbt_ray.corpus.writer import write_pairs
from hbt_ray.errors import ConfigError, CorpusError
from hbt_ray.storage import Folder

LANGUAGES = ("en", "de", "sw")
PROVENANCE = {"source": "made up", "licence": "CC0-1.0"}


def make_pair(number: int, queries: Sequence[str] = LANGUAGES, passages: Sequence[str] = LANGUAGES) -> ParallelPair:
    return ParallelPair(
        pair_id=f"p{number}",
        passage_id=f"passage {number // 2}",
        group=f"article {number // 4}",
        query={lang: f"question {number} in {lang}" for lang in queries},
        passage={lang: f"passage {number // 2} in {lang}" for lang in passages},
        negatives={passages[0]: [f"not {number}"]},
    )


def incomplete_pairs(count: int) -> list[ParallelPair]:
    """Pairs of which every third lacks a German question and every fifth has a Swahili passage only."""
    return [
        make_pair(
            n,
            LANGUAGES if n % 3 else ("en", "sw"),
            LANGUAGES if n % 5 else ("sw",),
        )
        for n in range(count)
    ]


def written(folder: Path, pairs: Sequence[ParallelPair], name: str = "mt", **sizes: int) -> ShardedDataset:
    write_pairs(Folder(str(folder)), name, pairs, LANGUAGES, PROVENANCE, **sizes)
    return ShardedDataset.open(Folder(str(folder / name)))


def texts(dataset: ShardedDataset, lang: str) -> list[dict[str, Any]]:
    """All rows of a language, read cell by cell."""
    groups = range(len(dataset.group_starts) - 1)
    return [row for group in groups for row in dataset.read_group(lang, group, SCHEMA.names).to_pylist()]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rewrite(dataset: ShardedDataset, name: str, data: bytes, *, with_checksum: bool) -> ShardedDataset:
    """The dataset with one file replaced, in the manifest too if the mistake is not to show as a checksum."""
    dataset.folder.write(name, data)
    if with_checksum:
        manifest = json.loads(dataset.folder.read(MANIFEST))
        manifest["files"][name] = sha256(data).hexdigest()
        dataset.folder.write(MANIFEST, json.dumps(manifest).encode())
    return ShardedDataset.open(dataset.folder)


def rewrite_part(dataset: ShardedDataset, lang: str, change: Callable[[pa.Table], pa.Table]) -> ShardedDataset:
    buffer = io.BytesIO()
    pq.write_table(change(dataset.read_part(lang, 0)), buffer)
    return rewrite(dataset, part_name(lang, 0), buffer.getvalue(), with_checksum=True)


def with_value(column: str, row: int, value: str | None) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = value
        index = table.schema.get_field_index(column)
        return table.set_column(index, SCHEMA.field(column), pa.array(values, pa.string()))

    return change


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 60),
    rows_per_part=st.integers(1, 40),
    rows_per_group=st.integers(1, 12),
    seed=st.integers(0, 5),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, count: int, rows_per_part: int, rows_per_group: int, seed: int
) -> None:
    """Whatever the sizes of parts and row groups: every cell comes back, row i is one pair in every language."""
    pairs = incomplete_pairs(count)
    folder = tmp_path_factory.mktemp("corpus")
    dataset = written(folder, pairs, seed=seed, rows_per_part=rows_per_part, rows_per_group=rows_per_group)
    validate(dataset)
    by_language = {lang: texts(dataset, lang) for lang in LANGUAGES}
    by_id = {pair.pair_id: pair for pair in pairs}
    ids = [row["pair_id"] for row in by_language["en"]]
    assert sorted(ids) == sorted(by_id)
    for lang, rows in by_language.items():
        assert [row["pair_id"] for row in rows] == ids
        for row, pair in zip(rows, (by_id[pair_id] for pair_id in ids), strict=True):
            assert row["passage_id"] == pair.passage_id
            assert (row["query"], row["passage"]) == (pair.query.get(lang), pair.passage.get(lang))
            assert row["negatives"] == list(pair.negatives.get(lang, ()))


def test_same_boundaries_in_every_language(tmp_path: Path) -> None:
    """Parts and row groups begin at the same rows in every language, also the short last ones."""
    dataset = written(tmp_path, incomplete_pairs(23), rows_per_part=10, rows_per_group=4)
    assert dataset.group_starts.tolist() == [0, 4, 8, 10, 14, 18, 20, 23]
    assert dataset.manifest.rows_per_part == (10, 10, 3)
    for lang in LANGUAGES:
        files = [pq.ParquetFile(tmp_path / "mt" / part_name(lang, part)) for part in range(3)]
        sizes = [file.metadata.row_group(k).num_rows for file in files for k in range(file.num_row_groups)]
        assert sizes == np.diff(dataset.group_starts).tolist()


def test_missing_cells_are_null_and_their_bits_zero(tmp_path: Path) -> None:
    """A missing text is a null cell; presence bits and counts say exactly which cells are there."""
    dataset = written(tmp_path, incomplete_pairs(37), rows_per_part=20, rows_per_group=7)
    for lang in LANGUAGES:
        rows = texts(dataset, lang)
        bits = np.unpackbits(dataset.presence(lang), axis=1, count=len(rows)).astype(bool)
        assert bits.tolist() == [[row[column] is not None for row in rows] for column in ("query", "passage")]
        assert dataset.manifest.usable[lang] == {
            "queries": bits[0].sum(),
            "passages": bits[1].sum(),
            "pairs": (bits[0] & bits[1]).sum(),
        }
    assert dataset.manifest.usable["de"] == {"queries": 24, "passages": 29, "pairs": 19}


def test_rows_know_their_document(tmp_path: Path) -> None:
    """Two rows have one group number exactly if their pairs have one group."""
    dataset = written(tmp_path, incomplete_pairs(21))
    numbers = dataset.groups()
    names = [int(row["pair_id"][1:]) // 4 for row in texts(dataset, "en")]
    assert dataset.manifest.groups == len(set(names)) == 6
    assert len(set(zip(numbers.tolist(), names, strict=True))) == 6


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    """The same pairs and seed give the same bytes; another seed gives another order of the same pairs."""
    pairs = incomplete_pairs(30)
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        written(tmp_path / folder, pairs, seed=seed, rows_per_part=12, rows_per_group=5)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    orders = [
        [row["pair_id"] for row in texts(ShardedDataset.open(Folder(str(tmp_path / f / "mt"))), "en")] for f in "ac"
    ]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_importing_twice_adds_nothing(tmp_path: Path) -> None:
    """A second import of the same pairs leaves the same files with the same bytes."""
    pairs = incomplete_pairs(30)
    written(tmp_path, pairs, rows_per_part=12)
    before = files_of(tmp_path)
    written(tmp_path, pairs, rows_per_part=12)
    assert files_of(tmp_path) == before


def test_manifest_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is written before the manifest, which lists each with its checksum."""
    names: list[str] = []
    write = Folder.write

    def recorded(self: Folder, name: str, data: bytes) -> None:
        names.append(name)
        write(self, name, data)

    monkeypatch.setattr(Folder, "write", recorded)
    dataset = written(tmp_path, incomplete_pairs(9), rows_per_part=5)
    assert names[-1] == MANIFEST
    assert sorted(names[:-1]) == sorted(dataset.manifest.files)
    assert len(names) == 3 * 2 + 3 + 1 + 1 + 1  # parts, presence bits, groups, names of documents, manifest
    for name, checksum in dataset.manifest.files.items():
        assert sha256((tmp_path / "mt" / name).read_bytes()).hexdigest() == checksum


@pytest.mark.parametrize("earlier", [0, 9])
def test_an_import_cut_short_is_not_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: int) -> None:
    """Parts without manifest are refused, not taken for an empty corpus; also where they replace an older import."""
    if earlier:
        written(tmp_path, incomplete_pairs(earlier))
    write = Folder.write

    def fails_at_groups(self: Folder, name: str, data: bytes) -> None:
        if name == GROUPS:
            raise OSError("disk full")
        write(self, name, data)

    monkeypatch.setattr(Folder, "write", fails_at_groups)
    with pytest.raises(OSError, match="disk full"):
        written(tmp_path, incomplete_pairs(12))
    with pytest.raises(CorpusError, match=r"no manifest\.json") as info:
        open_corpus(Folder(str(tmp_path)))
    assert info.value.where.endswith("/mt")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "no pairs"),
        ([make_pair(1), make_pair(2), make_pair(1)], "'p1' more than once"),
        ([make_pair(1), replace(make_pair(2), query={"en": " \n"})], "pair 'p2', en: got an empty query"),
        ([replace(make_pair(2), passage={"de": ""})], "pair 'p2', de: got an empty passage"),
        ([replace(make_pair(3), query={})], "pair 'p3': got no query"),
        ([replace(make_pair(3), passage={})], "pair 'p3': got no passage"),
        ([replace(make_pair(3), query={"fr": "quoi"})], "pair 'p3': got query in 'fr'"),
    ],
)
def test_pairs_that_cannot_be_written(tmp_path: Path, pairs: list[ParallelPair], message: str) -> None:
    """Pairs that break a promise of the format are refused by name before anything is written."""
    with pytest.raises(CorpusError) as info:
        written(tmp_path, pairs)
    assert message in str(info.value)
    assert files_of(tmp_path) == {}


@pytest.mark.parametrize("languages", [("en", "xq"), ("en", "de", "en")])
def test_languages_that_cannot_be_written(tmp_path: Path, languages: tuple[str, ...]) -> None:
    """An unknown language, or one named twice, is refused with the dataset's name."""
    with pytest.raises(ConfigError, match="languages of mt"):
        write_pairs(Folder(str(tmp_path)), "mt", [make_pair(1, ("en",), ("en",))], languages, PROVENANCE)
    assert files_of(tmp_path) == {}


def test_corpus_of_several_datasets(tmp_path: Path) -> None:
    """All datasets below a root open by name, a selection in its own order, one dataset also by its own folder."""
    for name in ("b", "a", "c"):
        written(tmp_path, incomplete_pairs(3), name)
    (tmp_path / "notes").mkdir()
    root = Folder(str(tmp_path))
    assert [dataset.name for dataset in open_corpus(root)] == ["a", "b", "c"]
    assert [dataset.name for dataset in open_corpus(root, ["c", "a"])] == ["c", "a"]
    assert [dataset.name for dataset in open_corpus(root / "b")] == ["b"]


def test_corpus_that_is_not_there(tmp_path: Path) -> None:
    """No folder, a folder without datasets and an unknown name are told apart."""
    with pytest.raises(CorpusError, match="no such folder"):
        open_corpus(Folder(str(tmp_path / "none")))
    with pytest.raises(CorpusError, match="no dataset inside"):
        open_corpus(Folder(str(tmp_path)))
    written(tmp_path, incomplete_pairs(3))
    with pytest.raises(CorpusError, match="no dataset 'tm'; expected one of mt"):
        open_corpus(Folder(str(tmp_path)), ["tm"])


def test_a_dataset_in_two_folders(tmp_path: Path) -> None:
    """A copied dataset folder is refused: its texts could not be told from the original's."""
    written(tmp_path, incomplete_pairs(3))
    (tmp_path / "mt").rename(tmp_path / "copy")
    written(tmp_path, incomplete_pairs(5))
    with pytest.raises(CorpusError, match="one folder per dataset"):
        open_corpus(Folder(str(tmp_path)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version 2; expected 1"),
        ({"languages": ["en", "xq"]}, "'xq'; expected an ISO 639 language code"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_manifest_of_another_kind(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """A manifest of another version, with an unknown language or field is refused with its path."""
    dataset = written(tmp_path, incomplete_pairs(3))
    manifest = json.loads(dataset.folder.read(MANIFEST)) | change
    dataset.folder.write(MANIFEST, json.dumps(manifest).encode())
    with pytest.raises((CorpusError, ConfigError)) as info:
        ShardedDataset.open(dataset.folder)
    assert message in str(info.value)
    assert info.value.where == f"{dataset.folder.uri}/{MANIFEST}"


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"schema_version": 1}', b"\xff"])
def test_a_broken_manifest(tmp_path: Path, content: bytes) -> None:
    """A manifest that is cut short or no manifest at all is refused with its path."""
    dataset = written(tmp_path, incomplete_pairs(3))
    dataset.folder.write(MANIFEST, content)
    with pytest.raises(CorpusError) as info:
        ShardedDataset.open(dataset.folder)
    assert info.value.where == f"{dataset.folder.uri}/{MANIFEST}"


@pytest.mark.parametrize("name", [part_name("de", 0), presence_name("sw"), GROUPS])
def test_validation_notices_a_changed_byte(tmp_path: Path, name: str) -> None:
    """One flipped bit in any file is found and the file named."""
    dataset = written(tmp_path, incomplete_pairs(9))
    data = bytearray(dataset.folder.read(name))
    data[len(data) // 2] ^= 1
    with pytest.raises(CorpusError, match="sha256") as info:
        validate(rewrite(dataset, name, bytes(data), with_checksum=False))
    assert info.value.where == f"{dataset.folder.uri}/{name}"


def test_validation_notices_a_missing_file(tmp_path: Path) -> None:
    """A file of the manifest that is gone is named, by the validator and by whoever reads it."""
    dataset = written(tmp_path, incomplete_pairs(9))
    (tmp_path / "mt" / part_name("de", 0)).unlink()
    (tmp_path / "mt" / presence_name("de")).unlink()
    for act in (
        lambda: validate(dataset),
        lambda: dataset.read_group("de", 0, ["query"]),
        lambda: dataset.presence("de"),
    ):
        with pytest.raises(CorpusError) as info:
            act()
        assert "de" in info.value.where.removeprefix(dataset.folder.uri)


@pytest.mark.parametrize("change", [lambda table: table.slice(0, 8), lambda table: pa.concat_tables([table, table])])
def test_validation_notices_a_part_of_other_length(tmp_path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """A part that is shorter or longer than in the other languages is named, whatever its checksum says."""
    dataset = rewrite_part(written(tmp_path, incomplete_pairs(9)), "de", change)
    with pytest.raises(CorpusError, match="rows; expected 9 as in every language of part 0") as info:
        validate(dataset)
    assert info.value.where.endswith(part_name("de", 0))


def test_validation_notices_another_order(tmp_path: Path) -> None:
    """The right pairs in another order in one language break the alignment and are refused."""
    reverse = list(range(8, -1, -1))
    dataset = rewrite_part(written(tmp_path, incomplete_pairs(9)), "sw", lambda table: table.take(reverse))
    with pytest.raises(CorpusError, match="other pair ids") as info:
        validate(dataset)
    assert info.value.where.endswith(part_name("sw", 0))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("pair_id", "p3", "pair_id 'p3' a second time"),
        ("query", " ", "an empty query"),
        ("passage", "", "an empty passage"),
        ("query", None, "bits that differ"),
    ],
)
def test_validation_notices_a_broken_cell(tmp_path: Path, column: str, value: str | None, message: str) -> None:
    """A pair id that comes twice, an empty text and a cell that the bits do not know are refused."""
    pairs = [make_pair(n) for n in range(9)]
    dataset = written(tmp_path, pairs)
    row = next(i for i, pair_id in enumerate(dataset.read_part("en", 0)["pair_id"].to_pylist()) if pair_id == "p5")
    for lang in LANGUAGES if column == "pair_id" else ("en",):
        dataset = rewrite_part(dataset, lang, with_value(column, row, value))
    with pytest.raises(CorpusError) as info:
        validate(dataset)
    assert message in str(info.value)


def test_pair_ids_are_unique_over_parts(tmp_path: Path) -> None:
    """A pair id of one part may not come again in another."""
    pairs = [make_pair(n) for n in range(9)]
    dataset = written(tmp_path, pairs, rows_per_part=5)
    later = dataset.read_part("en", 1)["pair_id"].to_pylist()[0]
    for lang in LANGUAGES:
        dataset = rewrite_part(dataset, lang, with_value("pair_id", 0, later))
    with pytest.raises(CorpusError, match="a second time") as info:
        validate(dataset)
    assert info.value.where.endswith(f"{part_name('en', 1)}, row 0")
