"""What each command does: the rooms wired together, without a word on the terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from hbt_ray.config import SAMPLE_ROOT, Config
from hbt_ray.corpus.importers import local_source
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.records import read_records
from hbt_ray.corpus.sample import DATASETS, PROVENANCE, sample_pairs, write_sample_benchmark
from hbt_ray.corpus.shards import Manifest, ShardedDataset, open_corpus
from hbt_ray.corpus.squad_mt import read_squad_mt
from hbt_ray.corpus.validate import validate
from hbt_ray.corpus.writer import Rejections, write_pairs
from hbt_ray.errors import ConfigError, Interrupted
from hbt_ray.mixing.mixture import Mixture, realised_mixture
from hbt_ray.mixing.source import training_source
from hbt_ray.settings_file import checked
from hbt_ray.storage import Folder, absolute_address

if TYPE_CHECKING:  # imported where they are used: the command line starts light
    from hbt_ray.corpus.cleaning import Cleaned
    from hbt_ray.description import Description
    from hbt_ray.evaluation.benchmarks import Benchmark, Collection
    from hbt_ray.evaluation.embeddings import Embeddings
    from hbt_ray.evaluation.encoding import EncodingPool
    from hbt_ray.evaluation.evaluate import Embed
    from hbt_ray.evaluation.matrix import Evaluation
    from hbt_ray.evaluation.rankers import Ranker
    from hbt_ray.train.record import CheckpointAddress
    from hbt_ray.train.retrieval import Retrieval

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
        write_pairs(Folder(out), name, pairs[name], DATASETS[name].languages, PROVENANCE, rows_per_group=64)
        for name in pairs
    ]
    write_sample_benchmark(Path(out) / BENCHMARK_FOLDER)
    return manifests


def corpus_root(root: str, out: Path) -> str:
    """The address of `data.root`, absolute; `sample://` is written to `out`/sample the first time."""
    if root != SAMPLE_ROOT:
        return absolute_address(root)
    folder = out / SAMPLE_FOLDER
    if not (folder / BENCHMARK_FOLDER).exists():  # written last
        write_sample(str(folder))
    return str(folder)


def import_squad_mt(source: str, english: str, exclude: Sequence[str], out: str, dataset: str) -> Manifest:
    """Join SQuAD-format files of several languages into one dataset."""
    provenance = {
        "source": "SQuAD-format files joined by question id",
        "excluded": [Path(address).name for address in exclude],
        "notes": {"xquad-r": SQUAD_MT_NOTE},
    }
    with ExitStack() as sources:
        folder, original, *excluded = (sources.enter_context(local_source(it)) for it in (source, english, *exclude))
        return import_pairs(out, dataset, partial(read_squad_mt, folder, original, excluded), provenance)


def import_records(source: str, out: str, dataset: str) -> Manifest:
    """Write a JSONL or Parquet file of (pair_id, language, query, passage) rows as one dataset."""
    with local_source(source) as path:
        return import_pairs(out, dataset, partial(read_records, path), {"source": path.name})


Importer = Callable[..., Iterator[ParallelPair]]  # of a source that is known; takes `reject`


def import_pairs(out: str, dataset: str, importer: Importer, provenance: Mapping[str, Any]) -> Manifest:
    """Write what an importer yields as one dataset; what it leaves out goes to `rejected/import.jsonl` in it."""
    if not dataset or "/" in dataset:
        raise ConfigError("--dataset", repr(dataset), "a folder name", "Choose another name.")
    with Rejections(Folder(out) / dataset, "import") as reject:
        pairs = importer(reject=reject)
        counted = {**provenance, "rejected": reject.counts}
        return write_pairs(Folder(out), dataset, pairs, None, counted, rejections=reject)


def import_format(name: str, source: str, out: str, dataset: str, **options: Any) -> Manifest:
    """Write files of a published format (`corpus.formats.FORMATS`) as one dataset.

    `options` are those of the format's `read_…` in hbt_ray/corpus/formats; one that is None keeps its default.
    """
    module = import_module(f"hbt_ray.corpus.formats.{name.replace('-', '_')}")
    reader = getattr(module, f"read_{name.replace('-', '_')}")
    given = {option: value for option, value in options.items() if value is not None}
    with local_source(source) as path:
        return import_pairs(out, dataset, partial(reader, path, **given), {"source": path.name, "format": name})


def translate_dataset(
    config: Path | None,
    values: Mapping[str, Any],
    settings: Sequence[str],
    on_progress: Callable[[int, int, str], None],
) -> dict[str, Any]:
    """Add machine-translated languages to a dataset; the same command translates only what is missing.

    `values` are settings given by name (None: not given), over those of the file; `on_progress` is told (texts done,
    texts in all, language).
    """
    from hbt_ray.translation.run import translate
    from hbt_ray.translation.settings import translation_settings

    return translate(translation_settings(config, values, settings), on_progress).summary()


def clean_corpus(root: str, out: str, settings: Mapping[str, Any]) -> list[Cleaned]:
    """Write a cleaned copy of every dataset below a folder."""
    from hbt_ray.corpus.cleaning import CleaningSettings, clean

    checked_settings = checked(CleaningSettings, settings, "--set")
    return [clean(dataset, Folder(out), checked_settings) for dataset in open_corpus(Folder(root))]


def describe_corpus(root: str, page: Path | None) -> list[Description]:
    """What every dataset below a folder holds; with a page of it."""
    from hbt_ray.description import describe, write_page

    found = [describe(dataset) for dataset in open_corpus(Folder(root))]
    if page is not None:
        write_page(found, page)
    return found


def pair_table(out: str, dataset: str) -> list[list[int]]:
    """Usable pairs of a dataset, question language by passage language."""
    opened = ShardedDataset.open(Folder(out) / dataset)
    bits = [opened.presence(lang) for lang in opened.manifest.languages]
    return [[int(np.bitwise_count(query & passage).sum()) for _, passage in bits] for query, _ in bits]


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
    """A finished training command: where and what `FitResult` says, the MLflow run, the registered version if any.

    Run and version are None while MLflow does not answer: `hbt-ray tracking sync` makes them.
    """

    run_dir: Path
    model_dir: Path
    mlflow_run_id: str | None
    model_version: int | None
    steps: int
    best_step: int
    best_validation_loss: float | None
    metrics: dict[str, float]
    checkpoint: CheckpointAddress

    def summary(self) -> dict[str, Any]:
        """The last line of `hbt-ray train`."""
        return {
            "run_dir": str(self.run_dir),
            "model_dir": str(self.model_dir),
            "mlflow_run_id": self.mlflow_run_id,
            "model_version": self.model_version,
            "steps": self.steps,
            "best_step": self.best_step,
            "best_validation_loss": self.best_validation_loss,
        }


def train(
    config: Config,
    on_rows: OnRows,
    *,
    retrieval: Retrieval | None = None,
    begin: CheckpointAddress | None = None,
    until: int | None = None,
    parent_run: Path | None = None,
) -> Trained:
    """Train, track and register one configuration; the same run name resumes.

    Args:
        config: what to train.
        on_rows: takes new rows of metrics.jsonl, after MLflow.
        retrieval: what to retrieve at validations.
        begin: a checkpoint of another run to start from.
        until: the step to end at, of train.steps.
        parent_run: folder of the sweep or study to show the MLflow run below.

    Raises:
        UserError: data, configuration, model, resources or storage that cannot work.
        TrainingError: workers that fail too often, a loss that is not a number.
        Interrupted: SIGTERM, after a checkpoint was written.
    """
    from hbt_ray.model.encoder import embedding_width
    from hbt_ray.session import training_session
    from hbt_ray.tracking.runs import open_run, tracking_store
    from hbt_ray.train.fit import check_backbone, fit
    from hbt_ray.train.run_folder import claim_folder

    out = output_root(config.run.out)
    run_dir = out / config.run.name
    root = corpus_root(config.data.root, out)
    store = tracking_store(out)
    # Mistakes of data, mix, batch and model surface before anything is started.
    training_source(config, root).open()
    check_backbone(config)
    claim_folder(run_dir, config, root)
    with training_session(config.cluster):
        run = open_run(
            store,
            config.tracking.experiment,
            config.run.name,
            run_dir,
            config.model_dump(mode="json"),
            parent=parent_run,
        )

        def deliver(rows: list[dict[str, Any]]) -> None:
            run.log_rows()
            on_rows(rows)

        try:
            result = fit(config, run_dir, root, deliver, retrieval=retrieval, begin=begin, until=until)
        except BaseException as error:
            run.finish("KILLED" if isinstance(error, KeyboardInterrupt | Interrupted) else "FAILED")
            raise
    version = None
    if config.tracking.registered_model:
        name, alias = config.tracking.registered_model, config.tracking.alias
        version = run.register(result.model_dir, name, alias, embedding_width(result.model_dir))
    run.finish()
    return Trained(mlflow_run_id=run.run_id, model_version=version, **vars(result))


# --- evaluate --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate on, how, and where the results go.

    Args:
        benchmark: name, as `load_benchmark` takes it.
        data: folder of its files.
        out: results folder.
        languages: languages to load; None for all.
        candidate_text: `sentence` or `sentence+context`, for the LAReQA sets.
        split: of MIRACL and BEIR; None for the usual one.
        actors: encoding and ranking actors.
        ranking: `scores` (full depth), `faiss` (the best `depth`), or `auto`: scores up to SCORED_CANDIDATES.
        depth: candidates kept per query by FAISS; None for FAISS_DEPTH or the whole of a smaller pool.
        trec: whether to write TREC runs and qrels.
        trec_depth: candidates per query in them, None for 100; the whole of a smaller pool.
        save_embeddings: folder to keep the embeddings in.
        cache: folder of embeddings by model, text and prompt, and of the scratch files of large corpora.
    """

    benchmark: str
    data: Path
    out: Path
    languages: tuple[str, ...] | None = None
    candidate_text: str = "sentence"
    split: str | None = None
    actors: int = 2
    ranking: str = "auto"
    depth: int | None = None
    trec: bool = False
    trec_depth: int | None = None
    save_embeddings: Path | None = None
    cache: Path | None = None


