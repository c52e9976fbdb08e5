"""Models at work: Parquet files embedded on Ray Data, and passages searched by a person."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty_s3 import BUCKET, FaultyS3, environment, serve
from test_encoder import sentence_transformer_vectors

from hbt_ray.errors import ConfigError, CorpusError, ModelError, ResourceError
from hbt_ray.evaluation.cache import EmbeddingCache
from hbt_ray.model.encoder import TextEncoder
from hbt_ray.model.export import model_hash
from hbt_ray.serving.embed import SETTINGS_FILE, SUCCESS_FILE, Embedded, embed
from hbt_ray.serving.models import find_model
from hbt_ray.serving.parquet_texts import Unit, open_texts
from hbt_ray.serving.passages import Passage, read_passages
from hbt_ray.serving.search import TABLE_HEADER, search
from hbt_ray.storage import Folder

LETTERS = "abcdefghij"


def texts(count: int, start: int = 0) -> list[str]:
    """Numbers spelled as in the toy corpus."""
    return [" ".join(2 * LETTERS[int(digit)] for digit in str(start + i)) for i in range(count)]


def table(count: int, start: int = 0) -> pa.Table:
    rows = list(range(start, start + count))
    return pa.table({"id": rows, "text": texts(count, start), "tags": [["x"] * (row % 3) for row in rows]})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two files of 70 and 30 rows, in row groups of 16 and of 30, one of them in a folder of its own."""
    folder = tmp_path / "in"
    (folder / "more").mkdir(parents=True)
    pq.write_table(table(70), folder / "a.parquet", row_group_size=16)
    pq.write_table(table(30, 70), folder / "more" / "b.parquet")
    (folder / "_SUCCESS").write_text("")
    (folder / "notes.txt").write_text("not to be read")
    return folder


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [7, 16, 40, 1000])
def test_units_cover_every_row_once_in_order(source: Path, size: int) -> None:
    """Whatever the row groups, the units of all files one after the other are the files one after the other."""
    opened = open_texts(str(source), "text")
    units = opened.units(size)
    assert [unit.number for unit in units] == list(range(len(units)))
    assert {unit.stop - unit.start for unit in units} <= {size, 70 % size, 30 % size, 70, 30}
    read = [opened.read(unit) for unit in units]
    assert pa.concat_tables(rows for rows, _ in read).equals(table(100))
    assert [text for _, some in read for text in some] == texts(100)


