"""The record of checkpoints, what is done about damaged ones, and another world size under ZeRO."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
import yaml
from checkpoint_ranks import IDENTITY, STAGES, load_train, train_save_train, write_record
from ports import free_port
from ray.train._internal.session import _TrainingResult
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext
from ray.train.v2._internal.execution.training_report import _TrainingReport
from tokenizers import Tokenizer

from hbt_ray.config import Config
from hbt_ray.errors import ConfigError, Interrupted, TrainingError
from hbt_ray.mixing.reader import SliceReader, StepRow, Tokenisation, step_rows
from hbt_ray.mixing.source import training_source
from hbt_ray.model.encoder import tokenizer_json
from hbt_ray.storage import Folder
from hbt_ray.train.checkpoint import loadable, restore
from hbt_ray.train.control import interrupted_by_sigterm
from hbt_ray.train.metrics_log import append, complete, cut_unfinished_line
from hbt_ray.train.record import Saved, accepted, alpha_before, check_identity, identity, newest_intact
from hbt_ray.train.retention import Retention, best_export, mend_record, prune


def put(storage: Folder, step: int, **metrics: Any) -> tuple[str, dict[str, Any]]:
    """A checkpoint folder of two files, and what was reported with it."""
    name = f"step-{step:08d}-abcd"
    files = {"engine/engine/shard.pt": 1000 + step, "engine/latest": 6}
    for path, size in files.items():
        (storage / name).write(path, bytes(size))
    report = {"step": step, "world_size": 2, "identity": IDENTITY, "files": files, "exported": False, "log": []}
    return name, report | metrics


@pytest.fixture
def storage(tmp_path: Path) -> Folder:
    """Checkpoints of steps 10, 20 and 30, accepted."""
    folder = Folder(str(tmp_path / "run"))
    write_record(folder, [put(folder, step) for step in (10, 20, 30)])
    return folder


def shard(storage: Folder, step: int) -> Path:
    return Path(storage.path(f"step-{step:08d}-abcd")) / "engine" / "engine" / "shard.pt"


def names_after(storage: Folder) -> list[str]:
    return [saved.name for saved in accepted(storage)]


def test_a_fresh_folder_has_no_checkpoint(tmp_path: Path) -> None:
    """Nothing accepted, nothing to go on from, nothing to mend."""
    folder = Folder(str(tmp_path / "absent"))
    mend_record(folder)
    assert accepted(folder) == []
    assert newest_intact(folder) == (None, [])


def test_accepted_checkpoints_are_newest_first(storage: Folder) -> None:
    """By the order of their reports, with what was reported."""
    newest, *_ = found = accepted(storage)
    assert [saved.step for saved in found] == [30, 20, 10]
    assert (newest.world_size, newest.identity, newest.files["engine/latest"]) == (2, IDENTITY, 6)


def test_a_cut_file_sends_us_back_one_checkpoint(storage: Folder) -> None:
    """The message names the file, the size found and the size written."""
    os.truncate(shard(storage, 30), 17)
    saved, (message,) = newest_intact(storage)
    assert saved is not None
    assert saved.step == 20
    assert "step-00000030-abcd is damaged: engine/engine/shard.pt has 17 bytes, 1030 bytes were written" in message


def test_a_missing_file_sends_us_back_too(storage: Folder) -> None:
    """Two damaged ones, one behind the other; with the third there is none left."""
    shard(storage, 30).unlink()
    os.truncate(shard(storage, 20), 1021)  # longer than written is damage as well
    saved, messages = newest_intact(storage)
    assert saved is not None
    assert saved.step == 10
    assert "is missing, 1030 bytes were written" in messages[0]
    assert len(messages) == 2
    os.truncate(shard(storage, 10), 0)
    assert newest_intact(storage)[0] is None


def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path) -> None:
    """A record whose metrics are not ours says so instead of failing later."""
    folder = Folder(str(tmp_path))
    write_record(folder, [("checkpoint_000000", {"loss": 1.0})])
    with pytest.raises(ConfigError, match="a checkpoint without 'step'"):
        accepted(folder)


def test_identity_names_what_differs(toy_config: Config) -> None:
    """Another seed, model or ZeRO stage is refused with both values; what may change is no part of it."""
    before = identity(toy_config, "0123abcd")
    saved = Saved("step-00000010-abcd", 10, 1, before, {}, {})
    check_identity(saved, json.loads(json.dumps(before)))
    free = {"train.steps": 9, "train.log_every": 1, "train.checkpoint_every": 2, "cluster.max_failures": 7}
    free |= {"train.activation_checkpointing": True, "data.root": "/elsewhere"}
    check_identity(saved, identity(toy_config.replaced(free), "0123abcd"))
    with pytest.raises(ConfigError, match=r"^run\.seed: got 14; expected 13, with which checkpoint step-00000010-abcd"):
        check_identity(saved, identity(toy_config.replaced({"run.seed": 14}), "0123abcd"))
    with pytest.raises(ConfigError, match=r"^model weights: got 4567cdef; expected 0123abcd"):
        check_identity(saved, identity(toy_config, "4567cdef"))
    with pytest.raises(ConfigError, match=r"^cluster\.zero_stage: got 2; expected 0"):
        check_identity(saved, identity(toy_config.replaced({"cluster.zero_stage": 2}), "0123abcd"))


class Recorded:
    """Ray Train's own checkpoint manager and our retention, as its controller runs them."""

    def __init__(self, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(CheckpointManager, "_notify", lambda self: None)  # needs the controller's event loop
        from ray.train import Checkpoint, CheckpointConfig

        self.folder = folder
        parent, _, name = folder.path().rpartition("/")
        context = StorageContext(parent, name, folder.filesystem)
        self._checkpoint = lambda name: Checkpoint(context.build_checkpoint_path_from_name(name), folder.filesystem)
        self.manager = CheckpointManager(CheckpointConfig(), context)
        self.retention = Retention(folder)

    def report(self, step: int, **metrics: Any) -> None:
        """One checkpoint."""
        name, reported = put(self.folder, step, **metrics)
        checkpoint = self._checkpoint(name)
        self.manager.register_checkpoint(_TrainingReport(checkpoint=checkpoint, metrics=reported, validation=False))
        self.retention.after_report(None, [reported], checkpoint)

    @property
    def latest(self) -> _TrainingResult:
        """What Ray would hand to the workers."""
        return self.manager.latest_checkpoint_result


def test_the_newest_three_and_the_best_export_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind Ray's own manager, which starts again from the record after everything else has been deleted."""
    folder = Folder(str(tmp_path / "runs" / "run"))
    ray_train = Recorded(folder, monkeypatch)
    for step, loss in enumerate([3.0, 1.0, float("nan"), 2.0, None, 2.5, None], start=1):
        ray_train.report(step, **({} if loss is None else {"exported": True, "validation_loss": loss}))
    assert folder.folders() == [f"step-0000000{step}-abcd" for step in (2, 5, 6, 7)]
    assert [saved.step for saved in accepted(folder)][:3] == [7, 6, 5]
    mend_record(folder)
    assert [saved.step for saved in accepted(folder)] == [7, 6, 5, 2]
    best = best_export(accepted(folder))
    assert best is not None
    assert best.step == 2
    again = Recorded(folder, monkeypatch)
    assert again.latest.metrics["step"] == 7
    again.report(8)
    assert [saved.step for saved in accepted(folder)] == [8, 7, 6, 5, 2]
    assert folder.folders() == [f"step-0000000{step}-abcd" for step in (2, 6, 7, 8)]


@pytest.mark.parametrize("left", [0, 1, 200])
def test_a_record_cut_short_by_a_crash_is_mended(left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray overwrites it in place; killed while it does, it would refuse to start. Then the copy counts."""
    folder = Folder(str(tmp_path / "runs" / "run"))
    ray_train = Recorded(folder, monkeypatch)
    ray_train.report(1)
    ray_train.report(2)
    monkeypatch.setattr(ray_train.retention, "after_report", lambda *arguments: None)
    ray_train.report(3)
    record = Path(folder.path("checkpoint_manager_snapshot.json"))
    os.truncate(record, left)
    assert [saved.step for saved in accepted(folder)] == [2, 1]
    mend_record(folder)
    assert [saved.step for saved in accepted(folder)] == [2, 1]
    assert Recorded(folder, monkeypatch).latest.metrics["step"] == 2
    assert "step-00000003-abcd" not in folder.folders()  # never accepted: it will be written again


def test_the_first_record_cut_short_is_a_fresh_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no copy yet, and nothing to lose."""
    folder = Folder(str(tmp_path / "runs" / "run"))
    folder.write("checkpoint_manager_snapshot.json", b'{"ray_ver')
    mend_record(folder)
    assert accepted(folder) == []
    Recorded(folder, monkeypatch).report(1)
    assert [saved.step for saved in accepted(folder)] == [1]


def test_a_lost_folder_leaves_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray refuses a record with a checkpoint that is gone, even if it is not the one to go on from."""
    folder = Folder(str(tmp_path / "runs" / "run"))
    ray_train = Recorded(folder, monkeypatch)
    for step in (1, 2, 3):
        ray_train.report(step)
    for step in (1, 3):
        folder.filesystem.delete_dir(folder.path(f"step-0000000{step}-abcd"))
    mend_record(folder)
    assert [saved.step for saved in accepted(folder)] == [2]
    assert Recorded(folder, monkeypatch).latest.metrics["step"] == 2


def test_a_folder_that_cannot_be_deleted_is_no_reason_to_stop(
    storage: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning, and the next checkpoint tries again."""
    write_record(storage, [put(storage, step) for step in (10, 20, 30, 40)])
    path = Path(storage.path("step-00000010-abcd"))
    entry = path / "engine"
    real = os.path.exists(entry)
    assert real

    class Refusing:
        def delete_dir(self, path: str) -> None:
            raise OSError("busy")

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "filesystem", Refusing())
        prune(storage)
    assert "cannot delete" in caplog.text
    assert path.exists()
    prune(storage)
    assert not path.exists()


def test_metrics_survive_a_killed_controller(tmp_path: Path) -> None:
    """Half a line is dropped; steps that only the checkpoint's report has are added; nothing comes twice."""
    path = tmp_path / "metrics.jsonl"
    assert append(path, {"log": [{"step": 0}, {"step": 1}]}, -1) == 1
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    report: Mapping[str, Any] = {"log": [{"step": step} for step in (1, 2, 3)], "validation_loss": 0.5}
    cut_unfinished_line(path)
    complete(path, report)
    complete(path, report)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"step": 0}, {"step": 1}, {"step": 2}, {"step": 3, "validation_loss": 0.5}]
    cut_unfinished_line(tmp_path / "absent.jsonl")
    complete(tmp_path / "absent.jsonl", {"log": []})
    assert not (tmp_path / "absent.jsonl").exists()


