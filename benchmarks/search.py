"""Search of a corpus larger than a score matrix: FAISS shards over two Ray actors, beside brute force on a sample.

    python benchmarks/search.py [--passages 2000000] [--dim 384] [--queries 1000] [--shard 250000] [--depth 100]

Synthetic passages of one language in shards of float32 on disk, written one by one to a temporary folder; every query
is a noisy copy of one passage, its relevant one. Prints seconds, peak resident memory of this process and of each
actor, and compares the ranks of 50 queries with those of an exact count over all shards.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

from hbt_ray.session import prepare_environment, ray_session

prepare_environment()  # before anything imports Ray

import numpy as np  # noqa: E402

from hbt_ray.evaluation.ranking import Relevant  # noqa: E402
from hbt_ray.evaluation.search import Shard, search_shards  # noqa: E402

ACTORS = 2
CHECKED = 50
NOISE = 4.0


def write_shards(folder: Path, passages: int, size: int, dim: int) -> list[Shard]:
    """Unit vectors, a shard at a time."""
    shards = []
    for start in range(0, passages, size):
        rng = np.random.default_rng([13, start])
        vectors = rng.standard_normal((min(size, passages - start), dim), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        path = folder / f"{start:09d}.npy"
        np.save(path, vectors)
        shards.append(Shard(0, str(path), start))
    return shards


def queries_near(shards: list[Shard], relevant: np.ndarray, dim: int) -> np.ndarray:
    """A noisy copy of each relevant passage."""
    starts = np.array([shard.start for shard in shards])
    noise = np.random.default_rng(5).standard_normal((len(relevant), dim)) * NOISE / np.sqrt(dim)
    queries = np.empty((len(relevant), dim), dtype=np.float32)
    owner = np.searchsorted(starts, relevant, side="right") - 1
    for number, shard in enumerate(shards):
        rows = np.flatnonzero(owner == number)
        queries[rows] = np.load(shard.vectors, mmap_mode="r")[relevant[rows] - shard.start] + noise[rows]
    return queries


def counted_ranks(queries: np.ndarray, shards: list[Shard], relevant: np.ndarray) -> np.ndarray:
    """1 + the passages with a higher float64 score, over all shards."""
    owner = np.searchsorted([shard.start for shard in shards], relevant, side="right") - 1
    doubles = queries.astype(np.float64)
    own = np.stack(
        [
            np.load(shards[shard].vectors, mmap_mode="r")[column - shards[shard].start]
            for shard, column in zip(owner, relevant, strict=True)
        ]
    )
    own_scores = (doubles * own).sum(axis=1)
    ranks = np.ones(len(queries), dtype=np.int64)
    for shard in shards:
        vectors = np.load(shard.vectors, mmap_mode="r")
        for start in range(0, len(vectors), 50_000):
            scores = doubles @ vectors[start : start + 50_000].astype(np.float64).T
            columns = np.arange(start, start + scores.shape[1]) + shard.start
            ranks += ((scores >= own_scores[:, None]) & (columns != relevant[:, None])).sum(axis=1)
    return ranks


def actor_peaks() -> list[float]:
    """Peak resident MiB of the processes of search actors."""
    peaks = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if "_SearchActor" in (process / "cmdline").read_text(errors="replace"):
                status = (process / "status").read_text()
                peaks.append(int(status.split("VmHWM:")[1].split()[0]) / 1024)
        except FileNotFoundError:  # ended meanwhile
            continue
    return sorted(peaks)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=2_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--shard", type=int, default=250_000)
    parser.add_argument("--depth", type=int, default=100)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder), args.passages, args.shard, args.dim)
        columns = np.sort(np.random.default_rng(7).choice(args.passages, args.queries, replace=False)).astype(np.int64)
        queries = queries_near(shards, columns, args.dim)
        with ray_session(ACTORS):
            start = time.perf_counter()
            found = search_shards(queries, shards, Relevant(np.arange(args.queries + 1), columns), args.depth, ACTORS)
            seconds = time.perf_counter() - start
            peaks = actor_peaks()
        sample = np.random.default_rng(9).choice(args.queries, min(CHECKED, args.queries), replace=False)
        start = time.perf_counter()
        counted = counted_ranks(queries[sample], shards, columns[sample])
        counting = time.perf_counter() - start
    agreeing = (found.ranks.pool[sample] == np.where(counted <= args.depth, counted, 0)).sum()
    print(
        f"{args.queries} queries, {args.passages} passages of {args.dim} numbers, depth {args.depth}, {ACTORS} actors"
    )
    print(f"search: {seconds:.1f} s; relevant passage within the depth for {(found.ranks.pool > 0).mean():.0%}")
    print(f"brute force: {counting:.1f} s for {len(sample)} queries; equal ranks: {agreeing} of {len(sample)}")
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak MiB: this process {own:.0f}; actors {[round(peak) for peak in peaks]}")


if __name__ == "__main__":
    main()
