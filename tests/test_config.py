from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hbt_ray import errors
from hbt_ray.config import AlphaSchedule, Config, load_config
from hbt_ray.errors import ConfigError, HbtError, UserError
from hbt_ray.languages import checked_codes, language, ordered_pairs

MINIMAL: dict[str, Any] = {
    "run": {"name": "test"},
    "data": {"root": "corpus"},
    "model": {"backbone": "scratch"},
    "train": {"steps": 10, "batch_size": 8},
}
ERROR_CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HbtError)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(MINIMAL), encoding="utf-8")
    return path


def refused(path: Path, *settings: str) -> ConfigError:
    with pytest.raises(ConfigError) as info:
        load_config(path, settings)
    return info.value


@pytest.mark.parametrize("kind", ERROR_CLASSES, ids=lambda kind: kind.__name__)
def test_errors_survive_pickling(kind: type[HbtError]) -> None:
    """An error that Ray moves between processes keeps its class, its fields and its message."""
    fields = ("file.jsonl, line 3", 7, "a number below 5", "Lower it.") if issubclass(kind, UserError) else ("why",)
    error = kind(*fields)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (str(copy), vars(copy), copy.args) == (str(error), vars(error), fields)
    assert all(str(field) in str(copy) for field in fields)


def test_a_minimal_file_is_enough(path: Path) -> None:
    """Four keys make a configuration; the paper's choices are the defaults."""
    config = load_config(path)
    assert (config.run.name, config.data.root, config.train.steps, config.train.batch_size) == ("test", "corpus", 10, 8)
    assert (config.mix.alpha, config.mix.mixed, config.mix.pair_scope, config.mix.size_exponent) == (
        0.5,
        "X-Y",
        "pair",
        1.0,
    )


@pytest.mark.parametrize(
    ("setting", "key", "nearest"),
    [
        ("trian.steps=3", "trian", "train"),
        ("train.temprature=0.1", "train.temprature", "temperature"),
        ("data.hold_out.fracton=0.1", "data.hold_out.fracton", "fraction"),
        ("model.scratch.layer=2", "model.scratch.layer", "layers"),
        ("mix.alpha={pionts: [[0, 0.5]]}", "mix.alpha.pionts", "points"),
    ],
)
def test_a_misspelt_key_names_the_nearest(path: Path, setting: str, key: str, nearest: str) -> None:
    """An unknown key is refused with its full name and the key that was probably meant."""
    error = refused(path, setting)
    assert error.where == f"{path}: {key}"
    assert error.fix == f"Did you mean {nearest!r}?"


def test_a_key_like_no_other_gets_no_guess(path: Path) -> None:
    """Where nothing is near, the known keys are listed and none is suggested."""
    error = refused(path, "cluster.zzz=1")
    assert "Did you mean" not in error.fix
    assert "workers" in error.expected


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("mix.alpha=1.01", "mix.alpha"),
        ("mix.alpha=-0.1", "mix.alpha"),
        ("mix.alpha=.nan", "mix.alpha"),
        ("mix.alpha=half", "mix.alpha"),
        ("mix.alpha={points: []}", "mix.alpha.points"),
        ("mix.alpha={points: [[0, 1.5]]}", "mix.alpha.points.0.1"),
        ("mix.alpha={points: [[-1, 0.5]]}", "mix.alpha.points.0.0"),
        ("mix.alpha={points: [[0, 0.5]], interpolation: cubic}", "mix.alpha.interpolation"),
        ("mix.mixed=Y-X", "mix.mixed"),
        ("mix.size_exponent=-1", "mix.size_exponent"),
        ("train.temperature=0", "train.temperature"),
        ("train.temperature=-0.05", "train.temperature"),
        ("train.temperature=.inf", "train.temperature"),
        ("train.steps=0", "train.steps"),
        ("train.warmup_steps=11", "train.warmup_steps"),
        ("train.batch_size=1", "train.batch_size"),
        ("train.hard_negatives=-1", "train.hard_negatives"),
        ("train.optimizer=sgd", "train.optimizer"),
        ("model.attention=linear", "model.attention"),
        ("cluster.min_workers=2", "cluster.min_workers"),
        ("data.hold_out.fraction=1", "data.hold_out.fraction"),
        ("data.languages=[]", "data.languages"),
        ("data.languages=[en, en]", "data.languages"),
        ("data.languages=[en, xq]", "data.languages"),
        ("data.datasets=[mt, mt]", "data.datasets"),
        ("run.name=../elsewhere", "run.name"),
        ("cluster.zero_stage=4", "cluster.zero_stage"),
        ("mix=0.5", "mix"),
    ],
)
def test_a_value_out_of_range_names_file_and_key(path: Path, setting: str, key: str) -> None:
    """Every refused value is reported under the file and the dotted key the user wrote."""
    assert refused(path, setting).where == f"{path}: {key}"


