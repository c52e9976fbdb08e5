"""Cleaning: normal form of texts, shingles, near-duplicates against brute force, and cleaned datasets."""

import gzip
import json
import random
import resource
import unicodedata
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hbt_ray.corpus.cleaning import (
    BLANK,
    NO_QUERY,
    SAME_PAIR,
    SIMILAR_PAIR,
    CleaningSettings,
    clean,
    folded,
    normalised,
)
from hbt_ray.corpus.documents import DOCUMENTS, document_names, documents_bytes
from hbt_ray.corpus.near_duplicates import Clusters, ShingleStore, buckets, first_of_equal, rows_per_band
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.shards import SCHEMA, ShardedDataset
from hbt_ray.corpus.shingles import jaccard, overlap, shingles, tokens
from hbt_ray.corpus.validate import validate
from hbt_ray.corpus.writer import write_pairs
from hbt_ray.errors import ConfigError, CorpusError, ResourceError
from hbt_ray.storage import Folder

SQUAD = Path(__file__).resolve().parents[2] / "shared" / "datasets" / "squad-en"

AWKWARD = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from(
            "\u200b\u200c\u200d\u200e\u200f\u061c\ufeff\u00ad\u2060\u0301\u0338\u0307 \t\n\r\x00\x1f\x85aI="
        ),
        st.sampled_from("می\u0915\u094d\u0ba8🏳\ufe0f🌈👩\u3000한\u1100\u1161"),
    )
)


@given(AWKWARD)
@settings(max_examples=500, deadline=None)
def test_normalising_twice_changes_nothing(text: str) -> None:
    """What comes out is NFC, on one line, and its own normal form; so is the folded text."""
    once = normalised(text)
    assert normalised(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert once == " ".join(once.split())
    assert "\ufeff" not in once
    assert "\u00ad" not in once


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\u0308", "ä"),
        ("  two\t\n lines\u3000here ", "two lines here"),
        ("\ufeffBOM and so\u00adft", "BOM and soft"),
        ("NUL\x00 bell\x07", "NUL bell"),
        ("zero\u200bwidth", "zerowidth"),
        ("\u200fעברית\u200f", "עברית"),
        ("אב\u200fגד", "אב\u200fגד"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("क्\u200dष", "क्\u200dष"),
        ("no\u200cjoiner\u200d", "nojoiner"),
        ("👩\u200d💻", "👩\u200d💻"),
        ("e\u200d\u0301", "é"),
        ("\u200b\ufeff \x00", ""),
    ],
)
def test_normal_form(text: str, expected: str) -> None:
    """Unseen characters go, except where a script or an emoji needs them."""
    assert normalised(text) == expected


def test_case_does_not_count_when_texts_are_compared() -> None:
    """Folding is Unicode's, not ASCII's."""
    assert folded("STRASSE  Élan") == folded("straße élan")


def reference_shingles(text: str, size: int) -> set[tuple[str, ...]]:
    """Word shingles of a text in a script with spaces, as tuples of words."""
    words = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text).split()
    return {tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))} if words else set()


WORDS = ["rhine", "danube", "is", "a", "river", "in", "europe", "1815", "köln", "Πάτρα", "the", "of"]


@given(st.lists(st.lists(st.sampled_from([*WORDS, "-", "(", "."]), max_size=15).map(" ".join), min_size=2, max_size=6))
@settings(max_examples=100, deadline=None)
def test_shingles_are_those_of_words(texts: list[str]) -> None:
    """Sizes, overlaps and Jaccard similarities of hashed sets equal those of sets of word tuples."""
    found = shingles(texts, 3, 5)
    sets = [found.hashes[start:stop] for start, stop in zip(found.offsets, found.offsets[1:], strict=False)]
    expected = [reference_shingles(text, 3) for text in texts]
    assert [len(one) for one in sets] == [len(one) for one in expected]
    for i, j in combinations(range(len(texts)), 2):
        assert overlap(sets[i], sets[j]) == len(expected[i] & expected[j])
        union = len(expected[i] | expected[j])
        assert jaccard(sets[i], sets[j]) == (len(expected[i] & expected[j]) / union if union else 0)


