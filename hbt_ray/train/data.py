"""Hand every Train worker its own pipeline of the plan, from the newest checkpoint on.

Ray Train asks for it in processes of its own, so nothing here imports torch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import ray
from ray.train import DataConfig

from hbt_ray.errors import TrainingError
from hbt_ray.mixing.reader import Tokenisation
from hbt_ray.mixing.source import PlanSource
from hbt_ray.mixing.stream import PlanPipeline
from hbt_ray.storage import Folder
from hbt_ray.train.record import newest_intact

logger = logging.getLogger(__name__)


class PlanDataConfig(DataConfig):  # type: ignore[misc]
    """Gives every Train worker its own ordered pipeline of each `PlanPipeline`.

    Ray Train calls this at every start of the worker group with the world size of the moment.
    """

    def configure(
        self, datasets: Mapping[str, Any], world_size: int, worker_handles: Any, worker_node_ids: Any, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """One dictionary of iterators per rank, by dataset name."""
        return [
            {name: pipeline.iterator(rank, world_size) for name, pipeline in datasets.items()}
            for rank in range(world_size)
        ]


def missing_steps(
    source: PlanSource, tokens: Tokenisation, tokenizer: ray.ObjectRef, storage: Folder, last_step: int
) -> PlanPipeline:
    """Asked at every start of the worker group: the plan from the end of the newest intact checkpoint on.

    Raises TrainingError if there are checkpoints, and all are damaged.
    """
    saved, damages = newest_intact(storage)
    for message in damages:
        logger.warning("%s", message)
    if damages and saved is None:
        raise TrainingError(f"no intact checkpoint is left in {storage.uri}: {damages[0]}")
    return PlanPipeline(source, tokens, tokenizer, saved.step if saved else 0, last_step)


def same_steps(pipeline: PlanPipeline) -> PlanPipeline:
    """Asked at every start of the worker group: all of it, as for held-out batches."""
    return pipeline
