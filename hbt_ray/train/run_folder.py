"""A run folder belongs to one configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hbt_ray.config import Config
from hbt_ray.errors import ConfigError

RESOLVED = "config.json"


def claim_folder(run_dir: Path, config: Config, root: str) -> None:
    """Make the run folder with the resolved configuration in it, or refuse one that another configuration has used.

    What may change between a run and its resumption: the number of steps, the workers, the tracking.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    resolved = config.model_dump(mode="json") | {"corpus": root}
    path = run_dir / RESOLVED
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        for key, (old, new) in _differences(_fixed(before), _fixed(resolved)).items():
            raise ConfigError(
                f"run.name {config.run.name!r}, {key}",
                new,
                f"{old}, with which the run in {run_dir} was started",
                "Choose another run.name, or the old value to resume.",
            )
    path.write_text(json.dumps(resolved, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _fixed(resolved: dict[str, Any]) -> dict[str, Any]:
    fixed = {section: dict(resolved[section]) for section in ("data", "mix", "model", "train")}
    fixed["train"].pop("steps")
    fixed["run"] = {"seed": resolved["run"]["seed"]}
    return fixed


def _differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        f"{section}.{key}": (old[section].get(key), new[section].get(key))
        for section in old
        for key in old[section].keys() | new[section].keys()
        if old[section].get(key) != new[section].get(key)
    }
