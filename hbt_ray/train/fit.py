"""Run the training loop under Ray Train: from a configuration to an exported encoder and its metrics log."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import ray.data
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from hbt_ray.config import Config
from hbt_ray.corpus.shards import open_corpus
from hbt_ray.errors import ResourceError, TrainingError, UserError
from hbt_ray.mixing.reader import Tokenisation
from hbt_ray.mixing.source import PlanSource, plan_languages, training_source, validation_sources
from hbt_ray.mixing.stream import PlanPipeline
from hbt_ray.model.encoder import EncoderSettings, check_folder, resolve_backbone, tokenizer_json
from hbt_ray.model.export import write_training
from hbt_ray.model.scratch import build_scratch
from hbt_ray.storage import Folder
from hbt_ray.train.checkpoint import EXPORT
from hbt_ray.train.data import PlanDataConfig
from hbt_ray.train.loop import Job, train_worker
from hbt_ray.train.metrics_log import Follower, MetricsLog, Rows

SCRATCH = "scratch"
METRICS = "metrics.jsonl"
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's own record of the checkpoints it has accepted
TOKENIZER_TEXTS = 400_000  # enough for a vocabulary; a corpus of 40M pairs need not be read twice


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
        run_dir: absolute folder of the run, claimed (run_folder.py): config.json, metrics.jsonl, checkpoints, model/.
        root: resolved corpus folder.
        on_rows: called on the driver with new rows of metrics.jsonl while training goes on.

    Raises:
        UserError: configuration, corpus, model or resources that cannot work.
        TrainingError: the workers failed more often than cluster.max_failures allows.
    """
    backbone = prepare_backbone(config, root, run_dir)
    storage = Folder(config.run.storage or str(run_dir / "checkpoints"))
    newest = _newest_metrics(storage / config.run.name)
    if not (newest.get("stopped") or newest.get("step", 0) >= config.train.steps):
        with Follower(run_dir / METRICS, on_rows):
            _run(_trainer(config, root, backbone, storage, run_dir / METRICS))
    return _finish(config, root, storage / config.run.name, run_dir)


def check_backbone(config: Config) -> None:
    """Raise ModelError naming what a given model folder lacks."""
    if config.model.backbone != SCRATCH:
        check_folder(Path(resolve_backbone(config.model.backbone)))


def prepare_backbone(config: Config, root: str, folder: Path) -> str:
    """The folder or name the encoder starts from; `scratch` is built once, in `folder`/scratch."""
    if config.model.backbone != SCRATCH:
        check_backbone(config)
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
        train_loop_config={
            "job": Job(config, backbone, encoder_settings(config), validation_weights(config, tuple(validation)))
        },
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


def validation_weights(config: Config, modes: Sequence[str]) -> dict[str, float]:
    """Weight of each held-out mode in the validation loss: as often as training draws it, equal under a schedule."""
    alpha = config.mix.alpha
    if not isinstance(alpha, float):
        return dict.fromkeys(modes, 1.0)
    share = {"X-X-mono": alpha}
    weights = {mode: share.get(mode, 1.0 - alpha) for mode in modes}
    return weights if any(weights.values()) else dict.fromkeys(modes, 1.0)


def _missing_steps(
    config: Config, source: PlanSource, tokens: Tokenisation, tokenizer: ray.ObjectRef, storage: Folder
) -> PlanPipeline:
    """Asked at every start of the worker group: the plan from the end of the newest checkpoint on."""
    return PlanPipeline(source, tokens, tokenizer, int(_newest_metrics(storage).get("step", 0)), config.train.steps)


def _same(pipeline: PlanPipeline) -> PlanPipeline:
    return pipeline


def _run(trainer: TorchTrainer) -> None:
    """Fit, turning what Ray makes of errors and of Ctrl-C back into what they were."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    interrupt_handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except SystemExit:  # Ray Train's own answer to Ctrl-C, once its workers are gone
        raise KeyboardInterrupt from None
    except ray.train.TrainingFailedError as error:
        causes = list(getattr(error, "worker_failures", {}).values()) or [error]
        for cause in causes:
            if isinstance(cause, UserError):
                raise cause from None
        raise TrainingError(f"training failed: {causes[0]}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt_handler)


def _finish(config: Config, root: str, storage: Folder, run_dir: Path) -> FitResult:
    """Copy the best checkpoint's export to `model/` and say beside it what it was trained on."""
    snapshot = json.loads(storage.read(SNAPSHOT))
    results = snapshot["checkpoint_results"]
    best = min(results, key=lambda result: (result["metrics"].get("validation_loss", 0.0), -result["metrics"]["step"]))
    export = ray.train.Checkpoint(storage.path(f"{best['checkpoint_dir_name']}"), filesystem=storage.filesystem)
    model_dir = run_dir / "model"
    with export.as_directory() as folder:
        shutil.rmtree(model_dir, ignore_errors=True)
        shutil.copytree(Path(folder) / EXPORT, model_dir)
    write_training(model_dir, _training_facts(config, root, best["metrics"]["step"]))
    return FitResult(
        run_dir,
        model_dir,
        steps=int(snapshot["latest_checkpoint_result"]["metrics"]["step"]),
        best_validation_loss=best["metrics"].get("validation_loss"),
    )


def _training_facts(config: Config, root: str, step: int) -> dict[str, Any]:
    datasets = open_corpus(Folder(root), config.data.datasets)
    notes: dict[str, list[str]] = {}
    for dataset in datasets:
        for benchmark, note in dataset.manifest.provenance.get("notes", {}).items():
            notes.setdefault(benchmark, []).append(note)
    return {
        "run": config.run.name,
        "seed": config.run.seed,
        "step": step,
        "languages": plan_languages(datasets, config.data.languages),
        "datasets": {dataset.name: dataset.manifest.rows for dataset in datasets},
        "mix": config.mix.model_dump(mode="json"),
        "temperature": config.train.temperature,
        "batch_size": config.train.batch_size,
        "backbone": config.model.backbone,
        "notes": notes,
    }
