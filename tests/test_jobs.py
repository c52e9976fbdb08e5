"""The path as users start it: jobs submitted to a cluster that asks for a token, and the commands on real data."""

from __future__ import annotations

import json
import os
import pty
import secrets
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.servers, pytest.mark.ray, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
SHARED = ROOT.parent / "shared" / "datasets"
SERVED = ("/api/version", "/api/jobs/", "/nodes?view=summary", "/api/v0/nodes", "/api/cluster_status")


def command(*arguments: str, env: dict[str, str] | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command of this environment as a user would."""
    return subprocess.run(
        [str(BIN / arguments[0]), *arguments[1:]],
        cwd=cwd,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **(env or {})},
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Ray head of our own on free ports, with token authentication; gives the environment of a job's submitter."""
    env = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PATH": f"{BIN}:{os.environ['PATH']}",  # the job's `python` is the one the head finds
    }
    dashboard = free_port()
    start = [
        str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=4", f"--port={free_port()}",
        f"--dashboard-port={dashboard}", "--node-ip-address=127.0.0.1", "--disable-usage-stats",
        f"--dashboard-agent-listen-port={free_port()}",  # else the one of another Ray on this machine
    ]  # fmt: skip
    with (tmp_path_factory.mktemp("head") / "head.log").open("w") as log:
        process = subprocess.Popen(start, env={**os.environ, **env}, stdout=log, stderr=log)
        address = f"http://127.0.0.1:{dashboard}"
        try:
            for _ in range(60):
                if command("ray", "job", "list", "--address", address, env=env).returncode == 0:
                    break
                time.sleep(1)
            yield {**env, "RAY_API_SERVER_ADDRESS": address}
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(90)  # Ray drains for up to 30 seconds
            # A head ended by a signal leaves its address behind, which would catch the next bare ray.init().
            Path("/tmp/ray/ray_current_cluster").unlink(missing_ok=True)


