"""Translation speed: texts and tokens a second, share of padding, scaling with actors.

    python benchmarks/translate.py [--pairs 400] [--actors 1 2] [--model DIR] [--target de] [--beams 1] [--repeats 1]
                                   [--json FILE]

Without a model a small M2M100 of random weights is built on the spot (--width and --layers say how small); it writes
gibberish up to the limit of tokens, so its speed is that of the path around it rather than that of a real model. The
corpus is the English half of the embedded sample.

*texts/s*, *pieces/s* and *tokens/s* (of the sources) count from the first result to the last, so that starting Ray and
loading models does not count; *scaling* is pieces/s over that of the first number of actors. *actor s* is the time in
which actors translated, and *tokens/actor s* what one of them does; *call* is the whole call with Ray, gates and
shards. One actor is one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from hbt_ray.session import prepare_environment, ray_session

prepare_environment()  # before anything imports Ray

from rich import box  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from hbt_ray.corpus.pairs import ParallelPair  # noqa: E402
from hbt_ray.corpus.sample import sample_pairs  # noqa: E402
from hbt_ray.corpus.writer import write_pairs  # noqa: E402
from hbt_ray.storage import Folder  # noqa: E402
from hbt_ray.translation.run import Translated, translate  # noqa: E402
from hbt_ray.translation.scratch import write_m2m100  # noqa: E402
from hbt_ray.translation.settings import TranslationSettings  # noqa: E402

DATASET = "countries"
CHARACTERS_PER_UNIT = 2_000  # so that a small corpus has many results to count between
COLUMNS = {
    "actors": "actors",
    "pieces": "pieces",
    "texts_per_second": "texts/s",
    "pieces_per_second": "pieces/s",
    "tokens_per_second": "tokens/s",
    "scaling": "scaling",
    "padding": "padding",
    "actor_seconds": "actor s",
    "tokens_per_actor_second": "tokens/actor s",
    "call_seconds": "call, s",
}


def english_half(pairs: int) -> list[ParallelPair]:
    """The sample's largest dataset, in English alone."""
    return [
        ParallelPair(pair.pair_id, pair.passage_id, pair.group, {"en": pair.query["en"]}, {"en": pair.passage["en"]})
        for pair in sample_pairs()[DATASET][:pairs]
    ]


class Clock:
    """Remembers how many pieces were done when, of those that actors report."""

    def __init__(self) -> None:
        self.first: tuple[float, int] | None = None
        self.last: tuple[float, int] = (0.0, 0)

    def __call__(self, done: int, total: int, language: str) -> None:
        """Take `translate`'s progress."""
        if done:
            self.last = (time.monotonic(), done)
            self.first = self.first or self.last

    def pieces_per_second(self) -> float:
        """Between the first result and the last."""
        assert self.first is not None, "no results"
        (start, before), (stop, after) = self.first, self.last
        assert after > before, "all results came at once: translate more pairs"
        return (after - before) / (stop - start)


def measure(corpus: Path, settings: TranslationSettings, pairs: int) -> dict[str, float]:
    """The numbers of COLUMNS but `scaling`: a translation from nothing, in a Ray of its own."""
    run = corpus.parent / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(corpus, run)
    clock = Clock()
    actors = settings.actors or 1
    with ray_session(float(actors)):
        done = translate(settings.model_copy(update={"corpus": str(run)}), clock)
    return numbers(done, clock.pieces_per_second(), actors, pairs)


def numbers(done: Translated, pieces_per_second: float, actors: int, pairs: int) -> dict[str, float]:
    """What a translation says of its speed; a pair has two texts."""
    return {
        "actors": actors,
        "pieces": done.pieces,
        "texts_per_second": pieces_per_second * 2 * pairs / done.pieces,
        "pieces_per_second": pieces_per_second,
        "tokens_per_second": pieces_per_second * done.source_tokens / done.pieces,
        "padding": 1 - done.source_tokens / done.padded_tokens,
        "actor_seconds": done.seconds,
        "tokens_per_actor_second": done.source_tokens / done.seconds,
        "call_seconds": done.wall_seconds,
    }


def medians(runs: Sequence[dict[str, float]], actors: Sequence[int]) -> list[dict[str, float]]:
    """The median of each number over repeats, for each number of actors, and the scaling."""
    rows = []
    for count in actors:
        own = [run for run in runs if run["actors"] == count]
        rows.append({name: statistics.median(run[name] for run in own) for name in own[0]})
    base = rows[0]["pieces_per_second"]
    return [{**row, "scaling": row["pieces_per_second"] / base} for row in rows]


def show(rows: Sequence[dict[str, float]]) -> None:
    """Print a table."""
    table = Table(*COLUMNS.values(), box=box.MARKDOWN)
    for row in rows:
        table.add_row(*(shown(name, row[name]) for name in COLUMNS))
    Console(width=160).print(table)


def shown(name: str, value: float) -> str:
    """A number as the table has it."""
    if name == "padding":
        return f"{value:.1%}"
    if name == "scaling":
        return f"{value:.2f}"
    return f"{value:,.0f}" if name in ("actors", "pieces") or value >= 100 else f"{value:.1f}"


def main() -> None:
    """Measure each number of actors, forth and back over the repeats."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--model")
    parser.add_argument("--target", default="de")
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pairs = english_half(options.pairs)
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model or f"{scratch}/model"
        if options.model is None:
            texts = [text for pair in pairs for text in (pair.query["en"], pair.passage["en"])]
            layers = {"encoder_layers": options.layers, "decoder_layers": options.layers}
            widths = {
                "d_model": options.width,
                **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 4 * options.width),
            }
            write_m2m100(Path(model), texts, **layers, **widths)
        corpus = Path(scratch) / "corpus"
        write_pairs(Folder(str(corpus)), DATASET, pairs, ["en"], {"source": "the embedded sample"})
        runs: list[dict[str, float]] = []
        for repeat in range(options.repeats):
            for actors in options.actors[:: 1 if repeat % 2 == 0 else -1]:
                wanted: dict[str, Any] = {
                    **{"corpus": str(corpus), "dataset": DATASET, "targets": [options.target], "model": model},
                    **{"actors": actors, "pieces": {"characters_per_unit": CHARACTERS_PER_UNIT}},
                    **{"generation": {"beams": options.beams, "tokens_per_token": 1.0}},
                }
                runs.append(measure(corpus, TranslationSettings.model_validate(wanted), len(pairs)))
                print(f"{actors} actors done", file=sys.stderr)
    rows = medians(runs, options.actors)
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
