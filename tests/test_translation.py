"""Translation of datasets: the three families of models, the work list, complete shards, kills, storage."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES as M2M100_CODES
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES as FLORES_CODES

from hbt_ray.corpus.importers import RejectedRow
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.sample import sample_pairs
from hbt_ray.corpus.shards import MANIFEST, ShardedDataset
from hbt_ray.corpus.validate import validate
from hbt_ray.corpus.writer import write_pairs
from hbt_ray.errors import ConfigError, CorpusError, ModelError, ResourceError, UserError
from hbt_ray.storage import Folder
from hbt_ray.translation import gates as reasons
from hbt_ray.translation import models, pieces, pipeline, scratch
from hbt_ray.translation.answers import Answers
from hbt_ray.translation.gates import Cell
from hbt_ray.translation.lookup import Lookup
from hbt_ray.translation.models import CUT_OFF, TOO_LONG, Translator, direction, find_model, load_tokenizer
from hbt_ray.translation.pieces import Unit, split_text, work_list
from hbt_ray.translation.run import _reasons, translate
from hbt_ray.translation.sentences import join
from hbt_ray.translation.settings import GateSection, PieceSection, TranslationSettings, translation_settings

GATES_OFF = {
    **{"cut_off": False, "script": None, "language": None, "length_ratio": None},
    **{"repetition": None, "copied_letters": None, "numbers": None},
}
FAST = {"beams": 1, "tokens_per_token": 0.5}
LONG = "The currency of Andorra is the Euro. Its code is EUR! Since 1999? "


def english_pairs(count: int) -> list[ParallelPair]:
    """The English half of the sample; every fourth passage is of several sentences, one pair has negatives."""
    pairs = sample_pairs()["countries"][:count]
    passages = [pair.passage["en"] for pair in pairs]
    return [
        ParallelPair(
            pair.pair_id,
            pair.passage_id,
            pair.group,
            {"en": pair.query["en"]},
            {"en": LONG + passages[i] if i % 4 == 0 else passages[i]},
            {"en": [*passages[:3], "1999"]} if i == 1 else {},
        )
        for i, pair in enumerate(pairs)
    ]


def write_corpus(root: str, count: int = 60, rows_per_part: int = 25) -> None:
    write_pairs(Folder(root), "facts", english_pairs(count), ["en"], {"source": "tests"}, rows_per_part=rows_per_part)


def settings(root: str, model: Path, targets: list[str], **more: Any) -> TranslationSettings:
    values = {
        **{"corpus": root, "dataset": "facts", "targets": targets, "model": str(model), "actors": 2},
        **{"generation": FAST, "gates": GATES_OFF, "pieces": {"characters_per_unit": 1_500}, **more},
    }
    return TranslationSettings.model_validate(values)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def results(root: Path) -> dict[str, Path]:
    """Files of results below a corpus, by language and unit."""
    return {f"{path.parent.name}/{path.name}": path for path in (root / "facts.translation").rglob("*-unit-*.parquet")}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each family, drawn at random, in the family's real files."""
    root = tmp_path_factory.mktemp("models")
    texts = [text for pair in english_pairs(200) for text in (pair.query["en"], pair.passage["en"])]
    scratch.write_m2m100(root / "m2m100", texts)
    scratch.write_nllb(root / "nllb", texts, ["eng_Latn", "deu_Latn", "zho_Hans"])
    scratch.write_marian(root / "marian", texts, "en", ["de"])
    scratch.write_marian(root / "marian-many", texts, "en", ["deu", "tur", "cmn_Hans"])
    return {path.name: path for path in root.iterdir()}


def translator(folder: Path, **more: Any) -> Translator:
    options = {"device": "cpu", "precision": "fp32", "beams": 1, "batch_tokens": 256, "tokens_per_token": 1.0}
    return Translator(folder, **{**options, **more})


# --- the families ----------------------------------------------------------------------------------------------------

QUESTION = "Which currency is used in Andorra?"


