"""The distributed contrastive step against one process with the whole batch, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from contrastive_ranks import Case, first_steps
from ports import free_port
from tokenizers import Tokenizer

from hbt_ray.config import Config, TrainSection
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.writer import write_pairs
from hbt_ray.mixing.reader import SliceReader, StepRow, Tokenisation, step_rows
from hbt_ray.mixing.source import training_source
from hbt_ray.model.encoder import load_encoder, tokenizer_json
from hbt_ray.storage import Folder
from hbt_ray.train.step import to_batch

TEMPERATURE = 0.02
BATCH = 16


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pairs of very different lengths with none to three hard negatives; passages shared by two pairs each."""
    letters = {"en": "abcdefghij", "de": "klmnopqrst", "zh": "一二三四五六七八九十"}
    rng = np.random.default_rng(5)

    def words(alphabet: str, low: int, high: int) -> str:
        return " ".join("".join(rng.choice(list(alphabet), 3)) for _ in range(rng.integers(low, high)))

    pairs: list[ParallelPair] = []
    for i in range(64):
        passage = {code: words(alphabet, 1, 14) for code, alphabet in letters.items()}
        if i % 2:
            passage = dict(pairs[-1].passage)
        negatives = {code: [words(alphabet, 1, 14) for _ in range(i % 4)] for code, alphabet in letters.items()}
        if i % 8 == 2:  # somebody else's positive among the hard negatives
            negatives = {code: [pairs[-1].passage[code], *texts] for code, texts in negatives.items()}
        query = {code: words(alphabet, 1, 6) for code, alphabet in letters.items()}
        pairs.append(ParallelPair(str(i), f"p{i // 2}", f"d{i}", query, passage, negatives))
    root = str(tmp_path_factory.mktemp("negatives"))
    write_pairs(Folder(root), "toy", pairs, list(letters), {"source": "tests"}, rows_per_group=16)
    return root


def config_of(toy_config: Config, corpus: str) -> Config:
    return toy_config.replaced(
        {"mix.alpha": 0.0, "data.root": corpus, "data.hold_out.fraction": 0.0, "train.batch_size": BATCH}
    )


def rows_of(config: Config, model: Path, world_size: int, negatives: int) -> list[StepRow]:
    """The tokenised slices of the first step, one per rank."""
    tokens = Tokenisation("Query: ", "Passage: ", 12, 16, negatives)
    tokenizer = Tokenizer.from_str(tokenizer_json(str(model)))
    source = training_source(config, config.data.root)
    return [
        next(step_rows(SliceReader(source, tokens, rank, world_size).read([0], tokenizer)))
        for rank in range(world_size)
    ]