def test_one_file_is_its_own_folder(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's address, absolute or relative, whatever its name ends in, means that file alone."""
    assert open_texts(str(source / "a.parquet"), "text").rows == {"a.parquet": 70}
    monkeypatch.chdir(source)
    (source / "a.parquet").rename(source / "a.data")
    assert open_texts("a.data", "text").rows == {"a.data": 70}
    assert open_texts("more/b.parquet", "text").rows == {"b.parquet": 30}
    assert open_texts(".", "text").rows == {"more/b.parquet": 30}


def test_files_of_a_bucket_are_read(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder and a file at s3://, with options in the address."""
    with serve(FaultyS3()) as server:
        for name, value in environment(server.endpoint).items():
            monkeypatch.setenv(name, value)
        Folder(f"s3://{BUCKET}/deep").upload(source)
        for address, rows in (
            (f"s3://{BUCKET}/deep", {"a.parquet": 70, "more/b.parquet": 30}),
            (f"s3://{BUCKET}/deep/more/b.parquet?region=us-east-1", {"b.parquet": 30}),
        ):
            opened = open_texts(address, "text")
            assert opened.rows == rows
            assert opened.read(opened.units(20)[0])[1] == texts(20, 0 if len(rows) == 2 else 70)
        with pytest.raises(CorpusError, match="nothing"):
            open_texts(f"s3://{BUCKET}/nowhere", "text")


def test_bad_input_is_named_before_anything_is_encoded(source: Path, tmp_path: Path) -> None:
    """Nothing there, a damaged file, no such column, numbers, other columns, no rows, a null with its row."""

    def refused(message: str, address: Path = source, column: str = "text") -> None:
        with pytest.raises(CorpusError, match=message):
            open_texts(str(address), column)

    refused("nowhere: got nothing", tmp_path / "nowhere")
    (tmp_path / "none").mkdir()
    refused("none: got no .parquet file", tmp_path / "none")
    refused(r"a.parquet, --column: got 'texts'; expected one of id, text, tags\. Did you mean 'text'", column="texts")
    refused("column 'id': got int64; expected a column of strings", column="id")
    refused("b.parquet: got nothing as column 'id'", _with(source, table(30).drop_columns("id")))
    refused("b.parquet: got string as column 'id', and not int64", _with(source, _strings(table(30))))
    holed = [None if row == 23 else text for row, text in enumerate(texts(30))]
    refused(
        "b.parquet, row 23, column 'text': got null",
        _with(source, table(30).set_column(1, "text", pa.array(holed)), row_group_size=10),
    )
    pq.write_table(table(30).slice(0, 0), tmp_path / "empty.parquet")
    refused("got no row", tmp_path / "empty.parquet")
    whole = (source / "a.parquet").read_bytes()
    (source / "a.parquet").write_bytes(whole[:-100])
    refused("a.parquet: .* expected a readable Parquet file")
    (source / "a.parquet").write_text("no Parquet")
    refused("a.parquet: .* expected a readable Parquet file")


def _with(source: Path, rows: pa.Table, **options: Any) -> Path:
    """The source with other rows in its second file."""
    pq.write_table(rows, source / "more" / "b.parquet", **options)
    return source


def _strings(rows: pa.Table) -> pa.Table:
    return rows.set_column(0, "id", rows["id"].cast(pa.string()))


def test_what_no_footer_tells_is_found_while_reading(source: Path) -> None:
    """A null in a file without statistics, and pages that do not decode."""
    holed = [None if row == 23 else text for row, text in enumerate(texts(30))]
    nulls = table(30).set_column(1, "text", pa.array(holed))
    opened = open_texts(str(_with(source, nulls, write_statistics=False, row_group_size=10)), "text")
    with pytest.raises(CorpusError, match=r"b.parquet, row 23, column 'text': got null"):
        opened.read(Unit(1, "more/b.parquet", 17, 30))
    content = bytearray((source / "a.parquet").read_bytes())
    content[4:600] = bytes(596)
    (source / "a.parquet").write_bytes(content)
    with pytest.raises(CorpusError, match=r"a.parquet: .* expected a readable Parquet file"):
        open_texts(str(source), "text").read(Unit(0, "a.parquet", 0, 16))


# --- embedding -------------------------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.slow
def test_parquet_files_are_embedded(local_ray: None, source: Path, toy_model: Path, tmp_path: Path) -> None:
    """The input's columns and rows in their order, vectors of SentenceTransformer to 1e-5; a part that is missing is
    made again, the others are not; nothing is mixed with an output of other settings.
    """
    out = tmp_path / "out"

    def embedded(**options: Any) -> Embedded:
        return embed(str(toy_model), str(source), str(out), batch_rows=40, actors=2, **options)

    told: list[tuple[int, int]] = []
    first = embedded(on_progress=lambda done, total: told.append((done, total)))
    assert (first.rows, first.encoded_rows, first.parts, first.width) == (100, 100, 3, 32)
    assert (told[0], told[-1]) == ((0, 100), (100, 100))
    read = pq.read_table(out)  # files that begin with _ are no part of a data set
    assert read.drop_columns("embedding").equals(table(100))
    assert read.schema.field("embedding").type == pa.list_(pa.float32(), 32)
    vectors = np.stack(read["embedding"].to_numpy())
    expected = sentence_transformer_vectors(toy_model, texts(100), prompt_name="passage")
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert pq.read_schema(out / "part-00002.parquet").metadata[b"hbt_ray.model_hash"] == model_hash(toy_model).encode()
    assert json.loads((out / SUCCESS_FILE).read_text())["rows"] == 100

    assert embedded().encoded_rows == 0, "a whole output is left as it is"
    written = (out / "part-00000.parquet").stat().st_mtime_ns
    (out / SUCCESS_FILE).unlink()
    (out / "part-00001.parquet").unlink()
    assert embedded().encoded_rows == 30
    assert (out / "part-00000.parquet").stat().st_mtime_ns == written
    assert pq.read_table(out)["id"].to_pylist() == list(range(100))

    with pytest.raises(ConfigError, match=r"--output .*, prompt: got query; expected passage"):
        embedded(prompt="query")
    _with(source, table(31, 70))
    with pytest.raises(ConfigError, match=r"--output .*, input: "):
        embedded()
    with pytest.raises(ResourceError, match=r"--device: got cuda; expected a GPU in the cluster, which has none"):
        embed(str(toy_model), str(source), str(tmp_path / "gpu"), device="cuda")
    with pytest.raises(ResourceError, match=r"--actors: got 40"):
        embed(str(toy_model), str(source), str(tmp_path / "many"), actors=40)
    nulls = table(30).set_column(1, "text", pa.array([None, *texts(29)]))
    with pytest.raises(CorpusError, match=r"b.parquet, row 0, column 'text': got null"):
        embed(str(toy_model), str(_with(source, nulls, write_statistics=False)), str(tmp_path / "nulls"), batch_rows=40)
    assert not (tmp_path / "nulls" / SUCCESS_FILE).exists()


def test_what_cannot_be_embedded_is_refused_before_ray_starts(source: Path, toy_model: Path, tmp_path: Path) -> None:
    """Prompt, device, places, a model that is not there, a column that would be overwritten."""

    def refused(
        kind: type[Exception], message: str, model: object = toy_model, output: object = "", **options: Any
    ) -> None:
        with pytest.raises(kind, match=message):
            embed(str(model), str(source), str(output or tmp_path / "out"), **options)

    refused(ConfigError, "--prompt: got 'document'; expected one of query, passage, none", prompt="document")
    refused(ConfigError, "--device: got 'tpu'", device="tpu")
    refused(ConfigError, "--output: got .*inside", output=source / "vectors")
    refused(ConfigError, "--output: got .*inside", output=source)
    refused(ModelError, "nowhere", model=tmp_path / "nowhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    refused(ConfigError, "--output: got a folder with thesis.tex in it", output=tmp_path / "full")
    vectors = table(30).append_column("embedding", pa.array([[0.0]] * 30))
    for name in ("a.parquet", "more/b.parquet"):
        pq.write_table(vectors, source / name)
    refused(ConfigError, "--input: got a column 'embedding'")
    assert not (tmp_path / "out" / SETTINGS_FILE).exists()


def test_a_model_of_no_registry_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`models:/` in a folder without a store names the folder and the variable."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=f"MLFLOW_TRACKING_URI: got no value, .*{tmp_path}/runs"):
        find_model("models:/toy@champion")


# --- search ----------------------------------------------------------------------------------------------------------


FILES = {
    "p.jsonl": '{"text": "eins", "id": 7, "language": "de"}\n{"passage": "zwei"}\n'
    '{"_id": "x", "title": "t", "text": "u"}\n',
    "ids.tsv": "7\teins\tde\n\tzwei\t\nx\tt u\t\n",
    "head.tsv": "text\tlanguage\tid\neins\tde\t7\nzwei\t\t\nt u\t\tx\n",
    "p.txt": "eins\n\nzwei\nt u\n",
}


def test_passages_are_read_in_every_form(tmp_path: Path) -> None:
    """JSON lines, cells with and without a header, plain lines, compressed or not; ids are line numbers elsewhere."""
    wanted = [("7", "eins", "de"), ("2", "zwei", None), ("x", "t u", None)]
    for name, content in FILES.items():
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        if name == "p.txt":
            expected = [Passage("1", "eins", None), Passage("3", "zwei", None), Passage("4", "t u", None)]
        elif name == "head.tsv":
            expected = [Passage("7", "eins", "de"), Passage("3", "zwei", None), Passage("x", "t u", None)]
        else:
            expected = [Passage(*row) for row in wanted]
        assert read_passages(path) == expected, name
        packed = tmp_path / f"{name}.gz"
        packed.write_bytes(gzip.compress(content.encode()))
        assert read_passages(packed) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "a,b", r"ends in \.csv; expected \.jsonl"),
        ("p.txt", "\n\n", "p.txt: got no rows"),
        ("p.jsonl", '{"text": "a"}\n{"text"', "p.jsonl, line 2: got line is not JSON"),
        ("p.jsonl", '{"text": "a"}\n{"texts": "b"}', "p.jsonl, line 2: got field text: Field required"),
        ("p.jsonl", '{"text": " "}', "p.jsonl, line 1: got field text: text is blank"),
        ("p.tsv", "1\ta\n2\tb\tde", "p.tsv, line 2: got 3 cells; expected 2"),
        ("p.tsv", "1\t2\t3\t4", "p.tsv, line 1: got 4 cells; expected 1 to 3"),
        ("p.tsv", "1\ta\n2\t ", "p.tsv, line 2: got a blank text"),
    ],
)
def test_a_line_that_is_no_passage_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    """A person searches what the file holds, so nothing of it is left out in silence."""
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(CorpusError, match=message):
        read_passages(tmp_path / name)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    """A wrong path is a CorpusError, not a traceback."""
    with pytest.raises(CorpusError, match="no such file"):
        read_passages(tmp_path / "p.txt")


