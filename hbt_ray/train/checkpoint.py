"""Checkpoints: the engine's shards for resuming, some with the encoder as a finished export beside them.

    <storage>/<run>/checkpoint_manager_snapshot.json    Ray Train's record of the checkpoints that it has accepted
    <storage>/<run>/step-00000400-3f9a/engine/          one shard of every rank
    <storage>/<run>/step-00000400-3f9a/model/           the encoder, where the step was validated

A checkpoint counts only once Ray Train has it in its record, with the size of every file of every rank: one that was
cut short by a crash is not there, one that was damaged later is found out and the one before it used.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray.train
import torch.distributed as dist
from ray.train import Checkpoint
from torch import Tensor

from hbt_ray.config import Config
from hbt_ray.errors import ConfigError, TrainingError
from hbt_ray.model.encoder import EncoderSettings
from hbt_ray.model.export import export_encoder
from hbt_ray.storage import Folder
from hbt_ray.train.engine import full_weights
from hbt_ray.train.run_folder import fixed_settings

ENGINE = "engine"
EXPORT = "model"
RECORD = "checkpoint_manager_snapshot.json"
RECORD_COPY = "checkpoint_manager_snapshot.copy.json"
CONVERTERS = 4  # processes that take a checkpoint apart for another world size

# --- which checkpoints there are -------------------------------------------------------------------------------------


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


def agreed_newest(storage: Folder) -> Saved | None:
    """The newest intact checkpoint as rank 0 finds it. All ranks must call it, and all get the same."""
    choice = [newest_intact(storage)[0] if dist.get_rank() == 0 else None]
    with _group_of_hosts() as hosts:
        dist.broadcast_object_list(choice, src=0, group=hosts)
    return choice[0]


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


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loadable:
    """A local folder that the engine can load; `universal`: in DeepSpeed's format for any world size."""

    folder: Path
    universal: bool


@contextmanager
def loadable(saved: Saved | None, storage: Folder, world_size: int, zero_stage: int) -> Iterator[Loadable | None]:
    """The engine's files of a checkpoint on this node, while the context is open; None for a fresh run.

    All ranks must enter it. One rank of every node downloads them and, when ZeRO partitions of another world size must
    be cut anew, converts them; the others wait.

    Raises:
        TrainingError: on every rank, what failed on one.
    """
    if saved is None:
        yield None
        return
    universal = zero_stage > 0 and saved.world_size != world_size
    with tempfile.TemporaryDirectory(prefix="hbt_ray-checkpoint-") as name:
        folder = _once_per_node(lambda: _fetched(saved, storage, Path(name), universal))
        yield Loadable(folder, universal)
        dist.barrier()  # the rank that owns the folder leaves it when all have read


def restore(engine: Any, source: Loadable | None) -> dict[str, Any]:
    """Load weights and optimizer state into a fresh engine; the state that was saved with them, {} for a fresh run.

    Raises:
        TrainingError: DeepSpeed found nothing to load.
    """
    if source is None:
        return {}
    own = [{key: value for key, value in group.items() if key != "params"} for group in engine.optimizer.param_groups]
    path, state = engine.load_checkpoint(str(source.folder), tag=ENGINE)
    if path is None:
        raise TrainingError(f"no checkpoint of the engine in {source.folder}")
    if source.universal:
        _mend_universal(engine, own)
    return dict(state)


def _mend_universal(engine: Any, groups: Sequence[Mapping[str, Any]]) -> None:
    """What DeepSpeed gets wrong under ZeRO 3, with more than one parameter group.

    Every group gets the settings of the first, its weight decay too; and all share one tensor as Adam's counter, which
    every group then counts on.
    """
    for group, settings in zip(engine.optimizer.param_groups, groups, strict=True):
        group.update(settings)
    for moments in engine.optimizer.optimizer.state.values():
        if isinstance(moments.get("step"), Tensor):
            moments["step"] = moments["step"].clone()


