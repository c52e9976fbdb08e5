"""Run the training loop under Ray Train: from a configuration to an exported encoder and its metrics log."""

from __future__ import annotations

import logging
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import ray.data
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from hbt_ray.config import Config
from hbt_ray.corpus.leakage_reports import kept_reports
from hbt_ray.corpus.shards import open_corpus
from hbt_ray.errors import Interrupted, TrainingError, UserError
from hbt_ray.mixing.reader import Tokenisation
from hbt_ray.mixing.source import PlanSource, plan_languages, training_source, validation_sources
from hbt_ray.mixing.stream import PlanPipeline
from hbt_ray.model.encoder import EncoderSettings, check_folder, resolve_backbone, tokenizer_json
from hbt_ray.model.export import model_hash, read_training, write_training
from hbt_ray.session import check_workers
from hbt_ray.storage import Folder
from hbt_ray.train.checkpoint import EXPORT
from hbt_ray.train.control import start_control, stopped_by_sigterm
from hbt_ray.train.data import PlanDataConfig, missing_steps, same_steps
from hbt_ray.train.gauges import TrainingGauges
from hbt_ray.train.loop import Job, train_worker
from hbt_ray.train.metrics_log import Follower, MetricsLog, Rows, complete, cut_unfinished_line, validated
from hbt_ray.train.non_finite import write_batch
from hbt_ray.train.record import (
    CheckpointAddress,
    Saved,
    accepted,
    adopt,
    check_identity,
    damage,
    identity,
    newest_intact,
)
from hbt_ray.train.retention import Retention, best_export, mend_record, validation_loss
from hbt_ray.train.retrieval import Retrieval

SCRATCH = "scratch"
METRICS = "metrics.jsonl"
TOKENIZER_TEXTS = 400_000  # enough for a vocabulary; a corpus of 40M pairs need not be read twice

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """A finished run.

    Args:
        run_dir: its folder.
        model_dir: the exported encoder of the best validation.
        steps: steps done.
        best_step: the step of that validation.
        best_validation_loss: None without held-out documents.
        metrics: all that was found there: `validation_loss`, `validation_loss/<mode>`, `validation/<retrieval metric>`.
        checkpoint: the newest, from which another run may begin.
    """

    run_dir: Path
    model_dir: Path
    steps: int
    best_step: int
    best_validation_loss: float | None
    metrics: dict[str, float]
    checkpoint: CheckpointAddress


def fit(
    config: Config,
    run_dir: Path,
    root: str,
    on_rows: Callable[[Rows], None] = lambda rows: None,
    *,
    retrieval: Retrieval | None = None,
    begin: CheckpointAddress | None = None,
    until: int | None = None,
) -> FitResult:
    """Train in the current Ray session; the same run folder resumes, a finished one returns at once.

    Args:
        config: what to train.
        run_dir: absolute folder of the run, claimed (run_folder.py): config.json, metrics.jsonl, checkpoints, model/.
        root: resolved corpus folder.
        on_rows: called on the driver with new rows of metrics.jsonl while training goes on.
        retrieval: what to retrieve at validations.
        begin: a checkpoint of another run to start from, if this one has none; that run may differ in α, after it.
        until: the step to end at; the plan and the learning rate stay those of train.steps.

    Raises:
        UserError: configuration, corpus, model or resources that cannot work, storage that cannot be written,
            checkpoints of another training in it.
        TrainingError: the workers failed more often than cluster.max_failures allows, a loss or gradient was not a
            number, all checkpoints are damaged.
        Interrupted: SIGTERM; a checkpoint was written and the same command resumes.
    """
    checkpoints = Folder(config.run.storage or str(run_dir / "checkpoints"))
    storage = checkpoints / config.run.name
    storage.check_writable()
    backbone = prepare_backbone(config, root, run_dir)
    must_agree = identity(config, _backbone_hash(backbone, config.model.revision)) | _shards(config, root)
    if begin is not None and not accepted(storage):
        adopt(begin, storage)
    saved = _resume_point(storage, must_agree)
    last_step = config.train.steps if until is None else min(until, config.train.steps)
    if saved is None or not (saved.metrics["stopped"] or saved.step >= last_step):
        job = Job(
            config=config,
            backbone=backbone,
            settings=encoder_settings(config),
            validation_weights=validation_weights(config, tuple(validation_sources(config, root))),
            storage=storage.uri,
            identity=must_agree,
            last_step=last_step,
            retrieval=retrieval,
        )
        _train(job, root, checkpoints, run_dir, saved, on_rows)
    return _finish(config, root, storage, run_dir)


def _resume_point(storage: Folder, must_agree: Mapping[str, Any]) -> Saved | None:
    """The checkpoint to go on from, after Ray's record is in order; None for a fresh run.

    Raises:
        ConfigError: the newest checkpoint is of another training.
        TrainingError: there are checkpoints, and all are damaged.
    """
    for saved in accepted(storage)[:1]:
        check_identity(saved, must_agree)
    mend_record(storage)
    intact, damages = newest_intact(storage)
    for message in damages:
        logger.warning("%s", message)
    if damages and intact is None:
        raise TrainingError(f"no intact checkpoint is left in {storage.uri}: {damages[0]}; delete it to start anew")
    if damages and intact is not None:
        logger.warning("going on from checkpoint %s, step %d", intact.name, intact.step)
    return intact