@pytest.mark.parametrize(
    ("settings", "key", "expected"),
    [
        (["train.optimizer=cpu_adamw"], "train.optimizer", "ZeRO stage 1, 2 or 3"),
        # 8 pairs of at most 64 + 256 tokens on one worker
        (["train.gradient_cache=true", "train.chunk_tokens=2560"], "train.chunk_tokens", "whole batch (2560 tokens)"),
        (["train.learn_temperature=true", "train.temperature=0.01"], "train.temperature", "between 0.01 and 1.0"),
    ],
)
def test_settings_that_do_not_go_together(path: Path, settings: list[str], key: str, expected: str) -> None:
    """Offloading without partitions, a cache of one chunk, a learned τ that starts at its bound."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, settings)
    assert caught.value.where == f"{path}: {key}"
    assert expected in caught.value.expected


def test_settings_that_just_go_together(path: Path) -> None:
    """The same a step away from each limit."""
    config = load_config(
        path,
        [
            "train.optimizer=cpu_adamw",
            "cluster.zero_stage=1",
            "train.gradient_cache=true",
            "train.chunk_tokens=2559",
            "train.learn_temperature=true",
            "train.temperature=0.011",
        ],
    )
    assert config.train.chunk_tokens == 2559


@pytest.mark.parametrize("key", ["run.name", "data.root", "model.backbone", "train.steps", "train.batch_size"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    """A key without default that is left out is asked for by name."""
    section, name = key.split(".")
    raw = MINIMAL | {section: {k: v for k, v in MINIMAL[section].items() if k != name}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    error = refused(tmp_path / "c.yaml")
    assert error.where.endswith(f": {key}")
    assert error.fix == f"Add {key}."


def test_an_unknown_key_is_reported_before_the_one_it_leaves_missing(tmp_path: Path) -> None:
    """A misspelt required key is reported as misspelt, not as missing."""
    raw = MINIMAL | {"train": {"step": 10, "batch_size": 8}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    assert refused(tmp_path / "c.yaml").fix == "Did you mean 'steps'?"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"run: [1", "valid YAML"),
        (b"run: \xff", "valid YAML"),
        (b"", "keys such as run"),
        (b"- run", "keys such as run"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, content: bytes, expected: str) -> None:
    """Broken YAML, bytes that are not UTF-8 and files without sections are refused with the file's name."""
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    error = refused(path)
    assert error.where == str(path)
    assert expected in error.expected


def test_an_absent_file(tmp_path: Path) -> None:
    """A path without a file is refused with the path."""
    assert refused(tmp_path / "none.yaml").where == str(tmp_path / "none.yaml")


def test_settings_replace_the_file(path: Path) -> None:
    """Settings are YAML values: numbers, lists, mappings, null, text; a later one wins; sections may be new."""
    config = load_config(
        path,
        [
            "mix.alpha=0.25",
            "data.languages=[de, en]",
            "mix.alpha={points: [[0, 1], [10, 0]]}",
            "run.storage=s3://bucket/a=b",
            "train.patience=null",
            "run.seed=7",
        ],
    )
    assert config.mix.alpha == AlphaSchedule(points=((0, 1.0), (10, 0.0)))
    assert config.data.languages == ("de", "en")
    assert (config.run.storage, config.train.patience, config.run.seed) == ("s3://bucket/a=b", None, 7)


