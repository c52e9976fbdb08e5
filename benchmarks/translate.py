"""Translation speed: texts a second, share of padding, scaling with actors.

    python benchmarks/translate.py [--pairs 400] [--actors 1 2] [--model DIR] [--target de] [--beams 1] [--repeats 1]

Without a model a small M2M100 of random weights is built on the spot (--width and --layers say how small). The corpus
is the English half of the embedded sample. pieces/s counts from the first result to the last, so that starting Ray and
loading models does not count; `call` is the whole call with them, gates and shards.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from hbt_ray.session import prepare_environment, ray_session

prepare_environment()  # before anything imports Ray

from hbt_ray.corpus.pairs import ParallelPair  # noqa: E402
from hbt_ray.corpus.sample import sample_pairs  # noqa: E402
from hbt_ray.corpus.writer import write_pairs  # noqa: E402
from hbt_ray.storage import Folder  # noqa: E402
from hbt_ray.translation.run import Translated, translate  # noqa: E402
from hbt_ray.translation.scratch import write_m2m100  # noqa: E402
from hbt_ray.translation.settings import TranslationSettings  # noqa: E402


def english_half(pairs: int) -> list[ParallelPair]:
    """The sample's largest dataset, in English alone."""
    return [
        ParallelPair(pair.pair_id, pair.passage_id, pair.group, {"en": pair.query["en"]}, {"en": pair.passage["en"]})
        for pair in sample_pairs()["countries"][:pairs]
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
        assert self.first is not None
        (start, before), (stop, after) = self.first, self.last
        return (after - before) / (stop - start)


def measured(corpus: Path, settings: TranslationSettings) -> tuple[Translated, float]:
    """A translation from nothing, in a Ray of its own."""
    shutil.rmtree(corpus.parent / "run", ignore_errors=True)
    shutil.copytree(corpus, corpus.parent / "run")
    clock = Clock()
    with ray_session(float(settings.actors or 1)):
        done = translate(settings.model_copy(update={"corpus": str(corpus.parent / "run")}), clock)
    return done, clock.pieces_per_second()


def main() -> None:
    """Print a table, one row per number of actors and repeat."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--model")
    parser.add_argument("--target", default="de")
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    options = parser.parse_args()
    pairs = english_half(options.pairs)
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model or f"{scratch}/model"
        if options.model is None:
            texts = [text for pair in pairs for text in (pair.query["en"], pair.passage["en"])]
            shape = {"encoder_layers": options.layers, "decoder_layers": options.layers, "d_model": options.width}
            write_m2m100(Path(model), texts, **shape)
        corpus = Path(scratch) / "corpus"
        write_pairs(Folder(str(corpus)), "countries", pairs, ["en"], {"source": "the embedded sample"})
        print("| actors | pieces | pieces/s | padding | actor seconds | call, s |\n|---|---|---|---|---|---|")
        for repeat in range(options.repeats):
            for actors in options.actors[:: 1 if repeat % 2 == 0 else -1]:
                settings = TranslationSettings.model_validate(
                    {
                        **{"corpus": str(corpus), "dataset": "countries", "targets": [options.target]},
                        **{"model": model, "actors": actors, "pieces": {"characters_per_unit": 2_000}},
                        **{"generation": {"beams": options.beams, "tokens_per_token": 1.0}},
                    }
                )
                done, speed = measured(corpus, settings)
                padding = 1 - done.source_tokens / done.padded_tokens
                print(
                    f"| {actors} | {done.pieces:,} | {speed:.1f} | {padding:.1%} | {done.seconds:.1f} "
                    f"| {done.wall_seconds:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
