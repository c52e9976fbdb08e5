"""Run a study: train every arm and seed, evaluate, compare, report.

Trainings go on side by side (training.py); evaluations follow one after the other, each on the whole cluster. Whatever
is finished has its files below the study's folder and is not done again:

<out>/<name>/study.yaml                        what the folder belongs to
<out>/<name>/runs/<run>/                       run folders; outcome.json in those that are finished
<out>/<name>/results/<benchmark>/<run>/        evaluations
<out>/<name>/averaged/<benchmark>/<arm>/       the mean of an arm's seeds
<out>/<name>/study.json, study.html, study.md  written last
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import yaml

from hbt_ray.commands import EvaluationRequest, corpus_root, evaluate_model, output_root
from hbt_ray.config import Config
from hbt_ray.corpus.shards import open_corpus
from hbt_ray.errors import Interrupted, TrainingError
from hbt_ray.evaluation.results import METRICS_FILE
from hbt_ray.mixing.source import plan_languages
from hbt_ray.session import SPARE_CPUS, environment, training_session
from hbt_ray.storage import Folder, write_whole
from hbt_ray.study.analysis import analyse, arm_values, read_metrics
from hbt_ray.study.arms import (
    StudyRun,
    benchmark_data,
    build_start_weights,
    check_benchmarks,
    check_runs,
    study_runs,
    untrained_model,
)
from hbt_ray.study.averaging import write_averaged
from hbt_ray.study.report import write_study_report
from hbt_ray.study.settings import UNTRAINED, BenchmarkSection, StudyConfig, slug
from hbt_ray.study.tables import (
    difference_rows,
    language_bias_table,
    measure_label,
    retrieval_table,
    tested_measures,
)
from hbt_ray.study.training import OnProgress, Outcome, close_unfinished, train_all, write_json
from hbt_ray.sweep.search import concurrent_runs
from hbt_ray.tracking.runs import TRACKING_VARIABLE, Store, TrackedRun, open_run, tracking_store
from hbt_ray.train.control import interrupted_by_sigterm
from hbt_ray.train.run_folder import check_unchanged, fixed_settings

RESOLVED = "study.yaml"
RESULT = "study.json"
EVALUATION_ACTORS = 8  # at most; more start slower than they encode


def run_study(study: StudyConfig, on_progress: OnProgress = lambda line: None) -> dict[str, Any]:
    """Train, evaluate and compare all arms; the content of study.json.

    The same study goes on where it stopped, and a finished one returns at once. Arms, seeds, shares of the data and
    benchmarks may be added; what is there already may not change. A training that fails is tried again by the same
    command; until then its arm is reported with the seeds that finished.

    Raises:
        UserError: mistakes of the study, its data, model or resources, before anything is trained; another study in
            the folder.
        TrainingError: no training of the baseline finished.
        Interrupted: SIGTERM.
    """
    started = time.monotonic()
    out = output_root(study.base.run.out)
    folder = out / study.name
    root = corpus_root(study.base.data.root, out)
    runs = study_runs(study, root, folder)
    check_runs(study, runs, root)
    claim_folder(folder, study, root)
    if _is_finished(folder):
        return _read_result(folder)
    check_benchmarks(study, out)
    build_start_weights(study, root, folder)
    store = tracking_store(out)
    tracked = open_run(store, study.base.tracking.experiment, study.name, folder, _parameters(study))
    try:
        with environment({TRACKING_VARIABLE: store.uri}):  # whatever folder a command writes to
            outcomes = _train_and_evaluate(study, runs, folder, store, on_progress)
        result = {
            **_description(study),
            "benchmarks": {
                section.name: _benchmark(study, section, outcomes, folder, _languages(study.base, root))
                for section in study.benchmarks
            },
            "runs": outcomes,
            "seconds": time.monotonic() - started,
            "mlflow_run_id": tracked.run_id,
            "tracking_uri": store.uri,
        }
        _publish(result, folder, tracked)
    except (KeyboardInterrupt, Interrupted, SystemExit) as error:
        _stop(runs, store, tracked)
        if isinstance(error, SystemExit):  # Ray's answer to SIGTERM while it starts or ends
            raise Interrupted from None
        raise
    except BaseException:
        tracked.finish("FAILED")
        raise
    tracked.finish()
    return _read_result(folder)


def summary(study: StudyConfig, result: Mapping[str, Any]) -> dict[str, Any]:
    """The last line of `hbt-ray study`."""
    return {
        "table": {name: benchmark["table"] for name, benchmark in result["benchmarks"].items()},
        "tests": {name: benchmark["tests"] for name, benchmark in result["benchmarks"].items()},
        "mlflow_run_id": result["mlflow_run_id"],
        "report": str(output_root(study.base.run.out) / study.name / "study.html"),
    }


# --- the folder ------------------------------------------------------------------------------------------------------


def claim_folder(folder: Path, study: StudyConfig, root: str) -> None:
    """Make the study's folder with its settings in it, or refuse one in which another study has begun.

    Arms, seeds, fractions and benchmarks may come and go; what stays must be as it was. Raises ConfigError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RESOLVED
    resolved = study.model_dump(mode="json")
    before = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {"fixed": {}, "study": resolved}
    known, now = before["fixed"], _fixed(study, root)
    check_unchanged(
        {key: known.get(key, value) for key, value in now.items()},
        now,
        f"study {study.name!r}",
        f"the study in {folder}",
        "Choose another name for the study, or the old value to go on.",
    )
    if before["study"] != resolved:
        (folder / RESULT).unlink(missing_ok=True)
    content = {"fixed": known | now, "study": resolved}
    write_whole(path, yaml.safe_dump(content, allow_unicode=True, sort_keys=False))


