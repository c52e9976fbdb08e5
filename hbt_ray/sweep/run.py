"""`hbt-ray sweep`: everything around the trials, from the first check to best.yaml, report and registry."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from hbt_ray.commands import EvaluationRequest, corpus_root, evaluate_model, train
from hbt_ray.config import Config
from hbt_ray.errors import Interrupted, TrainingError
from hbt_ray.model.encoder import embedding_width
from hbt_ray.session import environment, training_session
from hbt_ray.storage import write_whole
from hbt_ray.sweep.objective import score
from hbt_ray.sweep.prepare import RESOLVED, Prepared, check_claim, claim, prepare, resolved, sweep_folder
from hbt_ray.sweep.report import write_sweep_report
from hbt_ray.sweep.results import FAILED, FINISHED, STOPPED, Entry, best_entry, curve, front, trial_entries
from hbt_ray.sweep.search import ENVIRONMENT, OnProgress, concurrent_runs, run_trials
from hbt_ray.sweep.settings import SweepConfig
from hbt_ray.sweep.trial import TrialContext, plain, run_name
from hbt_ray.tracking.runs import (
    TRACKING_VARIABLE,
    Store,
    TrackedRun,
    is_open,
    open_run,
    run_of_folder,
    tracked_folders,
    tracking_store,
)
from hbt_ray.train.control import interrupted_by_sigterm

RESULT, REPORT, BEST = "sweep.json", "sweep.html", "best.yaml"
REPORTS = "reports"


def run_sweep(sweep: SweepConfig, on_progress: OnProgress = lambda done, note: None) -> dict[str, Any]:
    """Run a sweep, or the rest of one that was interrupted; the content of sweep.json. A finished one returns at once.

    Raises:
        UserError: settings, data, model or resources that cannot work; a folder that another sweep has used.
        TrainingError: all trials failed.
        Interrupted: SIGTERM; the same call goes on.
    """
    check_claim(sweep)
    result = sweep_folder(sweep) / RESULT
    if result.exists():
        return dict(json.loads(result.read_text(encoding="utf-8")))
    prepared = prepare(sweep)
    claim(sweep)
    began = time.monotonic()
    with environment(ENVIRONMENT), training_session(sweep.base.cluster):
        concurrent = concurrent_runs(sweep.base, sweep.search.concurrent)
        with _tracked(prepared) as run, interrupted_by_sigterm():
            content = _swept(prepared, run, concurrent, on_progress)
            content["seconds"] = time.monotonic() - began
            _finish(prepared, content, run)
    write_whole(result, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return content


def summary(sweep: SweepConfig, content: Mapping[str, Any]) -> dict[str, Any]:
    """The last line of `hbt-ray sweep`."""
    best = content["best"]
    return {
        "best_config": best["config"],
        "best_metrics": best["metrics"],
        "trials": [{key: value for key, value in entry.items() if key != "curve"} for entry in content["trials"]],
        "pareto": content["pareto"],
        "mlflow_run_id": content["mlflow_run_id"],
        "report": str(sweep_folder(sweep) / REPORT),
    }


def trial_table(content: Mapping[str, Any]) -> tuple[list[str], list[list[object]]]:
    """Header and rows of the terminal's table: the best trial first, those without a score last."""
    metrics = list(dict.fromkeys((*content["objective"]["weights"], *content["objective"]["pareto"])))
    header = ["trial", *content["space"], "status", "step", "score", *metrics]
    ranked = sorted(content["trials"], key=lambda entry: (entry["status"] != FINISHED, -_worth(entry)))
    rows: list[list[object]] = [
        [
            entry["trial_id"],
            *(_short(entry["settings"][key]) for key in content["space"]),
            entry["status"],
            entry["step"],
            *(_short(value) for value in (entry["score"], *(entry["metrics"].get(name) for name in metrics))),
        ]
        for entry in ranked
    ]
    return header, rows


def _worth(entry: Entry) -> float:
    return -math.inf if entry["score"] is None else float(entry["score"])


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):  # a schedule of α
        return " → ".join(f"{alpha:.4g}" for _, alpha in value["points"])
    return "-" if value is None else str(value)


# --- tracking --------------------------------------------------------------------------------------------


@contextmanager
def _tracked(prepared: Prepared) -> Iterator[TrackedRun]:
    """The sweep's MLflow run, above those of its trials; whatever runs in the context is tracked in the same store."""
    sweep = prepared.sweep
    store = tracking_store(prepared.out)
    asked = resolved(sweep)
    # MLflow does not take every metric as a name of a parameter.
    objective = {key: json.dumps(value) for key, value in asked["objective"].items()}
    experiment = sweep.base.tracking.experiment
    run = open_run(store, experiment, sweep.name, prepared.folder, asked | {"objective": objective})
    try:
        with environment({TRACKING_VARIABLE: store.uri}):
            yield run
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | Interrupted):
            _close_unfinished(prepared.runs, store)
            run.finish("KILLED")
        else:
            run.finish("FAILED")
        raise
    run.finish()


def _close_unfinished(runs: Path, store: Store) -> None:
    """Trials that were cut off cannot say so themselves."""
    for run_dir in tracked_folders(runs):
        run = run_of_folder(run_dir, store)
        if run is not None and is_open(run_dir):
            run.finish("KILLED")


def _run_of_trial(entry: Entry, runs: Path, store: Store) -> TrackedRun | None:
    """The MLflow run of a trial; the runs of a population's member all feed the same one."""
    folders = tracked_folders(runs, f"{entry['run_name']}*")
    return run_of_folder(folders[-1], store) if folders else None


# --- trials ----------------------------------------------------------------------------------------------------------


