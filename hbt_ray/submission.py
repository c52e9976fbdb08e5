"""Jobs on a cluster: upload the project, start one of its jobs, follow the log to the job's own exit code.

A run has one job at a time: a job's id is made of the script and the run's name, so the same command follows a job that
runs, and resumes a run whose job has ended. What is submitted (arguments, variables, files) can be read by everyone who
may open the cluster's dashboard, so credentials are refused: they belong into the cluster's own environment.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import logging
import os
import re
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from hbt_ray.credentials import holds_credentials, names_a_credential, refuse_credentials, without_credentials
from hbt_ray.errors import ConfigError, ResourceError
from hbt_ray.session import environment
from hbt_ray.settings_file import nearest, parsed_setting, put, read_yaml

if TYPE_CHECKING:  # imported where it is used: the command line starts light
    from ray.job_submission import JobDetails, JobSubmissionClient

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
PACKAGING = "ray._private.runtime_env.packaging"  # the logger of Ray's uploads
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
HANDED_OVER = ("HBT_RAY_HOME", "MLFLOW_TRACKING_URI")
LEFT_OUT = ("/runs", "/results", "/quickstart", "/data", "/cache", ".*_cache", "*.egg-info", "*.db")  # beside Ray's own
UPLOAD_BYTES = 100 << 20  # what the dashboard takes
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
TOKEN_FILE = Path("~/.ray/auth_token")
OWN_OPTIONS = ("--address", "--working-dir", "--env", "--cpus", "--memory", "--no-wait")
NAME_KEYS = ("run.name", "name")
METADATA_KEY = "hbt_ray"  # of a job: which run it is for
ANSWER_SECONDS = 20.0
PATIENCE_SECONDS = 60.0  # with a job server that has answered before
RECONNECT_SECONDS = 1.0
INTERRUPTED = 130  # of Ctrl-C, as shells count
TERMINATED = 143

PROGRESS_LINE = re.compile(r"(\S[^:]*): (\d+)/(\d+) (.*)")  # as progress.py prints it where nobody watches a terminal


@dataclass(frozen=True)
class JobRequest:
    """What to submit, and where.

    Args:
        job: name of a script in jobs/, without `.py`.
        arguments: those of the script; paths in them are relative to `working_dir`, or absolute on the cluster.
        address: of the cluster's dashboard; None: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, else this machine's.
        working_dir: the project, which is uploaded.
        exclude: what not to upload, as in a .gitignore.
        env: NAME=VALUE, or NAME with its value here, for the job's environment.
        cpus: logical CPUs to keep for the script itself; with 0 it runs on the head node.
        memory: GiB to keep for the script itself.
        wait: whether to follow the job to its end.
    """

    job: str
    arguments: tuple[str, ...] = ()
    address: str | None = None
    working_dir: Path = Path()
    exclude: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    cpus: float = 0.0
    memory: float = 0.0
    wait: bool = True


@dataclass(frozen=True)
class SubmittedJob:
    """A job as it was last seen; `exit_code` is its own, 143 if it was stopped, 0 or 130 if it was left running."""

    job_id: str
    address: str
    status: str
    exit_code: int


def submit(request: JobRequest) -> SubmittedJob:
    """Submit a job, or find the one that runs for the same run, and follow it; its log goes to stdout.

    Raises:
        ConfigError: unknown job, a configuration that is not uploaded, credentials, a run whose job runs with other
            arguments, too much to upload.
        ResourceError: no cluster, a token that it refuses, a cluster of another Ray version, a cluster that is gone.
    """
    folder = request.working_dir.absolute()
    _check_job(request, folder)
    variables = job_variables(request.env)
    exclude = [*LEFT_OUT, *request.exclude]
    sizes = uploaded_sizes(folder, exclude)
    check_size(sizes)
    run = f"{request.job}.{run_name(request.arguments, folder, sizes)}"
    address = server_address(request.address)
    logging.getLogger(PACKAGING).setLevel(logging.WARNING)  # it names every .gitignore, several times
    client = connect(address)
    job_id = _begun(
        client,
        run,
        entrypoint=shlex.join(["python", f"jobs/{request.job}.py", *request.arguments]),
        runtime_env={"working_dir": str(folder), "excludes": exclude, "env_vars": variables},
        entrypoint_num_cpus=request.cpus or None,
        entrypoint_memory=int(request.memory * 2**30) or None,
    )
    how_to = f"the same command follows it; `ray job stop --address {address} {job_id}` stops it"
    if not request.wait:
        say(f"{job_id} is left to itself: {how_to}")
        return SubmittedJob(job_id, address, str(_details(client, job_id).status), 0)
    try:
        details = follow(client, job_id)
    except KeyboardInterrupt:
        say(f"{job_id} goes on: {how_to}")
        return SubmittedJob(job_id, address, str(_details(client, job_id).status), INTERRUPTED)
    if details.driver_exit_code is None and details.message:  # it has not ended by itself, so its log does not say why
        say(f"{job_id}: {details.message}")
    say(f"{job_id}: {details.status}, exit code {exit_code(details)}")
    return SubmittedJob(job_id, address, str(details.status), exit_code(details))


def say(message: str) -> None:
    """Tell the user; stdout is the job's."""
    print(message, file=sys.stderr, flush=True)


