"""Which checkpoints stay, and a record of them that Ray Train can always start from.

Ray's own pruning takes one score: with the validation loss as score it drops recent checkpoints for old good ones (and
ranks those without a loss best), without one it drops the best encoder. So Ray is told to keep all, and the newest and
the best are kept here.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from typing import Any

from ray.train import UserCallback

from hbt_ray.storage import Folder
from hbt_ray.train.record import RECORD, RECORD_COPY, Saved, accepted, read_record

NEWEST = 3  # one to resume from, and two more in case that it is damaged
PREFIX = "step-"  # of the folders of checkpoints

logger = logging.getLogger(__name__)


class Retention(UserCallback):  # type: ignore[misc]
    """Runs in the controller, after Ray Train has written its record."""

    def __init__(self, storage: Folder) -> None:
        self._storage = storage

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Copy the record and delete the checkpoints that are no longer needed."""
        if checkpoint is None:
            return
        self._storage.write(RECORD_COPY, self._storage.read(RECORD))
        prune(self._storage)


def best_export(checkpoints: Sequence[Saved]) -> Saved | None:
    """Of checkpoints, newest first, the one whose exported encoder had the lowest validation loss, else the newest."""
    exported = [saved for saved in checkpoints if saved.exported]
    return min(exported, key=_order, default=None)


def validation_loss(saved: Saved) -> float | None:
    """The finite validation loss of a checkpoint; None if it has none. Ray's record keeps null for NaN."""
    loss = saved.metrics.get("validation_loss")
    return loss if loss is not None and math.isfinite(loss) else None


def _order(saved: Saved) -> float:
    loss = validation_loss(saved)
    return math.inf if loss is None else loss


def prune(storage: Folder) -> None:
    """Delete the accepted checkpoints that are neither among the newest nor the best export."""
    present = set(storage.folders())
    there = [saved for saved in accepted(storage) if saved.name in present]
    best = best_export(there)
    for saved in there[NEWEST:]:
        if saved is not best:
            _delete(storage / saved.name)


def mend_record(storage: Folder) -> None:
    """Make Ray's record one that it can start from, and delete what a crash has left half written.

    Ray refuses a record that a crash has cut short, and one with a checkpoint that is no longer there.
    """
    record = read_record(storage)
    if record is None:
        storage.remove(RECORD)  # the very first was cut short: nothing had been accepted
        return
    present = set(storage.folders())
    kept = [
        (index, result)
        for index, result in zip(record["checkpoint_report_indices"], record["checkpoint_results"], strict=True)
        if result["checkpoint_dir_name"] in present
    ]
    record["checkpoint_report_indices"] = [index for index, _ in kept]
    record["checkpoint_results"] = [result for _, result in kept]
    record["latest_checkpoint_result"] = max(kept, key=lambda report: report[0])[1] if kept else None
    storage.write(RECORD, json.dumps(record).encode())
    accepted_names = {result["checkpoint_dir_name"] for _, result in kept}
    for name in present - accepted_names:
        if name.startswith(PREFIX):
            _delete(storage / name)


def _delete(folder: Folder) -> None:
    """A folder that cannot be deleted now is tried again after the next checkpoint; it is no reason to stop."""
    try:
        folder.filesystem.delete_dir(folder.path())
    except OSError as error:
        logger.warning("cannot delete %s: %s", folder.uri, error)
