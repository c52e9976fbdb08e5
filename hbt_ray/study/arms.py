"""The trainings of a study: a configuration for every arm, seed and share of the data, checked before anything starts.

Arms share data, held-out documents, steps, batch size and, for each seed, the weights they start from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hbt_ray.commands import corpus_root
from hbt_ray.config import Config
from hbt_ray.errors import UserError
from hbt_ray.evaluation.benchmarks import load_benchmark
from hbt_ray.mixing.source import training_source, validation_sources
from hbt_ray.model.encoder import load_encoder, resolve_backbone
from hbt_ray.model.export import export_encoder
from hbt_ray.study.settings import UNTRAINED, BenchmarkSection, StudyConfig, slug
from hbt_ray.train.fit import SCRATCH, check_backbone, encoder_settings, prepare_backbone


@dataclass(frozen=True)
class StudyRun:
    """One training: an arm, a seed, a share of the training documents."""

    arm: str
    seed: int
    fraction: float
    config: Config

    @property
    def name(self) -> str:
        """Of the run, its folder and its results."""
        return self.config.run.name


def study_runs(study: StudyConfig, root: str, folder: Path) -> list[StudyRun]:
    """Every training of a study: the largest share of the data first, all arms of a seed after each other.

    Args:
        study: arms, seeds and fractions.
        root: resolved corpus folder.
        folder: absolute folder of the study; runs go to `runs/`, start weights lie in `backbones/`.

    Raises:
        ConfigError: an arm with an unknown key or a value out of range.
    """
    return [
        StudyRun(arm, seed, fraction, _run_config(study, root, folder, arm, seed, fraction))
        for fraction in sorted(study.fractions, reverse=True)
        for seed in study.seeds
        for arm in study.arms
    ]


def _run_config(study: StudyConfig, root: str, folder: Path, arm: str, seed: int, fraction: float) -> Config:
    base = study.base
    share = "" if fraction == 1.0 else f"-f{fraction:g}"
    held_out_by = base.data.hold_out.seed
    common: dict[str, Any] = {
        "run.name": f"{study.name}-{slug(arm)}-s{seed}{share}",
        "run.out": str(folder / "runs"),
        "run.seed": seed,
        "data.root": root,
        "data.fraction": fraction,
        "data.hold_out.seed": base.run.seed if held_out_by is None else held_out_by,
        "model.backbone": start_weights(base, folder, seed),
        "tracking.registered_model": None,
    }
    with _said_of(f"arm {arm!r}"):
        return base.replaced({**study.arms[arm], **common})


def check_runs(study: StudyConfig, runs: Sequence[StudyRun], root: str) -> None:
    """Open the plans of every arm, once per share of the data, and look at the model.

    Raises:
        UserError: a batch that the corpus cannot make (names the arm), a missing corpus or model.
    """
    check_backbone(study.base)
    for run in runs:
        if run.seed == study.seeds[0]:
            with _said_of(f"arm {run.arm!r}"):
                training_source(run.config, root).open()
                for source in validation_sources(run.config, root).values():
                    source.open()


def check_benchmarks(study: StudyConfig, out: Path) -> None:
    """Load every benchmark. Raises ConfigError for unknown languages, BenchmarkError for missing or damaged files."""
    for section in study.benchmarks:
        data = benchmark_data(study, section, out)
        load_benchmark(section.benchmark, data, section.languages, candidate_text=section.candidate_text)


def benchmark_data(study: StudyConfig, section: BenchmarkSection, out: Path) -> Path:
    """The folder of a benchmark's files; the embedded sample's lies below `out`."""
    data = section.data or study.data
    assert data is not None  # StudyConfig checked it
    return Path(corpus_root(data, out))


# --- start weights ---------------------------------------------------------------------------------------------------


def start_weights(base: Config, folder: Path, seed: int) -> str:
    """What all arms of a seed start from: the given backbone, or for `scratch` a folder with weights of that seed."""
    return str(_seed_folder(folder, seed) / SCRATCH) if base.model.backbone == SCRATCH else base.model.backbone


def build_start_weights(study: StudyConfig, root: str, folder: Path) -> None:
    """Build the `scratch` weights of every seed that has none yet; the tokenizer is the same in all."""
    if study.base.model.backbone == SCRATCH:
        for seed in study.seeds:
            prepare_backbone(study.base.replaced({"run.seed": seed}), root, _seed_folder(folder, seed))


def untrained_model(study: StudyConfig, folder: Path) -> Path:
    """The weights that the arms of the first seed start from, with the pooling, prefixes and lengths of training."""
    base = study.base
    start = start_weights(base, folder, study.seeds[0])
    if base.model.backbone == SCRATCH:
        return Path(start)
    exported = folder / "backbones" / UNTRAINED
    if not exported.exists():
        unfinished = exported.with_name(f"{UNTRAINED}.partial")
        encoder, tokenizer = load_encoder(
            resolve_backbone(base.model.backbone), base.model.pooling, base.model.revision
        )
        export_encoder(encoder, tokenizer, unfinished, encoder_settings(base))
        unfinished.rename(exported)
    return exported


def _seed_folder(folder: Path, seed: int) -> Path:
    return folder / "backbones" / f"seed-{seed}"


@contextmanager
def _said_of(what: str) -> Iterator[None]:
    """Errors within the context say what they are about."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{what}: {error.where}", error.received, error.expected, error.fix) from None
