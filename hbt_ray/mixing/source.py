"""Open a corpus as a batch plan: which datasets, languages and split the plan draws from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from hbt_ray.config import Config, HoldOutSection, MixSection
from hbt_ray.corpus.shards import ShardedDataset, open_corpus
from hbt_ray.errors import ConfigError
from hbt_ray.mixing.plan import BatchPlan, Bits, DatasetRows
from hbt_ray.storage import Folder

Split = Literal["train", "validation"]


@dataclass(frozen=True)
class PlanSource:
    """All that determines a plan; small and picklable, so every process opens the same plan by itself."""

    root: str
    datasets: tuple[str, ...] | None
    languages: tuple[str, ...] | None
    hold_out: HoldOutSection
    mix: MixSection
    batch_size: int
    seed: int
    split: Split = "train"

    def open(self) -> OpenPlan:
        """The plan and its datasets, opened once per process. Raises CorpusError, ConfigError."""
        return _open(self)


@dataclass(frozen=True, eq=False)
class OpenPlan:
    """A plan with the shards it refers to."""

    plan: BatchPlan
    datasets: dict[str, ShardedDataset]


def training_source(config: Config, root: str) -> PlanSource:
    """The source of the training batches of a configuration; `root` is the resolved corpus folder."""
    return PlanSource(
        root=root,
        datasets=config.data.datasets,
        languages=config.data.languages,
        hold_out=config.data.hold_out,
        mix=config.mix,
        batch_size=config.train.batch_size,
        seed=config.run.seed,
    )


def validation_sources(config: Config, root: str) -> dict[str, PlanSource]:
    """Sources of the held-out batches by mode, the same for every α: X-X-mono, and X-Y where the corpus can make it.

    Empty when nothing is held out.
    """
    if config.data.hold_out.fraction == 0:
        return {}
    base = training_source(config, root)
    sources = {
        mode: replace(base, mix=MixSection(alpha=alpha, size_exponent=config.mix.size_exponent), split="validation")
        for mode, alpha in (("X-X-mono", 1.0), ("X-Y", 0.0))
    }
    datasets = open_corpus(Folder(root), base.datasets)
    languages = plan_languages(datasets, base.languages)
    if not any(len(set(dataset.manifest.languages).intersection(languages)) > 1 for dataset in datasets):
        del sources["X-Y"]
    return sources


def plan_languages(datasets: Sequence[ShardedDataset], wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """Languages that the plan draws from: the wanted ones, else all that any dataset has, sorted.

    Raises ConfigError if a wanted language is in no dataset.
    """
    found = sorted({lang for dataset in datasets for lang in dataset.manifest.languages})
    for lang in wanted or ():
        if lang not in found:
            raise ConfigError(
                "data.languages", repr(lang), f"languages of the corpus ({', '.join(found)})", f"Remove {lang!r}."
            )
    return wanted or tuple(found)


@lru_cache(maxsize=8)
def _open(source: PlanSource) -> OpenPlan:
    datasets = open_corpus(Folder(source.root), source.datasets)
    languages = plan_languages(datasets, source.languages)
    rows = [dataset_rows(dataset, languages, _kept(dataset, source)) for dataset in datasets]
    by_name = {dataset.name: dataset for dataset in datasets}
    if source.split == "train":
        return OpenPlan(BatchPlan(rows, languages, source.mix, source.batch_size, source.seed), by_name)
    try:
        plan = BatchPlan(rows, languages, source.mix, source.batch_size, source.seed, small_streams="leave out")
    except ConfigError as error:
        raise ConfigError(
            "data.hold_out.fraction",
            source.hold_out.fraction,
            f"enough held-out rows for validation ({error.expected})",
            "Raise it, lower train.batch_size, or set it to 0 for no validation.",
        ) from None
    return OpenPlan(plan, by_name)


def dataset_rows(dataset: ShardedDataset, languages: Sequence[str], kept: npt.NDArray[np.bool_]) -> DatasetRows:
    """Presence bits of a dataset over the plan's languages, restricted to the rows of the split."""
    keep = np.packbits(kept)
    query: Bits = np.zeros((len(languages), len(keep)), dtype=np.uint8)
    passage = np.zeros_like(query)
    for code, lang in enumerate(languages):
        if lang in dataset.manifest.languages:
            query[code], passage[code] = dataset.presence(lang) & keep
    return DatasetRows(dataset.name, query, passage, dataset.group_starts)


def held_out_groups(groups: int, fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """bool [groups]: a seeded choice of round(fraction · groups) groups, at least one when fraction > 0."""
    held = np.zeros(groups, dtype=bool)
    if fraction > 0:
        count = max(1, round(fraction * groups))
        held[np.random.default_rng([seed, groups]).permutation(groups)[:count]] = True
    return held


def _kept(dataset: ShardedDataset, source: PlanSource) -> npt.NDArray[np.bool_]:
    """bool [rows]: the rows that belong to the split. Raises ConfigError if none would be left for training."""
    held = held_out_groups(dataset.manifest.groups, source.hold_out.fraction, source.seed)
    if held.all():
        raise ConfigError(
            "data.hold_out.fraction",
            source.hold_out.fraction,
            f"a fraction that leaves some of the {len(held)} groups of dataset {dataset.name!r} for training",
            "Lower it, set it to 0, or import the dataset with more groups.",
        )
    in_validation = held[dataset.groups()]
    return in_validation if source.split == "validation" else ~in_validation
