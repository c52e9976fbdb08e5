"""The distributed contrastive step against one process with the whole batch, in float64."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from contrastive_ranks import first_step
from tokenizers import Tokenizer

from hbt_ray.config import Config
from hbt_ray.mixing.reader import SliceReader, Tokenisation
from hbt_ray.mixing.source import training_source
from hbt_ray.model.encoder import load_encoder, tokenizer_json
from hbt_ray.model.loss import info_nce
from hbt_ray.train.step import Batch, to_batch

TEMPERATURE = 0.02


def slices(config: Config, corpus: str, model: Path, world_size: int) -> list[dict[str, Any]]:
    """The tokenised slices of the first step, one per rank."""
    tokens = Tokenisation("Query: ", "Passage: ", 16, 16)
    tokenizer = Tokenizer.from_str(tokenizer_json(str(model)))
    return [
        SliceReader(training_source(config, corpus), tokens, rank, world_size).read([0], tokenizer).to_pylist()[0]
        for rank in range(world_size)
    ]


def reference(model: Path, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient of the whole batch in one process, everything in float64."""
    encoder = load_encoder(str(model), "mean")[0].double().eval()

    def embed(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = encoder.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        mean = (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        return mean / mean.norm(dim=1, keepdim=True)

    queries = embed(batch.query_ids, batch.query_mask)
    passages = embed(batch.passage_ids, batch.passage_mask)
    labels, keys = torch.arange(len(queries)), batch.passage_keys
    loss = info_nce(queries, passages, labels, keys, keys, TEMPERATURE).loss
    loss.backward()
    gradients = {name: w.grad for name, w in encoder.named_parameters() if w.grad is not None}
    return loss.item(), gradients


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def flat(gradients: dict[str, torch.Tensor], names: list[str]) -> torch.Tensor:
    return torch.cat([gradients[name].double().flatten() for name in names])


@pytest.mark.parametrize(
    ("world_size", "stage"),
    [
        (1, 0),
        (2, 0),
        pytest.param(2, 1, marks=pytest.mark.slow),
        pytest.param(2, 2, marks=pytest.mark.slow),
        pytest.param(2, 3, marks=pytest.mark.slow),
        pytest.param(4, 0, marks=pytest.mark.slow),
    ],
)
def test_gradient_on_many_ranks_is_the_gradient_on_one(
    world_size: int, stage: int, toy_config: Config, toy_corpus: str, toy_model: Path, tmp_path: Path
) -> None:
    """Direction and norm of the first step's gradient equal the float64 one-process gradient to 1e-5, τ = 0.02."""
    config = toy_config.replaced({"mix.alpha": 0.0})
    whole = to_batch(slices(config, toy_corpus, toy_model, 1)[0], 1, torch.device("cpu"))
    expected_loss, expected = reference(toy_model, whole)
    out = tmp_path / "gradient.pt"
    rows = slices(config, toy_corpus, toy_model, world_size)
    mp.spawn(first_step, (world_size, free_port(), str(toy_model), rows, stage, str(out)), nprocs=world_size, join=True)
    found = torch.load(out, weights_only=True)
    assert found["loss"] == pytest.approx(expected_loss, rel=1e-5)
    names = sorted(expected)
    assert sorted(found["gradients"]) == names
    ours, theirs = flat(found["gradients"], names), flat(expected, names)
    cosine = torch.dot(ours, theirs) / (ours.norm() * theirs.norm())
    assert cosine > 1 - 1e-6
    assert ours.norm().item() == pytest.approx(theirs.norm().item(), rel=1e-5)