@pytest.mark.parametrize("setting", ["mix.alpha", "=0.5", "", "mix.alpha=[", "run.name.first=x"])
def test_a_setting_of_another_form(path: Path, setting: str) -> None:
    """What is not section.key=value, has no YAML value, or goes below a plain value is refused as a setting."""
    assert refused(path, setting).where.startswith("--set")


@pytest.mark.parametrize("points", [[[5, 0.1], [5, 0.2]], [[5, 0.1], [0, 0.2]], [[0, 0], [9, 1], [9, 0]]])
def test_points_of_a_schedule_rise(path: Path, points: list[list[float]]) -> None:
    """A schedule whose steps stand still or go back is refused with its steps."""
    error = refused(path, f"mix.alpha={{points: {points}}}")
    assert error.where == f"{path}: mix.alpha.points"
    assert str([step for step, _ in points]) in str(error)


def test_a_batch_divides_among_the_workers(path: Path) -> None:
    """A batch that is no multiple of the workers is refused with both numbers and both keys."""
    error = refused(path, "cluster.workers=3")
    assert error.where == f"{path}: train.batch_size"
    assert error.received == 8
    assert "cluster.workers (3)" in error.expected
    assert load_config(path, ["cluster.workers=4"]).cluster.workers == 4


def test_a_configuration_is_frozen(path: Path) -> None:
    """Nothing can change a configuration after it was checked."""
    config = load_config(path)
    with pytest.raises(ValidationError, match="frozen"):
        config.mix.alpha = 0.1  # type: ignore[misc]
    assert hash(config.mix) == hash(load_config(path).mix)


def test_replaced_is_checked_and_leaves_the_original(path: Path) -> None:
    """`replaced` gives a checked copy; the original, also one with a schedule, keeps its values."""
    config = load_config(path, ["mix.alpha={points: [[0, 1], [10, 0]]}", "data.languages=[en, de]"])
    other = config.replaced({"train.temperature": 0.02})
    assert (other.train.temperature, config.train.temperature) == (0.02, 0.05)
    assert other.model_copy(update={"train": config.train}) == config
    assert config.replaced({"mix.alpha": 0.3}).mix.alpha == 0.3
    with pytest.raises(ConfigError, match=r"train\.temperature"):
        config.replaced({"train.temperature": 0})
    with pytest.raises(ConfigError, match="Did you mean 'temperature'"):
        config.replaced({"train.temperatur": 0.1})


@given(alpha=st.floats(0, 1), steps=st.integers(1, 10**6), seed=st.integers(0, 2**40))
def test_a_saved_configuration_reads_back_equal(alpha: float, steps: int, seed: int) -> None:
    """The resolved JSON that is saved beside a result gives the same configuration again."""
    raw = MINIMAL | {"mix": {"alpha": alpha}, "train": {"steps": steps, "batch_size": 8}, "run": {"name": "a"}}
    config = Config.model_validate(raw).replaced({"run.seed": seed})
    assert Config.model_validate_json(config.model_dump_json()) == config
    assert config.mix.alpha == alpha


def test_language_codes() -> None:
    """A code CLDR knows is a language, also one outside the table; another is refused with a near one."""
    assert language("sw").resource_level == "low"
    assert language("is").resource_level == "unlisted"
    with pytest.raises(ConfigError, match="Did you mean 'en'"):
        language("EN")
    with pytest.raises(ConfigError, match="'de' twice"):
        checked_codes(["de", "en", "de"])


def test_ordered_pairs_are_all_directions() -> None:
    """Three languages make six ordered pairs, none of a language with itself."""
    assert ordered_pairs(["en", "de", "ar"]) == [
        ("en", "de"),
        ("en", "ar"),
        ("de", "en"),
        ("de", "ar"),
        ("ar", "en"),
        ("ar", "de"),
    ]
