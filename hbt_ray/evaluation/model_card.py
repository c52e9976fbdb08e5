"""README.md of a model folder: what the encoder was trained on, how to load it, and what it scored where.

The card is made of marked sections, one for the model and one per benchmark. Writing replaces a section and leaves
everything outside of the sections alone, so text added by hand and figures of other benchmarks stay.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import yaml

from hbt_ray.evaluation.metrics import MEASURES
from hbt_ray.evaluation.plots import Cell
from hbt_ray.evaluation.tables import (
    LanguageTable,
    Metrics,
    Value,
    bias_rows,
    check_metrics,
    count_text,
    profile_table,
    setting_rows,
)
from hbt_ray.languages import language

if TYPE_CHECKING:
    from hbt_ray.model.encoder import EncoderSettings

CARD_FILE = "README.md"
MODEL_SECTION = "model"
TAGS = ("sentence-transformers", "feature-extraction", "dense-retrieval", "multilingual", "cross-lingual", "hbt_ray")
COMPARABLE = (
    "Figures compare only with those of the same data hash, ranking depth and rule for ties in the signature.",
    "Every setting is the mean over its cells (pairs of languages), each counting once, not over queries.",
    "Intervals are of 95%, from a bootstrap over questions; they do not cover the choice of the training seed.",
)


def write_model_card(
    folder: Path,
    training: Mapping[str, Any],
    settings: EncoderSettings,
    metrics: Metrics,
    cells: Sequence[Cell] = (),
) -> Path:
    """Write what is known of the model, and its figures on one benchmark, into README.md of `folder`; its path.

    Args:
        folder: exported model.
        training: content of training.json, {} for a model from elsewhere.
        settings: pooling and prompts of the model.
        metrics: content of metrics.json.
        cells: rows of cells.csv, for the table per language; none leaves it out.

    Raises:
        BenchmarkError: metrics lack a key, or cells do not fit the languages.
    """
    check_metrics(metrics, "metrics")
    path = folder / CARD_FILE
    card = path.read_text(encoding="utf-8") if path.exists() else _front_matter(training)
    card = _with_section(card, MODEL_SECTION, _model_section(training, settings))
    name = f"benchmark {quote(metrics['benchmark'])}"
    card = _with_section(card, name, _benchmark_section(training, metrics, cells))
    unfinished = path.with_name(f"{CARD_FILE}.{os.getpid()}.tmp")
    unfinished.write_text(card, encoding="utf-8")
    unfinished.replace(path)
    return path


def _with_section(card: str, name: str, content: str) -> str:
    """The card with a section replaced, or added at its end."""
    begin, end = f"<!-- hbt_ray: {name} -->", f"<!-- hbt_ray: end of {name} -->"
    section = f"{begin}\n{content.strip()}\n{end}"
    present = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if present.search(card):
        return present.sub(lambda _: section, card, count=1)
    return f"{card.rstrip()}\n\n{section}\n"


def _front_matter(training: Mapping[str, Any]) -> str:
    facts = {
        "language": list(training.get("languages", ())),
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": list(TAGS),
    }
    if not facts["language"]:
        del facts["language"]
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---\n"


# The model


def _model_section(training: Mapping[str, Any], settings: EncoderSettings) -> str:
    title = training.get("run") or "Dense retriever"
    return "\n\n".join(
        [
            f"# {_text(title)}",
            "A dual encoder for monolingual, cross-lingual and multilingual search: it turns queries and passages into "
            "vectors of length one, whose inner product is their similarity.",
            *_training_facts(training),
            "## Use",
            "With sentence-transformers:",
            _code(_sentence_transformers_code()),
            "With transformers:",
            _code(_transformers_code(settings)),
        ]
    )


def _training_facts(training: Mapping[str, Any]) -> list[str]:
    """Heading and table of what training.json says; nothing where there is none."""
    mix = training.get("mix", {})
    languages = [f"{language(code).name} ({code})" for code in training.get("languages", ())]
    datasets = [f"{name} ({count_text(rows)} pairs)" for name, rows in training.get("datasets", {}).items()]
    facts = {
        "Backbone": Path(training["backbone"]).name if "backbone" in training else None,
        "Languages": ", ".join(languages) or None,
        "Datasets": ", ".join(datasets) or None,
        "Mix": ", ".join(f"{key} {value}" for key, value in mix.items() if value is not None) or None,
        "Temperature": training.get("temperature"),
        "Batch size": training.get("batch_size"),
        "Step": training.get("step"),
        "Seed": training.get("seed"),
    }
    rows = [[name, _text(value)] for name, value in facts.items() if value is not None]
    return ["## Training", _table(["", ""], rows)] if rows else []


def _sentence_transformers_code() -> str:
    return """
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
queries = model.encode(["What is a dual encoder?"], prompt_name="query")
passages = model.encode(["A dual encoder embeds queries and passages apart."], prompt_name="passage")
scores = queries @ passages.T
"""


def _transformers_code(settings: EncoderSettings) -> str:
    pooled = {
        "mean": "(output.last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)",
        "cls": "output.last_hidden_state[:, 0]",
        "pooler": "output.pooler_output",
    }[settings.pooling]
    mask = '    mask = batch["attention_mask"].unsqueeze(-1)\n' if settings.pooling == "mean" else ""
    return f"""
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
encoder = AutoModel.from_pretrained("path/to/this/folder").eval()


