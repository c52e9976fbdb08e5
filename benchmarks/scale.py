"""The cost of the full corpus, 45 million pairs in nine languages, and of 64 GPUs: the tables of docs/scale.md.

    python benchmarks/scale.py --corpus DIR [--import FILE] [--translate FILE] [--stream FILE]
                               [--pairs 45000000] [--batch-size 6400] [--world-size 64] [--steps 64] [--json FILE]

Measured here, each small: bytes and characters of the texts in a corpus DIR of real shards; requests of reading and
writing them on an S3 server (moto) of this process; messages between two ranks and the size of checkpoints, under every
ZeRO stage, with a tiny encoder; the plan of the whole catalog (as in benchmarks/plan.py), and the row groups that its
steps touch. Files of `--json` of benchmarks/import.py, translate.py and stream.py give speed and memory of those; a
table whose file is not given is left out. The rest is arithmetic, and stands in docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import plan
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table

from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.shards import MANIFEST, ShardedDataset, open_corpus, part_name
from hbt_ray.corpus.writer import write_pairs
from hbt_ray.mixing.plan import BatchSpec
from hbt_ray.mixing.source import OpenPlan
from hbt_ray.mixing.stream import STEPS_PER_TASK
from hbt_ray.session import prepare_environment
from hbt_ray.storage import Folder

GB = 1e9
MIXES = ("X-X-mono", "X-Y", "α = 0.5")
READ_COLUMNS = ("query", "passage", "passage_id")  # of a cell, by a run without hard negatives
IDS = ("pair_id", "passage_id", "negatives")  # with the empty lists of negatives
STAGES = (0, 1, 2, 3)
RANKS = 2  # that exchange messages here
TOKENS_PER_SECOND = (3_000, 10_000, 30_000)  # of sources on one GPU: assumed, not measured
CHARACTERS_PER_TOKEN = 4.0  # of English in a SentencePiece vocabulary of 128,000: assumed, not measured
BUCKET = "scale"

Rows = list[list[str]]


def show(title: str, header: Sequence[str], rows: Rows) -> None:
    """Print a table in Markdown."""
    table = Table(*header, box=box.MARKDOWN)
    for row in rows:
        table.add_row(*row)
    print(f"\n{title}\n", flush=True)
    Console(width=200).print(table)


def number(value: float) -> str:
    """Three digits that matter, or all of a large number."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


# --- texts at rest ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LanguageBytes:
    """What the files of one language hold, per row that has both texts.

    Rows of one row group that share a passage share its bytes too; in a corpus of very many passages few do, so bytes
    and characters of passages are those of the distinct ones of each row group.
    """

    question_characters: float
    passage_characters: float
    question: float
    passage: float
    ids: float
    rest: float  # footers, statistics and page headers

    @property
    def row(self) -> float:
        """Bytes of a row."""
        return self.question + self.passage + self.ids + self.rest

    @property
    def read(self) -> float:
        """Bytes of a row in the columns that training reads; a half of the ids is taken for passage_id."""
        return self.question + self.passage + self.ids / 2


def text_bytes(dataset: ShardedDataset) -> dict[str, LanguageBytes]:
    """Each language's bytes on disk, compressed, over the texts that it has."""
    return {lang: _language_bytes(dataset, lang) for lang in dataset.manifest.languages}


def _language_bytes(dataset: ShardedDataset, lang: str) -> LanguageBytes:
    columns: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    texts: Counter[str] = Counter()
    for part in range(len(dataset.manifest.rows_per_part)):
        data = dataset.part_bytes(lang, part)
        file = pq.ParquetFile(pa.BufferReader(data))
        for group in range(file.metadata.num_row_groups):
            for i in range(file.metadata.num_columns):
                column = file.metadata.row_group(group).column(i)
                columns[column.path_in_schema.partition(".")[0]] += column.total_compressed_size
            table = file.read_row_group(group, columns=["query", "passage"])
            for name in ("query", "passage"):
                distinct = pc.unique(table[name].drop_null())
                texts[name] += len(distinct)
                characters[name] += pc.sum(pc.utf8_length(distinct)).as_py() or 0
        columns["rest"] += len(data)
    rows = dataset.manifest.rows
    rest = columns["rest"] - sum(count for name, count in columns.items() if name != "rest")
    return LanguageBytes(
        question_characters=characters["query"] / texts["query"],
        passage_characters=characters["passage"] / texts["passage"],
        question=columns["query"] / texts["query"],
        passage=columns["passage"] / texts["passage"],
        ids=sum(columns[name] for name in IDS) / rows,
        rest=rest / rows,
    )


