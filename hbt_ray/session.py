"""Which Ray to use: the cluster of a job, or our own local one that nobody else can reach or disturb."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import ceil

from hbt_ray.errors import ResourceError

SPARE_CPUS = 2  # logical CPUs for data tasks and controllers beside the workers
PATIENCE_SECONDS = 90.0  # for hosts of a cluster that are on their way, or on their way back
POLL_SECONDS = 1.0

logger = logging.getLogger(__name__)


@contextmanager
def ray_session(worker_cpus: float = 1.0) -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names (a submitted job has it set), else start a local Ray and end it after.

    The local one gets logical CPUs for workers and data tasks, and never joins a cluster that happens to run on
    this machine.

    Raises:
        ResourceError: the workers need more CPUs than there are.
    """
    import ray

    if ray.is_initialized():
        check_cpus(worker_cpus)
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, logging_level=logging.WARNING)
    else:
        _start_local(worker_cpus)
    try:
        check_cpus(worker_cpus, PATIENCE_SECONDS if address else 0.0)
        yield
    finally:
        ray.shutdown()


def prepare_environment() -> None:
    """Settings that Ray reads while it is imported, so the command line calls this first.

    A local Ray asks for a random token of its own unless RAY_AUTH_MODE says otherwise; without this it would
    create one in the user's home.
    """
    if "RAY_AUTH_MODE" not in os.environ and "RAY_ADDRESS" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if "RAY_ADDRESS" not in os.environ:
        # A local Ray is for one machine: without this it would listen on all its addresses.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
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
        raise _too_few(worker_cpus, cores)
    ray.init(
        address="local",
        num_cpus=max(cores, ceil(worker_cpus)) + SPARE_CPUS,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def check_cpus(worker_cpus: float, patience: float = 0.0) -> None:
    """Refuse what would wait forever: workers that leave no CPU for the data tasks.

    `patience` is how many seconds to wait for hosts that are missing; an autoscaler is asked for them. Raises
    ResourceError.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    wanted = worker_cpus + 1
    deadline = time.monotonic() + patience
    asked = False
    while (total := ray.cluster_resources().get("CPU", 0.0)) < wanted:
        if time.monotonic() >= deadline:
            raise _too_few(worker_cpus, int(total))
        if not asked:
            logger.warning("the cluster has %g of %g CPUs: waiting up to %g s for more", total, wanted, patience)
            request_resources(num_cpus=ceil(wanted))
            asked = True
        time.sleep(POLL_SECONDS)
    if asked:
        request_resources(num_cpus=0)  # the workers' own demand keeps the hosts from now on


def _too_few(worker_cpus: float, cpus: int) -> ResourceError:
    return ResourceError(
        "cluster.workers x cluster.cpus_per_worker",
        f"{worker_cpus:g} CPUs for workers",
        f"at most the {cpus} CPUs that are there (on a cluster one less, for the data tasks)",
        "Lower cluster.workers or cluster.cpus_per_worker.",
    )
