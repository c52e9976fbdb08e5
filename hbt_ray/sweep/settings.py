"""What a sweep is asked for: one YAML file, checked once at the edge, saved resolved beside its results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from hbt_ray.config import Config, Count, load_config
from hbt_ray.errors import ConfigError
from hbt_ray.evaluation.benchmarks import BENCHMARKS
from hbt_ray.settings_file import Section, checked, nearest, parsed_setting, put, read_yaml
from hbt_ray.sweep.validation import HELD_OUT, HIGHER_IS_BETTER, METRICS

HELD_OUT_QUESTIONS = 300
ALPHA = "mix.alpha"
RANGES = ("uniform", "log_uniform", "int_uniform")
FREE_KEYS = (
    "settings",
    "space",
    "objective.weights",
    "objective.pareto",
    "best.retrain",
)  # hold dotted keys or metrics

Direction = Literal["max", "min"]


class Dimension(Section):
    """The values of one key: exactly one of a range, a choice and a grid."""

    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None
    int_uniform: tuple[int, int] | None = None
    """Whole numbers, both ends included."""
    choice: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    grid: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    """Every value is tried, with every value of the other keys."""

    @property
    def kind(self) -> str:
        """Which of the five it is."""
        return next(name for name, value in self if value is not None)

    @model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        kinds = [name for name, value in self if value is not None]
        if len(kinds) != 1:
            raise ConfigError(
                "", " and ".join(kinds) or "nothing", f"one of {', '.join(type(self).model_fields)}", "Leave one."
            )
        return self

    @model_validator(mode="after")
    def _range_has_a_width(self) -> Dimension:
        for kind in RANGES:
            bounds = getattr(self, kind)
            if bounds is not None and bounds[0] >= bounds[1]:
                raise ConfigError(kind, list(bounds), "a lower end below the upper one", "Give [lower, upper].")
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            raise ConfigError("log_uniform", list(self.log_uniform), "ends above 0", "Raise the lower end.")
        return self

    @model_validator(mode="after")
    def _values_differ(self) -> Dimension:
        texts = [json.dumps(value, sort_keys=True) for value in self.choice or self.grid or ()]
        for text in texts:
            if texts.count(text) > 1:
                raise ConfigError(self.kind, f"{text} twice", "every value once", f"Remove one {text}.")
        return self


class SearchSection(Section):
    """How the next trial's values are found."""

    algorithm: Literal["tpe", "random", "grid"] = "tpe"
    trials: Count | None = None
    """How many; of a grid all its points, and this is left out."""
    seed: Annotated[int, Field(ge=0)] = 13
    concurrent: Count | None = None
    """Trials at a time; null: as many as the cluster has room for."""
    over: Literal["score", "pareto"] = "score"
    """What tpe looks at: the score, or all of objective.pareto at once."""

    @model_validator(mode="after")
    def _number_of_trials(self) -> SearchSection:
        if self.algorithm == "grid" and self.trials is not None:
            raise ConfigError("trials", self.trials, "nothing: a grid has as many as it has points", "Leave it out.")
        if self.algorithm != "grid" and self.trials is None:
            raise ConfigError("trials", "nothing", "how many trials to run", "Add search.trials.")
        return self

    @model_validator(mode="after")
    def _only_tpe_knows_fronts(self) -> SearchSection:
        if self.over == "pareto" and self.algorithm != "tpe":
            raise ConfigError(
                "over", f"'pareto' with {self.algorithm}", "algorithm: tpe with it", "Use tpe, or over: score."
            )
        return self


class NoScheduler(Section):
    """Every trial runs to its last step."""

    name: Literal["none"] = "none"


class Asha(Section):
    """Asynchronous successive halving: at rungs, only the best share of the trials seen there goes on."""

    name: Literal["asha"] = "asha"
    grace_steps: Count
    """The first rung; the next are reduction_factor times as far."""
    reduction_factor: Annotated[float, Field(gt=1.0)] = 3.0


