"""What a study is asked for: arms, seeds, shares of the data and benchmarks, in one YAML file checked at the edge."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, model_validator

from hbt_ray.config import Config, Count, load_config
from hbt_ray.errors import ConfigError
from hbt_ray.evaluation.benchmarks import BENCHMARKS
from hbt_ray.evaluation.comparison import LEAST_RESAMPLES
from hbt_ray.languages import checked_codes
from hbt_ray.settings_file import Section, checked, nearest, parsed_setting, put, read_yaml

UNTRAINED = "untrained"  # the weights that arms start from, in the tables beside the arms
BY_THE_STUDY = {"run.name": "name", "run.seed": "seeds", "data.fraction": "fractions"}  # key -> what sets it
EQUAL_IN_ALL_ARMS = (
    *("run", "tracking", "data.root", "data.hold_out", "train.steps", "train.batch_size"),
    *("model.backbone", "model.revision", "model.scratch"),
)

Item = TypeVar("Item")


def _each_once(values: tuple[Item, ...]) -> tuple[Item, ...]:
    for value in values:
        if values.count(value) > 1:
            raise ConfigError("", f"{value!r} twice", "every value once", f"Remove one {value!r}.")
    return values


def _checked_languages(codes: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return None if codes is None else checked_codes(codes, "")


class BenchmarkSection(Section):
    """A benchmark to report on, as `hbt-ray evaluate` takes it."""

    benchmark: str
    data: str | None = None
    """Folder of its files, `sample://` for the embedded sample; null = the study's `data`."""
    languages: Annotated[tuple[str, ...] | None, AfterValidator(_checked_languages)] = None
    """Languages to load; null = all."""
    candidate_text: str = "sentence"
    """`sentence` or `sentence+context`, for the LAReQA sets."""

    @property
    def name(self) -> str:
        """What results call it."""
        return f"{self.benchmark}{self.candidate_text.removeprefix('sentence')}"

    @model_validator(mode="after")
    def _known(self) -> BenchmarkSection:
        if self.benchmark not in BENCHMARKS:
            raise ConfigError("benchmark", repr(self.benchmark), *nearest(self.benchmark, BENCHMARKS))
        return self


