from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hbt_ray.config import Config, HoldOutSection, MixSection
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.shards import Manifest, ShardedDataset, open_corpus
from hbt_ray.corpus.writer import write_pairs
from hbt_ray.errors import ConfigError, CorpusError
from hbt_ray.mixing.source import (
    PlanSource,
    dataset_rows,
    held_out_groups,
    plan_languages,
    training_source,
    validation_sources,
)
from hbt_ray.storage import Folder

BoolArray = npt.NDArray[np.bool_]


def write(root: Path, name: str, languages: Sequence[str], rows: int = 120, groups: int = 30) -> None:
    """A dataset of which every seventh pair has no question in the last of several languages."""
    pairs = []
    for n in range(rows):
        asked = languages[:-1] if n % 7 == 0 and len(languages) > 1 else languages
        query = {lang: f"question {n} {lang}" for lang in asked}
        passage = {lang: f"passage {n} {lang}" for lang in languages}
        pairs.append(ParallelPair(f"p{n}", f"s{n}", f"g{n % groups}", query, passage))
    write_pairs(Folder(str(root)), name, pairs, languages, {}, rows_per_part=50, rows_per_group=16)


def config(root: Path, **changes: object) -> Config:
    sections = {
        "run": {"name": "test", "seed": 5},
        "data": {"root": str(root), "hold_out": {"fraction": 0.2}},
        "model": {"backbone": "scratch"},
        "train": {"steps": 10, "batch_size": 4},
    }
    return Config.model_validate(sections).replaced(changes)


def bits(source: PlanSource, dataset: int = 0) -> BoolArray:
    """bool [2, languages, rows]: the cells that the plan of a source may draw."""
    rows = source.open().plan.datasets[dataset]
    count = int(rows.group_starts[-1])
    return np.unpackbits(np.stack([rows.query, rows.passage]) & rows.kept, axis=2, count=count).astype(bool)


def presence(dataset: ShardedDataset, languages: Sequence[str]) -> BoolArray:
    """bool [2, languages, rows]: the cells that a dataset has."""
    packed = np.stack([dataset.presence(lang) for lang in languages], axis=1)
    return np.unpackbits(packed, axis=2, count=dataset.manifest.rows).astype(bool)


def test_train_and_validation_share_no_document_and_lose_no_cell(tmp_path: Path) -> None:
    """The split takes whole documents, the same rows in every language; together the parts are the dataset."""
    write(tmp_path, "mt", ["de", "en", "sw"])
    train = training_source(config(tmp_path), str(tmp_path))
    held_out = replace(train, split="validation")
    (dataset,) = open_corpus(Folder(str(tmp_path)))
    cells = presence(dataset, ["de", "en", "sw"])
    assert (bits(train) | bits(held_out)).tolist() == cells.tolist()
    assert not (bits(train) & bits(held_out)).any()
    in_train, in_validation = (bits(source).any(axis=(0, 1)) for source in (train, held_out))
    documents = dataset.groups()
    assert set(documents[in_train]).isdisjoint(documents[in_validation])
    assert len(set(documents[in_validation])) == 6  # 0.2 of 30
    assert (bits(held_out) == (cells & in_validation)).all()


def test_batches_come_from_their_split(tmp_path: Path) -> None:
    """No training batch has a row of a held-out document, and a validation batch has no other."""
    write(tmp_path, "mt", ["de", "en", "sw"])
    configuration = config(tmp_path)
    held = held_out_groups(30, 0.2, seed=5)
    (dataset,) = open_corpus(Folder(str(tmp_path)))
    held_rows = set(np.flatnonzero(held[dataset.groups()]).tolist())
    for spec in training_source(configuration, str(tmp_path)).open().plan.steps(0, 100):
        assert held_rows.isdisjoint(spec.rows.tolist())
    for mode, source in validation_sources(configuration, str(tmp_path)).items():
        for spec in source.open().plan.steps(0, 50):
            assert spec.mode == mode
            assert held_rows.issuperset(spec.rows.tolist())