@pytest.mark.parametrize("family", ["m2m100", "nllb", "marian", "marian-many"])
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
def test_a_family_is_used_as_its_authors_do(family: str, beams: int, checkpoints: dict[str, Path]) -> None:
    """The translation of one text is that of the documented calls of transformers, written out per family."""
    folder = checkpoints[family]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    text, more = QUESTION, {}
    if family == "m2m100":
        tokenizer.src_lang = "en"
        more = {"forced_bos_token_id": tokenizer.get_lang_id("de")}
    elif family == "nllb":
        tokenizer.src_lang = "eng_Latn"
        more = {"forced_bos_token_id": tokenizer.convert_tokens_to_ids("deu_Latn")}
    elif family == "marian-many":
        text = f">>deu<< {QUESTION}"
    inputs = tokenizer(text, return_tensors="pt")
    limit = inputs["input_ids"].shape[1] + models.SPARE_TOKENS
    model.generation_config.forced_eos_token_id = None
    with torch.inference_mode():
        ids = model.generate(**inputs, num_beams=beams, do_sample=False, max_new_tokens=limit, max_length=None, **more)
    expected = tokenizer.decode(ids[0], skip_special_tokens=True)
    for code in M2M100_CODES["m2m100"]:
        expected = expected.replace(f"__{code}__", "")
    (found,) = translator(folder, beams=beams).translate([QUESTION], "en", "de")
    assert found.text.split() == expected.split()
    assert len(set(found.text)) > 5


@pytest.mark.parametrize("family", ["m2m100", "nllb", "marian-many"])
def test_the_target_language_reaches_the_model(family: str, checkpoints: dict[str, Path]) -> None:
    """Another target language gives another translation of the same text."""
    model = translator(checkpoints[family])
    assert model.translate([QUESTION], "en", "de") != model.translate([QUESTION], "en", "zh")


def test_batches_are_a_function_of_the_texts(checkpoints: dict[str, Path]) -> None:
    """The same call gives the same translations, each in its text's place, whatever was translated before."""
    texts = sorted({pair.query["en"] for pair in english_pairs(40)})
    model = translator(checkpoints["m2m100"])
    first = model.translate(texts, "en", "de")
    assert model.translate(texts[:3], "en", "tr") != first[:3]
    assert model.translate(texts, "en", "de") == first == translator(checkpoints["m2m100"]).translate(texts, "en", "de")
    assert len(set(first)) > 30
    assert model.translate([], "en", "de") == []


def test_what_the_model_cannot_take_or_end_is_marked(checkpoints: dict[str, Path]) -> None:
    """A text of more tokens than positions is not cut silently; a translation at the limit of tokens is marked."""
    texts = ["word " * 2_000, QUESTION]
    too_long, cut = translator(checkpoints["marian"], tokens_per_token=0.1).translate(texts, "en", "de")
    assert (too_long.text, too_long.fault) == ("", TOO_LONG)
    assert cut.text
    assert cut.fault == CUT_OFF


def test_language_codes_of_the_families_exist() -> None:
    """Every code of our table is one of FLORES-200, and macrolanguages map to the variety that NLLB has."""
    codes = {models.flores_code(code) for code in models._FLORES}
    assert codes <= set(FLORES_CODES)
    assert {code: models.flores_code(code) for code in ("de", "zh", "ar", "ceb", "fur", "lij")} == {
        **{"de": "deu_Latn", "zh": "zho_Hans", "ar": "arb_Arab"},
        **{"ceb": "ceb_Latn", "fur": "fur_Latn", "lij": "lij_Latn"},
    }


@pytest.mark.parametrize(
    ("family", "source", "target", "named"),
    [
        ("m2m100", "en", "te", "am, ar, ast"),
        ("m2m100", "eu", "en", "am, ar, ast"),
        ("nllb", "en", "tr", "deu_Latn, eng_Latn, zho_Hans"),
        ("marian", "en", "tr", "one of de"),
        ("marian", "fr", "de", "one of en"),
        ("marian-many", "en", "es", "cmn_Hans, deu, tur"),
    ],
)
def test_an_unknown_language_names_the_known_ones(
    family: str, source: str, target: str, named: str, checkpoints: dict[str, Path]
) -> None:
    """The error says which language, and which the model has."""
    tokenizer, kind = load_tokenizer(checkpoints[family])
    with pytest.raises(ModelError, match=named) as raised:
        direction(tokenizer, kind, source, target, family)
    assert raised.value.received == repr(source if target in ("de", "en") else target)


def test_chinese_is_found_under_marians_names(checkpoints: dict[str, Path]) -> None:
    """zh is `>>cmn_Hans<<` where the vocabulary has it."""
    tokenizer, kind = load_tokenizer(checkpoints["marian-many"])
    assert direction(tokenizer, kind, "en", "zh", "").prefix == ">>cmn_Hans<< "