def _fixed(study: StudyConfig, root: str) -> dict[str, Any]:
    """What no later start may change; JSON values."""
    base = study.base
    resolved = study.model_dump(mode="json")
    return {
        **fixed_settings(base),
        "train.steps": base.train.steps,
        "corpus": root,
        **{f"arms.{arm}": settings for arm, settings in resolved["arms"].items()},
        **{
            f"benchmarks.{section.name}": values | {"data": section.data or study.data}
            for section, values in zip(study.benchmarks, resolved["benchmarks"], strict=True)
        },
    }


def _is_finished(folder: Path) -> bool:
    """Whether study.json is there, and every training in it finished."""
    return (folder / RESULT).exists() and all(run["status"] == "finished" for run in _read_result(folder)["runs"])


def _read_result(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / RESULT).read_text(encoding="utf-8")))


# --- training and evaluation ------------------------------------------------------------------------------------------


def _train_and_evaluate(
    study: StudyConfig, runs: Sequence[StudyRun], folder: Path, store: Store, on_progress: OnProgress
) -> list[Outcome]:
    """The outcomes of all runs, in their order; the models of those that finished have been evaluated."""
    with training_session(study.base.cluster), interrupted_by_sigterm():
        concurrent = concurrent_runs(study.base, study.concurrent, "concurrent")
        outcomes = train_all(runs, concurrent, store, folder, on_progress)
        _check_baseline(study, outcomes)
        _evaluate_all(study, outcomes, folder, on_progress)
    return outcomes


def _check_baseline(study: StudyConfig, outcomes: Sequence[Outcome]) -> None:
    rows = [row for row in outcomes if row["arm"] == study.baseline and row["fraction"] == study.largest_fraction]
    if all(row["status"] == "failed" for row in rows):
        raise TrainingError(f"no training of the baseline {study.baseline!r} finished: {rows[0]['error']}")


def _evaluate_all(study: StudyConfig, outcomes: Sequence[Outcome], folder: Path, on_progress: OnProgress) -> None:
    """Every finished model on every benchmark, and the untrained one; results that are there are not made again."""
    models = {row["name"]: row["model_dir"] for row in outcomes if row["status"] == "finished"}
    if study.untrained:
        models[_untrained_name(study)] = str(untrained_model(study, folder))
    actors = min(EVALUATION_ACTORS, max(1, int(ray.cluster_resources().get("CPU", 0.0)) - SPARE_CPUS))
    for section in study.benchmarks:
        for name, model in models.items():
            results = _results(folder, section, name)
            if (results / METRICS_FILE).exists():
                continue
            on_progress(f"evaluating {name} on {section.name}")
            unfinished = results.with_name(f"{name}.partial")
            shutil.rmtree(unfinished, ignore_errors=True)
            request = EvaluationRequest(
                section.benchmark,
                benchmark_data(study, section, folder.parent),
                unfinished,
                section.languages,
                section.candidate_text,
                actors=actors,
            )
            evaluate_model(model, request)
            unfinished.rename(results)


