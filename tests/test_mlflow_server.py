"""The server that mlflow/ describes: its files, and, where PostgreSQL and Swift are installed, the server itself."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import mlflow
import mlflow_server
import numpy as np
import pytest
import swift
import yaml
from mlflow import MlflowClient
from mlflow_serving import TEXTS, check_served_vectors, serving
from test_encoder import sentence_transformer_vectors

from hbt_ray.config import Config
from hbt_ray.errors import ResourceError
from hbt_ray.evaluation.comparison import compare
from hbt_ray.model.encoder import embedding_width
from hbt_ray.session import environment
from hbt_ray.tracking.runs import open_run, sync, tracking_store

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "mlflow"
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if re.match(r"^[\w.-]+==", line)
)
STEPS = 120
PACE = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}  # seconds between reports, of which every step makes one here


# --- the files -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((FOLDER / "compose.yaml").read_text()))


def test_compose_listens_on_loopback_and_keeps_its_data(compose: dict[str, Any]) -> None:
    """Every published port is of 127.0.0.1, every service has a health check and an image with a version."""
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert service["healthcheck"]["test"][0] == "CMD"
        assert re.fullmatch(r"[\w-]+:\d+(\.\d+)+", service["image"])
    assert compose["services"]["database"]["volumes"] == ["database:/var/lib/postgresql/data"]
    assert compose["services"]["server"]["depends_on"] == {"database": {"condition": "service_healthy"}}
    assert set(compose["volumes"]) == {"database"}


def test_compose_has_the_versions_of_the_constraints(compose: dict[str, Any]) -> None:
    """The image is named after the pinned MLflow, built from the pins, on the Python of the cluster's image."""
    assert compose["services"]["server"]["image"] == f"hbt-ray-mlflow:{PINS['mlflow']}"
    build = compose["services"]["server"]["build"]
    assert ((FOLDER / build["context"]).resolve(), (ROOT / build["dockerfile"]).exists()) == (ROOT, True)
    dockerfile = (FOLDER / "Dockerfile").read_text()
    (install,) = re.findall(r"^RUN (pip install .*) -c /tmp/constraints.txt", dockerfile, re.MULTILINE)
    packages = [word.partition("[")[0].lower() for word in shlex.split(install)[2:] if not word.startswith("-")]
    assert set(packages) <= {name.lower() for name in PINS}
    assert install.split(None, 3)[3] in (FOLDER / "README.md").read_text(), "README installs something else"
    (base,) = re.findall(r"^FROM (\S+)$", dockerfile, re.MULTILINE)
    assert f"PYTHON_IMAGE={base}\n" in (ROOT / "cluster" / "Dockerfile").read_text()
    for copied in re.findall(r"^COPY (\S+) ", dockerfile, re.MULTILINE):
        assert (ROOT / copied).exists()
        assert f"!{copied}\n" in (ROOT / ".dockerignore").read_text()


def test_compose_starts_the_server_of_the_readme(compose: dict[str, Any]) -> None:
    """The same options, all known to MLflow; what is mounted exists."""
    from mlflow.cli import server as command

    service = compose["services"]["server"]
    program, subcommand, *options = service["command"]
    assert (program, subcommand) == ("mlflow", "server")
    documented = shlex.split(mlflow_server.documented("mlflow server --app-name"))[2:]
    plain = [option.replace("${MLFLOW_ARTIFACTS:?set it in mlflow/.env}", "$MLFLOW_ARTIFACTS") for option in options]
    assert [option.replace("0.0.0.0", "127.0.0.1") for option in plain] == documented
    known = {name for parameter in command.params for name in parameter.opts}
    assert {option.partition("=")[0] for option in options} <= known
    for volume in service["volumes"]:
        source, target, mode = volume.split(":")
        assert (FOLDER / source).exists()
        assert (target, mode) == (service["environment"]["MLFLOW_AUTH_CONFIG_PATH"], "ro")


