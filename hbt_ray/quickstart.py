"""The whole path on a laptop: sample -> X-X-mono, X-Y and hybrid arms -> every cell -> comparison -> registry."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from hbt_ray.commands import EvaluationRequest, Trained, corpus_root, evaluate_model, train
from hbt_ray.config import SAMPLE_ROOT, Config
from hbt_ray.corpus.sample import TRAINING_LANGUAGES
from hbt_ray.evaluation.comparison import compare
from hbt_ray.evaluation.report import System, write_comparison
from hbt_ray.evaluation.results import read_cells
from hbt_ray.progress import EncodingProgress, TrainingProgress
from hbt_ray.session import ray_session
from hbt_ray.tracking.runs import tracking_store
from hbt_ray.train.fit import prepare_backbone

ARMS = {"X-X-mono": 1.0, "X-Y": 0.0, "hybrid": 0.5}
REGISTERED_ARM = "hybrid"
UNTRAINED = "untrained"
BENCHMARK = "sample"
NOTES = (
    "The sample is a smoke test of the whole path, generated from CLDR; its numbers say nothing about real retrieval.",
    "One seed: the tests say whether the questions could have shown the difference by chance, not whether another "
    "training seed would.",
    "Greek and Vietnamese are not in the training data.",
)


@dataclass(frozen=True)
class Arm:
    """One way of composing batches, trained and evaluated."""

    name: str
    metrics: dict[str, Any]
    results: Path
    trained: Trained | None


def sample_config(out: Path) -> Config:
    """The configuration of the hybrid arm, writing below `out`."""
    text = resources.files("hbt_ray").joinpath("sample.yaml").read_text(encoding="utf-8")
    return Config.model_validate(yaml.safe_load(text)).replaced({"run.out": str(out)})


def quickstart(out: Path, actors: int = 2, steps: int | None = None) -> dict[str, Any]:
    """Run everything below `out`; the arms' metrics, and where report, MLflow store and registered model are.

    `steps` of each training; None for those of the sample's configuration.
    """
    out = out.absolute()
    config = sample_config(out)
    if steps is not None:
        config = config.replaced({"train.steps": steps})
    root = corpus_root(SAMPLE_ROOT, out)
    with ray_session(max(actors, config.cluster.workers * config.cluster.cpus_per_worker)):
        # All arms start from the same tokenizer and the same random weights.
        backbone = Path(prepare_backbone(config, root, out / UNTRAINED))
        arms = [_evaluated(UNTRAINED, backbone, root, out, actors, None)]
        for name, alpha in ARMS.items():
            settings: dict[str, Any] = {
                "run.name": f"sample-{name.lower()}",
                "mix.alpha": alpha,
                "model.backbone": str(backbone),
            }
            if name != REGISTERED_ARM:
                settings["tracking.registered_model"] = None
            arm_config = config.replaced(settings)
            with TrainingProgress(f"train {name}", arm_config.train.steps) as progress:
                trained = train(arm_config, progress.rows)
            arms.append(_evaluated(name, trained.model_dir, root, out, actors, trained))
    report = _report(arms, out)
    registered = next(arm.trained for arm in arms if arm.name == REGISTERED_ARM)
    assert registered is not None
    return {
        "arms": {arm.name: arm.metrics for arm in arms},
        "report": str(report),
        "mlflow_tracking_uri": tracking_store(out).uri,
        "registered_model": f"models:/{config.tracking.registered_model}@{config.tracking.alias}",
        "model_version": registered.model_version,
        "model_dir": str(registered.model_dir),
    }


def _evaluated(name: str, model: Path, root: str, out: Path, actors: int, trained: Trained | None) -> Arm:
    results = out / "results" / name
    with EncodingProgress(f"evaluate {name}", 0) as progress:
        request = EvaluationRequest(BENCHMARK, Path(root), results, actors=actors)
        metrics = evaluate_model(str(model), request, progress.texts)
    return Arm(name, metrics, results, trained)


def _report(arms: list[Arm], out: Path) -> Path:
    """One page that compares all arms."""
    systems = [System(arm.name, arm.metrics, read_cells(arm.results), _details(arm)) for arm in arms]
    return write_comparison(
        out,
        systems,
        title="hbt_ray quickstart",
        notes=NOTES,
        seen_languages=TRAINING_LANGUAGES,
        significance=compare([arm.results for arm in arms], seen_languages=TRAINING_LANGUAGES),
    )


def _details(arm: Arm) -> dict[str, str]:
    if arm.trained is None:
        return {"weights": "random, from which all arms start"}
    return {
        "alpha": f"{ARMS[arm.name]:g}",
        "steps": str(arm.trained.steps),
        "best validation loss": f"{arm.trained.best_validation_loss:.4f}",
        "MLflow run": arm.trained.mlflow_run_id or "not delivered yet",
    }
