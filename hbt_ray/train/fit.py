"""Run the training loop under Ray Train: from a configuration to an exported encoder and its metrics log."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import ray.data
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from hbt_ray.config import Config
from hbt_ray.corpus.shards import open_corpus
from hbt_ray.errors import ConfigError, ResourceError, TrainingError, UserError
from hbt_ray.mixing.source import PlanSource, plan_languages, training_source, validation_sources
from hbt_ray.mixing.reader import Tokenisation
from hbt_ray.mixing.stream import PlanPipeline
from hbt_ray.model.encoder import EncoderSettings, check_folder, resolve_backbone, tokenizer_json
from hbt_ray.model.scratch import build_scratch
from hbt_ray.storage import Folder
from hbt_ray.train.checkpoint import EXPORT
from hbt_ray.train.data import PlanDataConfig
from hbt_ray.train.loop import Job, train_worker

SCRATCH = "scratch"
METRICS = "metrics.jsonl"
RESOLVED = "config.json"
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's own record of the checkpoints it has accepted
TOKENIZER_TEXTS = 400_000  # enough for a vocabulary; a corpus of 40M pairs need not be read twice
POLL_SECONDS = 0.5

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class FitResult:
    """A finished run: its folder, the exported best encoder, steps done, best validation loss (None without one)."""

    run_dir: Path
    model_dir: Path
    steps: int
    best_validation_loss: float | None


def fit(config: Config, run_dir: Path, root: str, on_rows: Callable[[Rows], None] = lambda rows: None) -> FitResult:
    """Train in the current Ray session; the same run folder resumes, a finished one returns at once.

    Args:
        config: what to train.
        run_dir: absolute folder of the run: config.json, metrics.jsonl, checkpoints, model/.
        root: resolved corpus folder.
        on_rows: called on the driver with new rows of metrics.jsonl while training goes on.

    Raises:
        UserError: configuration, corpus, model or resources that cannot work.
        TrainingError: the workers failed more often than cluster.max_failures allows.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    _claim(run_dir, config, root)
    training_source(config, root).open()  # plan mistakes surface here, not inside a task
    backbone = prepare_backbone(config, root, run_dir)
    check_folder(Path(backbone))
    storage = Folder(config.run.storage or str(run_dir / "checkpoints"))
    newest = _newest_metrics(storage / config.run.name)
    if not (newest.get("stopped") or newest.get("step", 0) >= config.train.steps):
        with _tail(run_dir / METRICS, on_rows):
            _run(_trainer(config, root, backbone, storage, run_dir / METRICS))
    return _finish(storage / config.run.name, run_dir)


def prepare_backbone(config: Config, root: str, folder: Path) -> str:
    """The folder or name the encoder starts from; `scratch` is built once, in `folder`/scratch."""
    if config.model.backbone != SCRATCH:
        return resolve_backbone(config.model.backbone)
    target = folder / SCRATCH
    if not target.exists():
        unfinished = folder / f"{SCRATCH}.partial"
        shutil.rmtree(unfinished, ignore_errors=True)
        texts = islice(_texts(training_source(config, root)), TOKENIZER_TEXTS)
        build_scratch(texts, config.model.scratch, encoder_settings(config), config.run.seed, unfinished)
        unfinished.rename(target)
    return str(target)


def encoder_settings(config: Config) -> EncoderSettings:
    """What the export will say of pooling, prompts and length."""
    model = config.model
    return EncoderSettings(
        model.pooling,
        model.query_prefix,
        model.passage_prefix,
        max(model.max_query_tokens, model.max_passage_tokens),
    )


def _texts(source: PlanSource) -> Iterator[str]:
    """Queries and passages of the corpus, part by part and language by language."""
    datasets = open_corpus(Folder(source.root), source.datasets)
    languages = set(plan_languages(datasets, source.languages))
    for dataset in datasets:
        for part in range(len(dataset.manifest.rows_per_part)):
            for lang in dataset.manifest.languages:
                if lang in languages:
                    table = dataset.read_part(lang, part)
                    for column in ("query", "passage"):
                        yield from (text for text in table[column].to_pylist() if text is not None)


def _claim(run_dir: Path, config: Config, root: str) -> None:
    """Save the resolved configuration, or refuse a folder that another configuration has used.

    What may change between a run and its resumption: the number of steps, the workers, the tracking.
    """
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


def _newest_metrics(storage: Folder) -> dict[str, Any]:
    """The metrics of the newest checkpoint that Ray Train has accepted; {} before the first."""
    if not storage.exists(SNAPSHOT):
        return {}
    newest = json.loads(storage.read(SNAPSHOT))["latest_checkpoint_result"]
    return dict(newest["metrics"]) if newest else {}