@torch.inference_mode()
def encode(texts):
    batch = tokenizer(texts, padding=True, truncation=True, max_length={settings.max_tokens}, return_tensors="pt")
    output = encoder(**batch)
{mask}    return torch.nn.functional.normalize({pooled}, dim=-1)


queries = encode([{settings.query_prefix!r} + "What is a dual encoder?"])
passages = encode([{settings.passage_prefix!r} + "A dual encoder embeds queries and passages apart."])
scores = queries @ passages.T
"""


# A benchmark


def _benchmark_section(training: Mapping[str, Any], metrics: Metrics, cells: Sequence[Cell]) -> str:
    name = metrics["benchmark"]
    notes = [
        *metrics["notes"],
        *training.get("notes", {}).get(name.partition("+")[0], ()),
        *_left_out(metrics),
        *COMPARABLE,
    ]
    languages = profile_table(cells, metrics["languages"], training.get("languages")) if cells else None
    return "\n\n".join(
        [
            f"## Results: {_text(name)}",
            _settings_table(metrics),
            "### Language bias",
            _bias_table(metrics["language_bias"]),
            *(["### Languages", _languages_table(languages)] if languages else []),
            "### Notes",
            "\n".join(f"- {_text(note)}" for note in dict.fromkeys(notes)),
            f"Signature: `{metrics['signature']}`",
        ]
    )


def _left_out(metrics: Metrics) -> list[str]:
    counts = {code: count for code, count in metrics["queries_without_relevant"].items() if count}
    listed = ", ".join(f"{language(code).name} {count_text(count)}" for code, count in counts.items())
    return [f"Queries without a relevant candidate are left out: {listed}."] if counts else []


def _settings_table(metrics: Metrics) -> str:
    rows = [
        [row.setting.name, row.absent, *[""] * (len(MEASURES) - 1), row.cells, row.queries]
        if row.absent
        else [row.setting.name, *map(_with_note, row.values), row.cells, row.queries]
        for row in setting_rows(metrics)
    ]
    return _table(["Setting", *MEASURES, "Cells", "Queries"], rows)


def _bias_table(bias: Metrics) -> str:
    rows = [
        [
            row.label,
            _with_note(row.value),
            row.direction,
            _text(f"{row.meaning} ({row.undefined})" if row.undefined else row.meaning),
        ]
        for row in bias_rows(bias)
    ]
    return _table(["Measure", "Value", "Direction", "Meaning"], rows)


def _languages_table(table: LanguageTable) -> str:
    headers = [
        group.name if len(group.columns) == 1 else f"{group.name}: {column}"
        for group in table.groups
        for column in group.columns
    ]
    seen_known = any(row.seen is not None for row in table.rows)
    headers = ["Language", *(["In training"] if seen_known else []), *headers]
    rows = [
        [
            f"{row.language.name} ({row.language.code})",
            *(["seen" if row.seen else "unseen"] if seen_known else []),
            *(value.text for value in row.values),
        ]
        for row in table.rows
    ]
    means = [
        [mean.label, *([""] if seen_known else []), *(value.text for value in mean.values)] for mean in table.means
    ]
    return _table(headers, rows + means)


# Markdown


def _with_note(value: Value) -> str:
    return f"{value.text} ({value.note})" if value.note else value.text


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(code: str) -> str:
    return f"```python\n{code.strip()}\n```"


def _text(value: object) -> str:
    """Text that can stand in a cell of a table and holds no markup."""
    return html.escape(" ".join(str(value).split()), quote=False).replace("|", "\\|")
