"""Gauges of a training for Prometheus: Ray's metrics agent on the driver's node serves them as ray_hbt_train_*."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.train import UserCallback
from ray.util.metrics import Gauge

PREFIX = "hbt_train_"

# Name without prefix -> what it says; the rows are those of metrics.jsonl.
MEANS = {  # over the steps since the report before, so that a step's luck is not the picture
    "loss": "Mean InfoNCE of the global batches",
    "accuracy": "Share of queries whose passage scores highest among all candidates",
    "gradient_norm": "Norm of the whole gradient before clipping",
    "seconds": "Seconds of a step on the slowest rank",
    "padding_share": "Share of padding in the tokens computed",
    "data_wait_share": "Share of a step's time that waits for data",
    "mfu": "Model FLOPs by the data sheet's bf16 peak; on known GPUs only",
}
NEWEST = {
    "step": "Newest step that was reported, from 0",
    "alpha": "Share of X-X-mono batches since step 0: what alpha has come to",
    "temperature": "Temperature of the contrastive loss",
    "learning_rate": "Learning rate of the newest step",
}
RATE = {"tokens_per_second": "Real tokens of all ranks by the seconds of the steps since the report before"}
VALIDATION = {"validation_loss": "Weighted mean InfoNCE of the held-out batches at the newest validation"}
GAUGES = MEANS | NEWEST | RATE | VALIDATION


class TrainingGauges(UserCallback):  # type: ignore[misc]
    """Sets the gauges at every report; runs in the controller, so that no worker spends time on them.

    A gauge is served until the controller ends, under the tag `run`.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}  # made where they are set: a gauge belongs to its process

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Show what rank 0 has reported; every rank reports the same."""
        for name, value in gauge_values(metrics[0]).items():
            if name not in self._gauges:
                gauge = Gauge(PREFIX + name, GAUGES[name], tag_keys=("run",))
                self._gauges[name] = gauge.set_default_tags({"run": self._run})
            self._gauges[name].set(value)


def gauge_values(report: Mapping[str, Any]) -> dict[str, float]:
    """Gauges by their names without prefix, of one report of the loop; those of which it says nothing are left out."""
    values = {name: float(report[name]) for name in VALIDATION if name in report}
    rows = report["log"]
    if not rows:
        return values
    values |= {name: sum(row[name] for row in rows) / len(rows) for name in MEANS if name in rows[0]}
    values |= {name: float(rows[-1][name]) for name in NEWEST}
    values["tokens_per_second"] = sum(row["tokens"] for row in rows) / sum(row["seconds"] for row in rows)
    return values
