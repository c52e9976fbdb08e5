"""Hand every Train worker its own pipeline of the plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.train import DataConfig


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
