"""Start, speed and memory of the stream of batches over 45 million pairs in nine languages.

    python benchmarks/stream.py [--rows 1000000 45000000] [--batch-size 256] [--steps 200] [--json FILE]

The catalog is that of benchmarks/plan.py (α = 0.5, nine languages, missing cells, a hold-out) with parts of 4,096 rows.
Because a plan is a pure function, the parts that the steps will touch are known before anything is read: only these are
written, in the format of an import, with a question and a passage of random words in every cell. Files are in the page
cache, the tokenizer is a Unigram of 8,000 pieces on one thread.

*reader* is `SliceReader` in one process, 16 steps a call as the tasks of the stream do it; *pipeline* is `PlanPipeline`
in a local Ray. Each is a fresh process. *open* is manifest to plan; *first batch* is the time until one is there, open
included (and, in the pipeline, the start of the tasks' processes, but not of Ray); pairs and tokens per second are
those from then on. Memory: the process that takes the batches after the first 16 steps, and at the end; of the
processes of tasks, the largest at these times (what it does not share with others), a plan and all imports included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from plan import LANGUAGES, ROWS_PER_GROUP, number, plan_source, status_mb, timed, write_catalog
from rich import box
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from hbt_ray.corpus.shards import SCHEMA, part_name
from hbt_ray.mixing.reader import SliceReader, Tokenisation
from hbt_ray.mixing.source import PlanSource
from hbt_ray.session import prepare_environment, ray_session

MIX = "α = 0.5"
ROWS_PER_PART = 4096
STEPS_PER_CALL = 16
WORDS, QUERY_WORDS, PASSAGE_WORDS = 3000, (6, 15), (30, 90)
TOKENS = Tokenisation("Query: ", "Passage: ", max_query_tokens=64, max_passage_tokens=256)
TOKENIZER = "tokenizer.json"
COLUMNS = {
    "open_seconds": "open s",
    "first_batch_seconds": "first batch s",
    "pairs_per_second": "pairs/s",
    "tokens_per_second": "tokens/s",
    "imports_mb": "imports MB",
    "early_mb": "16 steps MB",
    "end_mb": "end MB",
    "task_early_mb": "task, 16 steps MB",
    "task_end_mb": "task, end MB",
}


# --- the parts that a run touches ----------------------------------------------------------------------------------


def write_touched_parts(root: Path, source: PlanSource, steps: int) -> int:
    """Write the part files that the steps read; their number."""
    opened = source.open()
    touched: set[tuple[str, str, int]] = set()
    for spec in opened.plan.steps(0, steps):
        parts = spec.rows // ROWS_PER_PART
        for codes in (spec.query_language, spec.passage_language):
            found = np.unique(np.stack([codes, parts]), axis=1).T
            touched |= {(spec.dataset, opened.plan.languages[code], int(part)) for code, part in found}
    for dataset, lang, part in sorted(touched):
        rows = opened.datasets[dataset].manifest.rows_per_part[part]
        write_part(root / dataset / part_name(lang, part), dataset, lang, part, rows)
    return len(touched)


def write_part(path: Path, dataset: str, lang: str, part: int, rows: int) -> None:
    """A part as an import writes it; parts of a language have the same texts in another order."""
    order = np.random.default_rng(part).permutation(ROWS_PER_PART)[:rows]
    queries, passages = texts(lang)
    numbers = [f"{dataset}-{part * ROWS_PER_PART + row}" for row in range(rows)]
    columns = [pa.array(numbers), queries.take(order), passages.take(order), pa.array(numbers)]
    table = pa.table([*columns, pa.array([[]] * rows, pa.list_(pa.string()))], schema=SCHEMA)
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path, row_group_size=ROWS_PER_GROUP, compression="zstd", write_statistics=False)


@cache
def texts(lang: str) -> tuple[pa.Array, pa.Array]:
    """Questions and passages of random words of one language, as many as a part has rows."""
    rng = np.random.default_rng(LANGUAGES.index(lang))
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, size)) for size in rng.integers(2, 10, WORDS)]
    frequency = 1 / np.arange(1, WORDS + 1)  # Zipf's law
    drawn = iter(rng.choice(WORDS, ROWS_PER_PART * sum(QUERY_WORDS + PASSAGE_WORDS), p=frequency / frequency.sum()))

    def column(shortest: int, longest: int) -> pa.Array:
        sizes = rng.integers(shortest, longest + 1, ROWS_PER_PART)
        return pa.array([" ".join(words[next(drawn)] for _ in range(size)) for size in sizes])

    return column(*QUERY_WORDS), column(*PASSAGE_WORDS)


def write_tokenizer(path: Path) -> None:
    """A Unigram tokenizer of 8,000 pieces, trained on the texts of all languages."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=8000, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator((text for lang in LANGUAGES for text in texts(lang)[1].to_pylist()[:1000]), trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer.save(str(path))


