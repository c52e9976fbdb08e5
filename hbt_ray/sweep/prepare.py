"""A sweep before anything of it starts: what it needs is read, what cannot work is refused, its folder is claimed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hbt_ray.commands import corpus_root, output_root
from hbt_ray.config import Config
from hbt_ray.errors import ConfigError
from hbt_ray.evaluation.benchmarks import Benchmark, load_benchmark
from hbt_ray.mixing.source import training_source
from hbt_ray.storage import write_whole
from hbt_ray.sweep.population import check_population
from hbt_ray.sweep.settings import HELD_OUT_QUESTIONS, Asha, Pbt, SweepConfig
from hbt_ray.sweep.space import check_space
from hbt_ray.sweep.validation import HELD_OUT, defined_metrics, held_out_benchmark, retrieval
from hbt_ray.tracking.runs import flattened
from hbt_ray.train.fit import check_backbone
from hbt_ray.train.retrieval import Retrieval
from hbt_ray.train.run_folder import check_unchanged

RESOLVED = "sweep.yaml"
RUNS = "trials"
MAY_CHANGE = ("search.concurrent", "config.cluster.", "config.tracking.")  # when a sweep goes on


@dataclass(frozen=True)
class Prepared:
    """A sweep that can run.

    Args:
        sweep: what was asked for.
        out: where run.out of the base configuration is.
        root: resolved corpus folder.
        benchmark: what trials are compared on.
        retrieval: the same, as a training takes it.
    """

    sweep: SweepConfig
    out: Path
    root: str
    benchmark: Benchmark
    retrieval: Retrieval

    @property
    def folder(self) -> Path:
        """Where everything of the sweep is."""
        return sweep_folder(self.sweep)

    @property
    def runs(self) -> Path:
        """The run folders."""
        return self.folder / RUNS

    def config(self, settings: Mapping[str, Any]) -> Config:
        """The base configuration with more settings, holding out what all trials hold out and chosen on the same."""
        base = self.sweep.base
        seed = base.run.seed if base.data.hold_out.seed is None else base.data.hold_out.seed
        shared = {"data.hold_out.seed": seed, "run.chosen_on": [self.benchmark.name]}
        return base.replaced({**shared, **settings})


def prepare(sweep: SweepConfig) -> Prepared:
    """Check all that can be checked before Ray starts, and read what trials are compared on. Raises UserError."""
    base = sweep.base
    check_space(sweep.space, base)
    _check_scheduler(sweep)
    out = output_root(base.run.out)
    root = corpus_root(base.data.root, out)
    training_source(base, root).open()
    check_backbone(base)
    prepared = Prepared(sweep, out, root, *_validation(sweep, out, root))
    prepared.config(sweep.best.retrain or {})
    _check_objective(sweep, prepared.benchmark)
    for section in sweep.report:
        load_benchmark(
            section.benchmark,
            Path(corpus_root(section.data, out)),
            section.languages,
            candidate_text=section.candidate_text,
        )
    return prepared


def _check_scheduler(sweep: SweepConfig) -> None:
    steps = sweep.base.train.steps
    if isinstance(sweep.scheduler, Pbt):
        check_population(sweep.base, sweep.scheduler.interval_steps)
    if isinstance(sweep.scheduler, Asha) and sweep.scheduler.grace_steps >= steps:
        raise ConfigError(
            "scheduler.grace_steps", sweep.scheduler.grace_steps, f"less than train.steps ({steps})", "Lower it."
        )


def _validation(sweep: SweepConfig, out: Path, root: str) -> tuple[Benchmark, Retrieval]:
    validation = sweep.validation
    if validation.benchmark == HELD_OUT:
        benchmark = held_out_benchmark(sweep.base, root, validation.questions or HELD_OUT_QUESTIONS)
    else:
        assert validation.data is not None
        benchmark = load_benchmark(validation.benchmark, Path(corpus_root(validation.data, out)), validation.languages)
    return benchmark, retrieval(benchmark)


def _check_objective(sweep: SweepConfig, benchmark: Benchmark) -> None:
    """Refuse metrics that the validation set cannot have, such as cross-lingual ones of one language."""
    defined = defined_metrics(benchmark)
    for section in ("weights", "pareto"):
        for metric in getattr(sweep.objective, section):
            if metric not in defined:
                raise ConfigError(
                    f"objective.{section}.{metric}",
                    f"{benchmark.name} of {', '.join(benchmark.languages)}",
                    f"one of the metrics that it defines: {', '.join(defined)}",
                    f"Leave it out of objective.{section} (which may be empty)"
                    if section == "pareto"
                    else "Weigh other metrics, or validate on more languages.",
                )


def sweep_folder(sweep: SweepConfig) -> Path:
    """Where everything of a sweep is."""
    return output_root(sweep.base.run.out) / sweep.name


def check_claim(sweep: SweepConfig) -> None:
    """Refuse a folder that another sweep has used. Raises ConfigError naming the key and both values."""
    path = sweep_folder(sweep) / RESOLVED
    if not path.exists():
        return
    check_unchanged(
        _compared(yaml.safe_load(path.read_text(encoding="utf-8"))),
        _compared(resolved(sweep)),
        f"name {sweep.name!r}",
        f"the sweep in {path.parent}",
        "Choose another name, or the old value to go on.",
    )


def claim(sweep: SweepConfig) -> None:
    """Make the sweep's folder with sweep.yaml in it."""
    folder = sweep_folder(sweep)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / RESOLVED, yaml.safe_dump(resolved(sweep), sort_keys=False, allow_unicode=True))


def resolved(sweep: SweepConfig) -> dict[str, Any]:
    """A sweep's file with everything in it, JSON values."""
    dimensions = {key: dimension.model_dump(mode="json", exclude_none=True) for key, dimension in sweep.space.items()}
    return sweep.model_dump(mode="json") | {"space": dimensions}


def _compared(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flattened(content).items() if not key.startswith(MAY_CHANGE)}
