"""Fixtures that several rooms share. The environment is set before anything imports Ray."""

from __future__ import annotations

import os

os.environ["RAY_AUTH_MODE"] = "disabled"  # loopback only; the default would create a token in the user's home
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - so that tests side by side do not starve each other
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)

from collections.abc import Iterator
from pathlib import Path

import pytest

from hbt_ray.config import Config
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.writer import write_pairs
from hbt_ray.session import prepare_environment
from hbt_ray.storage import Folder

prepare_environment()

DIGITS = {"en": "abcdefghij", "de": "klmnopqrst", "zh": "一二三四五六七八九十"}


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_FailuresAtOnce(config))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start a Ray come first: as the last on two cores they would run alone."""
    long = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in long)


class _FailuresAtOnce:
    """Slow tests say at once how they failed: a run of an hour may be cut off before its end."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and "slow" in report.keywords:
            writer = self._config.get_terminal_writer()
            writer.line(f"\n{report.nodeid} failed at {report.when}:\n{report.longreprtext}")


@pytest.fixture(scope="session")
def toy_corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """600 pairs in three languages: four digits spelled in the letters of each language."""
    pairs = []
    for i in range(600):
        number = f"{i * 7919 % 10_000:04d}"
        words = {lang: [letters[int(digit)] for digit in number] for lang, letters in DIGITS.items()}
        pairs.append(
            ParallelPair(
                pair_id=str(i),
                passage_id=f"passage-{i}",
                group=f"document-{i // 10}",
                query={lang: " ".join(2 * word for word in spelled) for lang, spelled in words.items()},
                passage={lang: "= " + " ".join(3 * word for word in spelled) for lang, spelled in words.items()},
            )
        )
    root = tmp_path_factory.mktemp("corpus")
    write_pairs(Folder(str(root)), "toy", pairs, list(DIGITS), {"source": "tests"}, rows_per_group=64)
    return str(root)


@pytest.fixture(scope="session")
def toy_config(toy_corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of seconds on the toy corpus."""
    return Config.model_validate(
        {
            "run": {"name": "toy", "out": str(tmp_path_factory.mktemp("runs"))},
            "data": {"root": toy_corpus, "hold_out": {"fraction": 0.2, "batches": 2}},
            "model": {
                "backbone": "scratch",
                "scratch": {"vocabulary": 512, "layers": 1, "hidden": 32, "heads": 2, "feed_forward": 64},
                "max_query_tokens": 16,
                "max_passage_tokens": 16,
            },
            "train": {
                "steps": 6,
                "batch_size": 16,
                "learning_rate": 1e-3,
                "schedule": "constant",
                "validate_every": 3,
                "log_every": 3,
            },
            "cluster": {"cpus_per_worker": 0.5},
        }
    )


@pytest.fixture(scope="session")
def toy_model(toy_config: Config, toy_corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained exported encoder for the toy corpus."""
    from hbt_ray.train.fit import prepare_backbone

    return Path(prepare_backbone(toy_config, toy_corpus, tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A local Ray for the tests of one module."""
    from hbt_ray.session import ray_session

    with ray_session(2.0):
        yield


@pytest.fixture(scope="module")
def swift_clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of clients of a Swift server; skips where there is none."""
    import swift

    reason = swift.missing()
    if reason:
        pytest.skip(f"OpenStack Swift cannot be started: {reason}")
    with swift.serve(tmp_path_factory.mktemp("swift")) as clients:
        yield clients
