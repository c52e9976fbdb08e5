"""Speed and memory of an import: rows of a JSON lines file in long form become shards.

    python benchmarks/import.py [--rows 250000 1000000] [--languages 4] [--json FILE]

The file holds a question of 6 to 14 random words and a passage of 30 to 90 for each (pair, language); every twentieth
row lacks its question. All rows of a language stand together, so the rows of a pair are as far apart as they can be.
*join* reads the file and joins its pairs without writing; *import* also writes the shards, rejected rows beside them.
Each is a fresh process; CPU seconds are of all its threads, where other work makes it wait. Memory is its largest
resident size, Python and Arrow included.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from hbt_ray.corpus.records import read_records
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
MODES = ("join", "import")
COLUMNS = ("mode", "rows", "pairs", "file MB", "shards MB", "seconds", "CPU s", "rows/s", "peak memory MB")


def write_source(path: Path, rows: int, languages: Sequence[str]) -> None:
    """Write the file to import."""
    draw = random.Random(7)
    with path.open("w", encoding="utf-8") as file:
        for code in languages:
            letters = ALPHABETS.get(code, LATIN)
            words = ["".join(draw.choices(letters, k=draw.randint(2, 10))) for _ in range(WORDS)]
            for pair in range(rows // len(languages)):
                row = {
                    "pair_id": f"pair-{pair}",
                    "language": code,
                    "query": " ".join(draw.choices(words, k=draw.randint(*QUESTION_WORDS))),
                    "passage": " ".join(draw.choices(words, k=draw.randint(*PASSAGE_WORDS))),
                    "group": f"document {pair // 8}",
                }
                if draw.random() < 0.05:
                    del row["query"]
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def measure(mode: str, source: Path, out: Path) -> dict[str, Any]:
    """Import in this process."""
    start, used = time.perf_counter(), time.process_time()
    with Rejections(Folder(str(out / "benchmark")), "import") as reject:
        found = read_records(source, reject=reject)
        if mode == "import":
            pairs = write_pairs(Folder(str(out)), "benchmark", found, None, {"rejected": reject.counts}).rows
        else:
            pairs = sum(1 for _ in found)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    written = sum(path.stat().st_size for path in out.rglob("*.*") if path.is_file())
    return {"pairs": pairs, "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak, "shards_mb": written / 1e6}


def measured(mode: str, source: Path, rows: int) -> dict[str, Any]:
    """The same in a fresh process."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, __file__, "--measure", mode, str(source), out]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)
    size = source.stat().st_size / 1e6
    return {"mode": mode, "rows": rows, "file_mb": size, "rows_per_second": rows / result["seconds"], **result}


def show(results: Sequence[dict[str, Any]]) -> None:
    """Print a table."""
    table = Table(*COLUMNS, box=box.MARKDOWN)
    for r in results:
        numbers = (r["rows"], r["pairs"], r["file_mb"], r["shards_mb"])
        cells = [f"{number:,.0f}" for number in numbers]
        seconds = [f"{r[name]:.1f}" for name in ("seconds", "cpu_seconds")]
        table.add_row(r["mode"], *cells, *seconds, f"{r['rows_per_second']:,.0f}", f"{r['peak_mb']:,.0f}")
    Console(width=120).print(table)


def main() -> None:
    """Measure each mode at each size."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[250_000, 1_000_000])
    parser.add_argument("--languages", type=int, default=4, choices=range(1, len(LANGUAGES) + 1))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=3, metavar=("MODE", "SOURCE", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        mode, source, out = arguments.measure
        print(json.dumps(measure(mode, Path(source), Path(out))))
        return
    results = []
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "rows.jsonl"
            write_source(source, rows, LANGUAGES[: arguments.languages])
            results += [measured(mode, source, rows) for mode in MODES]
        print(f"{rows:,} rows done", file=sys.stderr)
    show(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
