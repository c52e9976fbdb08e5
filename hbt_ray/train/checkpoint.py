"""Checkpoints: sharded engine state for resuming, and the encoder as a finished export beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.train
from ray.train import Checkpoint

from hbt_ray.model.encoder import EncoderSettings
from hbt_ray.model.export import export_encoder
from hbt_ray.train.engine import full_weights

ENGINE = "engine"
EXPORT = "model"


@contextmanager
def written_checkpoint(
    engine: Any, tokenizer: Any, settings: EncoderSettings, state: dict[str, Any]
) -> Iterator[Checkpoint]:
    """A checkpoint in a temporary folder; every rank puts its own shard, rank 0 also the export.

    Ray merges the folders of all ranks, so the context must stay open until it has reported the checkpoint.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / ENGINE / ENGINE).mkdir(parents=True)  # DeepSpeed makes folders on rank 0 only
        engine.save_checkpoint(str(folder / ENGINE), tag=ENGINE, client_state=state)
        weights = full_weights(engine)
        if weights is not None:
            export_encoder(engine.module, tokenizer, folder / EXPORT, settings, weights)
        yield Checkpoint.from_directory(str(folder))


def restore(engine: Any) -> dict[str, Any]:
    """Load the newest checkpoint of this run into the engine; its state, or {} for a fresh run."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return {}
    with checkpoint.as_directory() as folder:
        _, state = engine.load_checkpoint(str(Path(folder) / ENGINE), tag=ENGINE)
    return dict(state)