@pytest.fixture
def passages(tmp_path: Path) -> Path:
    path = tmp_path / "p.txt"
    path.write_text("\n".join(texts(60)), encoding="utf-8")
    return path


def test_the_nearest_passages_are_found(toy_model: Path, passages: Path, tmp_path: Path) -> None:
    """Ranks and scores are those of SentenceTransformer with the model's prompts; the summary is JSON."""
    found = search(str(toy_model), passages, "gg hh", k=5)
    theirs = sentence_transformer_vectors(toy_model, texts(60), prompt_name="passage")
    scores = theirs @ sentence_transformer_vectors(toy_model, ["gg hh"], prompt_name="query")[0]
    best = np.argsort(-scores, kind="stable")[:5]
    assert [hit.passage.text for hit in found.hits] == [texts(60)[row] for row in best]
    np.testing.assert_allclose([hit.score for hit in found.hits], scores[best], atol=1e-5)
    assert [hit.rank for hit in found.hits] == [1, 2, 3, 4, 5]
    summary = json.loads(json.dumps(found.summary()))
    assert (summary["passages"], summary["model_hash"], len(summary["hits"])) == (60, model_hash(toy_model), 5)
    assert set(summary["hits"][0]) == {"rank", "score", "id", "text", "language"}
    assert [row[0] for row in found.table()] == ["1", "2", "3", "4", "5"]
    assert {len(row) for row in found.table()} == {len(TABLE_HEADER)}
    assert len(search(str(toy_model), passages, "gg hh", k=100).hits) == 60


def test_passages_are_encoded_once(
    toy_model: Path, passages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a cache the second question encodes nothing but itself, and finds the same."""
    encoded: list[int] = []
    encode = TextEncoder.encode

    def counted(self: TextEncoder, batch: list[str], *rest: Any) -> Any:
        encoded.append(len(batch))
        return encode(self, batch, *rest)

    monkeypatch.setattr(TextEncoder, "encode", counted)
    first = search(str(toy_model), passages, "gg hh", cache=tmp_path / "cache")
    assert sum(encoded) == 61
    encoded.clear()
    assert search(str(toy_model), passages, "gg hh", cache=tmp_path / "cache") == first
    assert encoded == [1]
    prefix = TextEncoder(str(toy_model)).settings.passage_prefix
    assert len(EmbeddingCache(tmp_path / "cache", model_hash(toy_model), prefix)) == 60


def test_a_blank_question_is_refused(toy_model: Path, passages: Path) -> None:
    """There is nothing to look for."""
    with pytest.raises(ConfigError, match="question"):
        search(str(toy_model), passages, "  ")