def reference(model: Path, row: StepRow, *, symmetric: bool = False) -> tuple[float, float, dict[str, torch.Tensor]]:
    """Loss, dL/dlog τ and gradient of the whole batch in one process: everything in float64, text by text, by hand."""
    encoder = load_encoder(str(model), "mean")[0].double().eval()
    stops = np.cumsum(row.lengths)
    texts = [row.ids[stop - length : stop] for stop, length in zip(stops, row.lengths, strict=True)]

    def embed(ids: Any) -> torch.Tensor | None:
        if not len(ids):
            return None
        tokens = torch.from_numpy(ids.astype(np.int64))[None]
        mean = encoder.backbone(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state[0].mean(0)
        return mean / mean.norm()

    vectors = [embed(ids) for ids in texts]
    pairs = len(texts) - len(row.keys)
    queries, candidates = vectors[:pairs], vectors[pairs:]
    group = len(candidates) // pairs
    log_tau = torch.tensor(math.log(TEMPERATURE), dtype=torch.float64, requires_grad=True)

    def cross_entropy(anchor: Any, label: int, others: Sequence[Any], keys: Any, own: Any) -> torch.Tensor:
        kept = [
            j
            for j, other in enumerate(others)
            if other is not None
            and (j == label or not set(zip("pt", keys[j], strict=True)) & set(zip("pt", own, strict=True)))
        ]
        scores = torch.stack([anchor @ others[j] for j in kept]) / log_tau.exp()
        return torch.logsumexp(scores, 0) - scores[kept.index(label)]

    positives = row.keys[::group]
    losses = [cross_entropy(queries[i], i * group, candidates, row.keys, positives[i]) for i in range(pairs)]
    if symmetric:
        back = [cross_entropy(candidates[i * group], i, queries, positives, positives[i]) for i in range(pairs)]
        losses = [(one + two) / 2 for one, two in zip(losses, back, strict=True)]
    loss = torch.stack(losses).mean()
    loss.backward()
    assert log_tau.grad is not None
    gradients = {name: w.grad for name, w in encoder.named_parameters() if w.grad is not None}
    return loss.item(), log_tau.grad.item(), gradients


def run_cases(model: Path, world_size: int, cases: list[Case], out: Path) -> dict[str, Any]:
    mp.spawn(first_steps, (world_size, free_port(), str(model), cases, str(out)), nprocs=world_size, join=True)
    return torch.load(out, weights_only=True)  # type: ignore[no-any-return]


def flat(gradients: dict[str, torch.Tensor], names: list[str]) -> torch.Tensor:
    return torch.cat([gradients[name].double().flatten() for name in names])


def assert_same_gradient(found: dict[str, Any], loss: float, expected: dict[str, torch.Tensor], case: str) -> None:
    names = sorted(expected)
    assert sorted(name for name in found["gradients"] if name != "temperature.position") == names, case
    assert found["loss"] == pytest.approx(loss, rel=1e-5), case
    ours, theirs = flat(found["gradients"], names), flat(expected, names)
    assert torch.dot(ours, theirs) / (ours.norm() * theirs.norm()) > 1 - 1e-6, case
    assert ours.norm().item() == pytest.approx(theirs.norm().item(), rel=1e-5), case


def train_section(**changes: object) -> TrainSection:
    base = {"steps": 1, "batch_size": BATCH, "temperature": TEMPERATURE, "max_gradient_norm": 0.0}
    return TrainSection.model_validate(base | changes)


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_gradient_on_many_ranks_is_the_gradient_on_one(
    world_size: int, toy_config: Config, corpus: str, toy_model: Path, tmp_path: Path
) -> None:
    """Direction and norm of the first step's gradient equal the float64 one-process gradient to 1e-5, τ = 0.02.

    For ZeRO 0, 1, 2 and 3, with and without the gradient cache, with and without hard negatives (interleaved, some
    missing, some of them another pair's positive), in chunks of uneven numbers of texts. The norm that telemetry
    reports is the gradient's.
    """
    config = config_of(toy_config, corpus)
    expected = {negatives: reference(toy_model, rows_of(config, toy_model, 1, negatives)[0]) for negatives in (0, 2)}
    cases = [
        Case(
            f"ZeRO {stage}, {'cache' if cache else 'plain'}, {negatives} hard negatives",
            stage,
            train_section(gradient_cache=cache, hard_negatives=negatives, chunk_tokens=90),
            rows_of(config, toy_model, world_size, negatives),
        )
        for stage, cache, negatives in product((0, 1, 2, 3), (False, True), (0, 2))
    ]
    found = run_cases(toy_model, world_size, cases, tmp_path / "found.pt")
    for case in cases:
        loss, _, gradients = expected[case.train.hard_negatives]
        assert found[case.name]["chunks"] > 1
        assert_same_gradient(found[case.name], loss, gradients, case.name)
        norm = flat(gradients, sorted(gradients)).norm().item()
        assert found[case.name]["norm"] == pytest.approx(norm, rel=1e-4), case.name


def test_symmetric_loss_learned_temperature_and_uneven_slices(
    toy_config: Config, corpus: str, toy_model: Path, tmp_path: Path
) -> None:
    """Both directions, dL/dτ, recomputed activations and 16 pairs on three ranks: all as in one process."""
    config = config_of(toy_config, corpus)
    loss, log_tau, gradients = reference(toy_model, rows_of(config, toy_model, 1, 2)[0], symmetric=True)
    cases = [
        Case(
            f"ZeRO {stage}, {'cache' if cache else 'plain'}",
            stage,
            train_section(
                gradient_cache=cache,
                hard_negatives=2,
                chunk_tokens=90,
                symmetric=True,
                learn_temperature=True,
                activation_checkpointing=not cache,
            ),
            rows_of(config, toy_model, 3, 2),
        )
        for stage, cache in product((0, 2, 3), (False, True))
    ]
    found = run_cases(toy_model, 3, cases, tmp_path / "found.pt")
    share = math.log(TEMPERATURE / 0.01) / math.log(100)
    expected_position = log_tau * math.log(100) * share * (1 - share)  # log τ = log 0.01 + log 100 · sigmoid(position)
    for case in cases:
        assert_same_gradient(found[case.name], loss, gradients, case.name)
        position = found[case.name]["gradients"]["temperature.position"].item()
        assert position == pytest.approx(expected_position, rel=1e-4), case.name


@pytest.mark.timeout(900)
@pytest.mark.slow  # DeepSpeed and torch.compile both build C++ code for a minute or two the first time
def test_compiled_backbone_and_optimiser_on_the_host(
    toy_config: Config, corpus: str, toy_model: Path, tmp_path: Path
) -> None:
    """torch.compile leaves the gradient as it is; cpu_adamw moves the weights as adamw does."""
    config = config_of(toy_config, corpus)
    (row,) = rows_of(config, toy_model, 1, 0)
    loss, _, gradients = reference(toy_model, row)
    plain, compiled, offloaded = (
        Case(name, stage, train_section(chunk_tokens=90, learning_rate=1e-3, **changes), [row])
        for name, stage, changes in (
            ("adamw", 2, {}),
            ("compiled", 0, {"compile": True}),
            ("cpu_adamw", 2, {"optimizer": "cpu_adamw"}),
        )
    )
    found = run_cases(toy_model, 1, [plain, compiled, offloaded], tmp_path / "found.pt")
    assert_same_gradient(found["adamw"], loss, gradients, "adamw")
    assert_same_gradient(found["compiled"], loss, gradients, "compiled")
    ours, theirs = found["cpu_adamw"]["weights"], found["adamw"]["weights"]
    start = dict(load_encoder(str(toy_model), "mean")[0].named_parameters())
    names = sorted(gradients)
    moved = flat(theirs, names) - flat({name: start[name].detach() for name in names}, names)
    assert moved.abs().max() > 1e-4
    assert torch.allclose(flat(ours, names), flat(theirs, names), rtol=0, atol=1e-6)


def test_chunks_hold_every_text_once_within_the_budget(toy_config: Config, corpus: str, toy_model: Path) -> None:
    """Chunks are at most the budget, hold each text's own tokens, skip missing negatives and waste little."""
    (row,) = rows_of(config_of(toy_config, corpus), toy_model, 1, 2)
    batch = to_batch(row, 1, torch.device("cpu"), 100)
    stops = np.cumsum(row.lengths)
    seen = []
    for chunk in batch.chunks:
        assert chunk.ids.numel() <= 100
        for number, ids, mask in zip(chunk.rows.tolist(), chunk.ids, chunk.mask, strict=True):
            text = row.ids[stops[number] - row.lengths[number] : stops[number]]
            assert ids[mask.bool()].tolist() == text.tolist()
            assert (ids[~mask.bool()] == 1).all()
            seen.append(number)
    assert sorted(seen) == np.flatnonzero(row.lengths).tolist()
    assert (row.lengths == 0).any()
    assert (batch.pairs, batch.group, batch.tokens) == (16, 3, len(row.ids))
    one_chunk = to_batch(row, 1, torch.device("cpu"), 10**6)
    assert batch.tokens <= batch.padded_tokens < one_chunk.padded_tokens
