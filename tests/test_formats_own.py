"""Importers of the SQuAD family, Belebele, AfriQA and folders of `datasets`: golden, malformed and published files."""

import gzip
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hbt_ray.corpus import records
from hbt_ray.corpus.formats import afriqa, belebele, squad
from hbt_ray.corpus.formats.afriqa import read_afriqa
from hbt_ray.corpus.formats.belebele import read_belebele
from hbt_ray.corpus.formats.hf_datasets import read_hf_datasets
from hbt_ray.corpus.formats.squad import read_squad
from hbt_ray.corpus.importers import RejectedRow, text_hash
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.shards import ShardedDataset
from hbt_ray.corpus.validate import validate
from hbt_ray.corpus.writer import Rejections, write_pairs
from hbt_ray.errors import ConfigError, CorpusError
from hbt_ray.storage import Folder

GOLDEN = Path(__file__).parent / "data" / "formats"
PUBLISHED = Path(__file__).resolve().parents[2] / "shared" / "datasets"

Reader = Callable[..., Iterator[ParallelPair]]


def found(reader: Reader, *arguments: Any, **options: Any) -> tuple[list[ParallelPair], list[RejectedRow]]:
    rejected: list[RejectedRow] = []
    return list(reader(*arguments, reject=rejected.append, **options)), rejected


def reasons(rejected: list[RejectedRow]) -> list[tuple[str, str]]:
    return [(row.row, row.reason) for row in rejected]


def published(name: str) -> Path:
    if not (PUBLISHED / name).exists():
        pytest.skip(f"needs {name} in ../shared/datasets")
    return PUBLISHED / name


# --- SQuAD ---


def test_squad() -> None:
    """Pairs of a v2.0 file: ids, positions and titles as they are there; the unanswerable question is rejected."""
    pairs, rejected = found(read_squad, GOLDEN / "squad" / "dev-v2.0.json", "en")
    rhine = "The Rhine is 1,233 km long and flows to the North Sea."
    assert pairs == [
        ParallelPair("56ddde6b9a695914005b9628", "0:0", "Rhine", {"en": "How long is the Rhine?"}, {"en": rhine}),
        ParallelPair(
            "56ddde6b9a695914005b9629",
            "0:1",
            "Rhine",
            {"en": "Where is its source?"},
            {"en": "Its source is in the Alps."},
        ),
        ParallelPair(
            "56dddf4066d3e219004dad5f", "1:0", "Normans", {"en": "Who were they?"}, {"en": "They were Norse settlers."}
        ),
    ]
    assert rejected == [
        RejectedRow(
            "dev-v2.0.json", "5ad39d53604f3c001a3fe8d1", "en", squad.UNANSWERABLE, "Which river ends in the Baltic?"
        )
    ]


def test_malformed_squad() -> None:
    """Faulty questions, paragraphs and articles are rejected one by one; an untitled article is its own document."""
    pairs, rejected = found(read_squad, GOLDEN / "squad" / "malformed.json", "en")
    assert [(pair.pair_id, pair.passage_id, pair.group) for pair in pairs] == [
        ("a", "0:0", "Rhine"),
        ("7", "2:0", "2:0"),
    ]
    assert reasons(rejected) == [
        ("b", "question is blank"),
        ("a", squad.REPEATED_ID),
        ("0:0:3", "field question: Field required"),
        ("d", "question holds a NUL character"),
        ("0:1", "paragraph is blank"),
        ("e", "paragraph is blank"),
        ("0:2", "field context: Field required"),
        ("2", "field paragraphs: Field required"),
    ]


def test_squad_with_questions_in_another_language() -> None:
    """In MLQA's files the questions may be in another language than the paragraphs."""
    pairs, _ = found(read_squad, GOLDEN / "squad" / "dev-v2.0.json", "en", question_language="de")
    assert [(list(pair.query), list(pair.passage)) for pair in pairs] == [(["de"], ["en"])] * 3


@pytest.mark.parametrize(
    ("data", "language", "message"),
    [
        (b"", "en", "premature EOF"),
        (b'{"data": [{"title": "R", "paragraphs": [', "en", "premature EOF"),
        (b'{"version": "1.1"}', "en", "nothing at data.item"),
        (b'{"data": []}', "xx", "'xx'"),
        (None, "en", "no such file"),
    ],
)
def test_file_that_is_no_squad(tmp_path: Path, data: bytes | None, language: str, message: str) -> None:
    """An empty or broken file, one of another kind, none at all and an unknown language are refused by name."""
    path = tmp_path / "train.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(CorpusError, match=message) as caught:
        found(read_squad, path, language)
    assert str(path) in caught.value.where