def test_scripts_without_spaces_are_shingled_by_characters() -> None:
    """Eight Chinese characters have four shingles of five; Thai and Khmer are taken apart too, Korean words are not."""
    assert shingles(["莱茵河流经德国。"], 3, 5).sizes.tolist() == [3]
    assert shingles(["แม่น้ำไรน์", "ទន្លេរ៉ែន"], 3, 5).sizes.min() > 3
    assert len(tokens(["라인강은 유럽의 강이다"]).hashes) == 3


def test_a_sentence_has_its_shingles_inside_a_passage() -> None:
    """Also where words of another script stand around it: a shingle depends on its own tokens alone."""
    sentence = "第50届超级碗 Super Bowl 50 was played in 圣克拉拉市利惠斯体育场"
    found = shingles([sentence, f"前面的句子。 {sentence}。 A sentence behind it."], 3, 5)
    inner, outer = (found.hashes[found.offsets[i] : found.offsets[i + 1]] for i in range(2))
    assert overlap(inner, outer) == len(inner) > 10


def noisy_copies(rng: random.Random, count: int) -> list[str]:
    """Texts of 30 to 80 words, and copies of some with a few words replaced."""
    vocabulary = [f"word{i}" for i in range(2000)]
    texts: list[str] = []
    for _ in range(count):
        if texts and rng.random() < 0.5:
            words = rng.choice(texts).split()
            for _ in range(rng.randrange(4)):
                words[rng.randrange(len(words))] = rng.choice(vocabulary)
        else:
            words = rng.choices(vocabulary, k=rng.randrange(30, 80))
        texts.append(" ".join(words))
    return texts


def brute_force(texts: list[str], threshold: float) -> list[int]:
    """The first text of each one's cluster, from the Jaccard similarity of all pairs of word-tuple sets."""
    sets = [reference_shingles(text, 3) for text in texts]
    clusters = Clusters(len(texts))
    for i, j in combinations(range(len(texts)), 2):
        if len(sets[i] & sets[j]) >= threshold * len(sets[i] | sets[j]):
            clusters.join(i, j)
    return clusters.roots().tolist()


@pytest.mark.parametrize("threshold", [0.7, 0.8, 0.9])
def test_near_duplicates_are_those_of_brute_force(tmp_path: Path, threshold: float) -> None:
    """On 400 texts, half of them changed copies, MinHash with verification clusters as all pairs compared do."""
    texts = noisy_copies(random.Random(7), 400)
    clusters = Clusters(len(texts))
    with ShingleStore(tmp_path / "store", threshold, 128, 1) as store:
        for start in range(0, len(texts), 64):
            rows = np.arange(start, min(start + 64, len(texts)))
            store.add(shingles(texts[start : start + 64], 3, 5), rows)
    store.join_similar(clusters)
    expected = brute_force(texts, threshold)
    assert clusters.roots().tolist() == expected
    assert 50 < sum(root != row for row, root in enumerate(expected)) < 350


