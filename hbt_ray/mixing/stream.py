"""From plan to tokens: one ordered Ray Data pipeline per rank.

A task takes a run of consecutive steps of its rank and hands over token ids, one row per step; workers only pad and
move. `streaming_split` cannot give rank r its slice of global batch k, hence a pipeline per rank, which
`hbt_ray.train.fit` hands to the workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from math import ceil
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import Datasource, ExecutionOptions, ReadTask, TaskPoolStrategy
from ray.data.block import BlockMetadata
from tokenizers import Tokenizer

from hbt_ray.mixing.reader import SliceReader, StepRow, Tokenisation, step_rows
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
        steps = range(self.first_step, self.stop_step)
        tasks = ceil(len(steps) / STEPS_PER_TASK)
        dataset = ray.data.read_datasource(
            _PlanSlices(SliceReader(self.source, self.tokens, rank, world_size), self.tokenizer, steps),
            num_cpus=TASK_CPUS,
            compute=TaskPoolStrategy(min(tasks, TASKS_PER_PIPELINE)),
            override_num_blocks=tasks,
        )
        dataset.context.execution_options = ExecutionOptions(preserve_order=True)
        dataset.context.enable_progress_bars = False
        return dataset.iterator()


class _PlanSlices(Datasource):  # type: ignore[misc]
    """Hands out runs of steps as tasks. Not `ray.data.range`, whose tasks ask for a whole CPU each."""

    def __init__(self, reader: SliceReader, tokenizer: ray.ObjectRef, steps: range) -> None:
        super().__init__()
        self._reader = reader
        self._tokenizer = tokenizer
        self._steps = steps

    def estimate_inmemory_data_size(self) -> int | None:
        """Known once texts are read."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task for every STEPS_PER_TASK steps."""
        runs = [self._steps[start : start + STEPS_PER_TASK] for start in range(0, len(self._steps), STEPS_PER_TASK)]
        return [
            ReadTask(partial(_read, self._reader, self._tokenizer, run), BlockMetadata(len(run), None, None, None))
            for run in runs
        ]


def _read(reader: SliceReader, tokenizer: ray.ObjectRef, steps: range) -> list[pa.Table]:
    return [reader.read(steps, _tokenizer(tokenizer))]


@lru_cache(maxsize=2)
def _tokenizer(reference: ray.ObjectRef) -> Tokenizer:
    return Tokenizer.from_str(ray.get(reference))


def slices(iterator: Any) -> Iterator[StepRow]:
    """The slices of a rank's iterator, one per step, in order."""
    for table in iterator.iter_batches(batch_size=STEPS_PER_TASK, batch_format="pyarrow", prefetch_batches=2):
        yield from step_rows(table)