def test_a_fresh_run_restores_nothing(storage: Folder) -> None:
    """No checkpoint, no collective: the context gives None and `restore` an empty state."""
    with loadable(None, storage, 1, 0) as source:
        assert source is None
        assert restore(object(), source) == {}


def test_an_engine_without_its_files_is_an_error(tmp_path: Path) -> None:
    """DeepSpeed answers None where it finds nothing; training must not go on from random weights."""
    from hbt_ray.train.checkpoint import Loadable

    class Engine:
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])

        def load_checkpoint(self, folder: str, tag: str) -> tuple[None, None]:
            return None, None

    with pytest.raises(TrainingError, match="no checkpoint of the engine"):
        restore(Engine(), Loadable(tmp_path, universal=False))


def test_interrupted_says_where_it_goes_on() -> None:
    """And survives the way between processes."""
    import pickle

    error = pickle.loads(pickle.dumps(Interrupted(7)))
    assert error.step == 7
    assert "resumes at step 7" in str(error)
    assert "newest checkpoint" in str(Interrupted())


# --- another world size ----------------------------------------------------------------------------------------------


def rows_of(config: Config, model: Path, world_size: int) -> list[StepRow]:
    """The slices of steps 0, 1 and 2, rank by rank."""
    tokenizer = Tokenizer.from_str(tokenizer_json(str(model)))
    source = training_source(config, config.data.root)
    readers = [
        SliceReader(source, Tokenisation("Query: ", "Passage: ", 16, 16), rank, world_size)
        for rank in range(world_size)
    ]
    return [next(step_rows(reader.read([step], tokenizer))) for step in range(3) for reader in readers]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_world_size_loads_the_same_state(
    before: int, after: int, toy_config: Config, toy_model: Path, tmp_path: Path
) -> None:
    """Under every ZeRO stage weights and both moments of every parameter are bitwise those at the break.

    The step after it shows that the counter in Adam's bias correction came back too: loss and weights are those of the
    ranks that were never changed, but for rounding.
    """
    for job, world_size in ((train_save_train, before), (load_train, after)):
        rows = rows_of(toy_config, toy_model, world_size)
        mp.spawn(job, (world_size, free_port(), str(toy_model), rows, str(tmp_path)), nprocs=world_size, join=True)
    for stage in STAGES:
        _assert_same_state(tmp_path / f"zero-{stage}", before if stage else 0, before)