def _train(
    job: Job,
    root: str,
    checkpoints: Folder,
    run_dir: Path,
    saved: Saved | None,
    on_rows: Callable[[Rows], None],
) -> None:
    """Run the workers to the last step. Raises TrainingError, Interrupted."""
    metrics = run_dir / METRICS
    cut_unfinished_line(metrics)
    control = start_control()
    trainer = _trainer(replace(job, control=control), root, checkpoints, metrics)
    with Follower(metrics, on_rows):
        if saved is not None:
            complete(metrics, saved.metrics)
        with stopped_by_sigterm(control):
            _run(trainer)
        outcome = ray.get(control.outcome.remote())
    ray.kill(control)
    if outcome is None:
        return
    if outcome["outcome"] == "interrupted":
        raise Interrupted(outcome["step"])
    path = write_batch(job.config, root, outcome["step"], run_dir)
    raise TrainingError(f"loss or gradient of step {outcome['step']} is not a finite number; its pairs are in {path}")


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
        from hbt_ray.model.scratch import build_scratch  # seconds of imports that other backbones do without

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


def _backbone_hash(backbone: str, revision: str | None) -> str:
    """Stands for the weights to start from: their hash, or for a model of a hub its name and revision."""
    folder = Path(backbone)
    return model_hash(folder) if folder.is_dir() else f"{backbone}@{revision}"


def _shards(config: Config, root: str) -> dict[str, Any]:
    """Stands for the training data: 12 hex digits over the checksums of each dataset's files."""
    datasets = open_corpus(Folder(root), config.data.datasets)
    return {"training data": {dataset.name: dataset.data_hash[:12] for dataset in datasets}}


def _trainer(job: Job, root: str, checkpoints: Folder, metrics: Path) -> TorchTrainer:
    config = job.config
    model, cluster = config.model, config.cluster
    storage = Folder(job.storage)
    check_workers(cluster)
    tokens = Tokenisation(
        model.query_prefix,
        model.passage_prefix,
        model.max_query_tokens,
        model.max_passage_tokens,
        config.train.hard_negatives,
    )
    tokenizer = ray.put(tokenizer_json(job.backbone, model.revision))
    validation = validation_sources(config, root)
    datasets: dict[str, Callable[[], PlanPipeline]] = {
        "train": partial(missing_steps, training_source(config, root), tokens, tokenizer, storage, job.last_step)
    }
    for mode, source in validation.items():
        source.open()
        pipeline = PlanPipeline(source, tokens, tokenizer, 0, config.data.hold_out.batches // min(2, len(validation)))
        datasets[f"validation/{mode}"] = partial(same_steps, pipeline)
    resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": 1.0} if cluster.gpu else {})
    return TorchTrainer(
        partial(train_worker, job),  # not as train_loop_config: Ray's controller would import all that a job needs
        torch_config=TorchConfig(backend="nccl" if cluster.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(cluster.min_workers, cluster.workers) if cluster.min_workers else cluster.workers,
            use_gpu=cluster.gpu,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=config.run.name,
            storage_path=checkpoints.path(),
            storage_filesystem=checkpoints.filesystem,
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            callbacks=[MetricsLog(metrics), TrainingGauges(config.run.name), Retention(storage)],
        ),
        datasets=datasets,
        dataset_config=PlanDataConfig(),
    )


def validation_weights(config: Config, modes: Sequence[str]) -> dict[str, float]:
    """Weight of each held-out mode in the validation loss: as often as training draws it, equal under a schedule."""
    alpha = config.mix.alpha
    drawn = {"X-X-mono": alpha, config.mix.mixed: 1.0 - alpha} if isinstance(alpha, float) else {}
    weights = {mode: drawn.get(mode, 0.0) for mode in modes}
    if any(weights.values()):
        return weights
    trained = {"X-X-mono", config.mix.mixed}
    return {mode: float(mode in trained) for mode in modes}


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
    """Copy the best checkpoint's export to `model/`, here and in run.storage, with what it was trained on."""
    checkpoints = accepted(storage)
    best = best_export([saved for saved in checkpoints if saved.exported and damage(saved, storage) is None])
    if best is None:
        raise TrainingError(f"no intact export of the encoder is left in {storage.uri}")
    model_dir, unfinished = run_dir / "model", run_dir / "model.partial"
    shutil.rmtree(unfinished, ignore_errors=True)
    (storage / best.name / EXPORT).download(unfinished)
    write_training(unfinished, _training_facts(config, root, best.step))
    shutil.rmtree(model_dir, ignore_errors=True)
    unfinished.rename(model_dir)
    if config.run.storage:
        (storage / EXPORT).upload(model_dir)
    return FitResult(
        run_dir,
        model_dir,
        steps=checkpoints[0].step,
        best_step=best.step,
        best_validation_loss=validation_loss(best),
        metrics=validated(best.metrics),
        checkpoint=CheckpointAddress(storage.uri, checkpoints[0].name),
    )


def _training_facts(config: Config, root: str, step: int) -> dict[str, Any]:
    datasets = open_corpus(Folder(root), config.data.datasets)
    notes: dict[str, list[str]] = {}
    for dataset in datasets:
        for benchmark, note in dataset.manifest.provenance.get("notes", {}).items():
            notes.setdefault(benchmark, []).append(note)
    hashes = {dataset.name: dataset.data_hash for dataset in datasets}
    reports = kept_reports([Folder(root), *(dataset.folder for dataset in datasets)], hashes)
    backbone = config.model.backbone
    return {
        "run": config.run.name,
        "seed": config.run.seed,
        "step": step,
        "languages": plan_languages(datasets, config.data.languages),
        "datasets": {dataset.name: dataset.manifest.rows for dataset in datasets},
        "corpus": root,
        "data_hashes": hashes,
        "leakage": [report.model_dump(mode="json") for report in reports],
        "chosen_on": list(config.run.chosen_on),
        "mix": config.mix.model_dump(mode="json"),
        "temperature": config.train.temperature,
        "batch_size": config.train.batch_size,
        "backbone": backbone,
        "backbone_training": {} if backbone == SCRATCH else read_training(Path(resolve_backbone(backbone))),
        "notes": notes,
    }
