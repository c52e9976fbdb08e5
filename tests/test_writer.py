"""The streaming writer gives the bytes of a plain one that has all pairs in memory; languages are added later."""

from __future__ import annotations

import errno
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty_s3 import BUCKET, Fault, FaultyS3, environment, serve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hbt_ray import storage
from hbt_ray.corpus import writer
from hbt_ray.corpus.documents import DOCUMENTS
from hbt_ray.corpus.importers import RejectedRow
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.sample import DATASETS, sample_pairs
from hbt_ray.corpus.shards import GROUPS, MANIFEST, SCHEMA, ShardedDataset, part_name, presence_name
from hbt_ray.corpus.validate import validate
from hbt_ray.corpus.writer import Rejections, add_language, write_pairs
from hbt_ray.errors import ConfigError, CorpusError, ResourceError
from hbt_ray.storage import Folder, Retries

LANGUAGES = ("en", "de", "th")
CELLS = ["query", "passage", "negatives"]


def reference(
    pairs: Sequence[ParallelPair], languages: Sequence[str], seed: int, rows_per_part: int, rows_per_group: int
) -> dict[str, bytes]:
    """The data files of a dataset, made in the plainest way: all pairs in a list, a table for each file."""
    rows = [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))]
    files = {}
    for part, start in enumerate(range(0, len(rows), rows_per_part)):
        chunk = rows[start : start + rows_per_part]
        for lang in languages:
            columns = {
                "pair_id": [pair.pair_id for pair in chunk],
                "query": [pair.query.get(lang) for pair in chunk],
                "passage": [pair.passage.get(lang) for pair in chunk],
                "passage_id": [pair.passage_id for pair in chunk],
                "negatives": [list(pair.negatives.get(lang, ())) for pair in chunk],
            }
            buffer = io.BytesIO()
            table = pa.table(columns, schema=SCHEMA)
            pq.write_table(table, buffer, row_group_size=rows_per_group, compression="zstd", write_statistics=False)
            files[part_name(lang, part)] = buffer.getvalue()
    for lang in languages:
        present = np.array([[lang in pair.query for pair in rows], [lang in pair.passage for pair in rows]])
        files[presence_name(lang)] = npy(np.packbits(present, axis=1))
    numbers = {name: number for number, name in enumerate(sorted({pair.group for pair in rows}))}
    files[GROUPS] = npy(np.array([numbers[pair.group] for pair in rows], np.int32))
    buffer = io.BytesIO()
    names = pa.table({"group": list(numbers)}, schema=pa.schema([pa.field("group", pa.string(), nullable=False)]))
    pq.write_table(names, buffer, compression="zstd")
    files[DOCUMENTS] = buffer.getvalue()
    return files