def test_secrets_come_from_the_environment(compose: dict[str, Any]) -> None:
    """Every variable that compose asks for is in .env.example, which gives no secret a value; .env is not in git."""
    example = (FOLDER / ".env.example").read_text()
    values = dict(re.findall(r"^(\w+)=(.*)$", example, re.MULTILINE))
    asked = set(re.findall(r"\$\{(\w+):\?", (FOLDER / "compose.yaml").read_text()))
    assert asked <= set(values)
    assert {name for name, value in values.items() if value} == {"MLFLOW_ARTIFACTS", "AWS_DEFAULT_REGION"}
    assert "password" not in (FOLDER / "basic_auth.ini").read_text().partition("[mlflow]")[2]
    done = subprocess.run(["git", "check-ignore", "mlflow/.env"], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode in (0, 128), "git would take mlflow/.env"  # 128: no repository here


# --- the server ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mlflow_server.MlflowServer]:
    """The server with PostgreSQL and S3."""
    if reason := mlflow_server.missing():
        pytest.skip(reason)
    with mlflow_server.serve(tmp_path_factory.mktemp("server")) as running:
        yield running


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    """Whole lines of metrics.jsonl so far."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_for_steps(run_dir: Path, steps: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 400
    while len(rows_of(run_dir)) < steps:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"step {steps} did not come"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.servers
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_training_outlives_the_tracking_server(
    server: mlflow_server.MlflowServer, toy_config: Config, tmp_path: Path
) -> None:
    """SIGKILL to the server in mid-training, later its restart: the run ends, every step's every number is there once,
    and the model is registered with its files in S3.
    """
    config = toy_config.replaced(
        {
            "run.out": str(tmp_path),
            "run.name": "outlives",
            "train.steps": STEPS,
            "train.validate_every": STEPS,
            "train.log_every": 1,
            "tracking.registered_model": "outlives",
        }
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    run_dir = tmp_path / "outlives"
    command = [sys.executable, "-m", "hbt_ray.cli", "train", str(tmp_path / "config.yaml")]
    with subprocess.Popen(
        command,
        env=os.environ | server.clients | PACE,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as training:
        wait_for_steps(run_dir, 4, training)
        server.kill()
        down = len(rows_of(run_dir))
        wait_for_steps(run_dir, down + 3, training)
        server.start()
        assert training.poll() is None, "the training ended before the server was back"
        out, err = training.communicate(timeout=500)
    assert training.returncode == 0, err
    assert "Training goes on" in err
    line = json.loads(out.splitlines()[-1])
    assert line["model_version"] == 1
    with environment(server.clients):
        check_run(MlflowClient(server.uri), line["mlflow_run_id"], rows_of(run_dir))
        version = MlflowClient(server.uri).get_model_version_by_alias("outlives", "challenger")
    assert (version.version, version.run_id) == ("1", line["mlflow_run_id"])
    stored = files_in_s3(server)
    weights = (run_dir / "model" / "model.safetensors").read_bytes()
    assert [data for name, data in stored.items() if name.endswith("/model.safetensors")] == [weights]
    assert any(name.endswith(f"{line['mlflow_run_id']}/artifacts/config.json") for name in stored)
    secrets = [server.clients["MLFLOW_TRACKING_PASSWORD"], server.environment["PGPASSWORD"]]
    printed = [out, err, *(path.read_text() for path in run_dir.rglob("*.json*") if path.is_file())]
    assert not [secret for secret in secrets for text in printed if secret in text]


def check_run(client: MlflowClient, run_id: str, rows: list[dict[str, Any]]) -> None:
    """MLflow has the rows, once each."""
    assert [row["step"] for row in rows] == list(range(STEPS))
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.steps"] == str(STEPS)
    assert len(client.search_runs([run.info.experiment_id], "attributes.run_name = 'outlives'")) == 1
    for name in {name for row in rows for name in row} - {"step", "mode", "dataset"}:
        found = sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, name))
        assert found == [(row["step"], row[name]) for row in rows if name in row]


def files_in_s3(server: mlflow_server.MlflowServer) -> dict[str, bytes]:
    """What is in the bucket, read without MLflow."""
    settings = server.environment
    bucket = boto3.resource(
        "s3",
        endpoint_url=settings["AWS_ENDPOINT_URL"],
        aws_access_key_id=settings["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=settings["AWS_SECRET_ACCESS_KEY"],
        region_name=settings["AWS_DEFAULT_REGION"],
    ).Bucket(swift.BUCKET)
    return {item.key: item.get()["Body"].read() for item in bucket.objects.filter(Prefix="mlflow/")}


@pytest.fixture
def clients(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment of the server's clients; where there is no server, that of users without one."""
    return {} if mlflow_server.missing() else dict(request.getfixturevalue("server").clients)


@pytest.mark.slow
@pytest.mark.servers
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_from_quickstart_to_a_served_champion(
    clients: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One command: arms above the untrained encoder after few steps, a report, a registered model that embeds alike.

    The gate lets it take the place of the weights it started from, not the other way round, and MLflow serves it.
    """
    for name, value in clients.items():
        monkeypatch.setenv(name, value)
    result = hbt_ray(tmp_path, "quickstart", "--out", "q", "--steps", "200")
    untrained = result["arms"]["untrained"]
    for setting in ("monolingual", "cross_lingual", "multilingual"):
        best = max(arm[setting]["mAP"] for name, arm in result["arms"].items() if name != "untrained")
        assert result["arms"]["hybrid"][setting]["mAP"] > 1.2 * untrained[setting]["mAP"]
        assert best > 1.5 * untrained[setting]["mAP"]
    report = Path(result["report"]).read_text(encoding="utf-8")
    assert all(name in report for name in ("untrained", "X-X-mono", "X-Y", "hybrid"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q"]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", result["mlflow_tracking_uri"])
    assert clients.get("MLFLOW_TRACKING_URI", result["mlflow_tracking_uri"]) == result["mlflow_tracking_uri"]
    model = Path(result["model_dir"])
    predicted = mlflow.pyfunc.load_model(result["registered_model"]).predict(TEXTS)
    np.testing.assert_allclose(predicted, sentence_transformer_vectors(model, TEXTS), atol=1e-5)

    name = result["registered_model"].removeprefix("models:/").partition("@")[0]
    start = tmp_path / "q" / "untrained" / "scratch"
    run = open_run(tracking_store(tmp_path), "untrained", "untrained", tmp_path / "untrained", {})
    assert run.register(start, name, "challenger", embedding_width(start)) == 2
    run.finish()
    evaluated = ["--model", f"models:/{name}/2", "--benchmark", "sample", "--data", "q/sample", "--out", "results"]
    hbt_ray(tmp_path, "evaluate", *evaluated)
    assert promoted(tmp_path, name, 2)["status"] == "promoted"  # there was no champion
    trained = promoted(tmp_path, name, 1)
    assert trained["status"] == "promoted"
    compared = compare([tmp_path / "results", tmp_path / "q" / "results" / "hybrid"], resamples=1000)
    (quality,) = [row for row in trained["evidence"]["measures"] if row["measure"] == "multilingual mAP"]
    assert quality["verdict"] == "better"
    assert quality["low"] == pytest.approx(compared["settings"]["multilingual"]["mAP"]["low"], abs=1e-12)
    refused = promoted(tmp_path, name, 2, code=4)
    assert refused["status"] == "refused"
    assert "multilingual mAP worse" in refused["reason"]
    assert MlflowClient().get_model_version_by_alias(name, "champion").version == "1"
    log = tmp_path / "serve.log"
    with serving(f"models:/{name}@champion", clients, log) as url:
        check_served_vectors(url, model)
    assert "UserWarning" not in log.read_text()


def promoted(folder: Path, name: str, version: int, code: int = 0) -> dict[str, Any]:
    """What `hbt-ray promote` says of a version."""
    return hbt_ray(folder, "promote", "--model", name, "--version", str(version), "--resamples", "1000", code=code)


def hbt_ray(folder: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    """Run a command in a folder; the JSON object in its last line."""
    line = [sys.executable, "-m", "hbt_ray.cli", *arguments]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
@pytest.mark.servers
def test_nobody_gets_in_without_the_password(server: mlflow_server.MlflowServer, tmp_path: Path) -> None:
    """No password, a wrong one: 401, and a clear message before a training begins."""
    address = f"{server.uri}/api/2.0/mlflow/experiments/get?experiment_id=0"
    for headers in ({}, {"Authorization": "Basic " + base64.b64encode(b"admin:password1234").decode()}):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=10)
    with environment({"MLFLOW_TRACKING_URI": server.uri}):
        store = tracking_store(tmp_path)
        with pytest.raises(ResourceError, match="MLFLOW_TRACKING_PASSWORD"):
            open_run(store, "e", "r", tmp_path / "r", {})


@pytest.mark.slow
@pytest.mark.servers
@pytest.mark.timeout(600)
def test_the_operators_commands_work(server: mlflow_server.MlflowServer, tmp_path: Path) -> None:
    """Backup, restore and both upgrades, as README.md has them, on the database with what a run has left there."""
    with environment(server.clients):
        run = open_run(tracking_store(tmp_path), "kept", "r", tmp_path / "r", {"a": 1})
        (tmp_path / "r" / "metrics.jsonl").write_text('{"step": 0, "loss": 0.25, "seconds": 1.0}\n')
        run.finish()
        assert sync([tmp_path / "r"], lambda folder, sent: None)[0]["rows"] == 0
    programs = mlflow_server.postgres_programs()
    path = f"{Path(sys.executable).parent}:{programs}:{os.environ['PATH']}"

    def execute(beginning: str, **changes: str) -> str:
        command = mlflow_server.documented(beginning)
        done = subprocess.run(
            ["sh", "-c", command],
            env={**server.environment, "PATH": path, **changes},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    execute("mlflow db upgrade postgresql:///mlflow")
    execute("python -m mlflow.server.auth db upgrade")
    execute("pg_dump --format=custom")
    with mlflow_server.postgres() as other:
        execute("pg_restore", **other)
        query = [
            "psql",
            "--tuples-only",
            "--no-align",
            "--command",
            "select value from metrics where key = 'loss'",
            "mlflow",
        ]
        settings = {**server.environment, **other, "PATH": path}
        answer = subprocess.run(query, env=settings, capture_output=True, text=True, check=True).stdout.split()
        users = subprocess.run(
            [*query[:-2], "select username from users", "mlflow"],
            env=settings,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
    assert "0.25" in answer
    assert users == ["admin"]