def _assert_same_state(folder: Path, partitions: int, world_size: int) -> None:
    theirs, ours = (torch.load(folder / name, weights_only=False) for name in ("before.pt", "after.pt"))
    assert ours["tensors"].keys() == theirs["tensors"].keys()
    different = [name for name, value in theirs["tensors"].items() if not torch.equal(ours["tensors"][name], value)]
    assert different == [], folder.name
    assert ours["groups"] == theirs["groups"], folder.name
    assert (ours["state"]["step"], ours["state"]["best"]) == (2, 0.25)
    assert torch.equal(ours["state"]["random"], torch.arange(3))
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    for name, value in theirs["stepped"].items():
        torch.testing.assert_close(ours["stepped"][name], value, rtol=1e-3, atol=1e-4, msg=f"{folder.name}: {name}")
    (saved,) = accepted(Folder(str(folder)))
    assert (saved.world_size, saved.exported) == (world_size, True)
    assert "model/model.safetensors" in saved.files
    assert sum("optim_states" in path for path in saved.files) == partitions


def test_signals_are_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """First SIGTERM asks, the second raises Interrupted; afterwards the old handler is back."""
    from hbt_ray.train import control

    asked: list[float] = []

    class Method:
        def remote(self) -> None:
            asked.append(time.monotonic())

    class Handle:
        request_stop = Method()

    monkeypatch.setattr(control.ray, "get", lambda answer: answer)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted), control.stopped_by_sigterm(Handle()):
        _terminated_twice(asked)
    assert signal.getsignal(signal.SIGTERM) is before


