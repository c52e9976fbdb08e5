"""Where a sweep searches: dotted keys of the training configuration, each with a range or a list of values.

The search sees numbers only: of a list (`choice`, `grid`) the index of a value, which may itself be anything that the
configuration takes, such as a list of languages or an α schedule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import BaseModel

from hbt_ray.config import AlphaSchedule, Config
from hbt_ray.errors import ConfigError
from hbt_ray.settings_file import nearest
from hbt_ray.sweep.settings import Dimension

# What is the same in all trials: where they write, what they are compared on, with how many steps and resources.
SAME_IN_ALL = ("run.", "tracking.", "cluster.", "data.root", "data.hold_out.", "train.steps")
SEED = "run.seed"  # the documents held out do not depend on it in a sweep

Space = Mapping[str, Dimension]


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space as Optuna takes it."""
    return {key: _distribution(dimension) for key, dimension in space.items()}


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.uniform is not None:
        return FloatDistribution(*dimension.uniform)
    if dimension.log_uniform is not None:
        return FloatDistribution(*dimension.log_uniform, log=True)
    if dimension.int_uniform is not None:
        return IntDistribution(*dimension.int_uniform)
    return CategoricalDistribution(range(len(values(dimension))))


def values(dimension: Dimension) -> tuple[Any, ...]:
    """The listed values of a choice or a grid, the two ends of a range."""
    return next(found for _, found in dimension if found is not None)


def chosen(space: Space, sampled: Mapping[str, Any]) -> dict[str, Any]:
    """What the search found, as settings of the training configuration."""
    return {key: _value(dimension, sampled[key]) for key, dimension in space.items()}


def _value(dimension: Dimension, sampled: Any) -> Any:
    return values(dimension)[sampled] if dimension.kind in ("choice", "grid") else sampled


def grid_points(space: Space) -> list[dict[str, int]]:
    """Every combination of a space of grids, as the search sees it; the last key changes fastest."""
    indices = [range(len(values(dimension))) for dimension in space.values()]
    return [dict(zip(space, point, strict=True)) for point in product(*indices)]


def check_space(space: Space, base: Config) -> None:
    """Hold every key and every listed value or end of a range against the configuration, one at a time.

    Raises ConfigError: an unknown key (with the nearest known one), one that is the same in all trials, a value that
    the configuration refuses.
    """
    known = list(_dotted_keys(base))
    for key, dimension in space.items():
        where = f"space.{key}"
        if key not in known:
            _, fix = nearest(key, known, "Use a known key.", cutoff=0.3)
            raise ConfigError(where, f"unknown key {key!r}", "a dotted key of the training configuration", fix)
        if key.startswith(SAME_IN_ALL) and key != SEED:
            raise ConfigError(where, key, "a key that may differ between trials that are compared", "Leave it out.")
        for value in values(dimension):
            try:
                base.replaced({key: value})
            except ConfigError as error:
                expected = f"only values that the configuration takes ({error.expected})"
                raise ConfigError(where, f"{dimension.kind} with {value!r}", expected, error.fix) from None


def _dotted_keys(section: BaseModel, prefix: str = "") -> Iterator[str]:
    for name, value in section:
        if isinstance(value, BaseModel) and not isinstance(value, AlphaSchedule):
            yield from _dotted_keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
