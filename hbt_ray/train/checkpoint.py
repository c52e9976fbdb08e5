"""Checkpoints: the engine's shards for resuming, some with the encoder as a finished export beside them.

    <storage>/<run>/step-00000400-3f9a/engine/          one shard of every rank
    <storage>/<run>/step-00000400-3f9a/model/           the encoder, where the step was validated

Which checkpoints there are, and whether they are whole, says Ray Train's record (hbt_ray.train.record).
"""

from __future__ import annotations

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

from hbt_ray.errors import TrainingError
from hbt_ray.model.encoder import EncoderSettings
from hbt_ray.model.export import export_encoder
from hbt_ray.storage import Folder
from hbt_ray.train.engine import full_weights
from hbt_ray.train.record import Saved, newest_intact

ENGINE = "engine"
EXPORT = "model"
CONVERTERS = 4  # processes that take a checkpoint apart for another world size

# --- reading ---------------------------------------------------------------------------------------------------------


def agreed_newest(storage: Folder) -> Saved | None:
    """The newest intact checkpoint as rank 0 finds it. All ranks must call it, and all get the same."""
    choice = [newest_intact(storage)[0] if dist.get_rank() == 0 else None]
    with _group_of_hosts() as hosts:
        dist.broadcast_object_list(choice, src=0, group=hosts)
    return choice[0]


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