def show_texts(sizes: Mapping[str, LanguageBytes]) -> None:
    """Bytes per text and per row of every language."""
    rows = [
        [lang, *(number(v) for v in (s.question_characters, s.passage_characters, s.question, s.passage, s.row))]
        for lang, s in sizes.items()
    ]
    header = ["language", "characters, question", "passage", "bytes, question", "passage", "row"]
    show("Texts at rest (measured)", header, rows)


def show_storage(sizes: Mapping[str, LanguageBytes], pairs: int, manifest_bytes: float, document_bytes: float) -> None:
    """The full corpus on disk, with no cell missing."""
    languages = len(plan.LANGUAGES)
    own = [sizes[lang].row if lang in sizes else mean(sizes, "row") for lang in plan.LANGUAGES]
    parts = -(-pairs // plan.ROWS_PER_PART)
    documents = pairs / plan.ROWS_PER_DOCUMENT
    rows = [
        ["shards", f"{sum(own) * pairs / GB:,.0f} GB", f"{parts * languages:,} files of {plan.ROWS_PER_PART:,} rows"],
        ["presence bits", f"{2 * languages * pairs / 8 / GB:.3f} GB", f"{languages} files"],
        ["document numbers", f"{4 * pairs / GB:.3f} GB", "1 file"],
        ["document names", f"{documents * document_bytes / GB:.3f} GB", f"1 file, {documents:,.0f} names"],
        ["manifest", f"{(parts + 1) * languages * manifest_bytes / 1e6:.1f} MB", "1 file"],
    ]
    show(f"At rest, {pairs:,} pairs × {languages} languages (derived)", ["what", "size", "files"], rows)


def mean(sizes: Mapping[str, LanguageBytes], name: str) -> float:
    """Over the languages."""
    return float(np.mean([getattr(size, name) for size in sizes.values()]))


# --- import, cleaning, translation -----------------------------------------------------------------------------------


def show_import(results: Sequence[Mapping[str, Any]], pairs: int) -> None:
    """Hours and memory of one process, from the largest size measured of each mode; memory from the two largest."""
    rows = []
    cells = pairs * len(plan.LANGUAGES)
    for mode in dict.fromkeys(result["mode"] for result in results):
        own = sorted((r for r in results if r["mode"] == mode), key=lambda r: r["rows"])
        last = own[-1]
        slope = 0.0
        if len(own) > 1:
            slope = (last["peak_mb"] - own[-2]["peak_mb"]) / (last["rows"] - own[-2]["rows"])
        rows.append(
            [
                *(mode, f"{last['rows']:,}", number(last["rows_per_second"])),
                *(number(last["rows"] / last["cpu_seconds"]), number(last["peak_mb"])),
                *(f"{1e6 * slope:.0f}", f"{cells / last['rows_per_second'] / 3600:,.1f}"),
            ]
        )
    memory = ["peak MB", "MB per further million rows"]
    header = ["mode", "rows measured", "rows/s", "rows/CPU s", *memory, f"hours of {cells:,} rows"]
    show("Import and cleaning, one process (measured, hours derived)", header, rows)


def show_translation(measured: Sequence[Mapping[str, float]], sizes: Mapping[str, LanguageBytes], pairs: int) -> None:
    """Tokens of the English half, and GPU hours for the other languages at assumed speeds."""
    english = sizes["en"]
    characters = english.question_characters + english.passage_characters
    tokens = pairs * characters / CHARACTERS_PER_TOKEN
    targets = len(plan.LANGUAGES) - 1
    padding = f"{max(row['padding'] for row in measured):.1%}" if measured else "not given"
    scaling = ", ".join(f"{row['actors']:.0f}: {row['scaling']:.2f}" for row in measured) or "not given"
    rows = [
        ["source tokens", f"{tokens / 1e9:,.1f} billion", "pairs × characters per pair (measured) / 4"],
        [
            "tokens to translate",
            f"{targets * tokens / 1e9:,.0f} billion",
            f"× {targets} languages, every text distinct",
        ],
        ["padding", padding, "measured, benchmarks/translate.py"],
        ["scaling with actors", scaling, "measured, benchmarks/translate.py"],
    ]
    rows += [
        [f"at {speed:,} tokens/s", f"{targets * tokens / speed / 3600:,.0f} GPU hours", "speed assumed"]
        for speed in TOKENS_PER_SECOND
    ]
    show("Translation (derived)", ["what", "value", "from"], rows)


# --- plan and reading ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Touched:
    """What a rank reads for a step, on average over steps and ranks."""

    cells: float  # (row group, language), each read once by a task of STEPS_PER_TASK steps
    files: float
    pairs: float


def touched(opened: OpenPlan, steps: int, world_size: int, ranks: Sequence[int]) -> Touched:
    """Cells of the first steps, by the reader's rule: a task reads a cell once, tasks share nothing."""
    cells = files = pairs = 0
    for rank in ranks:
        for start in range(0, steps, STEPS_PER_TASK):
            stop = min(start + STEPS_PER_TASK, steps)
            specs = [spec.part(rank, world_size) for spec in opened.plan.steps(start, stop)]
            found = {cell for spec in specs for cell in cells_of(spec, opened)}
            cells += len(found)
            files += len(
                {(dataset, lang, group * plan.ROWS_PER_GROUP // plan.ROWS_PER_PART) for dataset, lang, group in found}
            )
            pairs += sum(len(spec.rows) for spec in specs)
    count = steps * len(ranks)
    return Touched(cells / count, files / count, pairs / count)


def cells_of(spec: BatchSpec, opened: OpenPlan) -> Iterator[tuple[str, int, int]]:
    """Dataset, language and row group of every text."""
    starts = opened.datasets[spec.dataset].group_starts
    groups = np.searchsorted(starts, spec.rows, side="right") - 1
    for languages in (spec.query_language, spec.passage_language):
        for lang, group in set(zip(languages.tolist(), groups.tolist(), strict=True)):
            yield spec.dataset, lang, group


def show_plan(root: Path, batch_size: int, steps: int) -> None:
    """Time and memory of the plan over the whole catalog."""
    rows = []
    for mix in MIXES:
        result = plan.measure(root, mix, batch_size, steps)
        rows.append([mix, *(number(result[name]) for name in plan.COLUMNS)])
    header = ["mix", *plan.COLUMNS.values()]
    show(f"Plan, batches of {batch_size:,} (measured)", header, rows)


def show_reading(
    root: Path, sizes: Mapping[str, LanguageBytes], requests: Mapping[str, float], options: argparse.Namespace
) -> None:
    """What the steps read: cells (simulated), bytes and requests (cells × what one cell costs)."""
    cell_bytes = mean(sizes, "read") * plan.ROWS_PER_GROUP + requests["footer_bytes"]
    pair_bytes = mean(sizes, "question") + mean(sizes, "passage")
    rows = []
    for mix in MIXES:
        for batch_size, world_size in (
            (options.batch_size // options.world_size, 1),
            (options.batch_size, options.world_size),
        ):
            opened = plan.plan_source(root, mix, batch_size).open()
            ranks = sorted({round(rank) for rank in np.linspace(0, world_size - 1, 8)})
            found = touched(opened, options.steps, world_size, ranks)
            read = found.cells * cell_bytes
            rows.append(
                [
                    *(mix, f"{world_size}", f"{batch_size:,}", number(found.cells), number(found.files)),
                    *(f"{read / 1e6:.1f}", f"{read / (found.pairs * pair_bytes):.0f}"),
                    *(number(found.cells * requests["cell"]), number(world_size * found.cells * requests["cell"])),
                    f"{world_size * read / GB:.2f}",
                ]
            )
    header = [
        "mix",
        "ranks",
        "batch",
        "cells",
        "files",
        "MB",
        "÷ texts used",
        "requests",
        "requests, all ranks",
        "GB, all ranks",
    ]
    show("Reading, per rank and step (simulated over the whole catalog)", header, rows)


def show_stream(results: Sequence[Mapping[str, Any]]) -> None:
    """The numbers of benchmarks/stream.py."""
    names = ("first_batch_seconds", "pairs_per_second", "tokens_per_second", "end_mb", "task_end_mb")
    rows = [
        [f"{result['rows']:,}", result["way"], *(number(result[name]) if result[name] else "-" for name in names)]
        for result in results
    ]
    header = ["pairs", "way", "first batch s", "pairs/s", "tokens/s", "end MB", "task, end MB"]
    show("Stream (measured)", header, rows)


# --- requests of an object store -------------------------------------------------------------------------------------


@contextmanager
def counted_s3() -> Iterator[list[str]]:
    """An S3 server (moto) of this process, in the environment; the requests that it answers."""
    from moto.server import ThreadedMotoServer

    requests: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: requests.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("werkzeug")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        **{"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"},
        **{"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"},
        **{"AWS_REQUEST_CHECKSUM_CALCULATION": "WHEN_REQUIRED", "AWS_RESPONSE_CHECKSUM_VALIDATION": "WHEN_REQUIRED"},
    }
    import boto3

    boto3.client("s3").create_bucket(Bucket=BUCKET)
    try:
        yield requests
    finally:
        server.stop()


def count_requests(sizes: Mapping[str, LanguageBytes]) -> dict[str, float]:
    """Requests of one cell, one part written and read as a whole, and the bytes of a footer.

    The part has the rows of a full one, and texts as long as those of the corpus.
    """
    rows = plan.ROWS_PER_PART
    letters = np.random.default_rng(13).integers(97, 123, 1 << 20, dtype=np.uint8).tobytes().decode()
    length = round(mean(sizes, "question") + mean(sizes, "passage"))  # random letters hardly shrink
    places = np.random.default_rng(14).integers(0, len(letters) - length, rows)
    pairs = (
        ParallelPair(str(i), str(i), str(i), {"en": f"q{i}"}, {"en": letters[p : p + length]})
        for i, p in enumerate(places.tolist())
    )
    with counted_s3() as requests:
        root = Folder(f"s3://{BUCKET}/corpus")
        requests.clear()
        write_pairs(root, "full", pairs, ["en"], {}, rows_per_part=rows)
        part = part_name("en", 0)
        written = sum(part in request for request in requests)
        dataset = ShardedDataset.open(root / "full")
        requests.clear()
        for group in (0, 100, 200):
            dataset.read_group("en", group, READ_COLUMNS)
        cell = len(requests) / 3
        requests.clear()
        data = dataset.part_bytes("en", 0)
        whole = len(requests)
    return {
        **{"cell": cell, "part_written": written, "part_read": whole, "part_mb": len(data) / 1e6},
        "footer_bytes": pq.ParquetFile(pa.BufferReader(data)).metadata.serialized_size,
    }


def show_requests(requests: Mapping[str, float], pairs: int) -> None:
    """Requests of each access, and of the whole corpus."""
    parts = -(-pairs // plan.ROWS_PER_PART) * len(plan.LANGUAGES)
    rows = [
        [
            "a cell (row group, language)",
            number(requests["cell"]),
            "",
            f"footer of {requests['footer_bytes']:,.0f} bytes",
        ],
        [
            "a part read as a whole",
            number(requests["part_read"]),
            number(parts * requests["part_read"]),
            f"{requests['part_mb']:.0f} MB",
        ],
        [
            "a part written",
            number(requests["part_written"]),
            number(parts * requests["part_written"]),
            f"{requests['part_mb']:.0f} MB",
        ],
    ]
    show("Requests of S3 (measured, the corpus derived)", ["access", "requests", "for all parts once", "of"], rows)


# --- messages and checkpoints ----------------------------------------------------------------------------------------


def show_messages(world_size: int, batch_size: int) -> None:
    """Bytes that a rank sends for a step, and what checkpoints hold, from two ranks with a tiny encoder."""
    parameters = {"XLM-R base": parameters_of("xlm-roberta"), "LaBSE": parameters_of("bert")}
    ring = (world_size - 1) / world_size
    rows = [
        [
            "passages, forward and back",
            *(f"{ring * (batch_size * 768 * 4 * 3 + batch_size * 16) / 1e6:.1f}" for _ in parameters),
            "(W-1)/W × (3 × 4 × 768 + 16) × B",
        ]
    ]
    for precision in ("fp32", "bf16"):
        for stage in STAGES:
            found = measure_engine(stage, precision)
            per_parameter = found["message_bytes"] / found["parameters"]
            rows.append(
                [
                    f"ZeRO {stage}, {precision}, {found['chunks']} chunks",
                    *(f"{ring * per_parameter * count / 1e6:,.0f}" for count in parameters.values()),
                    f"(W-1)/W × {per_parameter:.2f} bytes × parameters; {found['operations']}",
                ]
            )
            rows.append(
                [
                    f"checkpoint, ZeRO {stage}, {precision}",
                    *(
                        f"{found['checkpoint_bytes'] / found['parameters'] * count / 1e6:,.0f}"
                        for count in parameters.values()
                    ),
                    f"{found['checkpoint_bytes'] / found['parameters']:.2f} bytes × parameters, all ranks",
                ]
            )
    header = [
        f"MB, {world_size} ranks, batch {batch_size:,}",
        *(f"{n} ({c / 1e6:.0f} M)" for n, c in parameters.items()),
        "formula",
    ]
    show("Messages per rank and step, and checkpoints (measured with two ranks, derived)", header, rows)


def parameters_of(kind: str) -> int:
    """Parameters of the published shape, counted without weights."""
    import torch
    from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

    with torch.device("meta"):
        if kind == "bert":
            model = BertModel(BertConfig(vocab_size=501_153))
        else:
            config = XLMRobertaConfig(vocab_size=250_002, max_position_embeddings=514, type_vocab_size=1)
            model = XLMRobertaModel(config, add_pooling_layer=False)
    return sum(weight.numel() for weight in model.parameters())


def measure_engine(stage: int, precision: str) -> dict[str, Any]:
    """One step of RANKS ranks: bytes of the messages about parameters, and of a checkpoint."""
    import torch.multiprocessing as mp

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(engine_rank, (port, stage, precision, folder), nprocs=RANKS)
        result: dict[str, Any] = json.loads((Path(folder) / "result.json").read_text())
        engine = Path(folder) / "checkpoint"
        result["checkpoint_bytes"] = sum(path.stat().st_size for path in engine.rglob("*.pt"))
    return result


def engine_rank(rank: int, port: int, stage: int, precision: str, folder: str) -> None:
    """What a rank does; the first writes what it found."""
    import torch
    import torch.distributed as dist
    from grad_cache import random_row
    from transformers import BertConfig, BertModel

    from hbt_ray.config import TrainSection
    from hbt_ray.model.encoder import DualEncoder
    from hbt_ray.train.engine import build_engine
    from hbt_ray.train.step import contrastive_step, to_batch

    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), **address}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    torch.manual_seed(13)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    encoder = DualEncoder(BertModel(BertConfig(vocab_size=30_522, **shape), add_pooling_layer=False), "mean")
    train = TrainSection.model_validate({"steps": 2, "batch_size": 8 * RANKS, "precision": precision})
    parameters, chunks = sum(weight.numel() for weight in encoder.parameters()), 0
    with counted_messages() as messages:  # from here on: DeepSpeed remembers the functions that it finds
        engine = build_engine(encoder, train, stage, RANKS)
        for step in range(2):
            messages.clear()  # of the start and the first step, in which DeepSpeed makes its plans
            batch = to_batch(random_row(RANKS * step + rank, 8), 0, torch.device("cpu"), 2048)
            chunks = len(batch.chunks)
            contrastive_step(engine, batch, train)
            engine.step()
        sent = list(messages)
    Path(folder, "checkpoint", "engine").mkdir(parents=True, exist_ok=True)
    engine.save_checkpoint(str(Path(folder, "checkpoint")), tag="engine")
    if rank == 0:
        operations = ", ".join(f"{count} {name}" for name, count in sorted(Counter(n for n, _ in sent).items()))
        found = {
            **{"message_bytes": sum(size for _, size in sent), "operations": operations},
            **{"parameters": parameters, "chunks": chunks},
        }
        Path(folder, "result.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


@contextmanager
def counted_messages() -> Iterator[list[tuple[str, int]]]:
    """Name of every collective of this process and the bytes that a ring of W ranks sends for it, over (W-1)/W.

    An all-reduce sends its tensor twice, the others once the whole of what all ranks have together. Messages about
    texts (the gathered embeddings and their gradient) are left out: their size does not depend on the parameters.
    """
    import torch.distributed as dist

    messages: list[tuple[str, int]] = []
    originals: dict[str, Any] = {}

    def counting(name: str, original: Any, size: Callable[[Mapping[str, Any]], int]) -> Any:
        takes = signature(original)

        def call(*args: Any, **kwargs: Any) -> Any:
            if not called_from_gather():
                messages.append((name, size(takes.bind(*args, **kwargs).arguments)))
            return original(*args, **kwargs)

        return call

    sizes: dict[str, Callable[[Mapping[str, Any]], int]] = {
        "all_reduce": lambda given: 2 * given["tensor"].nbytes,
        "all_gather": lambda given: sum(tensor.nbytes for tensor in given["tensor_list"]),
        "all_gather_into_tensor": lambda given: given["output_tensor"].nbytes,
        "reduce_scatter_tensor": lambda given: given["input"].nbytes,
        "reduce_scatter": lambda given: sum(tensor.nbytes for tensor in given["input_list"]),
        "reduce": lambda given: given["tensor"].nbytes,
        "broadcast": lambda given: given["tensor"].nbytes,
    }
    for name, size in sizes.items():
        originals[name] = getattr(dist, name)
        setattr(dist, name, counting(name, originals[name], size))
    try:
        yield messages
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def called_from_gather() -> bool:
    """Whether the embeddings' own gather is among the callers."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.endswith("gather.py"):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


# --- the command line ------------------------------------------------------------------------------------------------


def read_json(path: Path | None) -> list[dict[str, Any]]:
    """The rows of a file of another benchmark; none where it is not given."""
    return [] if path is None else json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="corpus folder with one dataset of real texts, English too")
    parser.add_argument("--import", dest="imported", type=Path)
    parser.add_argument("--translate", type=Path)
    parser.add_argument("--stream", type=Path)
    parser.add_argument("--pairs", type=int, default=45_000_000)
    parser.add_argument("--batch-size", type=int, default=6_400)
    parser.add_argument("--world-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=64)
    options = parser.parse_args()
    prepare_environment()
    dataset = open_corpus(Folder(options.corpus))[0]
    sizes = text_bytes(dataset)
    manifest = len(dataset.folder.read(MANIFEST)) / len(dataset.manifest.files)
    names = dataset.folder.sizes().get("documents.parquet", 0) / dataset.manifest.groups
    show_texts(sizes)
    show_storage(sizes, options.pairs, manifest, names)
    requests = count_requests(sizes)
    show_requests(requests, options.pairs)
    if results := read_json(options.imported):
        show_import(results, options.pairs)
    show_translation(read_json(options.translate), sizes, options.pairs)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        plan.write_catalog(root, options.pairs)
        show_plan(root, options.batch_size, options.steps)
        show_reading(root, sizes, requests, options)
    if results := read_json(options.stream):
        show_stream(results)
    show_messages(options.world_size, options.batch_size)


if __name__ == "__main__":
    main()