def _terminated_twice(asked: list[float]) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    deadline = time.monotonic() + 5
    while not asked and time.monotonic() < deadline:
        time.sleep(0.01)
    assert asked
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("waiting", ["ray.wait", "ray.get", "time.sleep"])
def test_sigterm_ends_what_waits_for_ray(waiting: str) -> None:
    """A sweep or a study spends its time in calls of Ray, which swallow most of what a signal handler raises."""
    import ray

    @ray.remote(num_cpus=0)
    def endless() -> None:
        time.sleep(120)

    task = endless.remote()
    calls = {
        "ray.wait": lambda: ray.wait([task], timeout=30),
        "ray.get": lambda: ray.get(task, timeout=30),
        "time.sleep": lambda: time.sleep(30),
    }
    before = signal.getsignal(signal.SIGTERM)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    began = time.monotonic()
    with pytest.raises(Interrupted), interrupted_by_sigterm():
        calls[waiting]()
    assert time.monotonic() - began < 15
    assert signal.getsignal(signal.SIGTERM) is before
    ray.cancel(task, force=True)


# --- a killed command ------------------------------------------------------------------------------------------------

STEPS = 60


@dataclass(frozen=True)
class Command:
    """`hbt-ray train` on the toy corpus: a few dozen steps, a checkpoint every fifth."""

    file: Path
    out: Path

    @property
    def metrics(self) -> Path:
        """Its metrics.jsonl."""
        return self.out / "toy" / "metrics.jsonl"

    def start(self) -> subprocess.Popen[str]:
        """Start it, with its own Ray."""
        program = [sys.executable, "-m", "hbt_ray.cli", "train", str(self.file), "--set", f"run.out={self.out}"]
        return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def rows(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return [json.loads(line) for line in self.metrics.read_text().splitlines()]

    def wait_for_step(self, process: subprocess.Popen[str], step: int) -> None:
        """Until that step is in metrics.jsonl."""
        while process.poll() is None:
            if self.metrics.exists() and self.metrics.read_bytes().count(b"\n") > step:
                return
            time.sleep(0.1)
        raise AssertionError(process.stderr.read() if process.stderr else "")


@pytest.fixture(scope="module")
def command_file(toy_config: Config, toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of the commands."""
    changes = {"model.backbone": str(toy_model), "train.steps": STEPS, "train.log_every": 1}
    changes |= {"train.validate_every": 20, "train.checkpoint_every": 5}
    path = tmp_path_factory.mktemp("commands") / "toy.yaml"
    path.write_text(yaml.safe_dump(toy_config.replaced(changes).model_dump(mode="json")))
    return path


@pytest.fixture(scope="module")
def unbroken_losses(command_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of the command that nobody disturbs."""
    command = Command(command_file, tmp_path_factory.mktemp("unbroken"))
    process = command.start()
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return [row["loss"] for row in command.rows()]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_killed_command_goes_on_bit_for_bit(unbroken_losses: list[float], command_file: Path, tmp_path: Path) -> None:
    """SIGTERM leaves a checkpoint at the step where it came and exits with 143; after SIGKILL at most five are lost.

    The same command then ends the run: every step once in metrics.jsonl, with the loss of the undisturbed run.
    """
    command = Command(command_file, tmp_path)
    checkpoints = Folder(str(tmp_path / "toy" / "checkpoints" / "toy"))
    process = command.start()
    command.wait_for_step(process, 7)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 143, errors
    newest = accepted(checkpoints)[0]
    assert f"resumes at step {newest.step}, where a checkpoint was written" in errors
    assert not newest.exported
    assert [row["step"] for row in command.rows()] == list(range(newest.step))

    again = command.start()
    command.wait_for_step(again, newest.step + 7)
    again.kill()
    _, errors = again.communicate()
    assert again.returncode == -signal.SIGKILL, errors
    assert newest.step <= accepted(checkpoints)[0].step < STEPS

    last = command.start()
    _, errors = last.communicate()
    assert last.returncode == 0, errors
    rows = command.rows()
    assert [row["step"] for row in rows] == list(range(STEPS))
    assert [row["loss"] for row in rows] == unbroken_losses


@pytest.mark.parametrize(
    ("alpha", "step", "seen"),
    [
        (0.5, 10, [[0, 0.5]]),
        ({"points": [[0, 0.5], [10, 0.7]], "interpolation": "step"}, 10, [[0, 0.5]]),
        ({"points": [[0, 0.5], [10, 0.7]], "interpolation": "step"}, 11, [[0, 0.5], [10, 0.7]]),
        ({"points": [[4, 0.5], [6, 0.5], [8, 0.7]], "interpolation": "step"}, 11, [[0, 0.5], [8, 0.7]]),
        ({"points": [[0, 0.0], [10, 0.7]], "interpolation": "step"}, 5, [[0, 0.0], ["later", "above 0"]]),
        (0.0, 5, [[0, 0.0]]),
        ({"points": [[0, 0.0], [10, 0.7]], "interpolation": "linear"}, 5,
         {"points": [[0, 0.0], [10, 0.7]], "interpolation": "linear"}),
    ],
)  # fmt: skip
def test_what_steps_have_seen_of_alpha(alpha: object, step: int, seen: object) -> None:
    """Two runs may share a checkpoint exactly if this is equal: plans up to there are the same."""
    assert alpha_before(alpha, step) == seen
