"""A run folder belongs to one configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hbt_ray.config import Config
from hbt_ray.errors import ConfigError

RESOLVED = "config.json"
FIXED_SECTIONS = ("data", "mix", "model", "train")
MAY_CHANGE = frozenset(
    f"train.{key}"
    for key in (
        *("steps", "log_every", "checkpoint_every"),
        *("chunk_tokens", "gradient_cache", "activation_checkpointing", "compile"),
    )
)


def claim_folder(run_dir: Path, config: Config, root: str) -> None:
    """Make the run folder with the resolved configuration in it, or refuse one that another configuration has used.

    What may change between a run and its resumption: the number of steps, how often to log and to save, how a step is
    computed (chunks, recomputation, compilation), the workers, the tracking; the ZeRO stage and the seed may not.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    resolved = config.model_dump(mode="json") | {"corpus": root}
    path = run_dir / RESOLVED
    if path.exists():
        before, now = _fixed(json.loads(path.read_text(encoding="utf-8"))), _fixed(resolved)
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise ConfigError(
                    f"run.name {config.run.name!r}, {key}",
                    now.get(key),
                    f"{before.get(key)}, with which the run in {run_dir} was started",
                    "Choose another run.name, or the old value to resume.",
                )
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(json.dumps(resolved, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


def fixed_settings(config: Config) -> dict[str, Any]:
    """The settings, as section.key, that no resumption may change; JSON values."""
    return _fixed(config.model_dump(mode="json"))


def _fixed(resolved: Mapping[str, Any]) -> dict[str, Any]:
    settings = {f"{section}.{key}": value for section in FIXED_SECTIONS for key, value in resolved[section].items()}
    settings |= {
        "run.seed": resolved["run"]["seed"],
        "cluster.zero_stage": resolved["cluster"]["zero_stage"],
    }
    return {key: value for key, value in settings.items() if key not in MAY_CHANGE}