def exit_code(details: JobDetails) -> int:
    """That of the job's script, as a shell counts; 143 if it was stopped, 1 if it has failed without one."""
    if details.status == "SUCCEEDED":
        return 0
    if details.status == "STOPPED":
        return TERMINATED
    code = details.driver_exit_code
    if code is None:
        return 1
    return int(code) if code >= 0 else 128 - int(code)


# --- what is submitted ----------------------------------------------------------------------------------------------


def _check_job(request: JobRequest, folder: Path) -> None:
    """Refuse a job that is not there, options of ours among its arguments, and credentials in them."""
    jobs = sorted(path.stem for path in (folder / "jobs").glob("*.py"))
    if not jobs:
        fix = "Submit from the project's root, or name it: --working-dir DIR."
        raise ConfigError("--working-dir", folder, "a project with its scripts in jobs/", fix)
    if request.job not in jobs:
        raise ConfigError("JOB", repr(request.job), *nearest(request.job, jobs))
    for argument in request.arguments:
        if argument.partition("=")[0] in OWN_OPTIONS:
            fix = f"Put it before {request.job}: what comes after is for the job."
            raise ConfigError(argument, "an argument of the job", "an option of submit", fix)
        name, equals, _ = argument.partition("=")
        if equals and names_a_credential(name):
            raise _credential(name, "a credential")
        if holds_credentials(argument):
            raise _credential("an argument of the job", "an address with a password")


def job_variables(env: Sequence[str]) -> dict[str, str]:
    """Environment variables of a job: `NAME=VALUE`, or `NAME` with its value here, over those always handed over.

    Raises:
        ConfigError: a name without a value here, or a credential.
    """
    variables = {name: os.environ[name] for name in HANDED_OVER if name in os.environ}
    for item in env:
        name, equals, value = item.partition("=")
        if not equals and name not in os.environ:
            raise ConfigError(f"--env {name}", "no value", "NAME=VALUE, or a variable set here", "Give a value.")
        variables[name] = value if equals else os.environ[name]
    for name, value in variables.items():
        if names_a_credential(name) or name.startswith("AWS_"):
            raise _credential(name, "a credential")
        if holds_credentials(value):
            raise _credential(name, "an address with a password")
    return variables


def _credential(where: str, received: str) -> ConfigError:
    return ConfigError(
        where,
        received,
        "nothing secret: whoever may open the dashboard can read what is submitted",
        "Set it in the environment of the cluster's nodes, and leave it out here.",
    )