def _untrained_name(study: StudyConfig) -> str:
    return f"{UNTRAINED}-s{study.seeds[0]}"


def _results(folder: Path, section: BenchmarkSection, name: str) -> Path:
    return folder / "results" / section.name / name


# --- the tables ------------------------------------------------------------------------------------------------------


def _benchmark(
    study: StudyConfig,
    section: BenchmarkSection,
    outcomes: Sequence[Outcome],
    folder: Path,
    languages: Sequence[str],
) -> dict[str, Any]:
    """The entry of one benchmark in study.json."""
    evaluated = _evaluated(study, section, outcomes, folder, study.largest_fraction)
    averaged = {arm: folder / "averaged" / section.name / slug(arm) for arm in evaluated}
    for arm, results in evaluated.items():
        write_averaged(list(results.values()), averaged[arm])
    untrained = {UNTRAINED: {study.seeds[0]: _results(folder, section, _untrained_name(study))}}
    found = analyse(
        (untrained if study.untrained else {}) | evaluated,
        averaged,
        study.baseline,
        seen_languages=languages,
        resamples=study.resamples,
    )
    metrics = read_metrics(averaged[study.baseline])
    return {
        "languages": metrics["languages"],
        "seen_languages": list(languages),
        "notes": _notes(study, section, outcomes, averaged),
        "signature": metrics["signature"],
        **found,
        "by_fraction": _by_fraction(study, section, outcomes, folder, found["table"]),
    }


def _evaluated(
    study: StudyConfig, section: BenchmarkSection, outcomes: Sequence[Outcome], folder: Path, fraction: float
) -> dict[str, dict[int, Path]]:
    """Arm -> seed -> results folder, of the runs that finished; the arms in the order of the study."""
    found: dict[str, dict[int, Path]] = {arm: {} for arm in study.arms}
    for row in outcomes:
        if row["status"] == "finished" and row["fraction"] == fraction:
            found[row["arm"]][row["seed"]] = _results(folder, section, row["name"])
    return {arm: results for arm, results in found.items() if results}