@pytest.mark.parametrize(("name", "articles", "paragraphs", "questions"), [("dev", 48, 2067, 10_570)])
def test_published_squad(name: str, articles: int, paragraphs: int, questions: int) -> None:
    """SQuAD v1.1 has the published numbers of articles, paragraphs and questions, none rejected."""
    pairs, rejected = found(read_squad, published(f"squad-en/{name}.json.gz"), "en")
    assert rejected == []
    assert len({pair.pair_id for pair in pairs}) == len(pairs) == questions
    assert (len({pair.group for pair in pairs}), len({pair.passage_id for pair in pairs})) == (articles, paragraphs)


@pytest.mark.parametrize(("name", "questions", "usable"), [("sv", 11_156, 5_211), ("it", 7_609, 7_609)])
def test_published_translations_of_squad(name: str, questions: int, usable: int) -> None:
    """Kept and rejected questions add up to the questions in the file; in Swedish the unanswerable ones go."""
    pairs, rejected = found(read_squad, published(f"squad-dev-mt/{name}.json.gz"), name)
    assert len(pairs) == usable
    assert {row.reason for row in rejected} <= {squad.UNANSWERABLE}
    assert len(pairs) + len(rejected) == questions


def test_published_xquad_r() -> None:
    """A benchmark's file of the family, with fields of its own: 48 articles, 240 paragraphs, 1,190 questions."""
    pairs, rejected = found(read_squad, published("xquad-r/th.json.gz"), "th")
    assert (len(pairs), len({p.passage_id for p in pairs}), len({p.group for p in pairs})) == (1190, 240, 48)
    assert rejected == []


# --- Belebele ---


def test_belebele() -> None:
    """The layouts are joined by the English question, however it is spaced; what only one of them has is rejected."""
    pairs, rejected = found(read_belebele, GOLDEN / "belebele")
    hand, sea = text_hash("Hold the hand relaxed."), text_hash("The sea is salty.")
    assert [(pair.pair_id, pair.passage_id, pair.group) for pair in pairs] == [
        ("0", hand, hand),
        ("1", hand, hand),
        ("3", sea, sea),
    ]
    assert pairs[0].query == {"en": "How to hold  the hand?", "zh_Hant": "手怎麼放？", "de": "Wie hält man die Hand?"}
    assert pairs[0].passage["de"] == "Die Hand locker halten."
    assert set(pairs[1].query) == {"en", "zh_Hant"}
    assert pairs[2].passage == {"en": "The sea is salty.", "zh_Hant": "海水是鹹的。", "de": "Das Meer ist salzig."}
    assert [(row.file, *pair) for row, pair in zip(rejected, reasons(rejected), strict=True)] == [
        ("deu_Latn.jsonl", "1:1", belebele.NOT_IN_OTHER_LAYOUT),
        ("eng_Latn.jsonl", "1:1", belebele.NOT_IN_OTHER_LAYOUT),
    ]


