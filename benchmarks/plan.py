"""Time and memory of the batch plan, from a million pairs to 45 million in nine languages.

    python benchmarks/plan.py [--rows 1000000 45000000] [--batch-size 1024] [--steps 2000] [--repeats 3] [--json FILE]

A synthetic catalog on disk: two datasets (8 : 1) with a manifest, presence bits and document numbers as an import
writes them, but no texts, which a plan never reads. Cells are missing at random, from 0.4 % in the first language to
half in the last two; twenty pairs share a document, 5 % of the documents are held out. Files are in the page cache.

Each line is a fresh process. *open* is `PlanSource.open()`, manifest to plan; *first batch* is `plan[0]`, with the
table of draws of the first 65,536 steps; *first of a stream* is the slowest step among those that were the first of
their dataset and language, which permute its row groups; *plan[k]* is every other step of 0 ... steps - 1; *resume* is
`plan[1,000,000]` in a plan that has drawn nothing yet. *peak* is the peak resident memory of the process with all it
imports, *imports* what it was before anything was opened. *CPU* is processor time, which other load on the machine
does not lengthen. Every value is the median over `--repeats` processes.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from hbt_ray.config import HoldOutSection, MixSection
from hbt_ray.corpus.shards import GROUPS, MANIFEST, Manifest, part_name, presence_name
from hbt_ray.mixing.plan import BatchSpec
from hbt_ray.mixing.source import PlanSource
from hbt_ray.storage import sha256

LANGUAGES = ("ar", "de", "en", "es", "hi", "ru", "sw", "th", "zh")
SHARES = {"large": 8 / 9, "small": 1 / 9}
ROWS_PER_PART, ROWS_PER_GROUP, ROWS_PER_DOCUMENT = 65_536, 256, 20
MIXES: Mapping[str, Mapping[str, Any]] = {
    "X-X-mono": {"alpha": 1.0},
    "X-Y": {"alpha": 0.0},
    "α = 0.5": {"alpha": 0.5},
    "X-X": {"alpha": 0.0, "mixed": "X-X"},
    "X-Y by batch": {"alpha": 0.0, "pair_scope": "batch"},
}
RESUMED = 1_000_000
COLUMNS = {
    "open_seconds": "open s",
    "open_cpu_seconds": "CPU s",
    "first_batch_ms": "first batch ms",
    "first_of_stream_ms": "first of a stream ms",
    "median_ms": r"plan\[k] median ms",
    "p99_ms": "p99 ms",
    "p99_cpu_ms": "p99 CPU ms",
    "resume_seconds": "resume s",
    "imports_mb": "imports MB",
    "opened_mb": "opened MB",
    "peak_mb": "peak MB",
}

T = TypeVar("T")


# --- a catalog on disk ---------------------------------------------------------------------------------------------


def write_catalog(
    root: Path, rows: int, rows_per_part: int = ROWS_PER_PART, rows_per_group: int = ROWS_PER_GROUP
) -> None:
    """The datasets of SHARES below `root`: manifest, presence bits, document numbers; no parts."""
    for name, share in SHARES.items():
        write_without_texts(root / name, round(rows * share), rows_per_part, rows_per_group)


def write_without_texts(folder: Path, rows: int, rows_per_part: int, rows_per_group: int) -> None:
    """What an import of that many pairs writes beside its parts."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng([13, rows])
    parts = tuple(min(rows_per_part, rows - start) for start in range(0, rows, rows_per_part))
    groups = -(-rows // ROWS_PER_DOCUMENT)
    files, usable = {}, {}
    for code, lang in enumerate(LANGUAGES):
        bits = presence_bits(rng, rows, halvings=max(1, len(LANGUAGES) - 1 - code))
        counts = {"queries": bits[0], "passages": bits[1], "pairs": bits[0] & bits[1]}
        usable[lang] = {kind: int(np.bitwise_count(packed).sum()) for kind, packed in counts.items()}
        files[presence_name(lang)] = save(folder / presence_name(lang), bits)
        files |= {name: sha256(name.encode()) for name in (part_name(lang, part) for part in range(len(parts)))}
    files[GROUPS] = save(folder / GROUPS, rng.integers(0, groups, rows, dtype=np.int32))
    manifest = Manifest(folder.name, LANGUAGES, parts, rows_per_group, groups, 13, files, usable)
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2), encoding="utf-8")