def _trainer(config: Config, root: str, backbone: str, storage: Folder, metrics: Path) -> TorchTrainer:
    model, cluster = config.model, config.cluster
    if cluster.gpu and ray.cluster_resources().get("GPU", 0) < cluster.workers:
        raise ResourceError(
            "cluster.gpu",
            f"{cluster.workers} workers with a GPU each",
            f"at most {ray.cluster_resources().get('GPU', 0):g}, the GPUs of the cluster",
            "Set cluster.gpu: false, or lower cluster.workers.",
        )
    tokens = Tokenisation(
        model.query_prefix,
        model.passage_prefix,
        model.max_query_tokens,
        model.max_passage_tokens,
    )
    tokenizer = ray.put(tokenizer_json(backbone, model.revision))
    validation = validation_sources(config, root)
    datasets: dict[str, Callable[[], PlanPipeline]] = {
        "train": partial(
            _missing_steps, config, training_source(config, root), tokens, tokenizer, storage / config.run.name
        )
    }
    for mode, source in validation.items():
        source.open()
        pipeline = PlanPipeline(source, tokens, tokenizer, 0, config.data.hold_out.batches // len(validation))
        datasets[f"validation/{mode}"] = partial(_same, pipeline)
    keep = CheckpointConfig(num_to_keep=2)
    if validation:
        keep = CheckpointConfig(
            num_to_keep=2, checkpoint_score_attribute="validation_loss", checkpoint_score_order="min"
        )
    resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": 1.0} if cluster.gpu else {})
    return TorchTrainer(
        train_worker,
        train_loop_config={"job": Job(config, backbone, encoder_settings(config), tuple(validation))},
        torch_config=TorchConfig(backend="nccl" if cluster.gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=cluster.workers, use_gpu=cluster.gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=config.run.name,
            storage_path=storage.uri,
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=keep,
            callbacks=[MetricsLog(metrics)],
        ),
        datasets=datasets,
        dataset_config=PlanDataConfig(),
    )


def _missing_steps(
    config: Config, source: PlanSource, tokens: Tokenisation, tokenizer: ray.ObjectRef, storage: Folder
) -> PlanPipeline:
    """Asked at every start of the worker group: the plan from the end of the newest checkpoint on."""
    return PlanPipeline(source, tokens, tokenizer, int(_newest_metrics(storage).get("step", 0)), config.train.steps)


def _same(pipeline: PlanPipeline) -> PlanPipeline:
    return pipeline


def _run(trainer: TorchTrainer) -> None:
    """Fit, turning what Ray wraps around an error back into the error."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        causes = list(getattr(error, "worker_failures", {}).values()) or [error]
        for cause in causes:
            if isinstance(cause, UserError):
                raise cause from None
        raise TrainingError(f"training failed: {causes[0]}") from error


def _finish(storage: Folder, run_dir: Path) -> FitResult:
    """Copy the best checkpoint's export to `model/`."""
    snapshot = json.loads(storage.read(SNAPSHOT))
    results = snapshot["checkpoint_results"]
    best = min(results, key=lambda result: (result["metrics"].get("validation_loss", 0.0), -result["metrics"]["step"]))
    export = ray.train.Checkpoint(storage.path(f"{best['checkpoint_dir_name']}"), filesystem=storage.filesystem)
    model_dir = run_dir / "model"
    with export.as_directory() as folder:
        shutil.rmtree(model_dir, ignore_errors=True)
        shutil.copytree(Path(folder) / EXPORT, model_dir)
    return FitResult(
        run_dir,
        model_dir,
        steps=int(snapshot["latest_checkpoint_result"]["metrics"]["step"]),
        best_validation_loss=best["metrics"].get("validation_loss"),
    )


class MetricsLog(UserCallback):  # type: ignore[misc]
    """Appends every reported step to metrics.jsonl; runs in the controller, on the driver's node.

    After a restart the steps between the checkpoint and the failure come again, equal; each is written once.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Append the new steps and, with a checkpoint, the validation losses."""
        report = metrics[0]
        written = _last_step(self._path)
        rows = [row for row in report["log"] if row["step"] > written]
        losses = {key: value for key, value in report.items() if key.startswith("validation_loss")}
        if rows and losses:
            rows[-1] = rows[-1] | losses
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def _last_step(path: Path) -> int:
    """Last step of a metrics log, -1 if there is none."""
    if not path.exists():
        return -1
    lines = path.read_text(encoding="utf-8").splitlines()
    return int(json.loads(lines[-1])["step"]) if lines else -1


class _tail:  # noqa: N801  used as a statement
    """Within the context a thread hands every new row of a growing JSONL file to a function."""

    def __init__(self, path: Path, on_rows: Callable[[Rows], None]) -> None:
        self._path = path
        self._on_rows = on_rows
        self._offset = path.stat().st_size if path.exists() else 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._hand_over()

    def _watch(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self._hand_over()

    def _hand_over(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            lines = file.read()
        complete = lines[: lines.rfind(b"\n") + 1]
        self._offset += len(complete)
        if complete:
            self._on_rows([json.loads(line) for line in complete.splitlines()])