def submitted_by_ray(head: dict[str, str], home: Path, *job: str) -> None:
    """`ray job submit` of one of our scripts, which must succeed; its output folder is below `home`."""
    done = command(
        "ray", "job", "submit", "--address", head["RAY_API_SERVER_ADDRESS"], "--working-dir", ".",
        "--runtime-env-json", json.dumps({"env_vars": {"HBT_RAY_HOME": str(home)}}), "--", "python", *job, env=head,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_submitted_job_trains_and_is_in_mlflow(head: dict[str, str], tmp_path: Path) -> None:
    """`hbt-ray submit train` is followed by the same command to its end; run and model are in the MLflow store."""
    env = head | {"HBT_RAY_HOME": str(tmp_path)}
    job = [
        "train", "jobs/configs/sample.yaml", "--set", "train.steps=10", "--set", "train.validate_every=5",
        "--set", "train.warmup_steps=2", "--set", "train.batch_size=16",
    ]  # fmt: skip
    left = command("hbt-ray", "submit", "--no-wait", *job, env=env)
    assert left.returncode == 0, left.stderr
    assert json.loads(left.stdout.splitlines()[-1])["job_id"] == "train.sample-hybrid"
    followed = command("hbt-ray", "submit", *job, env=env)
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert "train.sample-hybrid is" in followed.stderr
    assert '"steps": 10' in followed.stdout
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("hbt-sample")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == list(range(10))
    version = client.get_model_version_by_alias("hbt-sample", "challenger")
    assert version.run_id == run.info.run_id


def test_a_submitted_sweep_is_one_parent_with_its_trials(head: dict[str, str], tmp_path: Path) -> None:
    """`ray job submit -- python jobs/sweep.py`: two trials below one MLflow run, the better one's model registered."""
    submitted_by_ray(
        head, tmp_path, "jobs/sweep.py", "jobs/configs/sweep-sample.yaml", "--set", "search.trials=2",
        "--set", "settings.train.steps=10", "--set", "settings.train.validate_every=5",
        "--set", "settings.train.warmup_steps=2", "--set", "settings.train.batch_size=16",
        "--set", "scheduler={name: none}", "--set", "validation.questions=50",
    )  # fmt: skip
    from mlflow import MlflowClient

    folder = tmp_path / "runs" / "sample-sweep"
    sweep = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    assert [trial["status"] for trial in sweep["trials"]] == ["finished"] * 2
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("hbt-sample")
    assert experiment is not None
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    parents = [run.data.tags.get("mlflow.parentRunId") for run in runs.values()]
    assert sorted(map(str, parents)) == sorted(["None", *[sweep["mlflow_run_id"]] * 2])
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    version = client.get_model_version_by_alias("hbt-sample", "challenger")
    assert version.run_id in {trial["mlflow_run_id"] for trial in sweep["trials"]}
    best = max(sweep["trials"], key=lambda trial: trial["score"])
    assert sweep["best"]["trial_id"] == best["trial_id"]
    assert "Multilingual mAP" in (folder / "sweep.html").read_text(encoding="utf-8")


def test_a_job_ends_with_its_own_exit_code(head: dict[str, str], tmp_path: Path) -> None:
    """A mistake in the configuration is the job's exit code 2 and message, as it is without a cluster."""
    job = ["train", "jobs/configs/sample.yaml", "--set", "run.name=mistaken", "--set", "train.stepz=1"]
    done = command("hbt-ray", "submit", *job, env=head | {"HBT_RAY_HOME": str(tmp_path)})
    assert done.returncode == 2, done.stdout + done.stderr
    assert "unknown key 'stepz'" in done.stdout
    assert "train.mistaken: FAILED, exit code 2" in done.stderr


@pytest.mark.parametrize(
    ("token", "status", "refusal"),
    [({"RAY_AUTH_MODE": "disabled"}, 401, "no token"), ({"RAY_AUTH_TOKEN": "0" * 64}, 403, "another token")],
)
def test_without_the_token_nothing_is_served(
    head: dict[str, str], token: dict[str, str], status: int, refusal: str
) -> None:
    """Dashboard and job API refuse whoever has no token or another one, and so does a submission say."""
    headers = {"Authorization": f"Bearer {token['RAY_AUTH_TOKEN']}"} if "RAY_AUTH_TOKEN" in token else {}
    assert {answer(head, path, headers) for path in SERVED} == {status}
    done = command("hbt-ray", "submit", "quickstart", env=head | token)
    assert done.returncode == 2
    assert f"got {refusal}" in done.stderr
    assert "Traceback" not in done.stderr


def test_with_the_token_everything_is_served(head: dict[str, str]) -> None:
    """The same addresses, with the token."""
    headers = {"Authorization": f"Bearer {head['RAY_AUTH_TOKEN']}"}
    assert {answer(head, path, headers) for path in SERVED} == {200}


def answer(head: dict[str, str], path: str, headers: dict[str, str]) -> int:
    """HTTP status of a question to the dashboard."""
    request = urllib.request.Request(head["RAY_API_SERVER_ADDRESS"] + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_ctrl_c_asks_before_it_stops_a_job(head: dict[str, str], tmp_path: Path) -> None:
    """Without a terminal Ctrl-C leaves the job running; on one it asks, and a yes stops the job: exit code 143."""
    env = {**os.environ, **head, "HBT_RAY_HOME": str(tmp_path)}
    job = ["train", "jobs/configs/sample.yaml", "--set", "run.name=stopped", "--set", "train.steps=100000"]
    submit = ["env", "--default-signal=INT", str(BIN / "hbt-ray"), "submit", *job]  # a shell's `&` would ignore Ctrl-C
    with watched(submit, env, terminal=False) as (process, output):
        read_until(output, "Running entrypoint")
        process.send_signal(signal.SIGINT)
        read_until(output, "train.stopped goes on")
        assert process.wait(60) == 130
    with watched(submit, env, terminal=True) as (process, output):
        assert "train.stopped is RUNNING already" in read_until(output, "Running entrypoint")
        process.send_signal(signal.SIGINT)
        read_until(output, "stop the job train.stopped? [y/N]")
        os.write(output, b"y\n")
        read_until(output, "train.stopped: STOPPED, exit code 143")
        assert process.wait(60) == 143


@contextmanager
def watched(
    command: list[str], env: dict[str, str], *, terminal: bool
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A command with a terminal, or with a pipe for its output; and the descriptor to read what it prints."""
    ours, its = pty.openpty() if terminal else os.pipe()
    stdin = its if terminal else subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdin=stdin, stdout=its, stderr=its)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(its)
        os.close(ours)


def read_until(descriptor: int, text: str) -> str:
    """What is read until a text is there; fails if nothing comes for two minutes."""
    shown = ""
    while text not in shown:
        ready, _, _ = select.select([descriptor], [], [], 120)
        assert ready, shown
        shown += os.read(descriptor, 65536).decode(errors="replace")
    return shown


@pytest.mark.skipif(not SHARED.exists(), reason="the data sets beside the repository are absent")
def test_real_data_from_import_to_xquad_r(tmp_path: Path) -> None:
    """The README's real-data commands, two training steps, on four languages of the real XQuAD-R."""
    source = ["--source", str(SHARED / "squad-dev-mt"), "--english", str(SHARED / "squad-en" / "dev.json.gz")]
    exclude = ["--exclude", str(SHARED / "xquad-r" / "en.json.gz")]
    steps = [
        ["data", "import", "squad-mt", *source, *exclude, "--out", "data/squad-mt"],
        ["data", "validate", "data/squad-mt"],
        ["train", str(ROOT / "jobs/configs/minilm-squad-mt.yaml"), "--set", "train.steps=2", "--set",
         "train.warmup_steps=0", "--set", "train.validate_every=2", "--set", "data.hold_out.batches=2", "--set",
         "train.batch_size=8", "--set", "cluster.workers=1"],
        ["evaluate", "--model", "runs/minilm-squad-mt/model", "--benchmark", "xquad-r", "--data", str(SHARED),
         "--languages", "en,es", "--out", "results"],
    ]  # fmt: skip
    for arguments in steps:
        done = command("hbt-ray", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout.splitlines()[-1])
    assert metrics["pool"] == {"en": 1180, "es": 1215}
    assert metrics["monolingual"]["mAP"] > 0.3
    report = (tmp_path / "results" / "report.html").read_text(encoding="utf-8")
    assert "paragraph-disjoint, not article-disjoint" in report
