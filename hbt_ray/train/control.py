"""Stopping a run from outside: the driver asks, the workers look between steps and say how they ended."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hbt_ray.errors import Interrupted

POLL_SECONDS = 1.0

logger = logging.getLogger(__name__)


class RunControl:
    """What driver and workers must agree on while a run goes on; lives in an actor of its own (`start_control`)."""

    def __init__(self) -> None:
        self._stop = False
        self._outcome: dict[str, Any] | None = None

    def request_stop(self) -> None:
        """Ask the workers to save a checkpoint after their step and to end."""
        self._stop = True

    def stop_requested(self) -> bool:
        """Whether somebody asked."""
        return self._stop

    def end(self, outcome: Mapping[str, Any]) -> None:
        """Say that the workers end before the last step, and why."""
        self._outcome = dict(outcome)

    def outcome(self) -> dict[str, Any] | None:
        """What `end` was told; None for a run that went to its end."""
        return self._outcome


def start_control() -> Any:
    """A handle to a RunControl actor on the driver's node, which other nodes take nothing of when they go."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(**options)(RunControl).remote()


class StopWatch:
    """In a worker: asks a RunControl actor about every second, in a thread, whether to stop."""

    def __init__(self, control: Any) -> None:
        self.requested = False
        self._control = control
        threading.Thread(target=self._watch, daemon=True, name="stop-watch").start()

    def _watch(self) -> None:
        while not self.requested:
            try:
                self.requested = ray.get(self._control.stop_requested.remote())
            except ray.exceptions.RayError as error:  # the actor may be on its way back
                logger.warning("cannot ask whether to stop: %s", error)
            time.sleep(POLL_SECONDS)


@contextmanager
def stopped_by_sigterm(control: Any) -> Iterator[None]:
    """Within the context the first SIGTERM asks the workers to stop; the second raises Interrupted at once.

    Only the main thread can take signals: elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked, over = threading.Event(), threading.Event()

    def on_sigterm(number: int, frame: object) -> None:
        if asked.is_set():
            raise Interrupted
        asked.set()

    # Ray is called from a thread: the signal may have come in the middle of another call of Ray.
    messenger = threading.Thread(target=_pass_on, args=(control, asked, over), daemon=True, name="stop-messenger")
    messenger.start()
    handler = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        over.set()
        asked.set()
        messenger.join()


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Within the context SIGTERM raises Interrupted, as Ctrl-C raises KeyboardInterrupt: for what is no training.

    Only the main thread can take signals: elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = threading.Event()

    def on_sigterm(number: int, frame: object) -> None:
        asked.set()
        raise KeyboardInterrupt  # in the middle of its calls Ray passes this on, and swallows every other error

    handler = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        if asked.is_set():
            raise Interrupted from None
        if isinstance(error, SystemError) and isinstance(error.__cause__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)


def _pass_on(control: Any, asked: threading.Event, over: threading.Event) -> None:
    asked.wait()
    if over.is_set():
        return
    logger.warning("SIGTERM: the workers save a checkpoint after their step and stop")
    while True:  # again and again: an actor that had to be started anew has forgotten it
        try:
            ray.get(control.request_stop.remote())
        except ray.exceptions.RayError as error:
            logger.warning("cannot ask the workers to stop: %s", error)
        if over.wait(POLL_SECONDS):
            return
