"""Ray Train's record: the checkpoints that a run has, which of them are intact, and to which training they belong.

    <storage>/<run>/checkpoint_manager_snapshot.json    the record
    <storage>/<run>/step-00000400-3f9a/                 a checkpoint (hbt_ray.train.checkpoint)

A checkpoint counts only once Ray Train has it in its record, with the size of every file of every rank: one that was
cut short by a crash is not there, one that was damaged later is found out and the one before it used.

Nothing here imports torch: whoever reads the record need not spend those seconds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hbt_ray.config import Config
from hbt_ray.errors import ConfigError
from hbt_ray.storage import Folder
from hbt_ray.train.run_folder import fixed_settings

RECORD = "checkpoint_manager_snapshot.json"
RECORD_COPY = "checkpoint_manager_snapshot.copy.json"


@dataclass(frozen=True)
class Saved:
    """One checkpoint that Ray Train has accepted.

    Args:
        name: folder below the run's storage.
        step: steps done.
        world_size: ranks that wrote it.
        identity: what must agree to resume from it.
        files: bytes of every file of every rank, by path relative to the folder.
        metrics: all that was reported with it.
    """

    name: str
    step: int
    world_size: int
    identity: Mapping[str, Any]
    files: Mapping[str, int]
    metrics: Mapping[str, Any]

    @property
    def exported(self) -> bool:
        """Whether the encoder is beside the engine."""
        return bool(self.metrics["exported"])


@dataclass(frozen=True)
class CheckpointAddress:
    """A checkpoint `name` below a run's `storage`."""

    storage: str
    name: str


def accepted(storage: Folder) -> list[Saved]:
    """The checkpoints of a run in Ray Train's record, newest first; [] for a fresh run. `storage` is the run's own."""
    record = read_record(storage)
    if record is None:
        return []
    in_order = sorted(
        zip(record["checkpoint_report_indices"], record["checkpoint_results"], strict=True),
        key=lambda report: report[0],
        reverse=True,
    )
    return [_saved(result, storage) for _, result in in_order]


def read_record(storage: Folder) -> dict[str, Any] | None:
    """Ray Train's record, else its copy where a crash cut the record short; None before the first checkpoint.

    Ray overwrites its record in place, and the copy only after that: one of the two is always whole.
    """
    for name in (RECORD, RECORD_COPY):
        if storage.exists(name):
            try:
                return dict(json.loads(storage.read(name)))
            except ValueError:
                continue
    return None


def _saved(result: Mapping[str, Any], storage: Folder) -> Saved:
    name, metrics = result["checkpoint_dir_name"], result["metrics"]
    try:
        return Saved(name, metrics["step"], metrics["world_size"], metrics["identity"], metrics["files"], metrics)
    except KeyError as error:
        raise ConfigError(
            f"{storage.uri}/{name}",
            f"a checkpoint without {error}",
            "checkpoints of this version of hbt_ray",
            "Choose another run.name or run.storage.",
        ) from None


def newest_intact(storage: Folder) -> tuple[Saved | None, list[str]]:
    """The newest checkpoint whose files are all there with their sizes, and a message per damaged one before it."""
    messages: list[str] = []
    for saved in accepted(storage):
        found = damage(saved, storage)
        if found is None:
            return saved, messages
        messages.append(found)
    return None, messages


def damage(saved: Saved, storage: Folder) -> str | None:
    """What the first file of a checkpoint that is not as it was written has instead; None for an intact one."""
    sizes = (storage / saved.name).sizes()
    for path, written in saved.files.items():
        found = sizes.get(path)
        if found != written:
            state = "is missing" if found is None else f"has {found} bytes"
            return f"checkpoint {storage.uri}/{saved.name} is damaged: {path} {state}, {written} bytes were written"
    return None


def identity(config: Config, backbone_hash: str) -> dict[str, Any]:
    """What must agree between a run and its checkpoints: settings that decide weights and batches, and the backbone.

    Addresses (data.root, model.backbone) may differ, so that a run can move to another machine.
    """
    settings = fixed_settings(config)
    for address in ("data.root", "model.backbone", "model.revision"):
        del settings[address]
    return settings | {"model weights": backbone_hash}


def check_identity(saved: Saved, identity: Mapping[str, Any]) -> None:
    """Raise ConfigError, naming the key and both values, if a checkpoint belongs to another training."""
    for key in sorted(saved.identity.keys() | identity.keys()):
        before, now = saved.identity.get(key), identity.get(key)
        if key == "mix.alpha":
            before, now = alpha_before(before, saved.step), alpha_before(now, saved.step)
        if before != now:
            raise ConfigError(
                key,
                now,
                f"{before}, with which checkpoint {saved.name} was written",
                "Choose another run.name or run.storage, or the old value to resume.",
            )


def alpha_before(alpha: Any, step: int) -> Any:
    """What the steps before `step` have seen of an α (JSON): a checkpoint may be continued with another one from there.

    Constants and schedules of steps become the list of [step, α] where α changes; a linear schedule stays whole. A plan
    in which α is above 0 only later numbers its streams otherwise than one in which it never is, and so says so.
    """
    if isinstance(alpha, Mapping):
        if alpha["interpolation"] != "step":
            return alpha
        points = alpha["points"]
    else:
        points = [[0, alpha]]
    changes = [[0, points[0][1]]]
    for start, value in points:
        if start < step and value != changes[-1][1]:
            changes.append([start, value])
    rises = max(value for _, value in points) > 0 and max(value for _, value in changes) == 0
    return [*changes, ["later", "above 0"]] if rises else changes


def adopt(address: CheckpointAddress, storage: Folder) -> None:
    """Copy a checkpoint of another run into the empty storage of a run, with its part of Ray Train's record.

    Raises:
        ConfigError: the other run has no such checkpoint, or it is damaged.
    """
    other = Folder(address.storage)
    record = read_record(other)
    saved = next((found for found in accepted(other) if found.name == address.name), None)
    problem = "no such checkpoint" if saved is None or record is None else damage(saved, other)
    if problem is not None:
        raise ConfigError(f"{address.storage}/{address.name}", problem, "an intact checkpoint", "Name another one.")
    assert record is not None
    with tempfile.TemporaryDirectory() as local:
        (other / address.name).download(Path(local) / address.name)
        (storage / address.name).upload(Path(local) / address.name)
    (result,) = [entry for entry in record["checkpoint_results"] if entry["checkpoint_dir_name"] == address.name]
    # Its encoder and the steps that led there are the other run's.
    result["metrics"] |= {"exported": False, "log": []}
    record |= {"checkpoint_report_indices": [0], "checkpoint_results": [result], "latest_checkpoint_result": result}
    storage.write(RECORD, json.dumps(record).encode())
