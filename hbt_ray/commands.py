"""What each command does: the rooms wired together, without a word on the terminal."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hbt_ray.config import SAMPLE_ROOT, Config
from hbt_ray.corpus.importers import RejectedRow, usable_pairs, write_rejected
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.records import read_records
from hbt_ray.corpus.sample import DATASETS, PROVENANCE, sample_pairs, write_sample_benchmark
from hbt_ray.corpus.shards import Manifest, open_corpus, write_dataset
from hbt_ray.corpus.squad_mt import SquadMtImport, read_squad_mt
from hbt_ray.corpus.validate import validate
from hbt_ray.errors import ConfigError
from hbt_ray.mixing.mixture import Mixture, realised_mixture
from hbt_ray.mixing.source import training_source
from hbt_ray.storage import Folder

HOME_VARIABLE = "HBT_RAY_HOME"
SAMPLE_FOLDER = "sample"
BENCHMARK_FOLDER = "benchmark"
SQUAD_MT_NOTE = (
    "Training data squad-mt are machine translations of the SQuAD dev set: its 48 articles are the articles of XQuAD-R "
    "(other paragraphs of them), so XQuAD-R results after this training are paragraph-disjoint, not article-disjoint."
)

OnRows = Callable[[list[dict[str, Any]]], None]


def output_root(out: str) -> Path:
    """The absolute output folder of `run.out`.

    A relative one starts at HBT_RAY_HOME when set, else at the current folder; inside a submitted job, whose current
    folder is a temporary copy that ends with the cluster, it starts at ~/hbt_ray.
    """
    path = Path(out).expanduser()
    if path.is_absolute():
        return path
    home = os.environ.get(HOME_VARIABLE)
    if home:
        return Path(home).absolute() / path
    current = Path.cwd()
    return (Path.home() / "hbt_ray" if "_ray_pkg_" in str(current) else current) / path


# --- data ------------------------------------------------------------------------------------------------------------


def write_sample(out: str) -> list[Manifest]:
    """The embedded sample: training datasets below `out`, the held-out benchmark in `out`/benchmark."""
    pairs = sample_pairs()
    manifests = [
        write_dataset(Folder(out), name, pairs[name], DATASETS[name].languages, PROVENANCE, rows_per_group=64)
        for name in pairs
    ]
    write_sample_benchmark(Path(out) / BENCHMARK_FOLDER)
    return manifests


def corpus_root(root: str, out: Path) -> str:
    """The address of `data.root`, absolute; `sample://` is written to `out`/sample the first time."""
    if root != SAMPLE_ROOT:
        return root if "://" in root else str(Path(root).expanduser().absolute())
    folder = out / SAMPLE_FOLDER
    if not (folder / BENCHMARK_FOLDER).exists():  # written last
        write_sample(str(folder))
    return str(folder)


def import_squad_mt(
    source: Path, english: Path, exclude: Sequence[Path], out: str, dataset: str
) -> tuple[Manifest, SquadMtImport]:
    """Join SQuAD-format files of several languages into one dataset; dropped rows go to `rejected/`."""
    imported = read_squad_mt(source, english, exclude)
    provenance = {
        "source": f"SQuAD-format files joined by question id: {', '.join(imported.languages)}",
        "excluded": [path.name for path in exclude],
        "notes": {"xquad-r": SQUAD_MT_NOTE},
    }
    manifest = _write(out, dataset, imported.pairs, imported.languages, provenance)
    _write_rejected(out, dataset, imported.rejected)
    return manifest, imported


def import_records(source: Path, out: str, dataset: str) -> Manifest:
    """Write a JSONL or Parquet file of (pair_id, language, query, passage) rows as one dataset."""
    pairs = read_records(source)
    languages = sorted({lang for pair in pairs for lang in (*pair.query, *pair.passage)})
    return _write(out, dataset, pairs, languages, {"source": source.name})


def _write(
    out: str, dataset: str, pairs: Sequence[ParallelPair], languages: Sequence[str], provenance: Mapping[str, Any]
) -> Manifest:
    if not dataset or "/" in dataset:
        raise ConfigError("--dataset", repr(dataset), "a folder name", "Choose another name.")
    return write_dataset(Folder(out), dataset, pairs, languages, provenance)


def _write_rejected(out: str, dataset: str, rejected: Sequence[RejectedRow]) -> None:
    if rejected:
        write_rejected(rejected, Path(out) / dataset / "rejected" / "rejected.jsonl")


def pair_table(imported: SquadMtImport) -> list[list[int]]:
    """Usable pairs, question language by passage language."""
    return usable_pairs(imported.pairs, imported.languages).tolist()  # type: ignore[no-any-return]


def validate_corpus(root: str) -> list[Manifest]:
    """Check every dataset below a folder. Raises CorpusError at the first broken promise."""
    datasets = open_corpus(Folder(root))
    for dataset in datasets:
        validate(dataset)
    return [dataset.manifest for dataset in datasets]


def mixture(config: Config, steps: int) -> Mixture:
    """What the first steps of a configuration train on, without training."""
    root = corpus_root(config.data.root, output_root(config.run.out))
    return realised_mixture(training_source(config, root).open().plan, steps)


# --- train -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A finished training command."""

    run_dir: Path
    model_dir: Path
    mlflow_run_id: str
    model_version: int | None
    steps: int
    best_validation_loss: float | None

    def summary(self) -> dict[str, Any]:
        """The last line of `hbt-ray train`."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in vars(self).items()}


def train(config: Config, on_rows: OnRows) -> Trained:
    """Train, track and register one configuration; the same run name resumes. Raises UserError, TrainingError."""
    from hbt_ray.model.encoder import embedding_width
    from hbt_ray.session import ray_session
    from hbt_ray.tracking.registry import register
    from hbt_ray.tracking.runs import open_run, tracking_store
    from hbt_ray.train.fit import check_backbone, fit
    from hbt_ray.train.run_folder import claim_folder

    out = output_root(config.run.out)
    run_dir = out / config.run.name
    root = corpus_root(config.data.root, out)
    # Mistakes of data, mix, batch and model surface before anything is started.
    training_source(config, root).open()
    check_backbone(config)
    claim_folder(run_dir, config, root)
    with ray_session(config.cluster.workers * config.cluster.cpus_per_worker):
        run = open_run(
            tracking_store(out),
            config.tracking.experiment,
            config.run.name,
            run_dir,
            config.model_dump(mode="json"),
        )

        def deliver(rows: list[dict[str, Any]]) -> None:
            on_rows(rows)
            run.log_rows(rows)

        try:
            result = fit(config, run_dir, root, deliver)
        except BaseException as error:
            run.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
    version = None
    if config.tracking.registered_model:
        version = register(
            run,
            result.model_dir,
            config.tracking.registered_model,
            config.tracking.alias,
            embedding_width(result.model_dir),
        )
    run.finish()
    return Trained(run_dir, result.model_dir, run.run_id, version, result.steps, result.best_validation_loss)


# --- evaluate --------------------------------------------------------------------------------------------------------


def evaluate_model(
    model: str,
    benchmark_name: str,
    data: Path,
    out: Path,
    *,
    languages: Sequence[str] | None = None,
    save_to: Path | None = None,
    actors: int = 2,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Encode a benchmark with a model folder or `models:/` address and score every cell; results go to `out`."""
    from hbt_ray.evaluation.benchmarks import load_benchmark
    from hbt_ray.evaluation.embeddings import save_embeddings
    from hbt_ray.evaluation.encoding import encode_benchmark
    from hbt_ray.evaluation.matrix import evaluate_on_ray
    from hbt_ray.model.encoder import check_folder, read_settings
    from hbt_ray.model.export import model_hash, read_training
    from hbt_ray.session import ray_session

    benchmark = load_benchmark(benchmark_name, data, languages)
    folder, run = _model_folder(model)
    check_folder(folder)
    training = read_training(folder)
    with ray_session(actors):
        embeddings = encode_benchmark(benchmark, str(folder), read_settings(folder), actors, on_progress)
        if save_to:
            save_embeddings(save_to, embeddings)
        evaluation = evaluate_on_ray(benchmark, embeddings, actors, model=model_hash(folder), seed=training.get("seed"))
    metrics = _write_evaluation(evaluation, out, model, training)
    if run:
        run.log_evaluation(metrics, out)
    return metrics