@pytest.mark.parametrize(
    ("pattern", "ids", "languages"),
    [("*_belebele.jsonl", ["0", "1", "3"], {"en", "zh_Hant"}), ("*_Latn.jsonl", ["0:0", "1:0", "1:1"], {"de", "en"})],
)
def test_one_layout_of_belebele(tmp_path: Path, pattern: str, ids: list[str], languages: set[str]) -> None:
    """Either layout alone is a dataset, by its own ids; files may be compressed."""
    for path in (GOLDEN / "belebele").glob(pattern):
        (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    pairs, rejected = found(read_belebele, tmp_path)
    assert ([pair.pair_id for pair in pairs], rejected) == (ids, [])
    assert all(set(pair.query) == set(pair.passage) == languages for pair in pairs)


def test_malformed_belebele() -> None:
    """Repeated ids, blank passages, missing prompts, cut lines and ids of another type are rejected."""
    pairs, rejected = found(read_belebele, GOLDEN / "belebele_malformed")
    assert [pair.pair_id for pair in pairs] == ["0"]
    assert reasons(rejected) == [
        ("0", belebele.REPEATED_ID),
        ("4", "field prompts: List should have at least 1 item after validation, not 0"),
        ("5", "line is not JSON"),
        ("6", "field id: Input should be a valid integer"),
        ("1", "passage is blank"),
    ]


def test_folders_that_are_no_belebele(tmp_path: Path) -> None:
    """No folder, none of its files, a language twice or unknown, and layouts that cannot be joined are refused."""
    with pytest.raises(CorpusError, match="no such folder"):
        found(read_belebele, tmp_path / "none")
    with pytest.raises(CorpusError, match="no such file in it"):
        found(read_belebele, tmp_path)
    shutil.copy(GOLDEN / "belebele" / "deu_Latn.jsonl", tmp_path)
    shutil.copy(GOLDEN / "belebele" / "en_belebele.jsonl", tmp_path)
    with pytest.raises(CorpusError, match="without an English one"):
        found(read_belebele, tmp_path)
    shutil.copy(GOLDEN / "belebele" / "deu_Latn.jsonl", tmp_path / "deu_Latn.jsonl.gz")
    with pytest.raises(CorpusError, match="a second file of 'de'"):
        found(read_belebele, tmp_path)
    (tmp_path / "deu_Latn.jsonl.gz").rename(tmp_path / "qqq_Latn.jsonl")
    with pytest.raises(CorpusError, match="'qqq'"):
        found(read_belebele, tmp_path)


def test_published_belebele() -> None:
    """12 languages, 895 questions in each, 488 passages; the 5 questions of one layout alone are rejected."""
    pairs, rejected = found(read_belebele, published("belebele"))
    languages = {"de", "en", "id", "km", "lo", "ms", "my", "ta", "th", "vi", "zh", "zh_Hant"}
    assert len(pairs) == 895
    assert all(set(pair.query) == set(pair.passage) == languages for pair in pairs)
    assert len({pair.passage_id for pair in pairs}) == 488
    for code in languages:
        assert len({pair.passage[code] for pair in pairs}) == 488
    assert Counter(row.language for row in rejected) == {"en": 5, "de": 5}
    assert {row.reason for row in rejected} == {belebele.NOT_IN_OTHER_LAYOUT}


# --- AfriQA ---


def test_afriqa() -> None:
    """Both questions stand against the pivot's passage; ids are unique over files; a row without passage goes."""
    pairs, rejected = found(read_afriqa, GOLDEN / "afriqa")
    assert [(pair.pair_id, pair.group) for pair in pairs] == [
        ("fon-fr-dev-0", "Kano"),
        ("ha-en-train-0", "Kano"),
        ("ha-en-train-1", text_hash("It is in Niger.")),
    ]
    assert pairs[0].query == {"fon": "Nɛ̌?", "fr": "Comment ?"}
    assert (pairs[0].passage, pairs[0].passage_id) == ({"fr": "Le roi."}, text_hash("Le roi."))
    assert pairs[1].query == {"ha": "Wane ne sarki?", "en": "Who is the king?"}
    assert reasons(rejected) == [("2", afriqa.NO_PASSAGE)]


def test_splits_of_afriqa() -> None:
    """Only the wanted splits are read, and one file is a source too."""
    assert [pair.pair_id for pair in found(read_afriqa, GOLDEN / "afriqa", splits=["dev"])[0]] == ["fon-fr-dev-0"]
    path = GOLDEN / "afriqa" / "gold_span_passages.afriqa.hau.en.train.json"
    assert len(found(read_afriqa, path)[0]) == 2
    with pytest.raises(CorpusError, match="no file of that name"):
        found(read_afriqa, path, splits=["test"])


def test_malformed_afriqa() -> None:
    """A blank question is a missing cell; rows without texts, repeated ids and lines of another kind are rejected."""
    pairs, rejected = found(read_afriqa, GOLDEN / "afriqa_malformed")
    assert [(pair.pair_id, set(pair.query)) for pair in pairs] == [
        ("zu-en-test-0", {"zu"}),
        ("zu-en-test-5", {"zu", "en"}),
    ]
    assert reasons(rejected) == [
        ("0", "question is blank"),
        ("0", afriqa.REPEATED_ID),
        ("3", "field question_lang: Input should be a valid string"),
        ("2", "passage is blank"),
        ("3", afriqa.NO_QUESTION),
        ("3", "question is blank"),
        ("6", "field question_lang: Field required"),
        ("7", "line is not JSON"),
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no file of that name"),
        (["gold_span_passages.afriqa.qqq.en.dev.json"], "'qqq'"),
        (["gold_span_passages.afriqa.bem.en.dev.json", "gold_span_passages.afriqa.bem.en.dev.json.gz"], "one of them"),
        (["gold_span_passages.afriqa.bem.en.dev.json"], "no rows"),
    ],
)
def test_folders_that_are_no_afriqa(tmp_path: Path, names: list[str], message: str) -> None:
    """No file, an unknown language, a file twice and an empty one are refused."""
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(CorpusError, match=message):
        found(read_afriqa, tmp_path)