def test_a_folder_that_is_no_translation_model_is_refused(
    toy_model: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """An encoder, a folder without safetensors, one without config, no folder, a revision of a folder."""
    with pytest.raises(ModelError, match="no seq2seq"):
        find_model(str(toy_model))
    shutil.copytree(checkpoints["marian"], tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        find_model(str(tmp_path / "model"))
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json"):
        find_model(str(tmp_path / "model"))
    with pytest.raises(ModelError, match="no such folder"):
        find_model(str(tmp_path / "absent"))
    with pytest.raises(ModelError, match="no/such-model"):
        find_model("no/such-model")  # the tests are offline
    with pytest.raises(ModelError, match="revision"):
        find_model(str(checkpoints["marian"]), "main")


def test_the_models_hash_is_that_of_its_files(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """A copy elsewhere has the same hash, one changed weight another; files beside the model's do not matter."""
    first = find_model(str(checkpoints["m2m100"]))
    shutil.copytree(checkpoints["m2m100"], tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("a note")
    assert find_model(str(tmp_path / "copy")).sha256 == first.sha256
    weights = tmp_path / "copy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert find_model(str(tmp_path / "copy")).sha256 != first.sha256


# --- settings --------------------------------------------------------------------------------------------------------


def test_settings_come_from_file_values_and_keys(tmp_path: Path) -> None:
    """Values given by name replace the file's, `key=value` replaces both; mistakes name the key."""
    path = tmp_path / "translate.yaml"
    path.write_text("corpus: data\ndataset: facts\ntargets: [de]\nmodel: m\ngeneration: {beams: 2}\n")
    read = translation_settings(path, {"model": "other", "targets": None}, ["generation.beams=5", "gates.numbers=null"])
    assert (read.model, read.targets, read.generation.beams, read.gates.numbers) == ("other", ("de",), 5, None)
    for setting, named in (("beams=3", "beams"), ("gates.length=2", "gates.length"), ("targets=[xx-yy]", "targets")):
        with pytest.raises(ConfigError, match=named):
            translation_settings(path, {}, [setting])


def test_a_target_equal_to_the_source_is_refused() -> None:
    """English to English is a mistake, not work."""
    with pytest.raises(ConfigError, match=r"targets.*'en'"):
        translation_settings(None, {"corpus": "c", "dataset": "d", "model": "m", "targets": ["de", "en"]})


# --- the work list ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows_per_bucket", [7, 1_000])
def test_the_work_list_has_each_distinct_piece_once(
    rows_per_bucket: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a set of all pieces of all texts; those without a letter are left out, units keep to their size."""
    monkeypatch.setattr(pieces, "ROWS_PER_BUCKET", rows_per_bucket)
    write_corpus(str(tmp_path))
    wanted = settings(str(tmp_path), tmp_path, ["de"])
    dataset = ShardedDataset.open(Folder(str(tmp_path)) / "facts")
    work = work_list(dataset, wanted, Folder(str(tmp_path / "work")), "key", iter(["Extra text.", "12"]))
    texts = {
        text
        for pair in english_pairs(60)
        for text in (pair.query["en"], pair.passage["en"], *pair.negatives.get("en", ()))
    }
    expected = {piece for text in texts for piece in split_text(text, wanted.pieces).pieces} - {"1999"}
    found = [work.texts(unit) for unit in work.all_units()]
    together = [piece for unit in found for piece in unit]
    assert sorted(together) == sorted(expected | {"Extra text."})
    assert work.pieces == len(together)
    for unit in found:
        assert [len(piece) for piece in unit] == sorted(map(len, unit), reverse=True)
        assert sum(map(len, unit[:-1])) <= wanted.pieces.characters_per_unit + max(map(len, unit))
    assert len(work.units) == (9 if rows_per_bucket == 7 else 1)
    again = work_list(dataset, wanted, Folder(str(tmp_path / "work")), "key", iter(["other"]))
    assert again == work


def test_results_are_found_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every piece finds its own result in several buckets and units; another piece, or a missing unit, is an error."""
    monkeypatch.setattr(pieces, "ROWS_PER_BUCKET", 7)
    write_corpus(str(tmp_path))
    wanted = settings(str(tmp_path), tmp_path, ["de"], pieces={"characters_per_unit": 300})
    dataset = ShardedDataset.open(Folder(str(tmp_path)) / "facts")
    further = [f"piece {i}" for i in range(1_000)]  # so that some keys end in zero bytes
    work = work_list(dataset, wanted, Folder(str(tmp_path / "work")), "key", further)
    folder = Folder(str(tmp_path / "results"))
    everything = []
    for unit in work.all_units():
        texts = work.texts(unit)
        everything += texts
        columns = {"text": [text[::-1] for text in texts], "fault": [None] * len(texts), "back": texts}
        path = tmp_path / "results" / unit.name
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pipeline.pa.table(columns, schema=pipeline.RESULTS), path)
    assert any(pieces.key_of(piece).endswith(b"\0") for piece in everything)
    (tmp_path / "scratch").mkdir()
    lookup = Lookup(work, folder, tmp_path / "scratch")
    random.Random(1).shuffle(everything)
    assert lookup.find(everything) == [(text[::-1], None, text) for text in everything]
    with pytest.raises(KeyError):
        lookup.find(["another"])
    folder.remove(Unit(0, 0).name)
    with pytest.raises(CorpusError, match="bucket-00000-unit-00000"):
        Lookup(work, folder, tmp_path / "scratch")


def test_a_full_local_disk_is_named(tmp_path: Path) -> None:
    """Pieces and answers that do not fit: a ResourceError that says where, and no work list."""
    write_corpus(str(tmp_path), 60)
    dataset = ShardedDataset.open(Folder(str(tmp_path)) / "facts")
    wanted = settings(str(tmp_path), tmp_path, ["de"])
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps({"pair_id": str(i), "answers": ["Euro"] * 9}) + "\n" for i in range(200)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(ResourceError, match=r"hbt-ray-.*TMPDIR"):
            work_list(dataset, wanted, Folder(str(tmp_path / "work")), "")
        with pytest.raises(ResourceError, match=r"answers\.sqlite: got .*TMPDIR"):
            Answers(answers, "en", tmp_path / "answers.sqlite", pytest.fail)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "work").exists()


def test_answers_are_found_by_pair(tmp_path: Path) -> None:
    """Every well-formed line counts, blank answers do not, the others are rejected with their number."""
    path = tmp_path / "answers.jsonl"
    lines = [json.dumps({"pair_id": f"p{i}", "answers": [f"a{i}", " "]}) for i in range(1_200)]
    path.write_text("\n".join([*lines, '{"pair_id": 3}', "{"]))
    rejected: list[RejectedRow] = []
    answers = Answers(path, "en", tmp_path / "answers.sqlite", rejected.append)
    assert sorted(answers.texts()) == sorted(f"a{i}" for i in range(1_200))
    asked = [f"p{i}" for i in range(0, 1_200, 2)] + ["absent"]
    assert answers.of(asked) == {pair_id: [pair_id.replace("p", "a")] for pair_id in asked[:-1]}
    assert [row.row for row in rejected] == ["1201", "1202"]
    nothing = Answers(None, "en", tmp_path / "nothing.sqlite", rejected.append)
    assert (list(nothing.texts()), nothing.of(["p1"])) == ([], {})
    assert nothing.sha256 != answers.sha256


def test_the_encoder_judges_each_cell_by_its_own_texts(toy_model: Path) -> None:
    """A text and itself have a cosine of 1, so only cells of two different texts are dissimilar at 0.9999."""
    cells = [Cell(s, t, "en", "de") for s, t in (("a b c", "a b c"), ("a b c", "d e f g h"), ("k l", "k l"))]
    gates = GateSection.model_validate({**GATES_OFF, "embedding": 0.9999, "encoder": str(toy_model)})
    assert _reasons(cells, gates, "cpu") == [None, reasons.DISSIMILAR, None]


# --- complete shards -------------------------------------------------------------------------------------------------


def reference(texts: list[str], model: Path, work: pieces.WorkList, target: str, sections: PieceSection) -> list[str]:
    """Translations without Ray, without files: every unit by a translator, sentences joined."""
    one = translator(model, batch_tokens=pipeline.CPU_TOKENS, tokens_per_token=FAST["tokens_per_token"])
    known: dict[str, str] = {}
    for unit in work.all_units():
        sources = work.texts(unit)
        known |= {s: t.text for s, t in zip(sources, one.translate(sources, "en", target), strict=True)}
    splits = [split_text(text, sections) for text in texts]
    return [join([known.get(piece, piece) for piece in s.pieces], s.separators, target) for s in splits]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("family", ["m2m100", "marian"])
def test_the_sample_is_translated_into_complete_shards(
    family: str, checkpoints: dict[str, Path], tmp_path: Path, local_ray: None
) -> None:
    """Every cell is the joined translation of its sentences, validation accepts the shards, English is untouched."""
    write_corpus(str(tmp_path))
    before = files(tmp_path / "facts")
    wanted = settings(str(tmp_path), checkpoints[family], ["de"])
    told: list[tuple[int, int, str]] = []
    done = translate(wanted, lambda *progress: told.append(progress))
    dataset = ShardedDataset.open(Folder(str(tmp_path)) / "facts")
    validate(dataset)
    assert dataset.manifest.languages == ("en", "de")
    assert dataset.manifest.usable["de"] == dataset.manifest.usable["en"]
    after = files(tmp_path / "facts")
    assert {name: after[name] for name in before if name != MANIFEST} == {n: before[n] for n in before if n != MANIFEST}
    (folder,) = (tmp_path / "facts.translation").iterdir()
    work = work_list(dataset, wanted, Folder(str(folder / "pieces")), "")
    for part in range(3):
        english, german = dataset.read_part("en", part), dataset.read_part("de", part)
        for column in ("query", "passage"):
            texts = english[column].to_pylist()
            assert german[column].to_pylist() == reference(texts, checkpoints[family], work, "de", wanted.pieces)
        for source, translated in zip(*(table["negatives"].to_pylist() for table in (english, german)), strict=True):
            assert translated == reference(source, checkpoints[family], work, "de", wanted.pieces)
    assert told[0][0] == 0
    assert told[-1] == (done.pieces, done.pieces, "de")
    assert done.translated == done.pieces == work.pieces
    provenance = dataset.manifest.provenance["languages"]["de"]
    assert provenance["model_sha256"] == find_model(str(checkpoints[family])).sha256
    assert provenance["rejected"] == {}
    assert provenance["cells"] == 60 + 60 + 4


@pytest.mark.ray
@pytest.mark.slow
def test_a_second_call_translates_nothing_and_a_new_language_touches_no_other(
    checkpoints: dict[str, Path], tmp_path: Path, local_ray: None
) -> None:
    """Languages stay as they are byte for byte; other gates need no translation; a language from elsewhere is kept."""
    write_corpus(str(tmp_path), 20)
    german = settings(str(tmp_path), checkpoints["m2m100"], ["de"])
    translate(german)
    before = files(tmp_path / "facts")
    again = translate(german)
    assert (again.translated, again.languages, files(tmp_path / "facts")) == (0, (), before)
    more = translate(settings(str(tmp_path), checkpoints["m2m100"], ["de", "ar"]))
    assert more.languages == ("ar",)
    after = files(tmp_path / "facts")
    assert {name: after[name] for name in before if name != MANIFEST} == {n: before[n] for n in before if n != MANIFEST}

    gated = german.model_copy(update={"gates": german.gates.model_copy(update={"script": 0.3, "cut_off": True})})
    with pytest.raises(ConfigError, match=r"'de'.*replace"):
        translate(gated)
    replaced = translate(gated.model_copy(update={"replace": True}))
    assert replaced.translated == 0
    dataset = ShardedDataset.open(Folder(str(tmp_path)) / "facts")
    validate(dataset)
    rows = [json.loads(line) for line in (tmp_path / "facts/rejected/translation.de.jsonl").read_text().splitlines()]
    assert {row["reason"] for row in rows} == {CUT_OFF} == set(replaced.rejected["de"])
    cells = dataset.manifest.usable["de"]
    negatives = sum(map(len, dataset.read_part("de", 0)["negatives"].to_pylist()))
    assert cells["queries"] + cells["passages"] + negatives + len(rows) == 20 + 20 + 4
    assert replaced.rejected["de"][CUT_OFF] == len(rows) > 0


@pytest.mark.ray
@pytest.mark.slow
def test_answers_round_trip_and_encoder_judge_the_cells(
    checkpoints: dict[str, Path], toy_model: Path, tmp_path: Path, local_ray: None
) -> None:
    """Gibberish is lost on the way back; with an impossible cosine all is dissimilar; answers not found are named."""
    write_corpus(str(tmp_path), 12)
    answers = tmp_path / "answers.jsonl"
    pair_ids = [pair.pair_id for pair in english_pairs(12)]
    lines = [json.dumps({"pair_id": pair_id, "answers": ["Nobody knows"]}) for pair_id in pair_ids[:5]]
    answers.write_text("\n".join([*lines, "{no json"]))
    for gates, expected in (
        ({"round_trip": 0.9}, {reasons.ROUND_TRIP}),
        ({"embedding": 1.0, "encoder": str(toy_model)}, {reasons.DISSIMILAR}),
        ({}, {reasons.ANSWERS}),
    ):
        more = {} if gates else {"answers": str(answers)}
        wanted = settings(str(tmp_path), checkpoints["m2m100"], ["de"], gates=GATES_OFF | gates, replace=True, **more)
        found = translate(wanted).rejected["de"]
        assert expected <= set(found)
        if not gates:
            assert found == {reasons.ANSWERS: 5}
            bad = json.loads((tmp_path / "facts/rejected/translation.answers.jsonl").read_text())
            assert (bad["row"], bad["reason"]) == ("6", "line is not JSON")


def test_mistakes_are_found_before_anything_is_started(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source the dataset lacks, an unknown language, no dataset: told at once, without a Ray."""
    monkeypatch.setattr("hbt_ray.translation.run.ray_session", lambda cpus: pytest.fail("Ray was started"))
    write_corpus(str(tmp_path), 4)
    wanted = settings(str(tmp_path), checkpoints["m2m100"], ["de"])
    for change, named in (
        ({"source": "fr"}, "no texts in 'fr'"),
        ({"targets": ("te",)}, "'te'"),
        ({"dataset": "absent"}, "absent"),
    ):
        with pytest.raises(UserError, match=named):
            translate(wanted.model_copy(update=change))


@pytest.mark.ray
@pytest.mark.slow
def test_an_actors_own_error_is_ours(checkpoints: dict[str, Path], tmp_path: Path, local_ray: None) -> None:
    """A model that an actor cannot load ends the call with a ModelError, not with Ray's."""
    write_corpus(str(tmp_path), 4)
    shutil.copytree(checkpoints["m2m100"], tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="model"):
        translate(settings(str(tmp_path), tmp_path / "model", ["de"]))


# --- kills and storage -----------------------------------------------------------------------------------------------

PROGRAM = """
import json, sys
from pathlib import Path
from hbt_ray.session import prepare_environment
prepare_environment()
if __name__ == "__main__":
    from hbt_ray.translation.run import translate
    from hbt_ray.translation.settings import TranslationSettings
    done = translate(TranslationSettings.model_validate_json(sys.argv[1]))
    print(json.dumps({"translated": done.translated, "pieces": done.pieces}))
"""


def started(wanted: TranslationSettings, folder: Path) -> subprocess.Popen[str]:
    (folder / "program.py").write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, str(folder / "program.py"), wanted.model_dump_json()],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ray's processes are in the group of the first
    )


def finished(process: subprocess.Popen[str]) -> dict[str, int]:
    with process:
        out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    result: dict[str, int] = json.loads(out.splitlines()[-1])
    return result


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """SIGKILL to all its processes at a random point: the next call ends as an unbroken run with one actor does.

    No finished text is translated again: what was done at the kill and what the second call did are all the pieces,
    and the files that were there are the same files still.
    """
    (tmp_path / "whole").mkdir()
    write_corpus(str(tmp_path / "whole"), 100)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    wanted = settings(str(tmp_path / "killed"), checkpoints["m2m100"], ["de", "ar"])
    least = random.randrange(1, 8)
    with started(wanted, tmp_path) as process:
        while len(results(tmp_path / "killed")) < least:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    time.sleep(5)  # Ray's processes notice that their driver has gone
    there = {name: path.stat() for name, path in results(tmp_path / "killed").items()}
    pieces_there = sum(pq.read_metadata(path).num_rows for path in results(tmp_path / "killed").values())

    second = finished(started(wanted, tmp_path))
    assert pieces_there + second["translated"] == 2 * second["pieces"]
    for name, stat in there.items():
        now = results(tmp_path / "killed")[name].stat()
        assert (now.st_ino, now.st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)
    unbroken = finished(
        started(settings(str(tmp_path / "whole"), checkpoints["m2m100"], ["de", "ar"], actors=1), tmp_path)
    )
    assert unbroken["translated"] == 2 * unbroken["pieces"]
    assert files(tmp_path / "killed" / "facts") == files(tmp_path / "whole" / "facts")
    validate(ShardedDataset.open(Folder(str(tmp_path / "killed")) / "facts"))
