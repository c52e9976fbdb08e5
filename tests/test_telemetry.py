"""The row that a step leaves in metrics.jsonl, and the FLOPs it is held against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hbt_ray.mixing.reader import StepRow
from hbt_ray.model.encoder import DualEncoder, load_encoder
from hbt_ray.train import telemetry
from hbt_ray.train.step import Batch, StepResult, to_batch
from hbt_ray.train.telemetry import StepClock, Telemetry, diverged

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder(toy_model: Path) -> DualEncoder:
    return load_encoder(str(toy_model), "mean")[0]


def batch(step: int, mode: str = "X-Y") -> Batch:
    """Texts of 2, 4, 6 and 8 tokens in one chunk: 20 real tokens, 32 with padding."""
    lengths = np.array([2, 4, 6, 8], dtype=np.int32)
    keys = np.arange(4).reshape(2, 2)
    return to_batch(StepRow(step, mode, "toy", np.ones(20, dtype=np.int32), lengths, keys), 1, CPU, 1000)


def row_of(books: Telemetry, step: int, mode: str, *, stop: bool = False) -> tuple[dict[str, float], bool]:
    return books.row(
        batch(step, mode),
        StepResult(torch.tensor(2.5), torch.tensor(0.5)),
        temperature=0.05,
        gradient_norm=1.5,
        learning_rate=1e-3,
        seconds=4.0,
        waited=1.0,
        stop_requested=stop,
    )


def test_a_row_says_what_the_step_did(encoder: DualEncoder) -> None:
    """Rates and shares are those of the batch: 20 of 32 tokens are real, 4 s of which 1 s waited; no GPU, no MFU."""
    row, stop = row_of(Telemetry(encoder, CPU, 0), 0, "X-Y")
    assert not stop
    assert row == pytest.approx(
        {
            "step": 0,
            "mode": "X-Y",
            "dataset": "toy",
            "loss": 2.5,
            "accuracy": 0.5,
            "temperature": 0.05,
            "gradient_norm": 1.5,
            "learning_rate": 1e-3,
            "alpha": 0.0,
            "tokens": 20,
            "seconds": 4.0,
            "tokens_per_second": 5.0,
            "padding_share": 12 / 32,
            "data_wait_share": 0.25,
        }
    )


def test_alpha_is_what_has_been_drawn(encoder: DualEncoder) -> None:
    """Share of X-X-mono batches since the first step, also after a resumption."""
    books = Telemetry(encoder, CPU, mono_batches=0)
    alphas = [row_of(books, step, mode)[0]["alpha"] for step, mode in enumerate(["X-X-mono", "X-Y", "X-X-mono"])]
    assert alphas == pytest.approx([1.0, 1 / 2, 2 / 3])
    resumed = Telemetry(encoder, CPU, books.mono_batches)
    assert row_of(resumed, 3, "X-Y")[0]["alpha"] == pytest.approx(2 / 4)


def test_a_request_to_stop_is_passed_on(encoder: DualEncoder) -> None:
    """One rank's request is everybody's."""
    assert row_of(Telemetry(encoder, CPU, 0), 0, "X-Y", stop=True)[1]


def test_mfu_counts_the_model_by_hand(encoder: DualEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """6 FLOPs per weight outside the embeddings and token, 12 · layers · width per token and position."""
    monkeypatch.setattr(telemetry, "_peak_flops", lambda device: 1e6)
    row, _ = row_of(Telemetry(encoder, CPU, 0), 0, "X-Y")
    layer = encoder.backbone.get_submodule("encoder.layer.0")
    config = encoder.backbone.config
    assert config.num_hidden_layers == 1
    weights = sum(weight.numel() for weight in layer.parameters())  # the pooler is not used
    flops = 32 * (6 * weights + 12 * config.hidden_size * 8)
    assert row["mfu"] == pytest.approx(flops / (4.0 * 1e6), rel=1e-6)


@pytest.mark.parametrize(
    ("loss", "norm", "expected"),
    [
        (2.5, 0.0, False),
        (2.5, 1e30, False),
        (float("nan"), 1.0, True),
        (float("inf"), 1.0, True),
        (2.5, float("inf"), True),
        (2.5, float("nan"), True),
        (2.5, -1.0, True),  # what DeepSpeed makes of a gradient that is not a number
    ],
)
def test_a_step_that_is_not_a_number(loss: float, norm: float, expected: bool) -> None:
    """Loss and gradient both have to be finite."""
    assert diverged({"loss": loss, "gradient_norm": norm}) is expected


def test_a_clock_tells_waiting_from_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step lasts from the end of the one before; waiting is from asking to arrival; saving counts for neither."""
    now = iter([0.0, 2.0, 5.0, 6.0, 9.0, 11.0, 20.0, 21.0, 22.0, 24.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock = StepClock()  # at 0
    clock.data_arrived()  # at 2
    assert clock.finished() == (5.0, 2.0)  # at 5
    clock.asked_for_data()  # at 6
    clock.data_arrived()  # at 9
    assert clock.finished() == (6.0, 3.0)  # at 11
    clock.restart()  # at 20
    clock.asked_for_data()  # at 21
    clock.data_arrived()  # at 22
    assert clock.finished() == (4.0, 1.0)  # at 24