def presence_bits(rng: np.random.Generator, rows: int, halvings: int) -> np.ndarray:
    """uint8 [2, ceil(rows / 8)]: packed bits of which a share of 2^-halvings is missing."""
    bits = np.bitwise_or.reduce(rng.integers(0, 256, (halvings, 2, -(-rows // 8)), dtype=np.uint8), axis=0)
    bits[:, -1] &= 0xFF << (-rows % 8) & 0xFF
    return bits


def save(path: Path, array: np.ndarray) -> str:
    """Write an array; its sha256."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    path.write_bytes(buffer.getvalue())
    return sha256(buffer.getvalue())


# --- one process ---------------------------------------------------------------------------------------------------


def status_mb(field: str) -> float:
    """VmHWM (peak) or VmRSS of this process in MB.

    Not getrusage: its peak includes what the parent held when it started this process.
    """
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.split(f"{field}:")[1].split()[0]) * 1024 / 1e6


def timed(action: Callable[[], T]) -> tuple[T, float, float]:
    """The result of a call, its seconds, and its seconds of processor time."""
    wall, processor = time.perf_counter(), time.process_time()
    result = action()
    return result, time.perf_counter() - wall, time.process_time() - processor


def plan_source(root: Path, mix: str, batch_size: int) -> PlanSource:
    """A training source of everything below `root`, 5 % held out."""
    section = MixSection.model_validate(MIXES[mix])
    return PlanSource(str(root), None, None, HoldOutSection(fraction=0.05), section, batch_size, seed=13)


def measure_here(root: Path, mix: str, batch_size: int, steps: int) -> dict[str, float]:
    """The numbers of COLUMNS but those of `resume`, from this process."""
    result = {"imports_mb": status_mb("VmRSS")}
    source = plan_source(root, mix, batch_size)
    opened, result["open_seconds"], result["open_cpu_seconds"] = timed(source.open)
    result["opened_mb"] = status_mb("VmRSS")
    first, seconds, _ = timed(lambda: opened.plan[0])
    result["first_batch_ms"] = 1000 * seconds
    streams, firsts, others = {stream_of(first)}, [], []
    for step in range(1, steps):
        spec, *seconds_of_step = timed(lambda step=step: opened.plan[step])
        (others if stream_of(spec) in streams else firsts).append(seconds_of_step)
        streams.add(stream_of(spec))
    wall, processor = 1000 * np.array(others).T
    result["first_of_stream_ms"] = 1000 * max((wall for wall, _ in firsts), default=seconds)
    result["median_ms"], result["p99_ms"] = np.quantile(wall, [0.5, 0.99]).tolist()
    result["p99_cpu_ms"] = float(np.quantile(processor, 0.99))
    return result | {"peak_mb": status_mb("VmHWM")}


def resume_here(root: Path, mix: str, batch_size: int) -> dict[str, float]:
    """Seconds of a step far on in a plan that has drawn nothing yet."""
    opened = plan_source(root, mix, batch_size).open()
    return {"resume_seconds": timed(lambda: opened.plan[RESUMED])[1]}


def stream_of(spec: BatchSpec) -> tuple[object, ...]:
    """What the draw of a batch has chosen: dataset and, where the whole batch has one pair of them, languages."""
    pairs = set(zip(spec.query_language.tolist(), spec.passage_language.tolist(), strict=True))
    return (spec.dataset, spec.mode, *(pairs if len(pairs) == 1 else ()))


# --- all processes -------------------------------------------------------------------------------------------------


def measure(root: Path, mix: str, batch_size: int, steps: int) -> dict[str, float]:
    """All numbers of one line, each part in a process of its own."""
    command = [sys.executable, __file__, "--only", mix, "--root", str(root), "--batch-size", str(batch_size)]
    found: dict[str, float] = {}
    for part in (["--steps", str(steps)], ["--steps", "0"]):
        found |= json.loads(subprocess.run([*command, *part], check=True, capture_output=True, text=True).stdout)
    return found


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each number over processes."""
    return {name: statistics.median(run[name] for run in runs) for name in COLUMNS}


def show(results: Sequence[Mapping[str, Any]]) -> None:
    """A table of the measurements, and how plan[k] grows from the smallest to the largest catalog."""
    table = Table("pairs", "mix", *COLUMNS.values(), box=box.SIMPLE)
    for result in results:
        table.add_row(f"{result['rows']:,}", result["mix"], *(number(result[name]) for name in COLUMNS))
    console = Console(width=180)
    console.print(table)
    fewest, most = min(r["rows"] for r in results), max(r["rows"] for r in results)
    for mix in MIXES if most > fewest else ():
        small, large = (
            next(r["median_ms"] for r in results if (r["rows"], r["mix"]) == (rows, mix)) for rows in (fewest, most)
        )
        console.print(rf"plan\[k] in {mix}: {large / small:.2f} times as long at {most:,} pairs as at {fewest:,}")


def number(value: float) -> str:
    """A number with the digits that matter."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 45_000_000])
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=MIXES, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        here = (args.root, args.only, args.batch_size)
        print(json.dumps(measure_here(*here, args.steps) if args.steps else resume_here(*here)))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for rows in args.rows:
            root = Path(folder) / str(rows)
            write_catalog(root, rows)
            for mix in MIXES:
                runs = [measure(root, mix, args.batch_size, args.steps) for _ in range(args.repeats)]
                results.append({"rows": rows, "mix": mix, **medians(runs)})
    show(results)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
