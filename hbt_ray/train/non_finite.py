"""Which pairs were in the batch whose loss was not a number, so that they can be looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hbt_ray.config import Config
from hbt_ray.corpus.shards import ShardedDataset
from hbt_ray.mixing.source import training_source


def write_batch(config: Config, root: str, step: int, run_dir: Path) -> Path:
    """Write the pairs of the batch of a step as JSON and return the file: pair_id, row, languages of each."""
    opened = training_source(config, root).open()
    spec = opened.plan[step]
    languages = opened.plan.languages
    query = [languages[code] for code in spec.query_language]
    passage = [languages[code] for code in spec.passage_language]
    ids = _pair_ids(opened.datasets[spec.dataset], spec.rows)
    pairs: list[dict[str, Any]] = [
        {"pair_id": pair_id, "row": row, "query_language": q, "passage_language": p}
        for pair_id, row, q, p in zip(ids, spec.rows.tolist(), query, passage, strict=True)
    ]
    batch = {"step": step, "mode": spec.mode, "dataset": spec.dataset, "pairs": pairs}
    path = run_dir / f"non-finite-step-{step:08d}.json"
    path.write_text(json.dumps(batch, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _pair_ids(dataset: ShardedDataset, rows: npt.NDArray[np.int64]) -> list[str]:
    """Every language has the ids of all rows, so the first will do."""
    starts = dataset.group_starts
    groups = np.searchsorted(starts, rows, side="right") - 1
    ids = {
        group: dataset.read_group(dataset.manifest.languages[0], group, ["pair_id"])["pair_id"].to_pylist()
        for group in set(groups.tolist())
    }
    return [ids[group][row - starts[group]] for group, row in zip(groups.tolist(), rows.tolist(), strict=True)]