def test_scopes_keep_equal_texts_apart(tmp_path: Path) -> None:
    """The same question about two passages is two questions."""
    clusters = Clusters(4)
    with ShingleStore(tmp_path / "store", 0.8, 64, 1) as store:
        store.add(shingles(["how long is the river rhine"] * 4, 3, 5), np.arange(4))
    store.join_similar(clusters, scope=np.array([0, 0, 2, 2]))
    assert clusters.roots().tolist() == [0, 0, 2, 2]


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 20))
def test_buckets_hold_the_places_of_repeated_hashes(values: list[int], at_once: int) -> None:
    """However many pieces they are sorted in."""
    found = {int(values[bucket[0]]): bucket.tolist() for bucket in buckets(np.array(values, np.uint64), at_once)}
    assert found == {v: [i for i, w in enumerate(values) if w == v] for v in values if values.count(v) > 1}


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30), st.integers(1, 20))
def test_first_of_equal_rows(rows: list[tuple[int, int]], at_once: int) -> None:
    """Both words of a digest must agree, in however many pieces they are sorted."""
    assert first_of_equal(np.array(rows, np.uint64), at_once).tolist() == [rows.index(row) for row in rows]


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9, 1.0])
def test_bands_find_pairs_at_the_threshold(threshold: float) -> None:
    """The longest bands with a probability of 0.999 to share one; one row longer would be too long."""
    rows = rows_per_band(threshold, 128)
    assert 1 - (1 - threshold**rows) ** (128 // rows) >= 0.999
    assert rows == 128 or 1 - (1 - threshold ** (rows + 1)) ** (128 // (rows + 1)) < 0.999


# Datasets

RHINE = (
    "The Rhine is one of the major European rivers. It rises in the Swiss canton of Graubünden, flows through several "
    "countries in a mostly northerly direction, and empties into the North Sea in the Netherlands."
)
NILE = "The Nile is a major north-flowing river in northeastern Africa, which flows into the Mediterranean Sea."


def pair(
    pair_id: str, query: str, passage: str, *, passage_id: str = "", group: str = "Rivers", **more: str
) -> ParallelPair:
    queries = {"en": query, "de": more.get("de", f"Frage {pair_id}")}
    return ParallelPair(pair_id, passage_id or pair_id, group, queries, {"en": passage, "de": f"Absatz {pair_id}"})


def cleaned(
    tmp_path: Path, pairs: list[ParallelPair], **changes: object
) -> tuple[dict[str, dict[str, object]], list[dict]]:
    """The rows of a cleaned dataset by pair id (English cells and the German query), and what was rejected."""
    root, target = Folder(str(tmp_path / "raw")), Folder(str(tmp_path / "clean"))
    write_pairs(root, "rivers", iter(pairs), ("en", "de"), {"source": "test"}, rows_per_part=8, rows_per_group=2)
    done = clean(ShardedDataset.open(root / "rivers"), target, CleaningSettings(**changes))
    dataset = ShardedDataset.open(target / "rivers")
    validate(dataset)
    assert done.rows == len(pairs)
    assert dataset.manifest == done.manifest
    rows = {
        row["pair_id"]: row | {"de": other["query"]}
        for part in range(len(dataset.manifest.rows_per_part))
        for row, other in zip(
            dataset.read_part("en", part).to_pylist(), dataset.read_part("de", part).to_pylist(), strict=True
        )
    }
    file = tmp_path / "clean" / "rivers" / "rejected" / "cleaning.jsonl"
    rejected = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    assert dataset.manifest.provenance["cleaning"]["rejected"] == dict(done.rejected)
    assert sum(done.rejected.values()) == len(rejected)
    return rows, rejected


def test_a_pair_that_repeats_another_goes(tmp_path: Path) -> None:
    """Case and white space do not make a new pair; another question, or the question about another passage, does."""
    rows, rejected = cleaned(
        tmp_path,
        [
            pair("a", "How long is the Rhine?", RHINE),
            pair("b", "how long is  the RHINE?", RHINE.replace("The", "THE")),
            pair("c", "Where does the Rhine rise?", RHINE),
            pair("d", "How long is the Rhine?", NILE),
        ],
    )
    assert len(rows) == 3
    assert {"c", "d"} < set(rows)
    assert [row["reason"] for row in rejected] == [SAME_PAIR]


def test_questions_about_one_long_passage_are_different_pairs(tmp_path: Path) -> None:
    """They share nearly all words of query and passage together, and that does not count."""
    questions = ["Where does it rise?", "What does it flow through?", "Where does it end?"]
    rows, rejected = cleaned(tmp_path, [pair(str(i), q, RHINE * 5, passage_id="p") for i, q in enumerate(questions)])
    assert len(rows) == 3
    assert not rejected


def test_near_duplicate_passages_share_an_id(tmp_path: Path) -> None:
    """The first row's, so that the mask of false negatives knows them; and a near-repeated question of theirs goes."""
    edited = RHINE.replace("mostly northerly", "northerly")
    question = "Through which of the countries of Europe does the river Rhine flow on its way to the sea"
    pairs = [
        pair("a", question, RHINE, passage_id="p1"),
        pair("b", "Where is its source?", edited, passage_id="p2"),
        pair("c", f"{question} today?", edited, passage_id="p2"),
        pair("d", question, NILE, passage_id="p3"),
    ]
    rows, rejected = cleaned(tmp_path, pairs)
    assert len({rows[name]["passage_id"] for name in rows if name != "d"}) == 1
    assert rows["d"]["passage_id"] == "p3"
    assert [row["reason"] for row in rejected] == [SIMILAR_PAIR]
    assert {"b", "d"} < set(rows)


def test_without_thresholds_only_equal_texts_count(tmp_path: Path) -> None:
    """Near-duplicates keep their ids and stay."""
    pairs = [pair("a", "Where?", RHINE), pair("b", "Where?", RHINE.replace("mostly ", ""))]
    rows, rejected = cleaned(tmp_path, pairs, near_passage=None, near_query=None)
    assert {row["passage_id"] for row in rows.values()} == {"a", "b"}
    assert not rejected


def test_a_text_that_is_blank_once_normalised_is_a_missing_cell(tmp_path: Path) -> None:
    """The pair stays with its other languages, and goes when no query is left; both are recorded with their text."""
    pairs = [
        pair("a", "\u200b\ufeff", RHINE),
        pair("b", "\u200b", NILE, de="\u00ad"),
        pair("c", "How  long\nis it?", NILE),
    ]
    rows, rejected = cleaned(tmp_path, pairs)
    assert set(rows) == {"a", "c"}
    assert rows["a"]["query"] is None
    assert rows["a"]["de"] == "Frage a"
    assert rows["c"]["query"] == "How long is it?"
    assert sorted((row["row"], row["language"], row["reason"]) for row in rejected) == [
        ("a", "en", BLANK),
        ("b", "en", NO_QUERY),
    ]


def test_rows_without_the_pivot_are_compared_in_another_language(tmp_path: Path) -> None:
    """Two pairs without an English question are the same if the German one is."""
    texts = {"de": RHINE}
    pairs = [ParallelPair(name, name, "g", {"de": "Wie lang?"}, texts) for name in ("a", "b")]
    pairs.append(ParallelPair("c", "c", "g", {"de": "Wie breit?", "en": "How wide?"}, texts))
    rows, rejected = cleaned(tmp_path, pairs)
    assert len(rows) == 2
    assert "c" in rows
    assert [row["reason"] for row in rejected] == [SAME_PAIR]


def test_negatives_and_documents_are_kept(tmp_path: Path) -> None:
    """Negatives are normalised; documents keep their names although one of them is gone."""
    root, target = Folder(str(tmp_path / "raw")), Folder(str(tmp_path / "clean"))
    pairs = [
        ParallelPair("a", "a", "Africa", {"en": "Where?"}, {"en": NILE}, {"en": [" one\n two ", "\ufeff"]}),
        ParallelPair("b", "b", "Asia", {"en": "\ufeff"}, {"en": RHINE}),
        ParallelPair("c", "c", "Europe", {"en": "Which?"}, {"en": RHINE}),
    ]
    write_pairs(root, "rivers", iter(pairs), None, {})
    done = clean(ShardedDataset.open(root / "rivers"), target, CleaningSettings())
    dataset = ShardedDataset.open(target / "rivers")
    validate(dataset)
    names = document_names(dataset)
    assert names is not None
    rows = dataset.read_part("en", 0).to_pylist()
    found = {row["pair_id"]: str(names[int(number)]) for row, number in zip(rows, dataset.groups(), strict=True)}
    assert found == {"a": "Africa", "c": "Europe"}
    assert next(row["negatives"] for row in rows if row["pair_id"] == "a") == ["one two"]
    assert done.rejected == {NO_QUERY: 1, BLANK: 1}


def test_what_cannot_be_cleaned_is_named(tmp_path: Path) -> None:
    """The source as target, a pivot that is not there, a dataset of which nothing is left."""
    root = Folder(str(tmp_path))
    write_pairs(root, "rivers", iter([ParallelPair("a", "a", "g", {"en": "\ufeff"}, {"en": NILE})]), None, {})
    dataset = ShardedDataset.open(root / "rivers")
    with pytest.raises(ConfigError, match="another folder"):
        clean(dataset, root, CleaningSettings())
    with pytest.raises(ConfigError, match="'de'"):
        clean(dataset, root / "clean", CleaningSettings(pivot="de"))
    with pytest.raises(CorpusError, match="no pairs"):
        clean(dataset, root / "clean", CleaningSettings())


def test_a_full_local_disk_is_named(tmp_path: Path) -> None:
    """The temporary files do not fit: a ResourceError that says where, and no dataset."""
    root = Folder(str(tmp_path))
    write_pairs(root, "rivers", iter(pair(str(i), f"Where is {i}?", f"It is {i}.") for i in range(500)), None, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(ResourceError, match="TMPDIR"):
            clean(ShardedDataset.open(root / "rivers"), root / "clean", CleaningSettings())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "clean" / "rivers" / "manifest.json").exists()


def test_documents_without_names_stay_without(tmp_path: Path) -> None:
    """Their numbers do not become names."""
    root = Folder(str(tmp_path))
    write_pairs(root, "rivers", iter([pair("a", "Where?", NILE)]), None, {}, name_documents=False)
    clean(ShardedDataset.open(root / "rivers"), root / "clean", CleaningSettings())
    dataset = ShardedDataset.open(root / "clean" / "rivers")
    assert document_names(dataset) is None
    assert dataset.manifest.groups == 1


def test_names_of_documents_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """A file of names that belongs to another dataset must not name these documents."""
    root = Folder(str(tmp_path))
    write_pairs(root, "rivers", iter([pair("a", "Where?", NILE)]), None, {})
    (root / "rivers").write(DOCUMENTS, documents_bytes(["Africa", "Asia"]))
    with pytest.raises(CorpusError, match="2 names"):
        document_names(ShardedDataset.open(root / "rivers"))
    (tmp_path / "rivers" / "documents.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorpusError, match=r"documents\.parquet"):
        document_names(ShardedDataset.open(root / "rivers"))


def squad_pairs(path: Path, articles: int) -> list[ParallelPair]:
    data = json.loads(gzip.decompress(path.read_bytes()))["data"][:articles]
    return [
        ParallelPair(q["id"], f"{a}:{p}", article["title"], {"en": q["question"]}, {"en": paragraph["context"]})
        for a, article in enumerate(data)
        for p, paragraph in enumerate(article["paragraphs"])
        for q in paragraph["qas"]
    ]


@pytest.mark.skipif(not SQUAD.is_dir(), reason="needs SQuAD")
def test_real_questions_are_dropped_only_with_their_passage(tmp_path: Path) -> None:
    """Of ten articles of SQuAD dev exactly those pairs go whose folded question their paragraph had before."""
    pairs = squad_pairs(SQUAD / "dev.json.gz", 10)
    keys = {(folded(p.query["en"]), folded(p.passage["en"])) for p in pairs}
    root, target = Folder(str(tmp_path / "raw")), Folder(str(tmp_path / "clean"))
    write_pairs(root, "squad", iter(pairs), None, {})
    done = clean(ShardedDataset.open(root / "squad"), target, CleaningSettings(near_query=None))
    assert done.manifest.rows == len(keys) < len(pairs)
    assert done.rejected == {SAME_PAIR: len(pairs) - len(keys)}
    assert done.merged_passages == 0
    table = ShardedDataset.open(target / "squad").read_part("en", 0)
    assert table.schema.equals(SCHEMA)