def test_published_afriqa() -> None:
    """7,210 rows, of which 156 have no passage; the counts of every language and split are those of the table."""
    pairs, rejected = found(read_afriqa, published("afriqa"))
    assert len(pairs) == len({pair.pair_id for pair in pairs}) == 7210 - 156
    assert len(rejected) == 156
    assert all(len(pair.query) == 2 and len(pair.passage) == 1 for pair in pairs)
    rows = Counter(row.file.split(".")[2] for row in rejected)
    rows += Counter(
        {"ha": "hau", "ig": "ibo", "rw": "kin", "sw": "swa", "tw": "twi", "yo": "yor", "zu": "zul"}.get(code, code)
        for code in (pair.pair_id.partition("-")[0] for pair in pairs)
    )
    assert rows == {
        **{"bem": 778, "fon": 964, "hau": 750, "ibo": 1022, "kin": 866},
        **{"swa": 295, "twi": 1221, "yor": 502, "zul": 812},
    }
    assert {next(iter(pair.passage)) for pair in pairs if pair.pair_id.startswith("fon")} == {"fr"}


# --- datasets ---

ROWS = [
    {"id": n, "question": f"q{n}", "context": f"c{n // 2}", "title": f"t{n // 4}", "answers": {"text": ["a"]}}
    for n in range(10)
]
COLUMNS = {"id": "id", "query": "question", "passage": "context", "group": "title"}