class Pbt(Section):
    """Population based training of an α schedule: bad trials go on from a good one's weights, with another α."""

    name: Literal["pbt"] = "pbt"
    interval_steps: Count
    perturbation: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    """By how much α may move at a time."""


class ObjectiveSection(Section):
    """What is good."""

    weights: Annotated[dict[str, float], Field(min_length=1)] = Field(
        default_factory=lambda: {"monolingual/mAP": 1.0, "cross_lingual/mAP": 1.0, "multilingual/mAP": 1.0}
    )
    """score = Σ weight · metric; negative for metrics of which less is better."""
    pareto: dict[str, Direction] = Field(
        default_factory=lambda: dict[str, Direction]({"multilingual/mAP": "max", "language_bias/rank_distance": "min"})
    )
    """Objectives of the front."""

    @model_validator(mode="after")
    def _metrics_exist_and_directions_are_right(self) -> ObjectiveSection:
        for metric, weight in self.weights.items():
            _check_metric("weights", metric)
            if weight == 0 or HIGHER_IS_BETTER.get(metric, weight > 0) != (weight > 0):
                sign = "positive" if HIGHER_IS_BETTER.get(metric, True) else "negative"
                fix = f"Change the sign, or leave {metric} out."
                raise ConfigError(f"weights.{metric}", f"{weight:g}", f"a {sign} weight", fix)
        for metric, direction in self.pareto.items():
            _check_metric("pareto", metric)
            if metric not in HIGHER_IS_BETTER:
                raise ConfigError(f"pareto.{metric}", direction, "a metric with a direction", f"Leave {metric} out.")
            right = "max" if HIGHER_IS_BETTER[metric] else "min"
            if direction != right:
                raise ConfigError(f"pareto.{metric}", direction, right, f"Write {metric}: {right}.")
        return self


def _check_metric(where: str, name: str) -> None:
    if name not in METRICS:
        raise ConfigError(f"{where}.{name}", f"unknown metric {name!r}", *nearest(name, METRICS, cutoff=0.3))


class BenchmarkSection(Section):
    """A benchmark to load, as `hbt-ray evaluate` takes it."""

    benchmark: str
    data: str
    """Folder of its files."""
    languages: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    candidate_text: str = "sentence"

    @field_validator("benchmark")
    @classmethod
    def _known(cls, name: str) -> str:
        return _known_benchmark(name)


def _known_benchmark(name: str) -> str:
    if name not in BENCHMARKS:
        raise ConfigError("", repr(name), *nearest(name, BENCHMARKS, cutoff=0.3))
    return name


class ValidationSection(Section):
    """On what trials are compared: held-out documents of the corpus, or a benchmark, which then is none to report."""

    benchmark: str = HELD_OUT
    questions: Count | None = None
    """At most so many of the held-out ones."""
    data: str | None = None
    """Folder of the benchmark's files."""
    languages: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    @field_validator("benchmark")
    @classmethod
    def _known(cls, name: str) -> str:
        return name if name == HELD_OUT else _known_benchmark(name)

    @model_validator(mode="after")
    def _keys_of_the_other_kind(self) -> ValidationSection:
        held_out = self.benchmark == HELD_OUT
        for key in ("data", "languages") if held_out else ("questions",):
            if getattr(self, key) is not None:
                raise ConfigError(
                    key, getattr(self, key), f"nothing with benchmark {self.benchmark!r}", "Leave it out."
                )
        if not held_out and self.data is None:
            raise ConfigError("data", "nothing", f"the folder of {self.benchmark}'s files", "Add validation.data.")
        return self


class BestSection(Section):
    """What becomes of the best configuration."""

    retrain: dict[str, Any] | None = None
    """Settings of one more training with it; null: its trial's model is taken."""