SCORED_CANDIDATES = 500_000  # of one collection; above this `auto` searches FAISS shards
FAISS_DEPTH = 1000


def evaluate_model(
    model: str,
    request: EvaluationRequest,
    on_progress: Callable[[int, int, str], None] = lambda done, total, part: None,
) -> dict[str, Any]:
    """Encode a benchmark with a model folder or `models:/` address and score every cell; metrics.json's content.

    `on_progress` is told (texts done, texts in all, collection), of one collection after the other.
    """
    from hbt_ray.evaluation.embeddings import collection_folder, save_embeddings
    from hbt_ray.evaluation.encoding import encode_collection
    from hbt_ray.evaluation.model_card import write_model_card
    from hbt_ray.model.encoder import check_folder, read_settings
    from hbt_ray.model.export import TRAINING_FILE, model_hash, read_training
    from hbt_ray.session import ray_session
    from hbt_ray.tracking.registry import MODELS_SCHEME

    benchmark = _load(request)
    folder, run = _model_folder(model)
    check_folder(folder)
    training = read_training(folder)
    fingerprint = model_hash(folder)
    settings = read_settings(folder)
    with (
        _scratch(benchmark, request) as scratch,
        ray_session(request.actors),
        _encoding_pools(benchmark, request, folder) as pools,
    ):

        def embed(collection: Collection) -> Embeddings:
            part = collection.name if len(benchmark.collections) > 1 else ""
            with pools() as pool:
                embeddings = encode_collection(
                    collection,
                    pool,
                    settings,
                    model_hash=fingerprint,
                    cache=request.cache,
                    scratch=scratch,
                    on_progress=lambda done, total: on_progress(done, total, part),
                )
            if request.save_embeddings:
                save_embeddings(collection_folder(request.save_embeddings, benchmark, collection), embeddings)
            return embeddings

        evaluation = _evaluation(benchmark, embed, request, model=fingerprint, seed=training.get("seed"))
    metrics, cells = _write_evaluation(evaluation, benchmark, request, model, training)
    # Beside an encoder that hbt_ray exported; a package's or the registry's folder is not ours to write to.
    exported = (folder / TRAINING_FILE).is_file() and not model.startswith(MODELS_SCHEME)
    write_model_card(folder if exported else request.out, training, settings, metrics, cells)
    if run:
        run.log_evaluation(metrics, cells, request.out)
    return metrics