def npy(values: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def some_pairs(count: int) -> list[ParallelPair]:
    """Pairs with missing cells, negatives here and there, passages and documents that several share."""
    return [
        ParallelPair(
            pair_id=f"p{n}",
            passage_id=f"passage {n // 2}",
            group=f"ö {n * 7 % 11}" if n % 2 else f"z {n % 5}",
            query={lang: f"Frage {n} {lang} ไทย" for k, lang in enumerate(LANGUAGES) if (n + k) % 3 or k == n % 2},
            passage={lang: f"text {n // 2} " * (n % 9 + 1) for k, lang in enumerate(LANGUAGES) if (n + k) % 4},
            negatives={"de": [f"not {n}", "nor this"]} if n % 3 == 0 else {},
        )
        for n in range(count)
    ]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def data_files(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(folder).items() if name != MANIFEST}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 70),
    rows_per_part=st.integers(1, 40),
    rows_per_group=st.integers(1, 12),
    seed=st.integers(0, 5),
    block=st.sampled_from([1, 3_000, 20_000, 64 << 20]),
    names=st.sampled_from([1, 2, 512]),
)
def test_bytes_of_the_plain_writer(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    rows_per_part: int,
    rows_per_group: int,
    seed: int,
    block: int,
    names: int,
) -> None:
    """Parts, blocks and row groups of any size give byte for byte what a writer with all pairs in memory gives."""
    pairs = some_pairs(count)
    folder = tmp_path_factory.mktemp("corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "BLOCK_CHARACTERS", block)
        patch.setattr(writer, "NAMES_AT_ONCE", names)
        manifest = write_pairs(
            Folder(str(folder)),
            "mt",
            iter(pairs),
            LANGUAGES,
            {},
            seed=seed,
            rows_per_part=rows_per_part,
            rows_per_group=rows_per_group,
        )
    expected = reference(pairs, LANGUAGES, seed, rows_per_part, rows_per_group)
    assert data_files(folder / "mt") == expected
    assert dict(manifest.files) == {name: sha256(data).hexdigest() for name, data in expected.items()}
    assert list(manifest.files) == list(expected)
    assert manifest == ShardedDataset.open(Folder(str(folder / "mt"))).manifest


@pytest.mark.parametrize("count", [7, 19, 20, 21, 40, 41])
def test_counts_beside_the_size_of_a_part(tmp_path: Path, count: int) -> None:
    """Fewer rows than a row group, exactly a part, one more: the dataset is valid and counts its cells."""
    pairs = some_pairs(count)
    write_pairs(Folder(str(tmp_path)), "mt", pairs, LANGUAGES, {}, rows_per_part=20, rows_per_group=8)
    dataset = ShardedDataset.open(Folder(str(tmp_path / "mt")))
    validate(dataset)
    assert dataset.manifest.rows == count
    assert sum(dataset.manifest.rows_per_part[:-1]) == 20 * (len(dataset.manifest.rows_per_part) - 1)
    assert dataset.manifest.groups == len({pair.group for pair in pairs})
    for lang in LANGUAGES:
        assert dataset.manifest.usable[lang] == {
            "queries": sum(lang in pair.query for pair in pairs),
            "passages": sum(lang in pair.passage for pair in pairs),
            "pairs": sum(lang in pair.query and lang in pair.passage for pair in pairs),
        }


def test_bytes_of_the_sample(tmp_path: Path) -> None:
    """The embedded sample, whose numbers are published, has the rows it always had."""
    name = "currencies"
    pairs, languages = sample_pairs()[name], DATASETS["currencies"].languages
    manifest = write_pairs(Folder(str(tmp_path)), name, iter(pairs), languages, {}, rows_per_group=64)
    assert data_files(tmp_path / name) == reference(pairs, languages, 13, 65_536, 64)
    assert manifest.rows == len(pairs) > 500


def test_languages_that_are_found(tmp_path: Path) -> None:
    """Without a list the dataset has the languages of its cells, English first; a late one is complete from row 0."""
    pairs = [*some_pairs(9), ParallelPair("late", "p", "g", {"ar": "؟"}, {"zh": "。"})]
    manifest = write_pairs(Folder(str(tmp_path)), "mt", pairs, None, {})
    assert manifest.languages == ("en", "ar", "de", "th", "zh")
    validate(ShardedDataset.open(Folder(str(tmp_path / "mt"))))
    assert manifest.usable["ar"] == {"queries": 1, "passages": 0, "pairs": 0}


def test_unknown_language_that_is_found(tmp_path: Path) -> None:
    """A language that no one knows is refused before anything is written."""
    with pytest.raises(ConfigError, match="languages of mt: got 'xq'"):
        write_pairs(Folder(str(tmp_path)), "mt", [ParallelPair("1", "p", "g", {"xq": "q"}, {"en": "p"})], None, {})
    assert files_of(tmp_path) == {}


def test_negatives_in_a_language_that_is_not_listed(tmp_path: Path) -> None:
    """Negatives of a language that the dataset has not would be lost, so they are refused."""
    pair = ParallelPair("1", "p", "g", {"en": "q"}, {"en": "p"}, {"de": ["n"]})
    with pytest.raises(CorpusError, match="pair '1': got negatives in 'de'; expected one of en"):
        write_pairs(Folder(str(tmp_path)), "mt", [pair], ["en"], {})


@pytest.mark.parametrize("block", [1, 64 << 20])
def test_repeated_pair_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """A pair id that comes twice, in one block or far apart, is named; of several the first."""
    monkeypatch.setattr(writer, "BLOCK_CHARACTERS", block)
    pairs = some_pairs(30)
    with pytest.raises(CorpusError, match="mt: pair_id: got 'p3' more than once"):
        write_pairs(Folder(str(tmp_path)), "mt", [*pairs, pairs[8], pairs[3]], LANGUAGES, {})
    assert files_of(tmp_path) == {}


def test_pair_ids_with_one_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Different ids whose hashes collide are different, and a repeated one among them is still found."""
    monkeypatch.setattr(writer, "hash", lambda text: len(text), raising=False)
    pairs = some_pairs(30)
    assert write_pairs(Folder(str(tmp_path)), "mt", pairs, LANGUAGES, {}).rows == 30
    with pytest.raises(CorpusError, match="'p12' more than once"):
        write_pairs(Folder(str(tmp_path)), "mt", [*pairs, pairs[12]], LANGUAGES, {})


@pytest.mark.parametrize("languages", [None, LANGUAGES])
def test_no_pairs(tmp_path: Path, languages: Sequence[str] | None) -> None:
    """No pairs are no dataset."""
    with pytest.raises(CorpusError, match="mt: got no pairs"):
        write_pairs(Folder(str(tmp_path)), "mt", iter(()), languages, {})


def test_an_error_of_the_source_leaves_the_older_dataset(tmp_path: Path) -> None:
    """Where the source breaks off, what was imported before stays as it was."""
    write_pairs(Folder(str(tmp_path)), "mt", some_pairs(5), LANGUAGES, {})
    before = files_of(tmp_path)

    def broken() -> Iterator[ParallelPair]:
        yield from some_pairs(9)
        raise CorpusError("file", "an end", "more", "Copy it again.")

    with pytest.raises(CorpusError, match="file: got an end"):
        write_pairs(Folder(str(tmp_path)), "mt", broken(), LANGUAGES, {})
    assert files_of(tmp_path) == before


def test_provenance_is_read_last(tmp_path: Path) -> None:
    """Counts that grow while pairs are read are in the manifest with their final values, as plain JSON."""
    counts: Counter[str] = Counter()

    def counted() -> Iterator[ParallelPair]:
        for pair in some_pairs(6):
            counts["text is blank"] += 2
            yield pair

    manifest = write_pairs(Folder(str(tmp_path)), "mt", counted(), LANGUAGES, {"rejected": counts})
    assert manifest.provenance == {"rejected": {"text is blank": 12}}
    assert json.loads((tmp_path / "mt" / MANIFEST).read_bytes())["provenance"] == manifest.provenance


@contextmanager
def full_disk(folder: Path, name: str) -> Iterator[str]:
    """A folder in which a file of this name takes no byte."""
    folder.mkdir(exist_ok=True)
    (folder / name).symlink_to("/dev/full")
    yield str(folder)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_full_target(tmp_path: Path) -> None:
    """A target without room is a ResourceError with the file's name, and no dataset."""
    with full_disk(tmp_path / "mt", GROUPS), pytest.raises(ResourceError, match=r"groups\.npy: got .*No space left"):
        write_pairs(Folder(str(tmp_path)), "mt", some_pairs(20), LANGUAGES, {})
    assert not (tmp_path / "mt" / MANIFEST).exists()


def test_full_local_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local disk without room is a ResourceError that says how to use another one; nothing is written."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(writer, "scratch_folder", lambda: full_scratch(scratch))
    with pytest.raises(ResourceError, match=r"scratch/pairs: got No space left on device.*TMPDIR"):
        write_pairs(Folder(str(tmp_path / "out")), "mt", some_pairs(20), LANGUAGES, {})
    assert not (tmp_path / "out").exists()


@contextmanager
def full_scratch(folder: Path) -> Iterator[Path]:
    """A scratch folder on whose disk nothing fits any more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode: FullFile(path, mode.replace("b", "")))
        yield folder


def test_no_local_disk_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no temporary folder can be made, the error says which variable names another place."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(ResourceError, match=r"No such file or directory.*TMPDIR"):
        write_pairs(Folder(str(tmp_path / "out")), "mt", some_pairs(20), LANGUAGES, {})


class FullFile(io.FileIO):
    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


# --- one more language ---


def cells_of(dataset: ShardedDataset, lang: str) -> list[pa.Table]:
    return [dataset.read_part(lang, part).select(CELLS) for part in range(len(dataset.manifest.rows_per_part))]


def without(pairs: Sequence[ParallelPair], lang: str) -> list[ParallelPair]:
    """The pairs with this language taken out."""

    def rest(cells: Any) -> dict[str, Any]:
        return {code: value for code, value in cells.items() if code != lang}

    return [replace(p, query=rest(p.query), passage=rest(p.passage), negatives=rest(p.negatives)) for p in pairs]


def full_pairs(count: int) -> list[ParallelPair]:
    """Pairs that have English and German, and Thai here and there."""
    english = {"query": "Who?", "passage": "He."}
    return [
        replace(
            pair,
            query={**pair.query, "en": english["query"], "de": "Wer?"},
            passage={**pair.passage, "en": english["passage"], "de": "Er."},
        )
        for pair in some_pairs(count)
    ]


def opened(folder: Path) -> ShardedDataset:
    return ShardedDataset.open(Folder(str(folder)))


def test_a_language_added_later(tmp_path: Path) -> None:
    """Files of a language that is added are those of one that was there from the start; the others are not touched."""
    pairs = full_pairs(37)
    sizes = {"rows_per_part": 10, "rows_per_group": 4}
    write_pairs(Folder(str(tmp_path / "all")), "mt", pairs, LANGUAGES, {"source": "s"}, **sizes)
    write_pairs(Folder(str(tmp_path / "two")), "mt", without(pairs, "th"), LANGUAGES[:2], {"source": "s"}, **sizes)
    complete = opened(tmp_path / "all" / "mt")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "two" / "mt").rglob("*") if path.name != MANIFEST}
    added = add_language(opened(tmp_path / "two" / "mt"), "th", cells_of(complete, "th"), {"model": "m"})
    assert data_files(tmp_path / "two" / "mt") == data_files(tmp_path / "all" / "mt")
    assert added == replace(
        complete.manifest, files=added.files, provenance={"source": "s", "languages": {"th": {"model": "m"}}}
    )
    assert dict(added.files) == dict(complete.manifest.files)
    assert times.items() <= {path: path.stat().st_mtime_ns for path in (tmp_path / "two" / "mt").rglob("*")}.items()
    validate(opened(tmp_path / "two" / "mt"))


def test_a_language_replaced(tmp_path: Path) -> None:
    """A language is replaced in its place, with its provenance; other languages keep theirs."""
    write_pairs(Folder(str(tmp_path)), "mt", full_pairs(12), LANGUAGES, {"languages": {"th": 1, "de": 2}})
    tables = [pa.table({"passage": ["P"] * 12, "query": [None, *"B" * 11], "negatives": [None, *[["n"]] * 11]})]
    manifest = add_language(opened(tmp_path / "mt"), "de", tables, {"model": "m"})
    assert manifest.languages == LANGUAGES
    assert manifest.usable["de"] == {"queries": 11, "passages": 12, "pairs": 11}
    assert manifest.provenance == {"languages": {"th": 1, "de": {"model": "m"}}}
    dataset = opened(tmp_path / "mt")
    validate(dataset)
    assert dataset.read_part("de", 0)["negatives"].to_pylist() == [[], *[["n"]] * 11]
    assert dataset.read_part("de", 0)["pair_id"].equals(dataset.read_part("en", 0)["pair_id"])


def test_a_language_cut_short(tmp_path: Path) -> None:
    """Where the tables break off, the dataset is complete without the language, and the same call again adds it."""
    write_pairs(Folder(str(tmp_path)), "mt", full_pairs(12), LANGUAGES, {}, rows_per_part=5)
    tables = cells_of(opened(tmp_path / "mt"), "th")
    with pytest.raises(CorpusError, match=r"th/part-00002\.parquet: got no table"):
        add_language(opened(tmp_path / "mt"), "th", tables[:2], {})
    assert opened(tmp_path / "mt").manifest.languages == ("en", "de")
    validate(opened(tmp_path / "mt"))
    assert add_language(opened(tmp_path / "mt"), "th", tables, {}).languages == ("en", "de", "th")
    validate(opened(tmp_path / "mt"))


def table(**columns: Any) -> pa.Table:
    return pa.table({"query": ["q"] * 4, "passage": ["p"] * 4, "negatives": [[]] * 4, **columns})


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([table().slice(1)], "part-00000.parquet: got 3 rows; expected 4"),
        ([table(), table()], "part-00001.parquet: got a table too many"),
        ([], "part-00000.parquet: got no table"),
        ([table(query=["q", " ", None, "q"])], "part-00000.parquet, row 1: got an empty query"),
        ([table(passage=["q", None, "q", ""])], "part-00000.parquet, row 3: got an empty passage"),
        ([table().drop_columns(["negatives"])], "expected text columns query and passage"),
        ([table(query=[[1]] * 4)], "expected text columns query and passage"),
    ],
)
def test_tables_that_do_not_fit(tmp_path: Path, tables: list[pa.Table], message: str) -> None:
    """A table of other length, with a blank text or other columns, or one too many or few, names the part."""
    write_pairs(Folder(str(tmp_path)), "mt", full_pairs(4), LANGUAGES, {})
    before = (tmp_path / "mt" / MANIFEST).read_bytes()
    with pytest.raises(CorpusError) as caught:
        add_language(opened(tmp_path / "mt"), "fr", tables, {})
    assert message in str(caught.value)
    assert (tmp_path / "mt" / MANIFEST).read_bytes() == before


@pytest.mark.parametrize(("lang", "message"), [("xq", "got 'xq'"), ("en", "got the only language of mt")])
def test_languages_that_cannot_be_added(tmp_path: Path, lang: str, message: str) -> None:
    """An unknown language is refused, and to replace the one from which the ids are taken."""
    write_pairs(Folder(str(tmp_path)), "mt", [ParallelPair("1", "p", "g", {"en": "q"}, {"en": "p"})], None, {})
    with pytest.raises(ConfigError, match=message):
        add_language(opened(tmp_path / "mt"), lang, [table()], {})


# --- rejections ---

ROW = RejectedRow("a.jsonl", "7", "th", "text is blank", " \n")


def test_rejections_are_written_and_counted(tmp_path: Path) -> None:
    """Rows are JSON lines in UTF-8 below `rejected/`, and counted by reason."""
    with Rejections(Folder(str(tmp_path / "mt")), "import") as reject:
        for row in (ROW, replace(ROW, row="8"), replace(ROW, reason="line is not JSON", text="ไทย \ud800")):
            reject(row)
    assert reject.counts == {"text is blank": 2, "line is not JSON": 1}
    lines = (tmp_path / "mt" / "rejected" / "import.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["row"] for line in lines] == ["7", "8", "7"]
    assert json.loads(lines[0]) == {
        "file": "a.jsonl",
        "row": "7",
        "language": "th",
        "reason": ROW.reason,
        "text": " \n",
    }
    assert json.loads(lines[2])["text"].startswith("ไทย ")


def test_nothing_rejected_leaves_no_file(tmp_path: Path) -> None:
    """An import that rejects nothing leaves no file, nor that of an earlier import."""
    for rows in ([ROW], []):
        with Rejections(Folder(str(tmp_path)), "import") as reject:
            for row in rows:
                reject(row)
    assert files_of(tmp_path) == {}


def test_rejections_are_there_before_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset whose manifest is there is complete, with what was left out of it."""
    names: list[str] = []
    write = Folder.write
    upload = Folder.upload
    monkeypatch.setattr(Folder, "write", lambda self, name, data: (names.append(name), write(self, name, data))[1])
    monkeypatch.setattr(Folder, "upload", lambda self, local: (names.append(self.uri[-8:]), upload(self, local))[1])
    root = Folder(str(tmp_path))
    with Rejections(root / "mt", "import") as reject:
        reject(ROW)
        manifest = write_pairs(root, "mt", some_pairs(5), LANGUAGES, {"rejected": reject.counts}, rejections=reject)
    assert names[-2:] == ["rejected", MANIFEST]
    assert names.count("rejected") == 1
    assert manifest.provenance["rejected"] == {ROW.reason: 1}
    assert "rejected/import.jsonl" in files_of(tmp_path / "mt")


def test_rejections_of_a_failed_import(tmp_path: Path) -> None:
    """Where an import ends for want of usable rows, what was rejected can be looked at."""

    def failed_import() -> None:
        with Rejections(Folder(str(tmp_path)), "import") as reject:
            reject(ROW)
            raise CorpusError("f", "no rows", "rows", "Look.")

    with pytest.raises(CorpusError, match="no rows"):
        failed_import()
    assert list(files_of(tmp_path)) == ["rejected/import.jsonl"]


# --- S3 ---


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    with serve(FaultyS3()) as server:
        for name, value in environment(server.endpoint).items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def bucket(server: FaultyS3) -> Folder:
    return Folder(f"s3://{BUCKET}/corpus", Retries(3, first_wait=0.001, longest_wait=0.01))


@pytest.mark.parametrize(
    ("fault", "received"),
    [("denied", "ACCESS_DENIED.*AWS_ACCESS_KEY_ID"), ("dropped before", "3 attempts"), ("slow down", "SLOW_DOWN")],
)
def test_a_storage_lost_during_an_import(
    fault: Fault, received: str, server: FaultyS3, bucket: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that could not be written is named, no manifest vouches for the rest, and the next import is whole."""
    lost, write = part_name("th", 1), Folder.write

    def losing(self: Folder, name: str, data: bytes) -> None:
        server.failing = fault if name == lost else None
        write(self, name, data)

    pairs = some_pairs(25)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "OWN_REQUESTS", 1)
        patch.setattr(Folder, "write", losing)
        with pytest.raises(ResourceError, match=rf"^s3://{BUCKET}/corpus/mt/{lost}: got .*{received}"):
            write_pairs(bucket, "mt", pairs, LANGUAGES, {}, rows_per_part=10)
    server.failing = None
    assert part_name("en", 1) in (bucket / "mt").sizes()
    with pytest.raises(CorpusError, match=f"no {MANIFEST}.*run the import again"):
        ShardedDataset.open(bucket / "mt")
    write_pairs(bucket, "mt", pairs, LANGUAGES, {}, rows_per_part=10)
    validate(ShardedDataset.open(bucket / "mt"))


def test_import_and_one_more_language_on_s3(bucket: Folder, tmp_path: Path) -> None:
    """Shards, rejected rows and a language that is added later are the same bytes in a bucket as on disk."""
    pairs = full_pairs(25)
    for root in (bucket, Folder(str(tmp_path))):
        with Rejections(root / "mt", "import") as reject:
            reject(ROW)
            write_pairs(root, "mt", iter(without(pairs, "th")), None, {"rejected": reject.counts}, rows_per_part=10)
        dataset = ShardedDataset.open(root / "mt")
        add_language(dataset, "th", cells_of(dataset, "de"), {"model": "m"})
        validate(ShardedDataset.open(root / "mt"))
    bucket.download(tmp_path / "copy")
    assert files_of(tmp_path / "copy" / "mt") == files_of(tmp_path / "mt")
    assert "rejected/import.jsonl" in files_of(tmp_path / "mt")
