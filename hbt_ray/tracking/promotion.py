"""Results and evidence of registered versions: what the gate reads from the store, and what it leaves there.

An evaluation lies in the artifacts of the run that made the model, in `evaluation/<benchmark>` or a folder below. Its
signature names the hash of the model that was evaluated, and only the results of the very same model are a version's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hbt_ray.errors import ModelError
from hbt_ray.tracking.address import answering_store
from hbt_ray.tracking.registry import CHAMPION, Registry, Version, champion_of

EVALUATIONS = "evaluation"  # folder of a run's artifacts
METRICS = "metrics.json"
EVIDENCE = "promotion"  # folder of a run's artifacts
GATE_TAG = "gate"  # tags of a version begin with it
CHAMPION_CHANGED = "The champion was changed meanwhile. Start again."


@dataclass(frozen=True)
class StoredResults:
    """An evaluation of a version.

    Args:
        benchmark: its name.
        path: folder in the artifacts of the version's run.
        metrics: content of metrics.json.
    """

    benchmark: str
    path: str
    metrics: Mapping[str, Any]


def stored_results(registry: Registry, version: Version, scratch: Path) -> dict[str, StoredResults]:
    """The evaluations of a version by benchmark; those of another model that the same run made are left out.

    `scratch` takes the files that are looked at. Raises ResourceError.
    """
    if not version.run_id:
        return {}
    with answering_store(registry.store.uri):
        folders = [
            folder
            for benchmark in _folders(registry, version.run_id, EVALUATIONS)
            for folder in (benchmark, *_folders(registry, version.run_id, benchmark))
        ]
        found = [results for folder in folders if (results := _results(registry, version.run_id, folder, scratch))]
    return {results.benchmark: results for results in found if _evaluated_model(results.metrics) == version.model_hash}


def download_results(registry: Registry, version: Version, results: StoredResults, to: Path) -> Path:
    """Local copy of a results folder below `to`. Raises ResourceError."""
    to.mkdir(parents=True, exist_ok=True)
    with answering_store(registry.store.uri):
        return Path(registry.client.download_artifacts(version.run_id, results.path, str(to)))


def record_evidence(registry: Registry, version: Version, evidence: Mapping[str, Any], tags: Mapping[str, str]) -> None:
    """Leave what the gate found: as `promotion/<name>-<version>/<date>.json` with the run, and as tags of the version.

    The tags are those of the newest attempt, `gate.evidence` being the whole JSON; the files are those of all attempts.
    """
    text = json.dumps(evidence, ensure_ascii=False)
    with answering_store(registry.store.uri):
        if version.run_id:
            name = f"{EVIDENCE}/{version.name}-{version.number}/{evidence['date'].replace(':', '')}.json"
            registry.client.log_dict(version.run_id, dict(evidence), name)
        for key, value in {**tags, "evidence": text}.items():
            registry.client.set_model_version_tag(version.name, str(version.number), f"{GATE_TAG}.{key}", value)


def move_champion(registry: Registry, version: Version, before: Version | None) -> None:
    """Give the alias to a version. Raises ModelError if it is no longer where it was when the gate looked."""
    now = champion_of(registry, version.name)
    if now != before:
        received = "no version" if now is None else f"version {now.number}"
        expected = "no version" if before is None else f"version {before.number}"
        raise ModelError(f"{version.name}@{CHAMPION}", received, f"{expected}, as before", CHAMPION_CHANGED)
    with answering_store(registry.store.uri):
        registry.client.set_registered_model_alias(version.name, CHAMPION, str(version.number))


def _folders(registry: Registry, run_id: str, path: str) -> list[str]:
    return [item.path for item in registry.client.list_artifacts(run_id, path) if item.is_dir]


def _results(registry: Registry, run_id: str, folder: str, scratch: Path) -> StoredResults | None:
    """The results in a folder; None if there are none."""
    path = f"{folder}/{METRICS}"
    if path not in {item.path for item in registry.client.list_artifacts(run_id, folder)}:
        return None
    scratch.mkdir(parents=True, exist_ok=True)
    file = Path(registry.client.download_artifacts(run_id, path, str(scratch)))
    metrics = json.loads(file.read_text(encoding="utf-8"))
    return StoredResults(metrics["benchmark"], folder, metrics)


def _evaluated_model(metrics: Mapping[str, Any]) -> str | None:
    """The model's hash in the signature of an evaluation."""
    signature: str = metrics["signature"]
    return dict(field.partition(":")[::2] for field in signature.split("|")).get("model")