def evaluate_embeddings_folder(embeddings_dir: Path, request: EvaluationRequest) -> dict[str, Any]:
    """Score embeddings made elsewhere; metrics.json's content."""
    from hbt_ray.evaluation.embeddings import collection_folder, load_embeddings
    from hbt_ray.session import ray_session

    benchmark = _load(request)

    def embed(collection: Collection) -> Embeddings:
        return load_embeddings(collection_folder(embeddings_dir, benchmark, collection), collection)

    with ray_session(request.actors) if request.ranking == "faiss" else nullcontext():
        evaluation = _evaluation(benchmark, embed, request, model="-", seed=None)
    return _write_evaluation(evaluation, benchmark, request, str(embeddings_dir), {})[0]


def _load(request: EvaluationRequest) -> Benchmark:
    from hbt_ray.evaluation.benchmarks import load_benchmark

    return load_benchmark(
        request.benchmark,
        request.data,
        request.languages,
        candidate_text=request.candidate_text,
        split=request.split,
        scratch=request.cache,
    )


@contextmanager
def _scratch(benchmark: Benchmark, request: EvaluationRequest) -> Iterator[Path | None]:
    """A folder, ended with the evaluation, for vectors that are better not in memory; it needs a cache folder."""
    if request.cache is None or _largest(benchmark) <= SCORED_CANDIDATES:
        yield None
        return
    request.cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="vectors-", dir=request.cache) as folder:
        yield Path(folder)