def uploaded_sizes(folder: Path, exclude: Sequence[str]) -> dict[str, int]:
    """Bytes of every file that an upload of a folder takes along, by relative path."""
    # Ray's own walk, so that .gitignore, .rayignore and the patterns mean here what they mean to the upload.
    from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE, get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    sizes: dict[str, int] = {}

    def add(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size

    left_out = _get_excludes(folder, [*get_runtime_env_default_excludes(), *exclude])
    gitignore = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    _dir_travel(folder, [left_out], add, include_gitignore=gitignore, logger=logging.getLogger(__name__))
    return sizes


def check_size(sizes: Mapping[str, int], limit: int = UPLOAD_BYTES) -> None:
    """Raise ConfigError, naming what is largest, if the files are more than `limit` bytes together."""
    total = sum(sizes.values())
    if total < limit:
        return
    entries: Counter[str] = Counter()
    for path, size in sizes.items():
        entries[path.partition("/")[0]] += size
    largest = ", ".join(f"{entry} ({_mib(size)})" for entry, size in entries.most_common(3))
    first = entries.most_common(1)[0][0]
    raise ConfigError(
        "--working-dir",
        f"{_mib(total)} to upload, most of it in {largest}",
        f"less than {_mib(limit)}",
        f"Leave out what the job does not need: --exclude /{first} (data belongs where all nodes can read it).",
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def run_name(arguments: Sequence[str], folder: Path, uploaded: Mapping[str, int]) -> str:
    """Name of the run that a job works on: that of its configuration, else a hash of its arguments.

    Raises:
        ConfigError: a relative configuration that is not among the uploaded files.
    """
    config = next((argument for argument in arguments if argument.endswith((".yaml", ".yml"))), None)
    name = None if config is None else _name_in(config, arguments, folder, uploaded)
    return name or hashlib.sha256(shlex.join(arguments).encode()).hexdigest()[:8]


def _name_in(config: str, arguments: Sequence[str], folder: Path, uploaded: Mapping[str, int]) -> str | None:
    """`run.name` or `name` of a configuration; None if it has none, or is a file of the cluster."""
    path = folder / config
    if Path(config).is_absolute() and not path.exists():
        return None
    raw = read_yaml(path, "the job's YAML file, relative to the working directory", "run, data, model, train")
    if not Path(config).is_absolute() and Path(os.path.normpath(config)).as_posix() not in uploaded:
        fix = "Copy it to where it is not left out, for example jobs/configs."
        raise ConfigError(config, "a file that is not uploaded", "a file of the working directory that is", fix)
    settings = [value for option, value in pairwise(arguments) if option == "--set"]
    settings += [argument.removeprefix("--set=") for argument in arguments if argument.startswith("--set=")]
    for setting in settings:
        if setting.partition("=")[0] in NAME_KEYS:
            key, value = parsed_setting(setting, "key=value", "run.name=second")
            put(raw, key.split("."), value)
    run = raw.get("run")
    name = run.get("name") if isinstance(run, dict) else raw.get("name")
    return re.sub(r"[^\w.-]", "-", str(name)) if name else None


# --- the cluster ----------------------------------------------------------------------------------------------------


def server_address(given: str | None) -> str:
    """Address of the dashboard, which serves jobs. Raises ConfigError if it is not http(s), or holds a password."""
    found = [(name, os.environ[name]) for name in ADDRESS_VARIABLES if os.environ.get(name)]
    where, address = ("--address", given) if given else (found or [("", DEFAULT_ADDRESS)])[0]
    if not address.startswith(("http://", "https://")):
        expected = "the address of the cluster's dashboard, such as http://127.0.0.1:8265"
        raise ConfigError(where, without_credentials(address), expected, "Give it: --address http://HOST:8265.")
    refuse_credentials(where, address)
    return address.rstrip("/")


def connect(address: str) -> JobSubmissionClient:
    """A client of the job server. Raises ResourceError if it does not answer, refuses the token, or is another Ray."""
    try:
        urllib.request.urlopen(address, timeout=ANSWER_SECONDS).close()  # Ray's own client would wait for minutes
    except urllib.error.HTTPError as error:
        error.close()  # an answer: the client's questions say which
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ResourceError(
            address,
            f"no answer ({getattr(error, 'reason', error)})",
            "the dashboard of a running Ray cluster",
            "Start the cluster, or name it: --address http://HOST:8265; its port is not open to others, so reach it "
            "through `ray dashboard`, `kubectl port-forward` or `ssh -L`.",
        ) from None
    _send_token()
    import ray
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for module in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(module).setLevel(logging.WARNING)
    logging.getLogger("ray._private.runtime_env.working_dir").setLevel(logging.ERROR)  # its news: .git is not uploaded
    try:
        with environment({ADDRESS_VARIABLES[0]: address}):  # which the client puts before its argument
            client = JobSubmissionClient(address)
    except AuthenticationError as error:
        raise _refused(address, error) from None
    except (OSError, RuntimeError, LookupError, TypeError) as error:
        received = f"an answer that is not a job server's ({_first_line(error)})"
        raise ResourceError(address, received, "the dashboard of a Ray cluster", "Correct the address.") from None
    theirs, ours = str(client._server_ray_version), str(ray.__version__)  # no public name says what it has learnt
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        fix = f"Start the cluster with Ray {ours}, or submit from an environment that has Ray {theirs} and supports it."
        raise ResourceError(address, f"a cluster with Ray {theirs}", f"Ray {ours}, as here", fix)
    return client


def _send_token() -> None:
    """Have Ray's client send the token that there is; it does so only where RAY_AUTH_MODE asks for it."""
    there = any(name in os.environ for name in TOKEN_VARIABLES) or TOKEN_FILE.expanduser().is_file()
    if there and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"


def _refused(address: str, error: Exception) -> ResourceError:
    missing = "Missing" in str(error) or "no authentication token" in str(error)
    return ResourceError(
        address,
        "no token" if missing else "another token than the cluster's",
        "the token of the cluster, which asks for one",
        "Set RAY_AUTH_MODE=token, and the token in RAY_AUTH_TOKEN or in the file of RAY_AUTH_TOKEN_PATH "
        "(default ~/.ray/auth_token); `ray get-auth-token` prints it on a node.",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _begun(client: JobSubmissionClient, run: str, **job: Any) -> str:
    """The id of the job that runs for a run; it is submitted if there is none.

    The first job of a run is named after it, later ones have a number: Ray takes an id once, so that of two submissions
    at the same moment one is refused, and finds the other's job.
    """
    jobs = [details for details in client.list_jobs() if details.type == "SUBMISSION"]
    for details in jobs:
        if (details.metadata or {}).get(METADATA_KEY) == run and not details.status.is_terminal():
            _check_same(details, job)
            say(f"{details.submission_id} is {details.status} already, with the files that came with it")
            return str(details.submission_id)
    taken = {details.submission_id for details in jobs}
    job_id = next(name for name in (run if n == 1 else f"{run}.{n}" for n in count(1)) if name not in taken)
    try:
        client.submit_job(submission_id=job_id, metadata={METADATA_KEY: run}, **job)
    except RuntimeError as error:
        if "already exists" in str(error):
            return _begun(client, run, **job)
        raise ResourceError(
            client.get_address(), _last_line(error), "a cluster that takes the job", "See the cluster's dashboard.log."
        ) from None
    say(f"{job_id} is submitted to {client.get_address()}")
    return job_id


def _last_line(error: BaseException) -> str:
    """Of a traceback that the server has sent."""
    return (str(error).rstrip(". \n").splitlines() or [type(error).__name__])[-1]


def _check_same(details: JobDetails, job: Mapping[str, Any]) -> None:
    """Refuse to take a job for another one of the same run."""
    wanted = {"entrypoint": job["entrypoint"], "variables": job["runtime_env"]["env_vars"]}
    there = {"entrypoint": details.entrypoint, "variables": (details.runtime_env or {}).get("env_vars") or {}}
    for key, value in wanted.items():
        if there[key] != value:
            raise ConfigError(
                f"job {details.submission_id}",
                f"{key} {value}",
                f"{there[key]}, with which it is {details.status}",
                "Wait for its end, stop it (`ray job stop`), or choose another run name.",
            )


# --- following ------------------------------------------------------------------------------------------------------


class JobLog:
    """Shows a log as it grows: on a terminal its progress as bars, everything else as it is.

    Args:
        console: the terminal; None if there is none.
    """

    def __init__(self, console: Console | None) -> None:
        self.length = 0  # characters shown
        self._begun = ""  # a line that has no end yet
        self._tasks: dict[str, TaskID] = {}
        name, note = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[note]}"))
        self._bars = Progress(name, BarColumn(), MofNCompleteColumn(), note, console=console) if console else None

    def __enter__(self) -> JobLog:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def add(self, text: str) -> None:
        """Show what comes next in the log."""
        self.length += len(text)
        if self._bars is None:
            print(text, end="", flush=True)
            return
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._show(self._bars, line)

    def end(self) -> None:
        """Show a last line that has no end."""
        if self._begun:
            self.add("\n")

    def _show(self, bars: Progress, line: str) -> None:
        found = PROGRESS_LINE.fullmatch(line)
        if found is None:
            bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
            return
        name, done, total, note = found.groups()
        if name not in self._tasks:
            self._tasks[name] = bars.add_task(name, total=None, note="")
        bars.update(self._tasks[name], completed=int(done), total=int(total), note=note)


def follow(client: JobSubmissionClient, job_id: str) -> JobDetails:
    """Show a job's log until it has ended. Ctrl-C asks whether to stop the job; raises KeyboardInterrupt if not."""
    log = JobLog(Console() if sys.stdout.isatty() else None)
    while True:
        try:
            with log:
                return _followed(client, job_id, log)
        except KeyboardInterrupt:
            if not _stop_wanted(job_id):
                raise
            client.stop_job(job_id)


def _stop_wanted(job_id: str) -> bool:
    if not sys.stdin.isatty():
        return False
    try:
        return typer.confirm(f"\nstop the job {job_id}?", default=False, err=True)
    except (typer.Abort, KeyboardInterrupt):
        return False


def _followed(client: JobSubmissionClient, job_id: str, log: JobLog) -> JobDetails:
    """The stream of a log ends with the job, or breaks before; then it is read again, from what is shown on."""
    from aiohttp import ClientError

    while True:
        try:
            asyncio.run(_tail(client, job_id, log))
        except BrokenPipeError:  # nobody reads what is shown
            raise
        except (ClientError, OSError, RuntimeError) as error:
            say(f"the stream of the log broke ({_first_line(error)}): connecting again")
        details = _details(client, job_id)
        if details.status.is_terminal():
            _finish(client, job_id, log)
            return details
        time.sleep(RECONNECT_SECONDS)


def _finish(client: JobSubmissionClient, job_id: str, log: JobLog) -> None:
    """Show what a broken stream has left out."""
    try:
        log.add(client.get_job_logs(job_id)[log.length :])
    except (OSError, RuntimeError) as error:
        say(f"the end of the log cannot be read: {_last_line(error)}")
    log.end()


async def _tail(client: JobSubmissionClient, job_id: str, log: JobLog) -> None:
    read = 0
    async for text in client.tail_job_logs(job_id):
        new = text[max(0, log.length - read) :]
        read += len(text)
        log.add(new)


def _details(client: JobSubmissionClient, job_id: str) -> JobDetails:
    """What the server knows of a job. Raises ResourceError if it does not say so for a minute."""
    patient = Retrying(
        retry=retry_if_exception_type((OSError, RuntimeError)),
        wait=wait_fixed(RECONNECT_SECONDS),
        stop=stop_after_delay(PATIENCE_SECONDS),
    )
    try:
        return patient(client.get_job_info, job_id)
    except RetryError as error:
        cause = error.last_attempt.exception()
        raise ResourceError(
            client.get_address(),
            "nothing" if cause is None else _first_line(cause),
            f"news of the job {job_id}",
            "The job may go on, or its head node is gone: the same command follows it, or resumes its run.",
        ) from None
