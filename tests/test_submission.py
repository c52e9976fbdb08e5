"""Submitting jobs: what is uploaded, what is refused, and what becomes of a log whose stream breaks.

The job server here is a small one of our own, for what a real one does not do when asked: another version, a broken
stream, two submissions at the same moment. tests/test_jobs.py submits to a real one.
"""

from __future__ import annotations

import asyncio
import io
import os
import shlex
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import typer
from aiohttp import web
from rich.console import Console

from hbt_ray import submission
from hbt_ray.cli import app
from hbt_ray.errors import ConfigError, ResourceError
from hbt_ray.submission import (
    JobLog,
    JobRequest,
    SubmittedJob,
    check_size,
    connect,
    exit_code,
    job_variables,
    run_name,
    server_address,
    submit,
    uploaded_sizes,
)

ROOT = Path(__file__).resolve().parents[1]
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))
LOG = "".join(f"line {i}\n" for i in range(200))


@dataclass
class JobServer:
    """The part of Ray's job API that a submission uses; a job that it takes has ended at once.

    Args:
        version: of Ray, as it says; None: it is no job server.
        breaks: how many streams of a log break after another third of it.
        interrupts: whether Ctrl-C is pressed when a log has been shown; its job runs on.
        rival: whether somebody else submits the same while the next submission is on its way.
    """

    version: str | None = ray.__version__
    breaks: int = 0
    interrupts: bool = False
    rival: bool = False
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    streams: int = 0
    address: str = ""

    async def get_version(self, request: web.Request) -> web.Response:
        if self.version is None:
            raise web.HTTPNotFound
        return web.json_response({"version": "4", "ray_version": self.version, "ray_commit": "", "session_name": ""})

    async def get_package(self, request: web.Request) -> web.Response:
        return web.Response()  # there already

    async def list_jobs(self, request: web.Request) -> web.Response:
        return web.json_response(list(self.jobs.values()))

    async def submit_job(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if self.rival:
            self.add(asked, "RUNNING")
        if asked["submission_id"] in self.jobs:
            raise web.HTTPBadRequest(text=f"Job with submission_id {asked['submission_id']} already exists.")
        self.add(asked)
        return web.json_response({"job_id": asked["submission_id"], "submission_id": asked["submission_id"]})

    def add(self, asked: dict[str, Any], status: str = "SUCCEEDED") -> None:
        keys = ("submission_id", "entrypoint", "metadata", "runtime_env")
        job = {key: asked[key] for key in keys} | {"type": "SUBMISSION", "status": status}
        self.jobs[asked["submission_id"]] = job | {"driver_exit_code": 0}

    async def get_job(self, request: web.Request) -> web.Response:
        return web.json_response(self.jobs[request.match_info["id"]])

    async def get_logs(self, request: web.Request) -> web.Response:
        return web.json_response({"logs": LOG})

    async def tail(self, request: web.Request) -> web.WebSocketResponse:
        stream = web.WebSocketResponse()
        await stream.prepare(request)
        self.streams += 1
        broken = self.streams <= self.breaks
        for begin in range(0, self.streams * len(LOG) // 3 if broken else len(LOG), 100):
            await stream.send_str(LOG[begin : begin + 100])
        job = self.jobs[request.match_info["id"]]
        if broken:
            assert request.transport is not None
            request.transport.close()
        elif self.interrupts and job["status"] == "RUNNING":
            os.kill(os.getpid(), signal.SIGINT)
            await stream.receive()  # its end
        else:
            job["status"] = "SUCCEEDED" if job["status"] == "RUNNING" else job["status"]
        return stream

    async def stop(self, request: web.Request) -> web.Response:
        self.jobs[request.match_info["id"]] |= {"status": "STOPPED", "driver_exit_code": None}
        return web.json_response({"stopped": True})

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/api/version", self.get_version),
                web.get("/api/packages/{protocol}/{name}", self.get_package),
                web.get("/api/jobs/", self.list_jobs),
                web.post("/api/jobs/", self.submit_job),
                web.get("/api/jobs/{id}", self.get_job),
                web.get("/api/jobs/{id}/logs", self.get_logs),
                web.get("/api/jobs/{id}/logs/tail", self.tail),
                web.post("/api/jobs/{id}/stop", self.stop),
            ]
        )
        return app