def _by_fraction(
    study: StudyConfig,
    section: BenchmarkSection,
    outcomes: Sequence[Outcome],
    folder: Path,
    table: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """Arm -> share of the training documents -> values; empty with one share."""
    if len(study.fractions) == 1:
        return {}
    curves: dict[str, dict[str, Any]] = {arm: {} for arm in study.arms}
    for fraction in sorted(study.fractions):
        for arm, results in _evaluated(study, section, outcomes, folder, fraction).items():
            largest = fraction == study.largest_fraction
            values = table[arm] if largest else arm_values(list(results.values()), resamples=study.resamples)
            curves[arm][f"{fraction:g}"] = values
    return curves


def _notes(
    study: StudyConfig, section: BenchmarkSection, outcomes: Sequence[Outcome], averaged: Mapping[str, Path]
) -> list[str]:
    """What a reader must know to judge the numbers of a benchmark."""
    notes = [note for folder in averaged.values() for note in read_metrics(folder)["notes"]]
    for row in outcomes:
        if row["status"] == "failed":
            share = "" if row["fraction"] == study.largest_fraction else f" on {row['fraction']:g} of the documents"
            notes.append(f"{row['arm']}, seed {row['seed']}{share} did not finish and is left out: {row['error']}")
    for arm, settings in study.arms.items():
        if "data.languages" in settings:
            notes.append(f"{arm} was trained on {', '.join(settings['data.languages'])} only.")
    if study.untrained and len(study.seeds) > 1:
        notes.append(f"{UNTRAINED}: the weights that the arms of seed {study.seeds[0]} start from.")
    if study.base.run.chosen_on:
        notes.append(f"The configuration was chosen on {', '.join(study.base.run.chosen_on)}.")
    notes.append(
        "Checkpoints were chosen by validation loss on held-out training documents."
        if study.base.data.hold_out.fraction
        else "Nothing was held out of the training data: models are those of the last step."
    )
    return list(dict.fromkeys(notes))


def _languages(base: Config, root: str) -> tuple[str, ...]:
    """Languages of the training data, before an arm leaves some out."""
    return plan_languages(open_corpus(Folder(root), base.data.datasets), base.data.languages)


def _description(study: StudyConfig) -> dict[str, Any]:
    resolved = study.model_dump(mode="json")
    return {
        "name": study.name,
        "baseline": study.baseline,
        "seeds": list(study.seeds),
        "fractions": list(study.fractions),
        "steps": study.base.train.steps,
        "batch_size": study.base.train.batch_size,
        "backbone": study.base.model.backbone,
        "untrained": study.untrained,
        "arms": {arm: {"settings": settings} for arm, settings in resolved["arms"].items()},
    }


# --- tracking --------------------------------------------------------------------------------------------------------


def _stop(runs: Sequence[StudyRun], store: Store, tracked: TrackedRun) -> None:
    """What was stopped does not stay RUNNING."""
    close_unfinished(runs, store)
    tracked.finish("KILLED")


def _parameters(study: StudyConfig) -> dict[str, Any]:
    """The study as MLflow parameters; arms are one of them, because MLflow takes no name such as `mono→cross`."""
    resolved = study.model_dump(mode="json")
    return resolved | {"config": study.base.model_dump(mode="json"), "arms": list(resolved["arms"].items())}


def _publish(result: Mapping[str, Any], folder: Path, tracked: TrackedRun) -> None:
    """Reports and figures; study.json is put in its place last."""
    tracked.log_figures(figures(result))
    with TemporaryDirectory(prefix="report-", dir=folder) as temporary:
        report = Path(temporary)
        write_json(report / RESULT, result)
        write_study_report(result, report)
        tracked.log_folder(report, "study")
        for path in sorted(report.iterdir(), key=lambda path: path.name == RESULT):
            path.replace(folder / path.name)


def figures(result: Mapping[str, Any]) -> dict[str, float]:
    """The tables' numbers: <benchmark>/<arm>/<setting>/<measure>, and /low and /high of it."""
    found: dict[str, float] = {}
    for benchmark, content in result["benchmarks"].items():
        for arm, sections in content["table"].items():
            for section, measures in sections.items():
                for measure, value in measures.items():
                    name = f"{benchmark}/{slug(arm)}/{section}/{measure}"
                    found |= {name: value["mean"], f"{name}/low": value["low"], f"{name}/high": value["high"]}
    return found


# --- the terminal ----------------------------------------------------------------------------------------------------


def value_table(benchmark: Mapping[str, Any]) -> tuple[list[str], list[list[object]]]:
    """Header and rows of the paper's table with rank distance at its end; intervals stand below the values."""
    retrieval, bias = retrieval_table(benchmark), language_bias_table(benchmark)
    shown = [[*row.values, *others.values[:1]] for row, others in zip(retrieval.rows, bias.rows, strict=True)]
    header = ["arm", *(f"{group.name} {column}" for group in retrieval.groups for column in group.columns)]
    header += [group.name for group in bias.groups[:1]]
    rows = zip(benchmark["table"], shown, strict=True)
    return header, [[arm, *(f"{value.text}\n{value.note}" for value in values)] for arm, values in rows]


def difference_table(benchmark: Mapping[str, Any]) -> tuple[list[str], list[list[object]]]:
    """Header and rows of the differences from the baseline in the headline measures."""
    header = ["arm", "measure", "difference", "95% interval", "p (Holm)", "p (seeds)"]
    measures = tested_measures(benchmark)
    rows: list[list[object]] = [
        [row.label, measure_label(measure), test.difference, test.interval, test.p_holm, test.seed_p]
        for row in difference_rows(benchmark, measures)
        for measure, test in zip(measures, row.tests, strict=True)
        if test is not None
    ]
    return header, rows
