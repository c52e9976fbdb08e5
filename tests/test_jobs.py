"""The whole path as users start it: quickstart, and `ray job submit` to a cluster."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
SHARED = ROOT.parent / "shared" / "datasets"


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


def test_quickstart_trains_compares_registers_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command: three arms far above the untrained encoder, a report, a registered model that embeds alike."""
    done = command("hbt-ray", "quickstart", "--out", "q", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    untrained = result["arms"]["untrained"]
    for setting in ("monolingual", "cross_lingual", "multilingual"):
        best = max(arm[setting]["mAP"] for name, arm in result["arms"].items() if name != "untrained")
        assert result["arms"]["hybrid"][setting]["mAP"] > 1.5 * untrained[setting]["mAP"]
        assert best > 2 * untrained[setting]["mAP"]
    report = Path(result["report"]).read_text(encoding="utf-8")
    assert all(name in report for name in ("untrained", "X-X-mono", "X-Y", "hybrid"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q"]

    import mlflow
    from test_encoder import sentence_transformer_vectors

    monkeypatch.setenv("MLFLOW_TRACKING_URI", result["mlflow_tracking_uri"])
    texts = ["What is the currency of Japan?", "Япония", "الين الياباني"]
    predicted = mlflow.pyfunc.load_model(result["registered_model"]).predict(texts)
    np.testing.assert_allclose(predicted, sentence_transformer_vectors(Path(result["model_dir"]), texts), atol=1e-5)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


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


def submitted(head: dict[str, str], home: Path, *job: str) -> None:
    """`ray job submit` of one of our scripts, which must succeed; its output folder is below `home`."""
    done = command(
        "ray", "job", "submit", "--address", head["RAY_API_SERVER_ADDRESS"], "--working-dir", ".",
        "--runtime-env-json", json.dumps({"env_vars": {"HBT_RAY_HOME": str(home)}}), "--", "python", *job, env=head,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_submitted_job_trains_and_is_in_mlflow(head: dict[str, str], tmp_path: Path) -> None:
    """`ray job submit -- python jobs/train.py` succeeds; its run and model are in the MLflow store."""
    submitted(
        head, tmp_path, "jobs/train.py", "jobs/configs/sample.yaml", "--set", "train.steps=40",
        "--set", "train.validate_every=20",
    )  # fmt: skip
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("hbt-sample")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == list(range(40))
    version = client.get_model_version_by_alias("hbt-sample", "challenger")
    assert version.run_id == run.info.run_id


def test_a_submitted_sweep_is_one_parent_with_its_trials(head: dict[str, str], tmp_path: Path) -> None:
    """`ray job submit -- python jobs/sweep.py`: two trials below one MLflow run, the better one's model registered."""
    submitted(
        head, tmp_path, "jobs/sweep.py", "jobs/configs/sweep-sample.yaml", "--set", "search.trials=2",
        "--set", "settings.train.steps=20", "--set", "settings.train.validate_every=10",
        "--set", "settings.train.warmup_steps=5", "--set", "scheduler={name: none}",
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


@pytest.mark.skipif(not SHARED.exists(), reason="the data sets beside the repository are absent")
def test_real_data_from_import_to_xquad_r(tmp_path: Path) -> None:
    """The README's real-data commands, two training steps, on four languages of the real XQuAD-R."""
    source = ["--source", str(SHARED / "squad-dev-mt"), "--english", str(SHARED / "squad-en" / "dev.json.gz")]
    exclude = ["--exclude", str(SHARED / "xquad-r" / "en.json.gz")]
    steps = [
        ["data", "import", "squad-mt", *source, *exclude, "--out", "data/squad-mt"],
        ["data", "validate", "data/squad-mt"],
        ["train", str(ROOT / "jobs/configs/minilm-squad-mt.yaml"), "--set", "train.steps=2", "--set",
         "train.warmup_steps=0", "--set", "train.validate_every=2", "--set", "data.hold_out.batches=2"],
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