@pytest.fixture
def server() -> Iterator[JobServer]:
    """A job server in a thread."""
    served = JobServer()
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(served.app())
    loop.run_until_complete(runner.setup())
    loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
    served.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield served
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with two jobs and a configuration."""
    for name, text in {
        "jobs/train.py": "",
        "jobs/evaluate.py": "",
        "jobs/configs/a.yaml": "run: {name: first}\ndata: {root: sample://}\n",
        "jobs/configs/sweep.yaml": "name: search\n",
        "runs/search/best.yaml": "run: {name: best}\n",
    }.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "project"


def submitted(server: JobServer, project: Path, *arguments: str, wait: bool = True) -> SubmittedJob:
    arguments = arguments or ("jobs/configs/a.yaml",)
    return submit(JobRequest("train", arguments, address=server.address, working_dir=project, wait=wait))


def test_the_job_gets_the_project_its_arguments_and_variables(
    server: JobServer, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Arguments keep their spaces; HBT_RAY_HOME goes along; the working directory becomes an uploaded package."""
    monkeypatch.setenv("HBT_RAY_HOME", "/data")
    done = submitted(server, project, "jobs/configs/a.yaml", "--set", "mix.alpha={points: [[0, 1.0]]}")
    job = server.jobs["train.first"]
    assert job["entrypoint"] == "python jobs/train.py jobs/configs/a.yaml --set 'mix.alpha={points: [[0, 1.0]]}'"
    assert job["runtime_env"]["env_vars"] == {"HBT_RAY_HOME": "/data"}
    assert job["runtime_env"]["working_dir"].startswith("gcs://_ray_pkg_")
    assert done == SubmittedJob("train.first", server.address, "SUCCEEDED", 0)
    assert capsys.readouterr().out == LOG


