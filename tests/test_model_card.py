"""Model cards: figures of the report in Markdown, code that runs, sections that replace themselves."""

import json

import numpy as np
import pytest
import yaml

from hbt_ray.errors import BenchmarkError
from hbt_ray.evaluation.metrics import MEASURES
from hbt_ray.evaluation.model_card import write_model_card
from hbt_ray.evaluation.tables import BIAS
from hbt_ray.model.encoder import EncoderSettings, read_settings
from hbt_ray.model.export import model_hash

SETTINGS = EncoderSettings("mean", "query: ", "passage: ", 64)
TRAINING = {
    "run": "hybrid",
    "seed": 13,
    "step": 20_000,
    "languages": ["ar", "de"],
    "datasets": {"squad-mt": 87_599},
    "mix": {"alpha": 0.5, "rho": 1.0, "schedule": None},
    "temperature": 0.01,
    "batch_size": 512,
    "backbone": "/home/someone/models/mE5-base",
    "notes": {"toy": ["Paragraphs are disjoint."], "other": ["Not for this benchmark."]},
}


def setting(score):
    return {
        **dict.fromkeys(MEASURES, score),
        "cells": 2,
        "queries": 1190,
        "intervals": {measure: [score - 0.01, score + 0.01] for measure in MEASURES},
    }


def metrics_of(benchmark="toy", score=0.5):
    return {
        "benchmark": benchmark,
        "languages": ["ar", "el"],
        "monolingual": setting(score),
        "cross_lingual": {**dict.fromkeys(MEASURES), "cells": 0, "queries": 0, "intervals": {}},
        "multilingual": setting(0.25),
        "language_bias": {
            **dict.fromkeys(BIAS, 0.125),
            "peer": None,
            "queries": 1190,
            "intervals": {"rank_distance": [100.0, 300.0]},
            "undefined": {"peer": "one relevant candidate per language"},
            "by_query_language": {},
            "language_share@10": {},
        },
        "pool": {"ar": 1000, "el": 1001},
        "queries_without_relevant": {"el": 3},
        "notes": ["Restricted | to <some> queries."],
        "signature": f"hbt_ray 0.1|{benchmark}|data:0123456789ab|model:ba9876543210",
    }


CELLS = [
    {"query_language": code, "candidate_language": code, "queries": 10, **dict.fromkeys(MEASURES, score)}
    for code, score in (("ar", 0.6), ("el", 0.4))
]


@pytest.fixture
def card(tmp_path):
    return write_model_card(tmp_path, TRAINING, SETTINGS, metrics_of(), CELLS).read_text(encoding="utf-8")


def rows_of(card):
    """Cells of all table rows."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in card.splitlines() if line[:1] == "|"]


def test_front_matter_says_what_a_hub_reads(card):
    """Languages, library, task and tags are YAML at the top of the file."""
    _, front, _ = card.split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["language"] == ["ar", "de"]
    assert facts["library_name"] == "sentence-transformers"
    assert facts["pipeline_tag"] == "sentence-similarity"
    assert {"sentence-transformers", "hbt_ray"} <= set(facts["tags"])


def test_card_has_the_training_facts(card):
    """What the encoder was trained on, without the folder that the backbone lay in and without settings not set."""
    facts = {row[0]: row[1] for row in rows_of(card) if len(row) == 2}
    assert facts["Languages"] == "Arabic (ar), German (de)"
    assert facts["Datasets"] == "squad-mt (87,599 pairs)"
    assert facts["Mix"] == "alpha 0.5, rho 1.0"
    assert (facts["Temperature"], facts["Seed"], facts["Step"]) == ("0.01", "13", "20000")
    assert facts["Backbone"] == "mE5-base"
    assert "/home" not in card
    assert "# hybrid" in card


def test_card_has_the_figures_of_the_report(card):
    """Settings with intervals, bias with direction, languages, notes and signature."""
    rows = {row[0]: row for row in rows_of(card)}
    assert rows["Monolingual"][1:] == ["0.5000 (0.4900 – 0.5100)"] * 6 + ["2", "1,190"]
    assert rows["Cross-lingual"][1] == "not defined: no query has candidates in another language"
    assert rows["Rank distance"][1:3] == ["0.1 (100.0 – 300.0)", "lower is better"]
    assert rows["PEER"][1] == "–"
    assert "one relevant candidate per language" in rows["PEER"][3]
    assert rows["Arabic (ar)"][:3] == ["Arabic (ar)", "seen", "0.6000"]
    assert rows["Greek (el)"][:3] == ["Greek (el)", "unseen", "0.4000"]
    assert f"`{metrics_of()['signature']}`" in card
    assert "- Paragraphs are disjoint." in card
    assert "Not for this benchmark." not in card
    assert "Greek 3" in card


def test_tables_are_whole(card):
    """Every row of a table has the cells of its header, whatever the texts contain."""
    lengths, blocks = [], []
    for line in card.splitlines():
        if line.startswith("|"):
            lengths.append(line.replace("\\|", "").count("|"))
        elif lengths:
            blocks.append(lengths)
            lengths = []
    assert len(blocks) == 4
    assert all(len(set(block)) == 1 for block in blocks)
    assert "Restricted \\| to &lt;some&gt; queries." in card


def test_writing_again_changes_nothing(card, tmp_path):
    """The card is the same however often it is written."""
    path = write_model_card(tmp_path, TRAINING, SETTINGS, metrics_of(), CELLS)
    assert path.read_text(encoding="utf-8") == card
    assert [one.name for one in tmp_path.iterdir()] == ["README.md"]


def test_benchmarks_stand_side_by_side(card, tmp_path):
    """A second benchmark is added; the first, evaluated again, is replaced in its place."""
    write_model_card(tmp_path, TRAINING, SETTINGS, metrics_of("beir-a--> b", 0.75))
    text = write_model_card(tmp_path, TRAINING, SETTINGS, metrics_of("toy", 0.625)).read_text(encoding="utf-8")
    assert text.count("## Results: ") == 2
    assert text.index("## Results: toy") < text.index("## Results: beir-a--&gt; b")
    assert "0.6250 (0.6150 – 0.6350)" in text
    assert "0.7500 (0.7400 – 0.7600)" in text
    assert "0.5000 (0.4900" not in text
    assert text.count("# hybrid") == 1


def test_text_outside_of_the_sections_stays(card, tmp_path):
    """A licence in the front matter and a paragraph of one's own survive another evaluation."""
    path = tmp_path / "README.md"
    mine = card.replace("---\n", "---\nlicense: mit\n", 1) + "\nMy own \\1 words.\n"
    path.write_text(mine, encoding="utf-8")
    write_model_card(tmp_path, TRAINING, SETTINGS, metrics_of("toy", 0.625))
    text = path.read_text(encoding="utf-8")
    assert text.startswith("---\nlicense: mit\n")
    assert text.endswith("\nMy own \\1 words.\n")
    assert "0.6250" in text


