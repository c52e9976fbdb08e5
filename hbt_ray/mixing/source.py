"""Open a corpus as a batch plan: which datasets, languages and split the plan draws from.

All plans of a process (training, validation by mode) share the presence bits and the hold-out of a dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from hbt_ray.config import Config, HoldOutSection, MixSection
from hbt_ray.corpus.shards import GROUPS, ShardedDataset, open_corpus, presence_name
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
    fraction: float = 1.0

    @property
    def split_seed(self) -> int:
        """Seed of the choice of documents."""
        return self.seed if self.hold_out.seed is None else self.hold_out.seed

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
        fraction=config.data.fraction,
    )


def validation_sources(config: Config, root: str) -> dict[str, PlanSource]:
    """Sources of the held-out batches by mode, the same for every α: X-X-mono, and X-Y where the corpus can make it.

    A mix of X-X batches has these too. Empty when nothing is held out.
    """
    if config.data.hold_out.fraction == 0:
        return {}
    base = training_source(config, root)
    exponent = config.mix.size_exponent
    mixes = {
        "X-X-mono": MixSection(alpha=1.0, size_exponent=exponent),
        "X-Y": MixSection(alpha=0.0, size_exponent=exponent),
        config.mix.mixed: MixSection(alpha=0.0, size_exponent=exponent, mixed=config.mix.mixed),
    }
    sources = {mode: replace(base, mix=mix, split="validation") for mode, mix in mixes.items()}
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
    rows = [dataset_rows(dataset, languages, source) for dataset in datasets]
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


def dataset_rows(dataset: ShardedDataset, languages: Sequence[str], source: PlanSource) -> DatasetRows:
    """Presence bits of a dataset over the plan's languages, and the rows of the split.

    Raises ConfigError if no document would be left for training, CorpusError for a file that is absent or broken.
    """
    content = _Content.of(dataset)
    query, passage = _presence(content, tuple(languages))
    held_out = _held_out_rows(content, source.hold_out.fraction, source.split_seed)
    if source.split == "validation":
        kept = held_out
    elif source.fraction < 1:
        kept = _training_rows(content, source.hold_out.fraction, source.fraction, source.split_seed)
    else:
        kept = ~held_out
    return DatasetRows(dataset.name, query, passage, kept, dataset.group_starts)


@dataclass(frozen=True)
class _Content:
    """A dataset as a key: the same while its folder holds the same presence bits and documents."""

    folder: str
    digests: tuple[str | None, ...]
    dataset: ShardedDataset = field(compare=False, repr=False)

    @classmethod
    def of(cls, dataset: ShardedDataset) -> _Content:
        names = (GROUPS, *(presence_name(lang) for lang in dataset.manifest.languages))
        return cls(dataset.folder.uri, tuple(dataset.manifest.files.get(name) for name in names), dataset)


@lru_cache(maxsize=32)
def _presence(content: _Content, languages: tuple[str, ...]) -> tuple[Bits, Bits]:
    """uint8 [languages, ceil(rows / 8)] twice: queries and passages; zero where the dataset lacks the language."""
    manifest = content.dataset.manifest
    query: Bits = np.zeros((len(languages), -(-manifest.rows // 8)), dtype=np.uint8)
    passage = np.zeros_like(query)
    for code, lang in enumerate(languages):
        if lang in manifest.languages:
            query[code], passage[code] = content.dataset.presence(lang)
    return query, passage


@lru_cache(maxsize=32)
def _held_out_rows(content: _Content, fraction: float, seed: int) -> Bits:
    """uint8 [ceil(rows / 8)]: packed bits of the rows whose document is held out.

    Raises ConfigError if no document would be left for training.
    """
    dataset = content.dataset
    held = held_out_groups(dataset.manifest.groups, fraction, seed)
    if held.all():
        raise ConfigError(
            "data.hold_out.fraction",
            fraction,
            f"a fraction that leaves some of the {len(held)} groups of dataset {dataset.name!r} for training",
            "Lower it, set it to 0, or import the dataset with more groups.",
        )
    return _rows_of(dataset, held)


@lru_cache(maxsize=32)
def _training_rows(content: _Content, held_out: float, fraction: float, seed: int) -> Bits:
    """uint8 [ceil(rows / 8)]: packed bits of the rows that training uses of those not held out."""
    groups = content.dataset.manifest.groups
    return _rows_of(content.dataset, training_groups(groups, held_out, fraction, seed))


def _rows_of(dataset: ShardedDataset, chosen: npt.NDArray[np.bool_]) -> Bits:
    """Packed bits of the rows of chosen groups."""
    if not chosen.any():
        return np.zeros(-(-dataset.manifest.rows // 8), dtype=np.uint8)
    return np.concatenate(dataset.map_groups(lambda rows: np.packbits(np.take(chosen, rows))))  # whole bytes a block


def held_out_groups(groups: int, fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """bool [groups]: a seeded choice of round(fraction · groups) groups, at least one when fraction > 0."""
    held = np.zeros(groups, dtype=bool)
    if fraction > 0:
        held[_in_random_order(groups, seed)[: _held_out_count(groups, fraction)]] = True
    return held


def training_groups(groups: int, held_out: float, fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """bool [groups]: round(fraction · rest) of the groups that are not held out, at least one; nested in fraction."""
    used = np.zeros(groups, dtype=bool)
    rest = _in_random_order(groups, seed)[_held_out_count(groups, held_out) if held_out > 0 else 0 :]
    used[rest[: max(1, round(fraction * len(rest)))]] = True
    return used


def _held_out_count(groups: int, fraction: float) -> int:
    return max(1, round(fraction * groups))


def _in_random_order(groups: int, seed: int) -> npt.NDArray[np.int32]:
    order = np.arange(groups, dtype=np.int32)
    np.random.default_rng([seed, groups]).shuffle(order)  # what permutation(groups) gives, in half the memory
    return order