class SweepConfig(Section):
    """Everything a sweep depends on."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    config: Config
    """The training configuration; in the file, its path."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Of every trial, by dotted key."""
    space: Annotated[dict[str, Dimension], Field(min_length=1)]
    search: SearchSection
    scheduler: Annotated[NoScheduler | Asha | Pbt, Field(discriminator="name")] = NoScheduler()
    objective: ObjectiveSection = ObjectiveSection()
    validation: ValidationSection = ValidationSection()
    report: tuple[BenchmarkSection, ...] = ()
    """Benchmarks that the best model is evaluated on at the end."""
    best: BestSection = BestSection()

    @cached_property
    def base(self) -> Config:
        """The training configuration with the settings of every trial. Raises ConfigError."""
        return self.config.replaced(self.settings)

    @model_validator(mode="after")
    def _grids_go_with_the_grid_algorithm(self) -> SweepConfig:
        grid = self.search.algorithm == "grid"
        for key, dimension in self.space.items():
            if grid != (dimension.kind == "grid"):
                expected = "grid: [...] for every key" if grid else "search.algorithm: grid with it"
                raise ConfigError(
                    f"space.{key}",
                    f"{dimension.kind} with search.algorithm {self.search.algorithm!r}",
                    expected,
                    "Change one of the two.",
                )
        return self

    @model_validator(mode="after")
    def _fixed_or_searched(self) -> SweepConfig:
        for key in self.space:
            if key in self.settings:
                raise ConfigError(f"settings.{key}", self.settings[key], "nothing: it is searched", "Leave it out.")
        return self

    @model_validator(mode="after")
    def _population_searches_alpha_only(self) -> SweepConfig:
        if not isinstance(self.scheduler, Pbt):
            return self
        if list(self.space) != [ALPHA] or self.space[ALPHA].kind != "uniform":
            raise ConfigError(
                "space",
                {key: dimension.kind for key, dimension in self.space.items()},
                f"exactly {ALPHA}: {{uniform: [lower, upper]}} with scheduler pbt",
                "Change the space, or take another scheduler.",
            )
        if self.search.algorithm != "random":
            raise ConfigError(
                "search.algorithm",
                self.search.algorithm,
                "random with scheduler pbt, which does the searching itself",
                "Set search.algorithm: random.",
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_reported_that_was_chosen_on(self) -> SweepConfig:
        names = [benchmark.benchmark for benchmark in self.report]
        for i, name in enumerate(names):
            if name == self.validation.benchmark:
                raise ConfigError(
                    f"report.{i}.benchmark",
                    repr(name),
                    "a benchmark that nothing was chosen on, and the best trial is chosen on this one",
                    "Report on another one, or validate on another one.",
                )
            if name in names[:i]:
                raise ConfigError(f"report.{i}.benchmark", f"{name!r} twice", "every benchmark once", "Remove one.")
        return self

    @model_validator(mode="after")
    def _front_to_search_over(self) -> SweepConfig:
        if self.search.over == "pareto" and len(self.objective.pareto) < 2:
            raise ConfigError(
                "objective.pareto", len(self.objective.pareto), "two metrics or more with over: pareto", "Add them."
            )
        return self

    @field_validator("best")
    @classmethod
    def _a_last_training_keeps_its_name(cls, best: BestSection) -> BestSection:
        for key in best.retrain or {}:
            if key in ("run.name", "run.out"):
                raise ConfigError(f"retrain.{key}", (best.retrain or {})[key], "nothing: it is given", "Leave it out.")
        return best


def load_sweep(path: Path, settings: Sequence[str] = ()) -> SweepConfig:
    """Read and check a sweep's file with `key=value` settings on top, such as `space.mix.alpha={uniform: [0, 1]}`.

    Raises:
        ConfigError: file absent, not YAML, unknown key, value out of range, in it or in the training configuration
            that it names; says which key and the nearest known one.
    """
    raw = read_yaml(path, "a sweep's YAML file", "name, config, space, search")
    for setting in settings:
        key, value = parsed_setting(setting, "key=value", "search.trials=4")
        put(raw, _parts(key), value)
    if isinstance(raw.get("config"), str):
        raw["config"] = load_config(path.parent / raw["config"]).model_dump(mode="json")
    return checked(SweepConfig, raw, str(path))


def _parts(key: str) -> list[str]:
    for free in FREE_KEYS:
        if key.startswith(f"{free}."):
            return [*free.split("."), key.removeprefix(f"{free}.")]
    return key.split(".")
