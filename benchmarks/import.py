"""Speed and memory of import and cleaning: rows of a JSON lines file in long form become shards without repetitions.

    python benchmarks/import.py [--rows 250000 1000000] [--languages 4] [--json FILE]

The file holds a question of 6 to 14 random words and a passage of 30 to 90 for each (pair, language); every twentieth
row lacks its question. Every fiftieth pair repeats the one before it, every fiftieth has its passage with one word
changed. All rows of a language stand together, so the rows of a pair are as far apart as they can be.

*join* reads the file and joins its pairs without writing; *import* also writes the shards, rejected rows beside them;
*clean* is `hbt-ray data clean` of those, near-duplicates included. Each is a fresh process; CPU seconds are of all its
threads, where other work makes it wait. *rows* are those of the file in all three. Memory is the largest resident size
of the process and all below it together (looked at 20 times a second, and the kernel's own peak of the process), with
Python, Arrow and the pages of files that are mapped. *left out* are rows that import, pairs that cleaning leaves out.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from plan import status_mb
from rich import box
from rich.console import Console
from rich.table import Table

from hbt_ray.corpus.cleaning import CleaningSettings, clean
from hbt_ray.corpus.records import read_records
from hbt_ray.corpus.shards import ShardedDataset
from hbt_ray.corpus.writer import Rejections, write_pairs
from hbt_ray.storage import Folder

LANGUAGES = ("en", "de", "es", "ru", "ar", "hi", "th", "tr", "zh")
ALPHABETS = {
    "ru": "абвгдежзиклмн",
    "ar": "ابتثجحخدذرزس",
    "hi": "कखगघचछजझटठडढ",
    "th": "กขคงจฉชซญดตถ",
    "zh": "的一是不了人我在有他",
}
LATIN = "etaoinsrhldcu"
WORDS, QUESTION_WORDS, PASSAGE_WORDS = 20_000, (6, 14), (30, 90)
REPEATED_EVERY = 50
SOURCE, NAME = "rows.jsonl", "benchmark"
COLUMNS = (
    *("mode", "rows", "pairs", "left out", "merged passages", "file MB", "shards MB"),
    *("seconds", "CPU s", "rows/s", "peak memory MB"),
)


def write_source(path: Path, rows: int, languages: Sequence[str]) -> None:
    """Write the file to import."""
    draw = random.Random(7)
    with path.open("w", encoding="utf-8") as file:
        for code in languages:
            letters = ALPHABETS.get(code, LATIN)
            words = ["".join(draw.choices(letters, k=draw.randint(2, 10))) for _ in range(WORDS)]
            query, passage = [""], [""]
            for pair in range(rows // len(languages)):
                if pair % REPEATED_EVERY == 2:  # after a repeated pair a passage that is nearly the same
                    passage = [*passage[:-1], draw.choice(words)]
                elif pair % REPEATED_EVERY != 1:
                    passage = draw.choices(words, k=draw.randint(*PASSAGE_WORDS))
                if pair % REPEATED_EVERY != 1:
                    query = draw.choices(words, k=draw.randint(*QUESTION_WORDS))
                row = {
                    "pair_id": f"pair-{pair}",
                    "language": code,
                    "query": " ".join(query),
                    "passage": " ".join(passage),
                    "group": f"document {pair // 8}",
                }
                if draw.random() < 0.05:
                    del row["query"]
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def join(folder: Path) -> dict[str, int]:
    """Read and join, write nothing."""
    rejected: list[object] = []
    pairs = sum(1 for _ in read_records(folder / SOURCE, reject=rejected.append))
    return {"pairs": pairs, "left_out": len(rejected), "merged_passages": 0}


def import_rows(folder: Path) -> dict[str, int]:
    """What `hbt-ray data import jsonl` does."""
    target = Folder(str(folder / "import"))
    with Rejections(target / NAME, "import") as reject:
        pairs = read_records(folder / SOURCE, reject=reject)
        manifest = write_pairs(target, NAME, pairs, None, {"rejected": reject.counts}, rejections=reject)
    return {"pairs": manifest.rows, "left_out": reject.counts.total(), "merged_passages": 0}


def clean_rows(folder: Path) -> dict[str, int]:
    """What `hbt-ray data clean` does."""
    source = ShardedDataset.open(Folder(str(folder / "import" / NAME)))
    done = clean(source, Folder(str(folder / "clean")), CleaningSettings())
    left_out = sum(done.rejected.values())
    return {"pairs": done.manifest.rows, "left_out": left_out, "merged_passages": done.merged_passages}


MEASURED = {"join": join, "import": import_rows, "clean": clean_rows}


def measure(mode: str, folder: Path) -> dict[str, Any]:
    """One of MEASURED in this process."""
    start, used = time.perf_counter(), time.process_time()
    found = MEASURED[mode](folder)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - used
    return {**found, "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": status_mb("VmHWM")}


def measured(mode: str, folder: Path, rows: int) -> dict[str, Any]:
    """The same in a fresh process, whose memory is followed."""
    command = [sys.executable, __file__, "--measure", mode, str(folder)]
    peak_mb = 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        while child.poll() is None:
            peak_mb = max(peak_mb, tree_mb(child.pid))
            time.sleep(0.05)
        assert child.stdout is not None
        output = child.stdout.read()
    assert child.returncode == 0, output
    result = json.loads(output)
    written = sum(path.stat().st_size for path in (folder / mode).rglob("*.*") if path.is_file())
    return {
        **{"mode": mode, "rows": rows, "rows_per_second": rows / result["seconds"], **result},
        **{"file_mb": (folder / SOURCE).stat().st_size / 1e6, "shards_mb": written / 1e6},
        "peak_mb": max(peak_mb, result["peak_mb"]),
    }


def tree_mb(pid: int) -> float:
    """Resident memory of a process and all below it."""
    try:
        root = psutil.Process(pid)
        return sum(process.memory_info().rss for process in (root, *root.children(recursive=True))) / 1e6
    except psutil.NoSuchProcess:
        return 0.0


def show(results: Sequence[dict[str, Any]]) -> None:
    """Print a table."""
    table = Table(*COLUMNS, box=box.MARKDOWN)
    for r in results:
        numbers = (r["rows"], r["pairs"], r["left_out"], r["merged_passages"], r["file_mb"], r["shards_mb"])
        cells = [f"{number:,.0f}" for number in numbers]
        seconds = [f"{r[name]:.1f}" for name in ("seconds", "cpu_seconds")]
        table.add_row(r["mode"], *cells, *seconds, f"{r['rows_per_second']:,.0f}", f"{r['peak_mb']:,.0f}")
    Console(width=160).print(table)


def main() -> None:
    """Measure each mode at each size."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[250_000, 1_000_000])
    parser.add_argument("--languages", type=int, default=4, choices=range(1, len(LANGUAGES) + 1))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=2, metavar=("MODE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        mode, folder = arguments.measure
        print(json.dumps(measure(mode, Path(folder))))
        return
    results = []
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            write_source(Path(folder) / SOURCE, rows, LANGUAGES[: arguments.languages])
            results += [measured(mode, Path(folder), rows) for mode in MEASURED]
        print(f"{rows:,} rows done", file=sys.stderr)
    show(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
