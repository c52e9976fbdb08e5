"""A run folder belongs to one configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hbt_ray.config import Config
from hbt_ray.errors import ConfigError
from hbt_ray.storage import write_whole

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
        check_unchanged(
            _fixed(json.loads(path.read_text(encoding="utf-8"))),
            _fixed(resolved),
            f"run.name {config.run.name!r}",
            f"the run in {run_dir}",
            "Choose another run.name, or the old value to resume.",
        )
    write_whole(path, json.dumps(resolved, indent=2, ensure_ascii=False) + "\n")


def check_unchanged(before: Mapping[str, Any], now: Mapping[str, Any], name: str, started: str, fix: str) -> None:
    """Raise ConfigError, with both values, for the first setting that is not what something was started with."""
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            expected = f"{before.get(key)}, with which {started} was started"
            raise ConfigError(f"{name}, {key}", now.get(key), expected, fix)


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