def save_to_disk(folder: Path, rows: list[dict[str, Any]], shards: int = 2, name: str | None = None) -> Path:
    """A folder as `datasets.Dataset.save_to_disk` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    names = [f"data-{k:05d}-of-{shards:05d}.arrow" for k in range(shards)]
    size = -(-len(rows) // shards)
    for k, file in enumerate(names):
        with pa.OSFile(str(folder / file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table.slice(k * size, size), max_chunksize=3)
    state = {
        "_data_files": [{"filename": file} for file in names],
        "_fingerprint": "4c1f1f1b0e1b2a3d",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": name,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2, sort_keys=True))
    (folder / "dataset_info.json").write_text(json.dumps({"citation": "", "features": {}}))
    return folder


def test_saved_dataset(tmp_path: Path) -> None:
    """Rows of all Arrow files in order; numbers become ids, columns that are not asked for are ignored."""
    pairs, rejected = found(read_hf_datasets, save_to_disk(tmp_path / "d", ROWS, shards=3), COLUMNS, "en")
    assert [pair.pair_id for pair in pairs] == [str(n) for n in range(10)]
    assert pairs[5] == ParallelPair("5", text_hash("c2"), "t1", {"en": "q5"}, {"en": "c2"})
    assert rejected == []


def test_saved_dict_of_datasets(tmp_path: Path) -> None:
    """All splits in their order, or one; without a column of ids they are the split and the row."""
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "dev"]}')
    save_to_disk(tmp_path / "dev", ROWS[:2], 1, "dev")
    save_to_disk(tmp_path / "train", ROWS[2:5], 2, "train")
    columns = {"query": "question", "passage": "context"}
    pairs, _ = found(read_hf_datasets, tmp_path, columns, "en")
    assert [(p.pair_id, p.query["en"]) for p in pairs] == [
        ("train:1", "q2"),
        ("train:2", "q3"),
        ("train:3", "q4"),
        ("dev:1", "q0"),
        ("dev:2", "q1"),
    ]
    assert [p.pair_id for p in found(read_hf_datasets, tmp_path, columns, "en", split="dev")[0]] == ["dev:1", "dev:2"]
    with pytest.raises(CorpusError, match="no split 'test'; expected one of train, dev"):
        found(read_hf_datasets, tmp_path, columns, "en", split="test")


def test_parquet_shards(tmp_path: Path) -> None:
    """Shards as the hub has them, in the order of their names; fields of structs have dotted names."""
    (tmp_path / "data").mkdir()
    rows = [{"row": {"q": f"q{n}", "p": {"text": f"p{n}"}}, "no": [f"n{n}"]} for n in range(6)]
    for k in range(2):
        table = pa.Table.from_pylist(rows[3 * k : 3 * k + 3])
        pq.write_table(table, tmp_path / "data" / f"train-{k:05d}-of-00002.parquet")
    columns = {"query": "row.q", "passage": "row.p.text", "negatives": "no"}
    pairs, _ = found(read_hf_datasets, tmp_path, columns, "de")
    assert [(p.pair_id, p.query["de"], p.passage["de"], p.negatives["de"]) for p in pairs] == [
        (f"train:{n + 1}", f"q{n}", f"p{n}", (f"n{n}",)) for n in range(6)
    ]


def test_languages_in_a_column(tmp_path: Path) -> None:
    """Rows of one id in several languages are one pair; a second row of a language and unknown ones are rejected."""
    rows = [{**row, "lang": code} for code in ("en", "de", "xx") for row in ROWS[:3]]
    source = save_to_disk(tmp_path, [*rows, {**ROWS[0], "lang": "en"}])
    pairs, rejected = found(read_hf_datasets, source, {**COLUMNS, "language": "lang"})
    assert [(p.pair_id, set(p.query)) for p in pairs] == [(str(n), {"en", "de"}) for n in range(3)]
    assert Counter(row.reason for row in rejected) == {records.UNKNOWN_LANGUAGE: 3, records.REPEATED: 1}


def test_malformed_rows_of_a_dataset(tmp_path: Path) -> None:
    """Rows with blank, endless or missing texts are rejected by number; the others go on."""
    rows = [*ROWS[:2], {**ROWS[2], "question": " "}, {**ROWS[3], "context": "a" * 1_000_001}, {**ROWS[4], "title": ""}]
    pairs, rejected = found(read_hf_datasets, save_to_disk(tmp_path, rows), COLUMNS, "en")
    assert [pair.pair_id for pair in pairs] == ["0", "1"]
    assert reasons(rejected) == [
        ("3", "field query: text is blank"),
        ("4", "field passage: text is longer than 1,000,000 characters"),
        ("5", "field group: text is blank"),
    ]


def test_folders_that_are_no_dataset(tmp_path: Path) -> None:
    """No folder, an empty one, a missing or cut Arrow file, a broken state and missing columns are refused by name."""
    with pytest.raises(CorpusError, match="no such folder"):
        found(read_hf_datasets, tmp_path / "none", COLUMNS, "en")
    with pytest.raises(CorpusError, match="got neither of them"):
        found(read_hf_datasets, tmp_path, COLUMNS, "en")
    source = save_to_disk(tmp_path / "d", ROWS)
    with pytest.raises(CorpusError, match=r"no column 'text' for query; expected one of id, question"):
        found(read_hf_datasets, source, {**COLUMNS, "query": "text"}, "en")
    with pytest.raises(CorpusError, match="'xx'"):
        found(read_hf_datasets, source, COLUMNS, "xx")
    shard = source / "data-00001-of-00002.arrow"
    shard.write_bytes(shard.read_bytes()[:-200])
    with pytest.raises(CorpusError, match="00001-of-00002"):
        found(read_hf_datasets, source, COLUMNS, "en")
    shard.unlink()
    with pytest.raises(CorpusError, match=r"the file that state\.json lists"):
        found(read_hf_datasets, source, COLUMNS, "en")
    (source / "state.json").write_text('{"_data_files": 3}')
    with pytest.raises(CorpusError, match=r"state\.json, _data_files"):
        found(read_hf_datasets, source, COLUMNS, "en")


@pytest.mark.parametrize(
    ("columns", "language", "message"),
    [
        ({"query": "q"}, "en", "no passage"),
        ({"query": "q", "passage": "p", "pasage": "p"}, "en", "'pasage'"),
        ({"query": "q", "passage": "p"}, None, "neither"),
        ({"query": "q", "passage": "p", "language": "l"}, "en", "both"),
    ],
)
def test_columns_that_do_not_say_enough(
    tmp_path: Path, columns: dict[str, str], language: str | None, message: str
) -> None:
    """Query, passage and the language must be said, each once, and nothing that is not known."""
    with pytest.raises(ConfigError, match=message):
        found(read_hf_datasets, tmp_path, columns, language)


# --- to shards ---


def test_import_to_shards(tmp_path: Path) -> None:
    """What an importer yields becomes a valid dataset, what it rejects a file beside it and counts in the manifest."""
    folder = Folder(str(tmp_path))
    with Rejections(folder / "afriqa", "import") as reject:
        pairs = read_afriqa(GOLDEN / "afriqa_malformed", reject=reject)
        manifest = write_pairs(folder, "afriqa", pairs, None, {"source": "AfriQA", "rejected": reject.counts})
    validate(ShardedDataset.open(folder / "afriqa"))
    assert manifest.languages == ("en", "zu")
    assert manifest.usable["zu"] == {"queries": 2, "passages": 0, "pairs": 0}
    lines = (tmp_path / "afriqa" / "rejected" / "import.jsonl").read_text(encoding="utf-8").splitlines()
    assert Counter(json.loads(line)["reason"] for line in lines) == manifest.provenance["rejected"]
    assert len(lines) == 8
