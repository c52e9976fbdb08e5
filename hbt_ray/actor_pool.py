"""Rows of work through an actor pool of Ray Data: results as they come, and our own errors as they are."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray.data
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError

from hbt_ray.errors import HbtError

MOST_BLOCKS = 4_096  # that rows are dealt in, so that a late actor leaves little for the others to wait for


def through_actors(
    rows: Sequence[Mapping[str, Any]],
    actor: type[Any],
    arguments: tuple[Any, ...],
    *,
    actors: int,
    gpus: float | None = None,
) -> Iterator[dict[str, Any]]:
    """Give every row to one of several actors; what they return, in no order.

    Args:
        rows: at least one; they are copied to the actors, so they name the work rather than hold it.
        actor: called with a column of one value for each key, returns the same for its results.
        arguments: of its constructor.
        actors: how many, each with one CPU.
        gpus: for each of them.

    Raises whatever of ours an actor raises, and RayError if it is Ray that fails.
    """
    dataset = ray.data.from_items(list(rows), override_num_blocks=min(len(rows), MOST_BLOCKS)).map_batches(
        actor,
        fn_constructor_args=arguments,
        batch_size=1,
        compute=ActorPoolStrategy(size=min(actors, len(rows))),
        num_cpus=1,
        num_gpus=gpus,
    )
    dataset.context.enable_progress_bars = False
    dataset.context.raise_original_map_exception = True  # Ray's wrapper of it loses the cause on its way here
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # else it tells of every pipeline's start and end
    try:
        yield from dataset.iter_rows()
    except RayError as error:
        cause = _own_error(error)
        if cause is None:
            raise
        raise cause from None


def _own_error(error: BaseException) -> HbtError | None:
    """Our error, from under what Ray has wrapped it in."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        if isinstance(cause, HbtError):
            return cause
        seen.append(cause)
        cause = getattr(cause, "cause", None) or cause.__cause__
    return None