# --- one process ---------------------------------------------------------------------------------------------------


def reader_tables(source: PlanSource, tokenizer: str, steps: int) -> Iterator[pa.Table]:
    """Tables of 16 steps, read in this process."""
    reader, loaded = SliceReader(source, TOKENS, rank=0, world_size=1), Tokenizer.from_str(tokenizer)
    for start in range(0, steps, STEPS_PER_CALL):
        yield reader.read(range(start, min(start + STEPS_PER_CALL, steps)), loaded)


def pipeline_tables(source: PlanSource, tokenizer: str, steps: int) -> Iterator[pa.Table]:
    """Tables of 16 steps from the pipeline of a single worker."""
    import ray

    from hbt_ray.mixing.stream import PlanPipeline

    iterator = PlanPipeline(source, TOKENS, ray.put(tokenizer), 0, steps).iterator(rank=0, world_size=1)
    yield from iterator.iter_batches(batch_size=STEPS_PER_CALL, batch_format="pyarrow", prefetch_batches=2)


def follow(tables: Iterable[pa.Table], batch_size: int, steps: int) -> dict[str, float]:
    """Take every batch: time to the first, speed after it, memory after the first table and the last."""
    result: dict[str, float] = {}
    expected, seconds, pairs, tokens = 0, 0.0, 0, 0
    start = time.perf_counter()
    for table in tables:
        seconds = time.perf_counter() - start
        assert table["step"].to_pylist() == list(range(expected, expected + table.num_rows)), "steps are out of order"
        lengths = pa.compute.sum(table["lengths"].combine_chunks().values).as_py()
        if expected:
            pairs, tokens = pairs + table.num_rows * batch_size, tokens + lengths
        else:
            result |= {"first_batch_seconds": seconds, "early_mb": status_mb("VmRSS"), "task_early_mb": task_mb()}
        expected += table.num_rows
    assert expected == steps, f"{expected} steps came of {steps}"
    seconds -= result["first_batch_seconds"]
    speed = {"pairs_per_second": pairs / seconds, "tokens_per_second": tokens / seconds}
    return result | speed | {"end_mb": status_mb("VmRSS"), "task_end_mb": task_mb()}


def task_mb() -> float:
    """MB of the largest process of a Ray task below this one, without what it shares; 0 if there is none."""
    sizes = [0.0]
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::"):
                sizes.append(process.memory_full_info().uss / 1e6)
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has ended, or never was a task of ours
            continue
    return max(sizes)


def measure_here(way: str, root: Path, batch_size: int, steps: int) -> dict[str, float]:
    """The numbers of COLUMNS for one way, from this process."""
    source = plan_source(root, MIX, batch_size)
    tokenizer = (root / TOKENIZER).read_text(encoding="utf-8")
    if way == "open":
        return {"imports_mb": status_mb("VmRSS"), "open_seconds": timed(source.open)[1]}
    if way == "reader":
        return follow(reader_tables(source, tokenizer, steps), batch_size, steps)
    with ray_session():
        return follow(pipeline_tables(source, tokenizer, steps), batch_size, steps)


# --- all processes -------------------------------------------------------------------------------------------------


def measure(rows: int, batch_size: int, steps: int) -> Iterator[dict[str, Any]]:
    """A line for each way to read a catalog of that many rows."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_catalog(root, rows, rows_per_part=ROWS_PER_PART)
        parts = write_touched_parts(root, plan_source(root, MIX, batch_size), steps)
        write_tokenizer(root / TOKENIZER)
        command = [sys.executable, __file__, "--rows", str(rows), "--root", folder]
        command += ["--batch-size", str(batch_size), "--steps", str(steps), "--only"]
        environment = os.environ | {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

        def of(way: str) -> dict[str, float]:
            done = subprocess.run([*command, way], check=True, stdout=subprocess.PIPE, text=True, env=environment)
            found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
            return found

        opened = of("open")
        for way in ("reader", "pipeline"):
            yield {"rows": rows, "way": way, "parts": parts, **opened, **of(way)}


def show(results: Sequence[Mapping[str, Any]]) -> None:
    """A table of the measurements."""
    table = Table("pairs", "parts read", "way", *COLUMNS.values(), box=box.SIMPLE)
    for result in results:
        head = (f"{result['rows']:,}", f"{result['parts']:,}", result["way"])
        table.add_row(*head, *(number(result[name]) if result[name] else "-" for name in COLUMNS))
    Console(width=200).print(table)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 45_000_000])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=("open", "reader", "pipeline"), help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    prepare_environment()
    if args.only:
        print(json.dumps(measure_here(args.only, args.root, args.batch_size, args.steps)))
        return
    results = [result for rows in args.rows for result in measure(rows, args.batch_size, args.steps)]
    show(results)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
