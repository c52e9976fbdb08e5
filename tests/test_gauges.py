"""Gauges of a training: what they are of a report, and that Ray serves them while the training runs."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

from hbt_ray.config import Config
from hbt_ray.train.gauges import GAUGES, gauge_values
from hbt_ray.train.metrics_log import Rows

# Of those that cluster/monitoring/ watches, the ones that a machine without a GPU has in an hour without mishap.
RAYS_OWN = {
    "ray_node_cpu_utilization",
    "ray_node_disk_free",
    "ray_node_disk_usage",
    "ray_node_mem_total",
    "ray_node_mem_used",
    "ray_object_store_memory",
    "ray_resources",
}
SAMPLE = re.compile(r"^ray_hbt_train_(\w+)\{(.*)\} (\S+)$", flags=re.MULTILINE)


def row(step: int, **values: float) -> dict[str, Any]:
    """A row of the loop's log."""
    usual = {
        "loss": 1.0,
        "accuracy": 0.5,
        "temperature": 0.05,
        "gradient_norm": 2.0,
        "learning_rate": 1e-3,
        "alpha": 0.5,
        "tokens": 100,
        "seconds": 1.0,
        "padding_share": 0.25,
        "data_wait_share": 0.0,
    }
    return {"step": step, "mode": "X-Y", "dataset": "toy"} | usual | values


def test_a_report_gives_means_rates_and_the_newest() -> None:
    """Means over the steps of the report; tokens by time, not a mean of rates; step and α of the last."""
    log = [row(8, loss=1.0, alpha=0.4, tokens=100, seconds=1.0), row(9, loss=3.0, alpha=0.5, tokens=300, seconds=4.0)]
    found = gauge_values({"step": 10, "log": log, "validation_loss": 0.75, "validation_loss/X-Y": 0.5})
    assert found == pytest.approx(
        {
            "loss": 2.0,
            "accuracy": 0.5,
            "gradient_norm": 2.0,
            "seconds": 2.5,
            "padding_share": 0.25,
            "data_wait_share": 0.0,
            "step": 9.0,
            "alpha": 0.5,
            "temperature": 0.05,
            "learning_rate": 1e-3,
            "tokens_per_second": 80.0,
            "validation_loss": 0.75,
        }
    )
    assert gauge_values({"step": 10, "log": [row(9, mfu=0.25)]})["mfu"] == 0.25
    assert set(found) | {"mfu"} == set(GAUGES)


def test_a_report_without_steps_leaves_the_gauges_as_they_are() -> None:
    """A loss that is no number ends a run with an empty log: nothing is shown of it."""
    assert gauge_values({"step": 10, "log": []}) == {}


@pytest.fixture
def metrics_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A local Ray whose processes export metrics as a cluster's do, every second at a free port."""
    import ray

    monkeypatch.setenv("RAY_enable_open_telemetry", "1")  # for Ray's processes: this one has read it before
    port = free_port()
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        _metrics_export_port=port,
        _system_config={"metrics_report_interval_ms": 1000},
    )
    yield port
    ray.shutdown()


def page(port: int) -> str:
    """What Prometheus would read now."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        return str(answer.read().decode())


def of_run(text: str, run: str) -> dict[str, float]:
    """Gauges of a run on a page."""
    return {name: float(value) for name, labels, value in SAMPLE.findall(text) if f'run="{run}"' in labels}


@pytest.mark.slow
@pytest.mark.ray
def test_ray_serves_the_gauges_of_a_training(
    metrics_port: int, toy_config: Config, toy_corpus: str, toy_model: Path, tmp_path: Path
) -> None:
    """What is scraped in mid-training are values of metrics.jsonl's reports; beside it is what the alerts look at."""
    from hbt_ray.train.fit import fit
    from hbt_ray.train.run_folder import claim_folder

    config = toy_config.replaced(
        {
            "run.name": "watched",
            "run.out": str(tmp_path),
            "model.backbone": str(toy_model),
            "train.steps": 144,
            "train.log_every": 3,
            "train.validate_every": 48,  # a multiple of log_every, so that every report is of three steps
        }
    )
    run_dir = tmp_path / "watched"
    claim_folder(run_dir, config, toy_corpus)
    rows: Rows = []
    pages: list[str] = []

    def watch(new: Rows) -> None:
        rows.extend(new)
        pages.append(page(metrics_port))

    fit(config, run_dir, toy_corpus, watch)
    seen = [scrape for text in pages if (scrape := of_run(text, "watched"))]
    assert seen, "nothing was served"
    reports = [gauge_values({"log": rows[i : i + 3]}) for i in range(0, len(rows), 3)]
    reports += [gauge_values({"log": [], **row}) for row in rows if "validation_loss" in row]
    for name in set(GAUGES) - {"mfu"}:
        of_reports = {report[name] for report in reports if name in report}
        served = {scrape[name] for scrape in seen if name in scrape}
        assert served, name
        assert all(any(value == pytest.approx(reported) for reported in of_reports) for value in served), name
    assert len({scrape["step"] for scrape in seen}) > 1, "the gauges never moved"
    assert of_run(pages[-1], "another") == {}
    served_beside = set(re.findall(r"^(ray_\w+?)\{", "\n".join(pages), flags=re.MULTILINE))
    assert served_beside >= RAYS_OWN
    assert all('SessionName="' in labels for text in pages for _, labels, _ in SAMPLE.findall(text))