def test_a_model_from_elsewhere_keeps_its_card(tmp_path):
    """Where a README lies already, the sections go below it; nothing is said of a training that is not known."""
    path = tmp_path / "README.md"
    path.write_text("# Their model\n", encoding="utf-8")
    text = write_model_card(tmp_path, {}, SETTINGS, metrics_of()).read_text(encoding="utf-8")
    assert text.startswith("# Their model\n")
    assert "## Training" not in text
    assert "## Results: toy" in text


def test_unknown_training_has_no_languages_in_the_front_matter(tmp_path):
    """No language is claimed that is not known."""
    text = write_model_card(tmp_path, {}, SETTINGS, metrics_of()).read_text(encoding="utf-8")
    assert "language" not in yaml.safe_load(text.split("---\n")[1])


def test_incomplete_metrics_are_refused(tmp_path):
    """Metrics that lack something name the missing key, and no card is written."""
    with pytest.raises(BenchmarkError, match="expected also signature"):
        write_model_card(tmp_path, TRAINING, SETTINGS, {k: v for k, v in metrics_of().items() if k != "signature"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("pooling", "expression"),
    [("mean", ".sum(dim=1) / mask.sum(dim=1)"), ("cls", "last_hidden_state[:, 0]"), ("pooler", "pooler_output")],
)
def test_code_pools_as_the_encoder_does(tmp_path, pooling, expression):
    """Both snippets are Python, with the pooling of the model."""
    settings = EncoderSettings(pooling, 'a "quoted" prompt: ', "", 64)
    card = write_model_card(tmp_path, {}, settings, metrics_of()).read_text(encoding="utf-8")
    first, second = snippets(card)
    compile(first, "card", "exec")
    compile(second, "card", "exec")
    assert expression in second


def snippets(card):
    return [part.split("```")[0] for part in card.split("```python\n")[1:]]


def test_code_of_the_card_runs_and_both_ways_agree(toy_model, tmp_path):
    """The two snippets, as printed, load the model and give the same vectors, prompts included."""
    prompts = json.loads((toy_model / "config_sentence_transformers.json").read_text())
    folder = tmp_path / "model"
    folder.mkdir()
    for path in toy_model.rglob("*"):
        target = folder / path.relative_to(toy_model)
        target.mkdir(parents=True) if path.is_dir() else target.write_bytes(path.read_bytes())
    prompts["prompts"] = {"query": "query: ", "passage": "passage: "}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    before = model_hash(folder)
    card = write_model_card(folder, TRAINING, read_settings(folder), metrics_of())
    assert model_hash(folder) == before, "a card does not make it another model"
    results = []
    for code in snippets(card.read_text(encoding="utf-8")):
        names = {}
        exec(code.replace("path/to/this/folder", str(folder)), names)
        results.append([np.asarray(names["queries"]), np.asarray(names["passages"]), np.asarray(names["scores"])])
    for theirs, plain in zip(*results, strict=True):
        np.testing.assert_allclose(theirs, plain, atol=1e-6)
    assert not np.allclose(results[0][0], results[0][1])