@contextmanager
def _encoding_pools(
    benchmark: Benchmark, request: EvaluationRequest, model: Path
) -> Iterator[Callable[[], AbstractContextManager[EncodingPool]]]:
    """Gives the actors that encode a collection: the same for all collections, or, before a FAISS search, which wants
    their GPUs, new ones each time.
    """
    from hbt_ray.evaluation.encoding import encoding_pool

    if _uses_faiss(benchmark, request):
        yield lambda: encoding_pool(str(model), request.actors)
        return
    with encoding_pool(str(model), request.actors) as pool:
        yield lambda: nullcontext(pool)


def _uses_faiss(benchmark: Benchmark, request: EvaluationRequest) -> bool:
    large = _largest(benchmark) > SCORED_CANDIDATES
    return request.ranking == "faiss" or (request.ranking == "auto" and large)


def _largest(benchmark: Benchmark) -> int:
    """Candidates of the largest collection."""
    return max(sum(map(len, collection.candidates.values())) for collection in benchmark.collections)


def _evaluation(
    benchmark: Benchmark, embed: Embed, request: EvaluationRequest, *, model: str, seed: int | None
) -> Evaluation:
    """One collection after the other, so that the vectors of one are in memory at a time."""
    from hbt_ray.evaluation.evaluate import evaluate_collection, summarise
    from hbt_ray.evaluation.matrix import signature
    from hbt_ray.evaluation.results import check_trec_depth, write_trec

    if request.trec and request.trec_depth:
        for collection in benchmark.collections:
            check_trec_depth(collection, request.trec_depth)
    ranker, depth = _ranker(benchmark, request)
    results = []
    for collection in benchmark.collections:
        embeddings = embed(collection)
        results.append(evaluate_collection(collection, embeddings, ranker, full_depth=depth is None))
        if request.trec:
            write_trec(collection, embeddings, request.out, f"hbt_ray-{model}", request.trec_depth)
    return summarise(benchmark, results, signature(benchmark, model=model, depth=depth, seed=seed))


def _ranker(benchmark: Benchmark, request: EvaluationRequest) -> tuple[Ranker, int | None]:
    """How to rank, and to what depth (None: full)."""
    import ray

    from hbt_ray.evaluation.rankers import RANKINGS, check_depth, faiss_ranker, rank_here, ray_ranker

    if request.ranking not in RANKINGS:
        raise ConfigError("--ranking", repr(request.ranking), f"one of {', '.join(RANKINGS)}", "Choose one of these.")
    if _uses_faiss(benchmark, request):
        if request.depth is not None:
            for collection in benchmark.collections:
                check_depth(collection, request.depth)
        depth = request.depth or FAISS_DEPTH
        return faiss_ranker(request.actors, depth), depth
    if request.depth is not None:
        raise ConfigError("--depth", request.depth, "--ranking faiss with it", "Leave it out: ranks are of full depth.")
    return (ray_ranker(request.actors) if ray.is_initialized() else rank_here), None