def _swept(prepared: Prepared, run: TrackedRun, concurrent: int, on_progress: OnProgress) -> dict[str, Any]:
    """Everything that sweep.json says, but for the seconds."""
    sweep = prepared.sweep
    context = TrialContext(
        sweep=sweep,
        config=prepared.config(
            {"run.out": str(prepared.runs), "data.root": prepared.root, "tracking.registered_model": None}
        ),
        retrieval=prepared.retrieval,
        parent_run=prepared.folder,
        tracking_uri=run.store.uri,
        current_folder=str(Path.cwd()),
    )
    trials = run_trials(context, prepared.folder, concurrent, _curves(prepared), on_progress)
    entries = trial_entries(trials, sweep, prepared.runs)
    _close(entries, prepared.runs, run.store)
    best = best_entry(entries)
    if best is None:
        reason = next((entry["error"] for entry in entries if entry["status"] == FAILED), "none, all were stopped")
        raise TrainingError(
            f"no trial of {sweep.name} has finished; the first failure: {reason}; "
            f"to start anew, delete {prepared.folder} or choose another name"
        )
    asked = resolved(sweep)
    (collection,) = prepared.benchmark.collections
    return {
        "name": sweep.name,
        "benchmark": prepared.benchmark.name,
        "questions": len({question for texts in collection.queries.values() for question in texts.ids}),
        "languages": list(prepared.benchmark.languages),
        "steps": sweep.base.train.steps,
        "space": asked["space"],
        "search": asked["search"],
        "scheduler": asked["scheduler"],
        "concurrent": concurrent,
        "objective": asked["objective"],
        "trials": entries,
        "pareto": front(entries, sweep),
        "best": _best(prepared, best, run),
        "mlflow_run_id": run.run_id,
        "tracking_uri": run.store.uri,
    }


def _curves(prepared: Prepared) -> dict[str, list[Entry]]:
    """What trials of an earlier, interrupted call have found."""
    sweep = prepared.sweep
    prefix = run_name(sweep.name, "")
    return {
        run_dir.name.removeprefix(prefix): curve(run_dir, sweep.objective.weights)
        for run_dir in prepared.runs.glob(f"{prefix}*")
    }


def _close(entries: list[Entry], runs: Path, store: Store) -> None:
    """Close the MLflow runs of trials that were ended from outside: their processes cannot."""
    for entry in entries:
        run = _run_of_trial(entry, runs, store)
        if entry["status"] == FINISHED or run is None:
            continue
        if entry["status"] == STOPPED:
            run.set_tags({"stopped_at_step": str(entry["step"])})
        run.finish("FINISHED" if entry["status"] == STOPPED else "FAILED")


# --- the best --------------------------------------------------------------------------------------------------------


def _best(prepared: Prepared, entry: Entry, run: TrackedRun) -> dict[str, Any]:
    """The best trial's model, or one more training of its configuration, registered and reported on."""
    sweep = prepared.sweep
    retrained = sweep.best.retrain is not None
    config = prepared.config(
        {
            **entry["settings"],
            **(sweep.best.retrain or {}),
            "run.name": f"{sweep.name}-best",
        }
    )
    if retrained:
        local = config.replaced({"run.out": str(prepared.runs), "data.root": prepared.root})
        trained = train(local, lambda rows: None, retrieval=prepared.retrieval, parent_run=prepared.folder)
        model_dir, version, metrics = trained.model_dir, trained.model_version, plain(trained.metrics)
    else:
        model_dir, metrics = Path(entry["model_dir"]), entry["metrics"]
        version = _registered(config, model_dir, _run_of_trial(entry, prepared.runs, run.store))
    return {
        "trial_id": entry["trial_id"],
        "settings": entry["settings"],
        "config": config.model_dump(mode="json"),
        "metrics": metrics,
        "score": score(metrics, sweep.objective.weights),
        "model_dir": str(model_dir),
        "model_version": version,
        "retrained": retrained,
        "reports": _reports(prepared, model_dir),
    }


def _registered(config: Config, model_dir: Path, run: TrackedRun | None) -> int | None:
    name = config.tracking.registered_model
    if name is None:
        return None
    assert run is not None, "a trial that finished has been tracked"
    return run.register(model_dir, name, config.tracking.alias, embedding_width(model_dir))


def _reports(prepared: Prepared, model_dir: Path) -> dict[str, Any]:
    reports = {}
    for section in prepared.sweep.report:
        request = EvaluationRequest(
            section.benchmark,
            Path(corpus_root(section.data, prepared.out)),
            prepared.folder / REPORTS / section.benchmark,
            languages=section.languages,
            candidate_text=section.candidate_text,
            actors=prepared.sweep.base.cluster.workers,
        )
        metrics = evaluate_model(str(model_dir), request)
        reports[metrics["benchmark"]] = metrics
    return reports


def _finish(prepared: Prepared, content: Mapping[str, Any], run: TrackedRun) -> None:
    """best.yaml, the page, and both with sweep.json in MLflow."""
    best = content["best"]
    write_whole(prepared.folder / BEST, yaml.safe_dump(best["config"], sort_keys=False, allow_unicode=True))
    write_sweep_report(content, prepared.folder)
    run.log_figures({f"best/{name}": value for name, value in best["metrics"].items()} | {"best/score": best["score"]})
    run.set_tags({"best_trial": best["trial_id"]})
    with TemporaryDirectory() as folder:
        for name in (BEST, REPORT, RESOLVED):
            shutil.copy(prepared.folder / name, folder)
        Path(folder, RESULT).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        run.log_folder(Path(folder), "sweep")