def _once_per_node(work: Callable[[], Path]) -> Path:
    """The result of the node's first rank. Raises TrainingError on all ranks when it failed on any node."""
    node = os.environ.get("NODE_RANK", "0")  # absent where a launcher knows one node only
    mine: tuple[str, Path | None, str | None] | None = None
    if os.environ["LOCAL_RANK"] == "0":
        try:
            mine = (node, work(), None)
        except Exception as error:  # the other ranks wait for an answer, whatever it was
            mine = (node, None, f"{type(error).__name__}: {error}")
    answers: list[Any] = [None] * dist.get_world_size()
    with _group_of_hosts() as hosts:
        dist.all_gather_object(answers, mine, group=hosts)
    by_node = {answer[0]: answer[1:] for answer in answers if answer is not None}
    for name, (_, failure) in by_node.items():
        if failure is not None:
            raise TrainingError(f"cannot fetch the checkpoint on node {name}: {failure}")
    return Path(by_node[node][0])


@contextmanager
def _group_of_hosts() -> Iterator[Any]:
    """All ranks, talking host to host: NCCL would need every rank's GPU, which the engine has not chosen yet."""
    group = dist.new_group(backend="gloo")
    yield group
    dist.destroy_process_group(group)


def _fetched(saved: Saved, storage: Folder, scratch: Path, universal: bool) -> Path:
    """A local folder with the engine's files below `ENGINE`; a checkpoint on this filesystem is used where it lies."""
    source = storage / saved.name / ENGINE
    if isinstance(source.filesystem, pafs.LocalFileSystem):
        local = Path(source.path())
    else:
        local = scratch / "downloaded"
        own = f"{ENGINE}/"
        source.download(local, [path.removeprefix(own) for path in saved.files if path.startswith(own)])
    return _converted(local, scratch / "universal") if universal else local


def _converted(folder: Path, target: Path) -> Path:
    """DeepSpeed's own conversion, in a process of its own: it prints much and forks workers."""
    target.mkdir()
    converters = str(min(CONVERTERS, os.cpu_count() or 1))
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(folder / ENGINE), "--output_folder", str(target / ENGINE)]
    command += ["--num_extract_workers", converters, "--num_merge_workers", converters]
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise TrainingError(f"a checkpoint cannot be converted for another world size: {done.stderr[-2000:]}")
    return target


# --- writing ---------------------------------------------------------------------------------------------------------


def save_checkpoint(
    engine: Any,
    tokenizer: Any,
    settings: EncoderSettings,
    *,
    state: Mapping[str, Any],
    metrics: Mapping[str, Any],
    identity: Mapping[str, Any],
    name: str,
    storage: Folder,
    export: bool,
) -> None:
    """Write a checkpoint to the run's storage and report it to Ray Train. All ranks must call it.

    Args:
        engine: DeepSpeed engine.
        tokenizer: of the exported encoder.
        settings: of the exported encoder.
        state: what `restore` gives back.
        metrics: reported with it; `step` is the number of steps done.
        identity: what must agree to resume.
        name: folder below `storage`, never used before.
        storage: the run's own folder.
        export: whether to put the encoder beside the engine's files.
    """
    with tempfile.TemporaryDirectory(prefix="hbt_ray-checkpoint-") as temporary:
        folder = Path(temporary)
        (folder / ENGINE / ENGINE).mkdir(parents=True)  # DeepSpeed makes folders on rank 0 only
        engine.save_checkpoint(str(folder / ENGINE), tag=ENGINE, client_state=dict(state))
        weights = full_weights(engine) if export else None  # gathered on rank 0
        if weights is not None:
            export_encoder(engine.module, tokenizer, folder / EXPORT, settings, weights)
        ray.train.report(
            {
                **metrics,
                "world_size": dist.get_world_size(),
                "identity": dict(identity),
                "exported": export,
                "files": _files_of_all_ranks(folder),
            },
            checkpoint=Checkpoint.from_directory(temporary),
            checkpoint_dir_name=name,
            checkpoint_upload_fn=partial(_upload, storage),
        )


def _files_of_all_ranks(folder: Path) -> dict[str, int]:
    """Bytes of every file by relative path; every rank writes files of its own. Ray keeps rank 0's metrics only."""
    own = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    return {path: size for part in parts for path, size in sorted(part.items())}


def _upload(storage: Folder, checkpoint: Checkpoint, name: str) -> Checkpoint:
    """Ray Train's upload hook: our own, because it tries again."""
    target = storage / name
    target.upload(Path(checkpoint.path))
    return Checkpoint(target.path(), filesystem=ray.train.get_context().get_storage().storage_filesystem)