def compare_results(
    folders: Sequence[Path],
    *,
    out: Path | None = None,
    seen_languages: Sequence[str] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Test the differences of results folders from the first one; with `out`, comparison.json and report.html there."""
    from hbt_ray.evaluation.comparison import compare

    seen = seen_languages or _common_seen_languages(folders)
    comparison = compare(folders, resamples=resamples, seed=seed, seen_languages=seen)
    if out:
        _write_comparison(comparison, out, seen)
    return comparison


def _common_seen_languages(folders: Sequence[Path]) -> list[str] | None:
    """The training languages, if the folders that know theirs agree."""
    known = [
        tuple(metrics["seen_languages"]) for folder in folders if (metrics := _metrics(folder)).get("seen_languages")
    ]
    return list(known[0]) if len(set(known)) == 1 else None


def _metrics(folder: Path) -> dict[str, Any]:
    path = folder / "metrics.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _write_comparison(comparison: Mapping[str, Any], out: Path, seen: Sequence[str] | None) -> None:
    from hbt_ray.evaluation.report import System, write_comparison
    from hbt_ray.evaluation.results import read_cells

    folders = [Path(system["folder"]) for system in comparison["systems"]]
    systems = [System(str(folder), _metrics(folder), read_cells(folder)) for folder in folders]
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(comparison, indent=2, ensure_ascii=False)
    (out / "comparison.json").write_text(text + "\n", encoding="utf-8")
    write_comparison(
        out,
        systems,
        title=f"{comparison['benchmark']}: {len(folders)} systems",
        seen_languages=seen,
        significance=comparison,
    )


def _model_folder(model: str) -> tuple[Path, Any]:
    """Local folder of a model, and the MLflow run to log its evaluation to (None if it has none in this store)."""
    from hbt_ray.model.encoder import resolve_backbone
    from hbt_ray.tracking.registry import MODELS_SCHEME, download_model, existing_store
    from hbt_ray.tracking.runs import run_of_folder, tracking_store

    if model.startswith(MODELS_SCHEME):
        return download_model(model, existing_store(output_root("runs")))
    folder = Path(resolve_backbone(model)).absolute()  # the actors' current folder may be another one
    run_dir = folder.parent
    return folder, run_of_folder(run_dir, tracking_store(run_dir.parent))


def _write_evaluation(
    evaluation: Evaluation, benchmark: Benchmark, request: EvaluationRequest, model: str, training: Mapping[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Results, figures and report; the content of metrics.json and the rows of cells.csv."""
    from hbt_ray.evaluation.plots import save_heatmap
    from hbt_ray.evaluation.report import write_report
    from hbt_ray.evaluation.results import write_results

    out = request.out
    caveats = training.get("notes", {}).get(evaluation.benchmark.partition("+")[0], ())
    zero_shot = _zero_shot(benchmark, request, training)
    evaluation = replace(evaluation, notes=(*evaluation.notes, *caveats, zero_shot["why"]))
    metrics = {**evaluation.metrics(), "seen_languages": training.get("languages"), "zero_shot": zero_shot}
    cells: list[dict[str, Any]] = [cell.row() for cell in evaluation.cells]
    write_results(evaluation, metrics, out)
    save_heatmap(cells, evaluation.languages, out / "heatmap.png", title=f"{evaluation.benchmark}: mAP")
    write_report(
        out,
        metrics,
        cells,
        title=f"{evaluation.benchmark}: {model}",
        notes=[CLAIM_BY.format(zero_shot["command"])] if zero_shot["command"] else [],
        seen_languages=training.get("languages"),
        examples=evaluation.examples,
    )
    return metrics, cells


CLAIM_BY = (
    "What a claim of zero-shot lacks: {} (with --accept REASON for what may be there), then the same `hbt-ray train` "
    "again, which takes the report over and trains no further."
)


def _zero_shot(benchmark: Benchmark, request: EvaluationRequest, training: Mapping[str, Any]) -> dict[str, Any]:
    """`zero_shot` of metrics.json: the claim, why, and the search that it lacks, as a command."""
    from hbt_ray.evaluation.benchmarks import load_benchmark
    from hbt_ray.leakage import leakage_command, zero_shot

    chosen = (request.benchmark, request.data, request.languages)
    if training and benchmark.name.endswith("+context"):  # searched for by its sentences, which contexts are made of
        benchmark = load_benchmark(*chosen, split=request.split)
    judged = zero_shot(training, benchmark.name, benchmark.data_hash)
    command = leakage_command(judged.corpus, *chosen, request.split) if judged.corpus else None
    return {"claim": judged.claim, "why": judged.why, "command": command}