@given(groups=st.integers(1, 400), fraction=st.floats(0, 0.99), seed=st.integers(0, 100))
def test_held_out_groups(groups: int, fraction: float, seed: int) -> None:
    """The choice is a function of the seed, of the wished size, and takes a group when it takes anything."""
    held = held_out_groups(groups, fraction, seed)
    assert held.shape == (groups,)
    assert held.sum() == (max(1, round(fraction * groups)) if fraction else 0)
    assert held.tolist() == held_out_groups(groups, fraction, seed).tolist()


def test_held_out_groups_are_those_of_earlier_releases() -> None:
    """A run that goes on must not train on what it held out before."""
    digest = hashlib.sha256(np.packbits(held_out_groups(12_345, 0.2, 7)).tobytes()).hexdigest()
    assert digest == "72b73f1043f73d12fa692c518e7c862cad845ffe0ffb55d56c3775b37621371d"


def documents_only(folder: Path, groups: int, numbers: npt.NDArray[np.int32]) -> ShardedDataset:
    """A dataset in English of which only the numbers of its documents are there."""
    folder.mkdir()
    np.save(folder / "groups.npy", numbers)
    manifest = Manifest("d", ("en",), (len(numbers),), 64, groups, 13, {}, {})
    return ShardedDataset(Folder(str(folder)), manifest)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 5000) | st.integers(65_530, 65_545) | st.just(140_001),
    groups=st.integers(1, 60),
    fraction=st.floats(0, 0.9),
    seed=st.integers(0, 100),
)
def test_the_packed_hold_out(
    tmp_path_factory: pytest.TempPathFactory, rows: int, groups: int, fraction: float, seed: int
) -> None:
    """Read in blocks and packed, the held-out rows are those of the whole array; training has the others."""
    numbers = np.random.default_rng(seed).integers(0, groups, rows, dtype=np.int32)
    held = held_out_groups(groups, fraction, seed)
    assume(not held.all())
    folder = tmp_path_factory.mktemp("packed") / "d"
    dataset = documents_only(folder, groups, numbers)
    np.save(folder / "presence.en.npy", np.full((2, -(-rows // 8)), 255, dtype=np.uint8))
    train = PlanSource(str(folder), None, None, HoldOutSection(fraction=fraction), MixSection(), 2, seed)
    for source, expected in ((train, ~held[numbers]), (replace(train, split="validation"), held[numbers])):
        kept = dataset_rows(dataset, ["en"], source).kept
        assert kept.dtype == np.uint8
        assert kept.shape == (-(-rows // 8),)
        assert np.array_equal(np.unpackbits(kept, count=rows).astype(bool), expected)
    assert np.array_equal(dataset.groups(), numbers)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (np.zeros(7, dtype=np.int32), r"int32 \[7\]; expected int32 \[8\]"),
        (np.zeros(8, dtype=np.int64), r"int64 \[8\]"),
        (np.array([0, 1, 2, 0, 1, 2, 0, 3], dtype=np.int32), r"0 ... 3; expected numbers 0 ... 2"),
        (np.array([0, 1, 2, 0, 1, 2, 0, -1], dtype=np.int32), r"-1 ... 2; expected numbers 0 ... 2"),
    ],
    ids=["short", "wide", "unknown", "negative"],
)
def test_broken_document_numbers(tmp_path: Path, written: npt.NDArray[Any], message: str) -> None:
    """A file of documents that does not fit its manifest is named; a wrong split would be silent."""
    dataset = documents_only(tmp_path / "d", 3, np.zeros(8, dtype=np.int32))
    np.save(tmp_path / "d" / "groups.npy", written)
    with pytest.raises(CorpusError, match=message) as info:
        dataset.groups()
    assert info.value.where == f"{tmp_path}/d/groups.npy"


def test_document_numbers_that_end_early(tmp_path: Path) -> None:
    """Neither is a file that was cut off, or that is no array, taken for a smaller one."""
    dataset = documents_only(tmp_path / "d", 3, np.zeros(100_000, dtype=np.int32))
    file = tmp_path / "d" / "groups.npy"
    file.write_bytes(file.read_bytes()[: 128 + 4 * 99_990])
    with pytest.raises(CorpusError, match="no more than 99990 rows; expected 100000"):
        dataset.groups()
    file.write_bytes(b"no array")
    with pytest.raises(CorpusError, match="an array of NumPy"):
        dataset.groups()
    file.unlink()
    with pytest.raises(CorpusError, match="no such file"):
        dataset.groups()


@pytest.mark.parametrize("bits", [np.zeros((2, 14), dtype=np.uint8), np.zeros((2, 15), dtype=bool)], ids=str)
def test_broken_presence_bits(tmp_path: Path, bits: npt.NDArray[Any]) -> None:
    """Presence bits that do not fit the manifest are named."""
    write(tmp_path, "mt", ["de", "en"], rows=120)
    np.save(tmp_path / "mt" / "presence.en.npy", bits)
    with pytest.raises(CorpusError, match=r"expected uint8 \[2, 15\]") as info:
        training_source(config(tmp_path), str(tmp_path)).open()
    assert info.value.where.endswith("mt/presence.en.npy")


def test_plans_of_a_process_share_the_presence_bits(tmp_path: Path) -> None:
    """Validation does not hold the bits of a corpus a second and third time; another import is read anew."""
    write(tmp_path, "mt", ["de", "en"])
    configuration = config(tmp_path)
    train = training_source(configuration, str(tmp_path)).open().plan.datasets[0]
    for source in validation_sources(configuration, str(tmp_path)).values():
        rows = source.open().plan.datasets[0]
        assert rows.query is train.query
        assert rows.passage is train.passage
        assert rows.kept.tolist() == (~train.kept).tolist()
    write(tmp_path, "mt", ["de", "en"], rows=200)
    again = training_source(config(tmp_path, **{"mix.alpha": 0.25}), str(tmp_path)).open().plan.datasets[0]
    assert again.query.shape == (2, 25)


def test_the_seed_chooses_the_documents() -> None:
    """Another seed holds out other documents."""
    assert held_out_groups(100, 0.2, 1).tolist() != held_out_groups(100, 0.2, 2).tolist()


def test_nothing_held_out(tmp_path: Path) -> None:
    """With fraction 0 the training plan has every cell and there is no validation."""
    write(tmp_path, "mt", ["de", "en"])
    configuration = config(tmp_path, **{"data.hold_out.fraction": 0})
    (dataset,) = open_corpus(Folder(str(tmp_path)))
    cells = presence(dataset, ["de", "en"])
    assert bits(training_source(configuration, str(tmp_path))).tolist() == cells.tolist()
    assert validation_sources(configuration, str(tmp_path)) == {}


@pytest.mark.parametrize(("groups", "fraction"), [(1, 0.05), (3, 0.9)])
def test_a_hold_out_that_leaves_nothing_to_train_on(tmp_path: Path, groups: int, fraction: float) -> None:
    """A dataset that would be held out as a whole is named; it would silently vanish from training."""
    write(tmp_path, "large", ["de", "en"])
    write(tmp_path, "small", ["de", "en"], groups=groups)
    configuration = config(tmp_path, **{"data.hold_out.fraction": fraction})
    with pytest.raises(ConfigError, match=rf"{groups} groups of dataset 'small'") as info:
        training_source(configuration, str(tmp_path)).open()
    assert info.value.where == "data.hold_out.fraction"


def test_wanted_languages_and_datasets(tmp_path: Path) -> None:
    """The plan has the wanted languages and datasets in their order; without a wish all languages, sorted."""
    write(tmp_path, "a", ["sw", "en", "de"])
    write(tmp_path, "b", ["th", "en"])
    wish = {"data.languages": ["th", "en"], "data.datasets": ["b", "a"]}
    wished = training_source(config(tmp_path, **wish), str(tmp_path)).open()
    assert wished.plan.languages == ("th", "en")
    assert [rows.name for rows in wished.plan.datasets] == list(wished.datasets) == ["b", "a"]
    assert training_source(config(tmp_path), str(tmp_path)).open().plan.languages == ("de", "en", "sw", "th")


def test_a_dataset_without_a_wanted_language(tmp_path: Path) -> None:
    """Where a dataset lacks a language its cells are missing, so that no batch draws them."""
    write(tmp_path, "a", ["de", "en"])
    write(tmp_path, "b", ["sw", "en"])
    source = training_source(config(tmp_path), str(tmp_path))
    assert bits(source, 0).any(axis=(0, 2)).tolist() == [True, True, False]  # a: de, en, sw
    assert bits(source, 1).any(axis=(0, 2)).tolist() == [False, True, True]
    plan = source.open().plan
    for spec in plan.steps(0, 200):
        drawn = {plan.languages[code] for code in (*spec.query_language, *spec.passage_language)}
        assert drawn <= ({"de", "en"} if spec.dataset == "a" else {"sw", "en"})


def test_a_language_that_the_corpus_lacks(tmp_path: Path) -> None:
    """A wanted language in no dataset is refused with those that are there; so is an unknown dataset."""
    write(tmp_path, "mt", ["de", "en"])
    with pytest.raises(ConfigError, match=r"'sw'; expected languages of the corpus \(de, en\)") as info:
        plan_languages(open_corpus(Folder(str(tmp_path))), ("en", "sw"))
    assert info.value.where == "data.languages"
    with pytest.raises(CorpusError, match="no dataset 'tm'"):
        training_source(config(tmp_path, **{"data.datasets": ["tm"]}), str(tmp_path)).open()


def test_a_hold_out_smaller_than_a_batch(tmp_path: Path) -> None:
    """Too few held-out rows for one batch are a matter of the hold-out, not of α, and the message says so."""
    write(tmp_path, "mt", ["de", "en"])
    sources = validation_sources(config(tmp_path, **{"train.batch_size": 48, "mix.alpha": 1.0}), str(tmp_path))
    for source in sources.values():
        with pytest.raises(ConfigError) as info:
            source.open()
        assert info.value.where == "data.hold_out.fraction"
        assert "train.batch_size" in info.value.fix


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_validation_is_the_same_for_every_alpha(tmp_path: Path, alpha: float) -> None:
    """Both kinds of validation batches exist whatever α trains on, so runs of different α can be compared."""
    write(tmp_path, "mt", ["de", "en"])
    sources = validation_sources(config(tmp_path, **{"mix.alpha": alpha}), str(tmp_path))
    assert [(mode, source.mix.alpha, source.split) for mode, source in sources.items()] == [
        ("X-X-mono", 1.0, "validation"),
        ("X-Y", 0.0, "validation"),
    ]
    assert sources == validation_sources(config(tmp_path, **{"mix.alpha": 0.3}), str(tmp_path))


def test_a_mix_of_one_language_pairs_is_validated_by_such_batches_too(tmp_path: Path) -> None:
    """Where training draws X-X batches, held-out ones are there beside those that all mixes share."""
    write(tmp_path, "mt", ["de", "en"])
    sources = validation_sources(config(tmp_path, **{"mix.alpha": 0.0, "mix.mixed": "X-X"}), str(tmp_path))
    assert [(mode, source.mix.alpha, source.mix.mixed) for mode, source in sources.items()] == [
        ("X-X-mono", 1.0, "X-Y"),
        ("X-Y", 0.0, "X-Y"),
        ("X-X", 0.0, "X-X"),
    ]
    assert {sources[mode].open().plan[0].mode for mode in sources} == set(sources)


@pytest.mark.parametrize("corpus", [{"a": ["en"]}, {"a": ["en"], "b": ["de"]}, {"a": ["de", "en"]}], ids=str)
def test_validation_without_parallel_languages(tmp_path: Path, corpus: dict[str, list[str]]) -> None:
    """Where no dataset has two of the languages, validation is X-X-mono only, and its plan opens."""
    for name, languages in corpus.items():
        write(tmp_path, name, languages)
    wish = {"data.languages": ["en"]} if corpus == {"a": ["de", "en"]} else {}
    sources = validation_sources(config(tmp_path, **{"mix.alpha": 1.0}, **wish), str(tmp_path))
    assert list(sources) == ["X-X-mono"]
    assert sources["X-X-mono"].open().plan[0].mode == "X-X-mono"


def test_a_fraction_of_the_documents(tmp_path: Path) -> None:
    """Smaller fractions are parts of larger ones, none touches the hold-out, and all of 1 is what is left of it."""
    numbers = np.random.default_rng(0).integers(0, 40, 1000, dtype=np.int32)
    dataset = documents_only(tmp_path / "d", 40, numbers)
    np.save(tmp_path / "d" / "presence.en.npy", np.full((2, 125), 255, dtype=np.uint8))
    whole = PlanSource(str(tmp_path), None, None, HoldOutSection(fraction=0.2), MixSection(), 2, seed=3)

    def documents(source: PlanSource) -> set[int]:
        kept = np.unpackbits(dataset_rows(dataset, ["en"], source).kept, count=1000).astype(bool)
        chosen = set(numbers[kept].tolist())
        assert np.array_equal(kept, np.isin(numbers, list(chosen)))  # whole documents
        return chosen

    held_out, every = documents(replace(whole, split="validation")), documents(whole)
    half, eighth = documents(replace(whole, fraction=0.5)), documents(replace(whole, fraction=0.125))
    assert (len(held_out), len(every), len(half), len(eighth)) == (8, 32, 16, 4)
    assert eighth < half < every
    assert held_out | every == set(range(40))
    assert documents(replace(whole, fraction=0.01)) < eighth


def test_the_hold_out_has_a_seed_of_its_own(tmp_path: Path) -> None:
    """With data.hold_out.seed runs of different seeds hold out the same documents; without it they do not."""
    numbers = np.arange(400, dtype=np.int32)
    dataset = documents_only(tmp_path / "d", 400, numbers)
    np.save(tmp_path / "d" / "presence.en.npy", np.full((2, 50), 255, dtype=np.uint8))

    def held_out(seed: int, own: int | None) -> bytes:
        section = HoldOutSection(fraction=0.2, seed=own)
        source = PlanSource(str(tmp_path), None, None, section, MixSection(), 2, seed, "validation")
        return dataset_rows(dataset, ["en"], source).kept.tobytes()

    assert held_out(1, 7) == held_out(2, 7) == held_out(7, None)
    assert held_out(1, None) != held_out(2, None)


def test_a_source_carries_the_configuration(tmp_path: Path) -> None:
    """A training source has what determines the plan, and only that: it survives pickling and opens once."""
    write(tmp_path, "mt", ["de", "en"])
    changes = {"mix.alpha": {"points": [[0, 1.0], [9, 0.0]]}, "mix.size_exponent": 0.5}
    configuration = config(tmp_path, **changes)
    source = training_source(configuration, str(tmp_path))
    assert source == PlanSource(
        str(tmp_path), None, None, HoldOutSection(fraction=0.2), configuration.mix, batch_size=4, seed=5
    )
    copy = pickle.loads(pickle.dumps(source))
    assert copy == source
    assert copy.open() is source.open()
    assert training_source(configuration.replaced({"train.learning_rate": 0.1}), str(tmp_path)) == source