def test_a_broken_stream_is_read_on(server: JobServer, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two streams break in the middle of a running job: every line is shown once, and the job ends right."""
    server.breaks = 2
    server.add({"submission_id": "train.first", "metadata": {"hbt_ray": "train.first"}, **as_submitted()}, "RUNNING")
    assert submitted(server, project).exit_code == 0
    shown = capsys.readouterr()
    assert shown.out == LOG
    assert shown.err.count("the stream of the log broke") == 2
    assert server.streams == 3


def as_submitted(*arguments: str) -> dict[str, Any]:
    """What the server knows of a job with these arguments."""
    entrypoint = shlex.join(["python", "jobs/train.py", *(arguments or ("jobs/configs/a.yaml",))])
    return {"entrypoint": entrypoint, "runtime_env": {"env_vars": {}}}


@pytest.mark.parametrize(("terminal", "status", "code"), [(False, "RUNNING", 130), (True, "STOPPED", 143)])
def test_ctrl_c(
    server: JobServer,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terminal: bool,
    status: str,
    code: int,
) -> None:
    """Without a terminal the job is left running, with a word on how to stop it; on one, a yes stops it."""
    asked: list[str] = []
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: terminal))
    monkeypatch.setattr(typer, "confirm", lambda question, **how: asked.append(question) or True)
    monkeypatch.setattr(server, "interrupts", True)
    server.add({"submission_id": "train.first", "metadata": {"hbt_ray": "train.first"}, **as_submitted()}, "RUNNING")
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` would ignore it
    try:
        done = submitted(server, project)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (done.status, done.exit_code, len(asked)) == (status, code, terminal)
    shown = capsys.readouterr()
    assert shown.out == LOG if terminal else LOG.startswith(shown.out)  # each line once
    assert ("`ray job stop --address" in shown.err) == (not terminal)


def test_a_run_has_one_job_at_a_time(server: JobServer, project: Path) -> None:
    """A job of the same run is followed while it runs, and submitted under the next number once it has ended."""
    ids = [submitted(server, project).job_id for _ in range(3)]
    assert ids == ["train.first", "train.first.2", "train.first.3"]
    server.jobs["train.first.3"]["status"] = "RUNNING"
    assert submitted(server, project, wait=False).job_id == "train.first.3"
    with pytest.raises(ConfigError, match="choose another run name"):
        submitted(server, project, "jobs/configs/a.yaml", "--set", "train.steps=5")
    assert submitted(server, project, "jobs/configs/a.yaml", "--set", "run.name=other").job_id == "train.other"


def test_two_submissions_at_the_same_moment_are_one_job(server: JobServer, project: Path) -> None:
    """Whoever comes second follows the job of the first."""
    server.rival = True
    assert submitted(server, project).job_id == "train.first"
    assert list(server.jobs) == ["train.first"]


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 2, 2),
        ("FAILED", 143, 143),
        ("FAILED", -9, 137),  # the shell that ran it gave way to it, and a signal has killed it
        ("FAILED", None, 1),  # the node it ran on is gone, or its environment could not be made
        ("STOPPED", None, 143),
    ],
)
def test_the_exit_code_is_the_jobs_own(status: str, code: int | None, expected: int) -> None:
    """Not just 0 and 1."""
    from ray.job_submission import JobDetails

    details = JobDetails(type="SUBMISSION", status=status, entrypoint="", driver_exit_code=code)
    assert exit_code(details) == expected


def test_a_head_node_that_is_gone_is_no_endless_wait(
    server: JobServer, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that knows the job no more ends the following with an error that says what to do."""
    monkeypatch.setattr(submission, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(submission, "RECONNECT_SECONDS", 0.1)
    client = connect(server.address)
    with pytest.raises(ResourceError, match=r"status code 500.*resumes its run"):
        submission.follow(client, "train.gone")


# --- refused --------------------------------------------------------------------------------------------------------


def test_no_cluster() -> None:
    """Nothing listens there: one message with the address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(ResourceError, match=f"{address}: got no answer .*refused.*; expected the dashboard"):
            connect(address)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("2.40.0", rf"got a cluster with Ray 2.40.0; expected Ray {ray.__version__}"),
        ("1.13.0", r"got an answer that is not a job server's \(.*1.13.0"),
        (None, r"got an answer that is not a job server's \(Version check returned 404"),
    ],
)
def test_another_server(server: JobServer, version: str | None, message: str) -> None:
    """A cluster of another Ray, or no Ray at all."""
    server.version = version
    with pytest.raises(ResourceError, match=message):
        connect(server.address)


def test_another_patch_of_the_same_ray_will_do(server: JobServer) -> None:
    """2.60.1 takes jobs of 2.60.0."""
    server.version = f"{ray.__version__.rpartition('.')[0]}.99"
    connect(server.address)


def test_the_address_of_a_gcs_is_not_taken_for_a_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """RAY_ADDRESS=HOST:6379 is not silently passed over; --address is taken before both variables."""
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert server_address(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS: got 10\.0\.0\.1:6379"):
        server_address(None)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://ray.example/")
    assert server_address(None) == "https://ray.example"
    assert server_address("http://10.0.0.2:8265") == "http://10.0.0.2:8265"


def test_unknown_jobs_and_projects(project: Path, tmp_path: Path) -> None:
    """The jobs there are, and the nearest; a folder without any."""
    with pytest.raises(ConfigError, match=r"'trian'; expected one of evaluate, train\. Did you mean 'train'\?"):
        submit(JobRequest("trian", working_dir=project))
    with pytest.raises(ConfigError, match="expected a project with its scripts in jobs/"):
        submit(JobRequest("train", working_dir=tmp_path))


def test_options_of_submit_come_before_the_job(project: Path) -> None:
    """Else they would be the job's, which does not know them."""
    with pytest.raises(ConfigError, match="Put it before train"):
        submit(JobRequest("train", ("jobs/configs/a.yaml", "--no-wait"), working_dir=project))


@pytest.mark.parametrize(
    "env",
    ["AWS_SECRET_ACCESS_KEY=hunter2", "HF_TOKEN=hunter2", "my_api_key=hunter2", "STORE=postgresql://me:hunter2@db/x"],
)
def test_credentials_do_not_travel(env: str) -> None:
    """Neither by name nor inside an address; the message does not show them."""
    with pytest.raises(ConfigError, match="environment of the cluster's nodes") as refused:
        job_variables([env])
    assert "hunter2" not in str(refused.value)


def test_credentials_do_not_travel_in_what_is_always_handed_over(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracking server's password in its address, and a password in an argument."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hunter2@mlflow.example")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI: got an address with a password"):
        job_variables([])
    with pytest.raises(ConfigError, match="an argument of the job: got an address with a password") as refused:
        submit(JobRequest("train", ("--store=postgresql://me:hunter2@db/x",), working_dir=project))
    assert "hunter2" not in str(refused.value)


def test_variables_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """NAME takes the value here; one that is not set is refused; TOKENIZERS_PARALLELISM is no token."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert job_variables(["TOKENIZERS_PARALLELISM", "A=b=c"]) == {"TOKENIZERS_PARALLELISM": "false", "A": "b=c"}
    with pytest.raises(ConfigError, match="--env NOT_SET_HERE: got no value"):
        job_variables(["NOT_SET_HERE"])


def test_too_much_to_upload(project: Path) -> None:
    """The largest entries are named; what is left out, by us, by a .gitignore or by --exclude, does not count."""
    for name, size in {
        "models/a.bin": 3000,
        "models/b.bin": 3000,
        "notes.txt": 2000,
        "runs/x": 9000,
        "tmp/x": 8000,
    }.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    (project / ".gitignore").write_text("/tmp/\n")
    sizes = uploaded_sizes(project, [*submission.LEFT_OUT])
    with pytest.raises(ConfigError, match=r"most of it in models \(.*\), notes.txt .*--exclude /models"):
        check_size(sizes, 8000)
    check_size(uploaded_sizes(project, [*submission.LEFT_OUT, "/models"]), 8000)


def test_the_limit_is_that_of_the_dashboard() -> None:
    """A larger package would be refused after minutes of uploading it."""
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE

    assert submission.UPLOAD_BYTES == DASHBOARD_CLIENT_MAX_SIZE


def test_our_own_project_is_small() -> None:
    """What a submission from a clone uploads: the package, the jobs and their configurations, a few MiB in all."""
    sizes = uploaded_sizes(ROOT, submission.LEFT_OUT)
    assert {"hbt_ray/cli.py", "jobs/train.py", "jobs/configs/sample.yaml"} <= sizes.keys()
    assert not [path for path in sizes if path.startswith((".git/", ".venv/", "runs/"))]
    check_size(sizes, 20 << 20)


def test_the_run_is_named_by_its_configuration(project: Path) -> None:
    """`run.name` of a training, `name` of a sweep or a study, as the arguments leave it; else a hash of them."""
    uploaded = uploaded_sizes(project, submission.LEFT_OUT)
    assert run_name(["jobs/configs/a.yaml"], project, uploaded) == "first"
    assert run_name(["jobs/configs/a.yaml", "--set", "train.steps=1"], project, uploaded) == "first"
    assert run_name(["jobs/configs/a.yaml", "--set", "run.name=b"], project, uploaded) == "b"
    assert run_name(["jobs/configs/a.yaml", "--set=run.name=c"], project, uploaded) == "c"
    assert run_name(["jobs/configs/sweep.yaml"], project, uploaded) == "search"
    hashes = {run_name(["--out", out], project, uploaded) for out in ("/data/a", "/data/b", "/data/a")}
    assert len(hashes) == 2
    assert run_name(["/only/on/the/cluster.yaml"], project, uploaded) not in hashes


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("jobs/configs/none.yaml", "No such file"),
        ("runs/search/best.yaml", "a file that is not uploaded"),
        ("../outside.yaml", "a file that is not uploaded"),
    ],
)
def test_a_configuration_that_the_job_will_not_find(project: Path, config: str, message: str) -> None:
    """It is refused here, not on the cluster minutes later."""
    (project / "../outside.yaml").write_text("run: {name: x}\n")
    with pytest.raises(ConfigError, match=message):
        run_name([config], project, uploaded_sizes(project, submission.LEFT_OUT))


# --- the log, and the scripts ---------------------------------------------------------------------------------------


def test_progress_is_a_bar_on_a_terminal() -> None:
    """Lines of progress move a bar, in pieces too; other lines are shown as they are, with their brackets."""
    terminal = io.StringIO()
    with JobLog(Console(file=terminal, force_terminal=True, width=100)) as log:
        log.add("[INFO] begins\nsample: 20/500 loss 3.1\nsam")
        log.add("ple: 40/500 loss 2.9\nlast words")
        log.end()
    shown = terminal.getvalue()
    assert "[INFO] begins\n" in shown
    assert "40/500" in shown
    assert "loss 2.9" in shown
    assert "sample: 40/500" not in shown
    assert shown.index("last words\n") > 0
    assert log.length == len("[INFO] begins\nsample: 20/500 loss 3.1\nsample: 40/500 loss 2.9\nlast words\n")


@pytest.mark.parametrize("name", JOBS)
def test_every_script_says_how_it_is_submitted(name: str) -> None:
    """Both submit lines of its docstring run this script with the same arguments, and its command takes them."""
    source = (ROOT / "jobs" / f"{name}.py").read_text(encoding="utf-8")
    docstring = compile(source, name, "exec").co_consts[0]
    lines = docstring.replace("\\\n", " ").splitlines()
    ours, rays = (
        shlex.split(next(line for line in lines if line.strip().startswith(begin)))
        for begin in ("hbt-ray submit", "ray job submit")
    )
    arguments = rays[rays.index(f"jobs/{name}.py") + 1 :]
    assert ours[ours.index(name) + 1 :] == arguments
    assert "Runtime environment:" in docstring
    assert "Resources:" in docstring
    command = shlex.split(source.split("run([")[1].split(", *sys.argv")[0].replace(",", " "))
    parser: Any = typer.main.get_command(app)
    for part in command:
        parser = parser.commands[part]
    if hasattr(parser, "commands"):  # `data import` takes the format first
        parser, arguments = parser.commands[arguments[0]], arguments[1:]
    parser.make_context(name, list(arguments))
