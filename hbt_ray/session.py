"""Which Ray to use: the cluster of a job, or our own local one that nobody else can reach or disturb."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from math import ceil

from hbt_ray.config import PATIENCE_MINUTES, ClusterSection
from hbt_ray.errors import ResourceError

SPARE_CPUS = 2  # logical CPUs for data tasks and controllers beside the workers
POLL_SECONDS = 1.0
LOCAL = {  # settings of a Ray on one machine, for one command
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else it would listen on all addresses of the machine
    "RAY_prestart_worker_first_driver": "0",  # Ray Train takes none of these processes; the others start when needed
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # its node goes with the command; one process less per training
    "RAY_enable_open_telemetry": "0",  # outlives every Ray of a process but the first, and can crash its exit
}
OR_WAIT = "where an autoscaler brings hosts, raise cluster.patience_minutes."

logger = logging.getLogger(__name__)


@contextmanager
def ray_session(worker_cpus: float = 1.0, gpus: int = 0, patience: float = 60 * PATIENCE_MINUTES) -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names (a submitted job has it set), else start a local Ray and end it after.

    The local one gets logical CPUs for workers and data tasks, and never joins a cluster that happens to run on
    this machine.

    Args:
        worker_cpus: CPUs of all workers together.
        gpus: how many of the workers take a GPU.
        patience: seconds to wait for what a cluster lacks; an autoscaler is asked for it.

    Raises:
        ResourceError: the workers need more CPUs or GPUs than there are.
    """
    import ray

    if ray.is_initialized():
        check_resources(worker_cpus, gpus)
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, logging_level=logging.WARNING)
    else:
        _start_local(worker_cpus)
    try:
        check_resources(worker_cpus, gpus, patience if address else 0.0)
        yield
    finally:
        ray.shutdown()


def training_session(cluster: ClusterSection) -> AbstractContextManager[None]:
    """`ray_session` for a training's workers, as few as it goes on with."""
    return ray_session(*_needs(cluster), 60 * cluster.patience_minutes)


def prepare_environment() -> None:
    """Settings that Ray reads while it is imported, so the command line calls this first.

    A local Ray asks for a random token of its own unless RAY_AUTH_MODE says otherwise; without this it would
    create one in the user's home.
    """
    if "RAY_AUTH_MODE" not in os.environ and "RAY_ADDRESS" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if "RAY_ADDRESS" not in os.environ:
        for name, value in LOCAL.items():
            os.environ.setdefault(name, value)
    for name, value in {
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Trainings side by side come with many processes: a local Ray need not warn of them.
        "RAY_worker_maximum_startup_concurrency": str(max(8, os.cpu_count() or 1)),
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads of idle processes would slow the others down ninefold
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # how often reports of the workers are taken; steps wait for it
        "TQDM_DISABLE": "1",  # the libraries' own bars; progress of a run is shown by the command line
    }.items():
        os.environ.setdefault(name, value)


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for as long as the context lasts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _start_local(worker_cpus: float) -> None:
    import ray

    cores = os.cpu_count() or 1
    if worker_cpus > cores:
        raise _too_few(worker_cpus, 0, {"CPU": float(cores)})
    ray.init(
        address="local",
        num_cpus=max(cores, ceil(worker_cpus)) + SPARE_CPUS,
        include_dashboard=False,  # nobody has its token, and it takes a third of the start
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def check_workers(cluster: ClusterSection) -> None:
    """Raise ResourceError if a training's workers, as few as it goes on with, have no room in the current session."""
    check_resources(*_needs(cluster))


def _needs(cluster: ClusterSection) -> tuple[float, int]:
    """CPUs and GPUs of a training's workers."""
    workers = cluster.fewest_workers
    return workers * cluster.cpus_per_worker, workers if cluster.gpu else 0


def check_resources(worker_cpus: float, gpus: int = 0, patience: float = 0.0) -> None:
    """Refuse what would wait forever: workers without their GPUs, or that leave no CPU for the data tasks.

    Arguments and errors as in `ray_session`.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    wanted = {"CPU": worker_cpus + 1, "GPU": float(gpus)}
    missing = _missing(wanted, ray.cluster_resources())
    if not missing:
        return
    if not patience:
        raise _too_few(worker_cpus, gpus, ray.cluster_resources())
    logger.warning("the cluster has %s: waiting up to %g s for more", " and ".join(missing), patience)
    workers = [{"CPU": worker_cpus / gpus, "GPU": 1.0}] * gpus if gpus else [{"CPU": 1.0}] * ceil(worker_cpus)
    deadline = time.monotonic() + patience
    try:
        request_resources(bundles=[*workers, {"CPU": 1.0}])
        while _missing(wanted, ray.cluster_resources()):
            if time.monotonic() >= deadline:
                raise _too_few(worker_cpus, gpus, ray.cluster_resources())
            time.sleep(POLL_SECONDS)
    finally:
        # Kept, it would outlast us. The workers' own demand keeps the hosts from now on.
        request_resources(bundles=[])


def _missing(wanted: Mapping[str, float], there: Mapping[str, float]) -> list[str]:
    """Of what there is less than wanted: how much there is of how much."""
    return [f"{there.get(name, 0.0):g} of {count:g} {name}s" for name, count in wanted.items()
            if there.get(name, 0.0) < count]  # fmt: skip


def _too_few(worker_cpus: float, gpus: int, there: Mapping[str, float]) -> ResourceError:
    if there.get("GPU", 0.0) < gpus:
        return ResourceError(
            "cluster.gpu",
            f"{gpus} workers with a GPU each",
            f"at most {there.get('GPU', 0.0):g}, the GPUs that are there",
            f"Set cluster.gpu: false, or lower cluster.workers; {OR_WAIT}",
        )
    return ResourceError(
        "cluster.workers x cluster.cpus_per_worker",
        f"{worker_cpus:g} CPUs for workers",
        f"at most the {there.get('CPU', 0.0):g} CPUs that are there (on a cluster one less, for the data tasks)",
        f"Lower cluster.workers or cluster.cpus_per_worker; {OR_WAIT}",
    )
