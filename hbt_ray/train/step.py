"""One exact contrastive step: this rank's slice of a global batch, negatives from all ranks.

Texts are encoded in chunks of about equal token count, longest texts together, so that little of a chunk is padding;
their embeddings are put back in order before the loss. A plain step keeps the activations of all chunks; with the
gradient cache (Gao et al. 2021, arXiv 2101.06983) it keeps the embeddings, and encodes every chunk but one again for
the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from hbt_ray.config import TrainSection
from hbt_ray.mixing.reader import StepRow
from hbt_ray.model.encoder import token_batches
from hbt_ray.model.gather import first_row, gather_rows, gather_values, world_size
from hbt_ray.model.loss import MISSING, info_nce

CPU_CHUNK_TOKENS = (
    1024  # activations stay in the cores' caches, 5% of a chunk is padding (benchmarks/train_throughput.py)
)
GPU_CHUNK_TOKENS = 65_536


@dataclass(frozen=True)
class Chunk:
    """Texts encoded together: their numbers `rows` int64 [c], ids and mask int64 [c, T], padded on the right."""

    rows: Tensor
    ids: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Batch:
    """A rank's slice on its device: b queries, numbered first, then b · group candidates (positive, hard negatives).

    `keys` is int64 [b · group, 2], see `info_nce`; tokens are counted without, padded_tokens with padding.
    """

    step: int
    mode: str
    dataset: str
    pairs: int
    group: int
    chunks: tuple[Chunk, ...]
    keys: Tensor
    tokens: int
    padded_tokens: int

    @property
    def texts(self) -> int:
        """Queries and candidates, missing hard negatives included."""
        return self.pairs * (1 + self.group)


class StepResult(NamedTuple):
    """A rank's share of the global batch's mean loss and accuracy, times the world size; scalars."""

    loss: Tensor
    accuracy: Tensor


def to_batch(row: StepRow, pad_id: int, device: torch.device, chunk_tokens: int) -> Batch:
    """Sort the texts of a row by length, cut them into chunks of at most `chunk_tokens`, and move them."""
    candidates = len(row.keys)
    pairs = len(row.lengths) - candidates
    present = np.flatnonzero(row.lengths)
    starts = np.cumsum(row.lengths, dtype=np.int64) - row.lengths
    parts = [present[part] for part in token_batches(row.lengths[present].tolist(), chunk_tokens)]
    # The shortest first: the last chunk, which the gradient cache need not encode twice, is then a full one.
    chunks = tuple(_chunk(row.ids, starts, row.lengths, part, pad_id, device) for part in reversed(parts))
    keys = np.where(row.lengths[pairs:, None] > 0, row.keys, MISSING)
    return Batch(
        step=row.step,
        mode=row.mode,
        dataset=row.dataset,
        pairs=pairs,
        group=candidates // pairs,
        chunks=chunks,
        keys=torch.from_numpy(keys).to(device),
        tokens=len(row.ids),
        padded_tokens=sum(chunk.ids.numel() for chunk in chunks),
    )


def _chunk(
    ids: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int32],
    rows: npt.NDArray[np.int64],
    pad_id: int,
    device: torch.device,
) -> Chunk:
    columns = np.arange(int(lengths[rows].max()))
    mask = columns < lengths[rows, None]
    padded = np.where(mask, ids[np.where(mask, starts[rows, None] + columns, 0)], pad_id)
    arrays = (rows, padded, mask)
    return Chunk(*(torch.from_numpy(array.astype(np.int64)).to(device, non_blocking=True) for array in arrays))


def chunk_tokens(train: TrainSection, device: torch.device) -> int:
    """Tokens of a chunk: as configured, else what keeps the device busy."""
    return train.chunk_tokens or (CPU_CHUNK_TOKENS if device.type == "cpu" else GPU_CHUNK_TOKENS)


def contrastive_step(engine: Any, batch: Batch, train: TrainSection) -> StepResult:
    """Forward and backward; the engine then holds the gradient of the global batch's mean loss.

    The loss of a rank covers its own queries against the candidates of all ranks; the engine's average over ranks is
    the loss, and its gradient the gradient, of the whole global batch, whatever the world size.
    """
    chunks = as_many_as_others(engine, batch.chunks)
    if train.gradient_cache:
        return _cached_step(engine, batch, chunks, train)
    result = _loss(engine, batch, _embeddings(batch, chunks, [chunk_vectors(engine, c) for c in chunks]), train)
    engine.backward(result.loss)
    return result


@torch.no_grad()
def contrastive_loss(engine: Any, batch: Batch, train: TrainSection) -> StepResult:
    """Forward only."""
    chunks = as_many_as_others(engine, batch.chunks)
    return _loss(engine, batch, _embeddings(batch, chunks, [chunk_vectors(engine, c) for c in chunks]), train)


def chunk_vectors(engine: Any, chunk: Chunk) -> Tensor:
    """float32 [c, D]: embeddings of a chunk's texts."""
    return engine(chunk.ids, chunk.mask)[: len(chunk.rows)]  # type: ignore[no-any-return]


def _embeddings(batch: Batch, chunks: Sequence[Chunk], encoded: Sequence[Tensor]) -> Tensor:
    """float [texts, D]: embeddings of the chunks in the order of the texts; zero for a missing hard negative."""
    together = torch.cat(list(encoded))
    ordered = together.new_zeros((batch.texts, together.shape[1]))
    return ordered.index_copy(0, torch.cat([chunk.rows for chunk in chunks]), together)


