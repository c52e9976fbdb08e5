"""From plan to tokens: one ordered Ray Data pipeline per rank.

A task takes a run of consecutive steps of its rank and hands over ragged token ids, one row per step; workers only
pad and move. `streaming_split` cannot give rank r its slice of global batch k, hence a pipeline per rank, which
`hbt_ray.train.fit` hands to the workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data
from ray.data import ExecutionOptions
from tokenizers import Tokenizer

from hbt_ray.mixing.reader import SliceReader, Tokenisation
from hbt_ray.mixing.source import PlanSource

STEPS_PER_TASK = 16
TASK_CPUS = 0.25  # reading and tokenising a few steps is light beside a training step
TASKS_PER_PIPELINE = 2


@dataclass(frozen=True)
class PlanPipeline:
    """Steps first_step ... stop_step - 1 of a plan, tokenised; what Ray Train hands around in place of a dataset.

    `tokenizer` refers to the JSON of a fast tokenizer in the object store, so tasks need neither a shared folder nor
    the seconds that importing transformers takes.
    """

    source: PlanSource
    tokens: Tokenisation
    tokenizer: ray.ObjectRef
    first_step: int
    stop_step: int

    def iterator(self, rank: int, world_size: int) -> Any:
        """The ordered Ray Data iterator of one rank."""
        task = _SliceTask(SliceReader(self.source, self.tokens, rank, world_size), self.tokenizer, self.first_step)
        steps = self.stop_step - self.first_step
        blocks = ceil(steps / STEPS_PER_TASK)
        dataset = ray.data.range(steps, override_num_blocks=blocks).map_batches(
            task, batch_size=None, num_cpus=TASK_CPUS, concurrency=min(blocks, TASKS_PER_PIPELINE)
        )
        dataset.context.execution_options = ExecutionOptions(preserve_order=True)
        dataset.context.enable_progress_bars = False
        return dataset.iterator()


@dataclass(frozen=True)
class _SliceTask:
    reader: SliceReader
    tokenizer: ray.ObjectRef
    first_step: int

    def __call__(self, block: Mapping[str, npt.NDArray[np.int64]]) -> pa.Table:
        return self.reader.read((self.first_step + block["id"]).tolist(), _tokenizer(self.tokenizer))


@lru_cache(maxsize=2)
def _tokenizer(reference: ray.ObjectRef) -> Tokenizer:
    return Tokenizer.from_str(ray.get(reference))


def step_rows(iterator: Any) -> Iterator[dict[str, Any]]:
    """The rows of a rank's iterator, one per step, in order."""
    for table in iterator.iter_batches(batch_size=STEPS_PER_TASK, batch_format="pyarrow", prefetch_batches=2):
        yield from table.to_pylist()