def evaluate_embeddings_folder(
    embeddings_dir: Path, benchmark_name: str, data: Path, out: Path, *, languages: Sequence[str] | None = None
) -> dict[str, Any]:
    """Score embeddings made elsewhere; results go to `out`."""
    from hbt_ray.evaluation.benchmarks import load_benchmark
    from hbt_ray.evaluation.embeddings import load_embeddings
    from hbt_ray.evaluation.matrix import evaluate_embeddings

    benchmark = load_benchmark(benchmark_name, data, languages)
    evaluation = evaluate_embeddings(benchmark, load_embeddings(embeddings_dir, benchmark))
    return _write_evaluation(evaluation, out, str(embeddings_dir), {})


def _model_folder(model: str) -> tuple[Path, Any]:
    """Local folder of a model, and the MLflow run to log its evaluation to (None if it has none in this store)."""
    from hbt_ray.model.encoder import resolve_backbone
    from hbt_ray.tracking.registry import MODELS_SCHEME, download_model
    from hbt_ray.tracking.runs import RUN_FILE, run_of_folder, tracking_store

    if model.startswith(MODELS_SCHEME):
        return download_model(model, tracking_store(_store_folder()))
    folder = Path(resolve_backbone(model))
    run_dir = folder.absolute().parent
    if not (run_dir / RUN_FILE).exists():
        return folder, None
    return folder, run_of_folder(run_dir, tracking_store(run_dir.parent))


def _store_folder() -> Path:
    """The output folder whose MLflow store is meant when a command has no configuration."""
    return output_root("runs")


def _write_evaluation(evaluation: Any, out: Path, model: str, training: Mapping[str, Any]) -> dict[str, Any]:
    from hbt_ray.evaluation.matrix import write_results
    from hbt_ray.evaluation.plots import save_heatmap
    from hbt_ray.evaluation.report import write_report

    write_results(evaluation, out)
    metrics: dict[str, Any] = evaluation.metrics()
    cells = [cell.row() for cell in evaluation.cells]
    save_heatmap(cells, evaluation.languages, out / "heatmap.png", title=f"{evaluation.benchmark_name}: mAP")
    write_report(
        out,
        metrics,
        cells,
        title=f"{evaluation.benchmark_name}: {model}",
        notes=training.get("notes", {}).get(evaluation.benchmark_name, ()),
        seen_languages=training.get("languages"),
    )
    return metrics