def _loss(engine: Any, batch: Batch, embeddings: Tensor, train: TrainSection) -> StepResult:
    """Mean over the global batch's queries, this rank's part of it times the world size."""
    pairs = slice_sizes(train.batch_size)
    first = first_row(pairs)
    queries, candidates = embeddings[: batch.pairs], embeddings[batch.pairs :]
    own = first + torch.arange(batch.pairs, device=embeddings.device)  # numbers of this rank's pairs
    positive_keys = batch.keys[:: batch.group]
    counts = [count * batch.group for count in pairs]
    temperature = engine.module.temperature()
    directions = [
        info_nce(
            queries,
            gather_rows(candidates, counts),
            own * batch.group,
            positive_keys,
            gather_values(batch.keys, counts),
            temperature,
        )
    ]
    if train.symmetric:
        directions.append(
            info_nce(
                candidates[:: batch.group],
                gather_rows(queries, pairs),
                own,
                positive_keys,
                gather_values(positive_keys, pairs),
                temperature,
            )
        )
    share = world_size() / sum(pairs)
    loss = sum((direction.losses.sum() for direction in directions), torch.zeros((), device=embeddings.device))
    return StepResult(loss * share / len(directions), directions[0].hits.sum() * share)


def slice_sizes(batch_size: int) -> list[int]:
    """Pairs of each rank's slice of a global batch; they differ by one at most."""
    ranks = world_size()
    return [(r + 1) * batch_size // ranks - r * batch_size // ranks for r in range(ranks)]


# --- gradient cache --------------------------------------------------------------------------------------------------


def _cached_step(engine: Any, batch: Batch, chunks: Sequence[Chunk], train: TrainSection) -> StepResult:
    """The same loss and gradient with the activations of one chunk at a time.

    The loss's gradient at the embeddings is pulled back through each chunk by ⟨embedding, gradient⟩, whose own
    gradient it is. The last chunk keeps its activations from the first pass: the memory is there anyway.
    """
    *again, kept = chunks
    states, encoded = [], []
    for chunk in again:
        states.append(_RandomState.now(chunk.ids.device))
        with torch.no_grad():
            encoded.append(chunk_vectors(engine, chunk))
    encoded.append(chunk_vectors(engine, kept))
    leaf = _embeddings(batch, chunks, [part.detach() for part in encoded]).requires_grad_()
    with engine.module.temperature.detached() as temperature_gradient:
        result = _loss(engine, batch, leaf, train)
        result.loss.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    gradient = leaf.grad

    def surrogates() -> Iterator[Tensor]:
        yield (encoded[-1] * gradient[kept.rows]).sum() + temperature_gradient()
        encoded.clear()
        for chunk, state in zip(again, states, strict=True):
            with state.restored():  # the same dropout as in the first pass
                yield (chunk_vectors(engine, chunk) * gradient[chunk.rows]).sum()

    _backward_with_one_reduction(engine, surrogates(), len(chunks))
    return StepResult(result.loss.detach(), result.accuracy)


def _backward_with_one_reduction(engine: Any, losses: Iterator[Tensor], count: int) -> None:
    """Gradients of all losses add up on each rank and are averaged over ranks once."""
    if engine.zero_optimization_stage() > 0:
        with engine.coalesce_grad_reduction():
            for loss in losses:
                engine.backward(loss)
        return
    for number, loss in enumerate(losses, start=1):
        if number < count:
            with engine.no_sync():
                engine.backward(loss)
        else:
            engine.backward(loss)


@dataclass(frozen=True)
class _RandomState:
    """State of the generators that dropout draws from."""

    cpu: Tensor
    cuda: Tensor | None
    device: torch.device

    @classmethod
    def now(cls, device: torch.device) -> _RandomState:
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), cuda, device)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Draw as then; afterwards go on as if nothing had been drawn."""
        with torch.random.fork_rng(devices=[] if self.cuda is None else [self.device]):
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda, self.device)
            yield


def as_many_as_others(engine: Any, chunks: tuple[Chunk, ...]) -> tuple[Chunk, ...]:
    """Under ZeRO-3 every forward gathers weights from all ranks, so all need the same number of chunks."""
    if engine.zero_optimization_stage() < 3 or world_size() == 1:
        return chunks
    most = torch.tensor(len(chunks), device=chunks[0].ids.device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    while len(chunks) < int(most):
        chunks = _with_one_more(chunks)
    return chunks


def _with_one_more(chunks: tuple[Chunk, ...]) -> tuple[Chunk, ...]:
    """Halve the chunk of most texts; where all have one text, encode one of them for nothing."""
    largest = max(range(len(chunks)), key=lambda number: len(chunks[number].rows))
    chunk = chunks[largest]
    if len(chunk.rows) < 2:
        return (Chunk(chunk.rows[:0], chunk.ids, chunk.mask), *chunks)
    middle = len(chunk.rows) // 2
    halves = [
        Chunk(chunk.rows[part], chunk.ids[part], chunk.mask[part]) for part in (slice(middle), slice(middle, None))
    ]
    return (*chunks[:largest], *halves, *chunks[largest + 1 :])