class StudyConfig(Section):
    """Everything a study depends on."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Folder below run.out; the same name resumes."""
    config: Config
    """The training configuration; in the file, its path."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Of every arm, by dotted key."""
    arms: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """Name -> settings in which the arm differs, by dotted key."""
    baseline: str
    """The arm that the others are compared with."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), AfterValidator(_each_once)]
    """Each trains every arm; arms of one seed start from the same weights."""
    fractions: Annotated[
        tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...], Field(min_length=1), AfterValidator(_each_once)
    ] = (1.0,)
    """Shares of the training documents; a smaller share is part of every larger one."""
    data: str | None = None
    """Folder of the files of benchmarks that name none."""
    benchmarks: Annotated[tuple[BenchmarkSection, ...], Field(min_length=1)]
    """What the tables report."""
    untrained: bool = True
    """Also evaluate the weights that the arms of the first seed start from."""
    concurrent: Count | None = None
    """Trainings at a time; null: as many as the cluster has room for."""
    resamples: Annotated[int, Field(ge=LEAST_RESAMPLES)] = 10_000
    """Of every interval and test."""

    @cached_property
    def base(self) -> Config:
        """The training configuration with the settings of every arm. Raises ConfigError."""
        return self.config.replaced(self.settings)

    @property
    def largest_fraction(self) -> float:
        """The share of the documents that tables and tests are about."""
        return max(self.fractions)

    @model_validator(mode="after")
    def _settings_leave_what_the_study_sets(self) -> StudyConfig:
        for key in self.settings:
            _check_not_by_the_study(f"settings.{key}", key)
        if self.base.data.fraction < 1:
            _check_not_by_the_study("config: data.fraction", "data.fraction")
        return self

    @model_validator(mode="after")
    def _arms_differ_where_they_may(self) -> StudyConfig:
        for arm, settings in self.arms.items():
            for key in settings:
                where = f"arms.{arm}.{key}"
                _check_not_by_the_study(where, key)
                if any(key == fixed or key.startswith(f"{fixed}.") for fixed in EQUAL_IN_ALL_ARMS):
                    raise ConfigError(
                        where, "a value of its own", "the same in all arms, to compare them", "Put it in `settings`."
                    )
        return self

    @model_validator(mode="after")
    def _arms_have_folders_of_their_own(self) -> StudyConfig:
        named: dict[str, str] = {}
        for arm in self.arms:
            if arm == UNTRAINED or not slug(arm):
                expected = f"a name with letters or digits, other than {UNTRAINED!r}"
                raise ConfigError("arms", repr(arm), expected, "Rename the arm.")
            other = named.setdefault(slug(arm), arm)
            if other != arm:
                expected = f"names that differ as folders (both become {slug(arm)!r})"
                raise ConfigError("arms", f"{other!r} and {arm!r}", expected, "Rename one of them.")
        return self

    @model_validator(mode="after")
    def _baseline_is_an_arm(self) -> StudyConfig:
        if self.baseline not in self.arms:
            raise ConfigError("baseline", repr(self.baseline), *nearest(self.baseline, self.arms))
        return self

    @model_validator(mode="after")
    def _benchmarks_differ_and_have_files(self) -> StudyConfig:
        names = [section.name for section in self.benchmarks]
        for i, section in enumerate(self.benchmarks):
            if section.name in names[:i]:
                raise ConfigError(f"benchmarks.{i}", f"{section.name!r} twice", "every benchmark once", "Remove one.")
            if section.data is None and self.data is None:
                expected = f"the folder of {section.name}'s files"
                raise ConfigError(f"benchmarks.{i}.data", "nothing", expected, "Add it, or `data` for all benchmarks.")
        return self

    @model_validator(mode="after")
    def _nothing_is_reported_that_was_chosen_on(self) -> StudyConfig:
        chosen_on = [name.partition("+")[0] for name in self.base.run.chosen_on]
        for i, section in enumerate(self.benchmarks):
            if section.benchmark in chosen_on:
                raise ConfigError(
                    f"benchmarks.{i}.benchmark",
                    repr(section.name),
                    "a benchmark that nothing was chosen on, and this configuration was chosen on "
                    f"{', '.join(self.base.run.chosen_on)} (run.chosen_on)",
                    "Report on another one: the best of many on a benchmark is too good there by chance.",
                )
        return self


def load_study(path: Path, settings: Sequence[str] = ()) -> StudyConfig:
    """Read and check a study's file with `key=value` settings on top; `settings.train.steps=100` is one.

    Raises:
        ConfigError: file absent, not YAML, unknown key, value out of range, in it or in the training configuration
            that it names; says which key and the nearest known one.
    """
    raw = read_yaml(path, "a study's YAML file", "name, config, arms, seeds")
    for setting in settings:
        key, value = parsed_setting(setting, "key=value or settings.<dotted key>=value", "settings.train.steps=100")
        put(raw, _parts(key), value)
    if isinstance(raw.get("config"), str):
        raw["config"] = load_config(path.parent / raw["config"]).model_dump(mode="json")
    return checked(StudyConfig, raw, str(path))


def _parts(key: str) -> list[str]:
    section, dot, dotted = key.partition(".")
    if dot and section != "settings":
        raise ConfigError(f"--set {key}", repr(key), "a key of the file, or settings.<dotted key>", "Name one.")
    return [section, dotted] if dot else [section]


def slug(arm: str) -> str:
    """An arm's name as folders, runs and metrics have it: `mono→cross` is mono-cross."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", arm).strip("-._")


def _check_not_by_the_study(where: str, key: str) -> None:
    if key in BY_THE_STUDY:
        place = BY_THE_STUDY[key]
        raise ConfigError(where, "a value", f"`{place}` of the study, which sets it", f"Remove it and use `{place}`.")
