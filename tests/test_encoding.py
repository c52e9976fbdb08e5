"""Encoding a collection: each distinct text once, the cache, resuming, and the actors."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbt_ray.errors import ConfigError, EmbeddingError, ModelError, ResourceError
from hbt_ray.evaluation import cache as cache_module
from hbt_ray.evaluation import encoding
from hbt_ray.evaluation.benchmarks import Collection, Qrels, Texts
from hbt_ray.evaluation.cache import EmbeddingCache, text_keys
from hbt_ray.evaluation.encoding import (
    CPU_CHUNK,
    EncodingPool,
    JoinedTexts,
    encode_collection,
    encode_texts,
    encoding_pool,
    first_rows,
    in_process,
    length_sorted_chunks,
)
from hbt_ray.model.encoder import EncoderSettings, TextEncoder

WIDTH = 6
TEXTS = [f"{'word ' * (i % 8)}{i % 40}" for i in range(100)]  # 40 distinct ones


def vector_of(text: str) -> np.ndarray:
    """Six finite floats that depend on the whole text."""
    return np.frombuffer(hashlib.sha256(text.encode()).digest()[: 4 * WIDTH], dtype=np.uint32).astype(np.float32)


def expected(texts: list[str], prompt: str = "") -> np.ndarray:
    return np.stack([vector_of(prompt + text) for text in texts])


class CountingEncoder:
    """An encoder for tests: remembers what it encoded, and fails after `calls` calls."""

    def __init__(self, calls: int | None = None) -> None:
        self.encoded: list[str] = []
        self.calls = calls

    def __call__(self, texts: list[str]) -> np.ndarray:
        if self.calls is not None and self.calls == 0:
            raise KeyboardInterrupt
        self.calls = None if self.calls is None else self.calls - 1
        self.encoded += texts
        return expected(texts)


def encode(texts: list[str], encoder: Callable[[list[str]], np.ndarray], **options: object) -> np.ndarray:
    return encode_texts(texts, in_process(encoder), WIDTH, **{"chunk_characters": 200, **options})


# --- distinct texts --------------------------------------------------------------------------------------------------


def test_each_distinct_text_is_encoded_once_and_order_is_kept() -> None:
    """Repeated texts get the vector of their first occurrence, in the order of the texts."""
    encoder = CountingEncoder()
    np.testing.assert_array_equal(encode(TEXTS, encoder), expected(TEXTS))
    assert sorted(encoder.encoded) == sorted(set(TEXTS))
    assert len(encoder.encoded) == 40


@given(st.lists(st.text(max_size=3), max_size=60), st.integers(1, 60))
def test_any_texts_get_their_own_vectors(texts: list[str], chunk_characters: int) -> None:
    """Whatever repeats and however small the chunks, row i is the vector of text i."""
    encoder = CountingEncoder()
    vectors = encode(texts, encoder, chunk_characters=chunk_characters)
    np.testing.assert_array_equal(vectors, expected(texts) if texts else np.empty((0, WIDTH)))
    assert sorted(encoder.encoded) == sorted(set(texts))


@given(st.lists(st.integers(0, 9)))
def test_first_rows_are_those_of_a_dictionary(numbers: list[int]) -> None:
    """The first row of every key, against a dictionary."""
    rows: dict[int, int] = {}
    by_hand = [rows.setdefault(number, i) for i, number in enumerate(numbers)]
    assert first_rows(text_keys([str(number) for number in numbers])).tolist() == by_hand


def test_keys_that_end_in_zeros_are_told_apart() -> None:
    """Bytes of zero at the end of a key are part of it."""
    keys = np.frombuffer(b"a" * 15 + b"\0" + b"a" * 14 + b"\0\0" + b"a" * 15 + b"\0", dtype="S16")
    assert first_rows(keys).tolist() == [0, 1, 0]


def test_keys_are_blake2b() -> None:
    """The key of a text is its 128-bit BLAKE2b digest."""
    texts = ["", "a", "ä", "สกุลเงิน"]
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts)
    assert text_keys(texts).tobytes() == digests


def test_chunks_are_sorted_by_length_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a window the longest texts come first; a chunk exceeds its characters by less than one text."""
    monkeypatch.setattr(encoding, "WINDOW", 40)
    texts = ["x" * (i * 37 % 90) for i in range(100)]
    chunks = [*length_sorted_chunks(texts, np.arange(100), "", 300)]
    for start in (0, 40, 80):
        rows = np.concatenate([chunk.rows for chunk in chunks if start <= chunk.rows[0] < start + 40])
        assert sorted(rows.tolist()) == [*range(start, min(start + 40, 100))]
        lengths = [len(texts[row]) for row in rows]
        assert lengths == sorted(lengths, reverse=True)
    for chunk in chunks:
        assert chunk.texts == [texts[row] for row in chunk.rows]
        assert sum(len(text) + encoding.CHARACTERS_PER_TEXT for text in chunk.texts) < 300 + 90 + 16


def test_windows_change_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Windows smaller than the texts, with a cache and repeats across windows, give the same vectors."""
    monkeypatch.setattr(encoding, "WINDOW", 7)
    cache = EmbeddingCache(tmp_path, "model", "")
    encode(TEXTS[::3], CountingEncoder(), cache=cache)
    encoder = CountingEncoder()
    np.testing.assert_array_equal(encode(TEXTS, encoder, cache=cache), expected(TEXTS))
    assert sorted(encoder.encoded) == sorted(set(TEXTS) - set(TEXTS[::3]))


def test_joined_texts_are_their_concatenation() -> None:
    """Index, slice, length and iteration over parts, some of them empty."""
    parts = [(), ("a", "b"), (), ("c",), ()]
    joined = JoinedTexts(parts)
    assert list(joined) == ["a", "b", "c"] == [joined[i] for i in range(3)] == joined[:]
    assert len(joined) == 3
    assert len(JoinedTexts([])) == 0
    with pytest.raises(IndexError):
        joined[3]


# --- files and progress ----------------------------------------------------------------------------------------------


def test_vectors_in_a_file_are_the_same(tmp_path: Path) -> None:
    """`out` gives a memory-map of a plain .npy file with the same vectors."""
    out = tmp_path / "scratch" / "texts.npy"
    vectors = encode(TEXTS, CountingEncoder(), out=out)
    assert isinstance(vectors, np.memmap)
    np.testing.assert_array_equal(vectors, expected(TEXTS))
    np.testing.assert_array_equal(np.load(out), expected(TEXTS))
    assert [path.name for path in out.parent.iterdir()] == ["texts.npy"]


def test_an_unfinished_file_does_not_have_its_name(tmp_path: Path) -> None:
    """Interrupted, there is no file that looks complete."""
    with pytest.raises(KeyboardInterrupt):
        encode(TEXTS, CountingEncoder(calls=2), out=tmp_path / "texts.npy")
    assert not (tmp_path / "texts.npy").exists()


def test_progress_counts_distinct_texts_and_those_of_the_cache(tmp_path: Path) -> None:
    """Progress starts at what the cache has and ends at the number of distinct texts."""
    cache = EmbeddingCache(tmp_path, "model", "")
    encode(TEXTS[:10], CountingEncoder(), cache=cache)
    told: list[tuple[int, int]] = []
    encode(TEXTS, CountingEncoder(), cache=cache, on_progress=lambda done, total: told.append((done, total)))
    distinct = len(set(TEXTS))
    assert told[0] == (len(set(TEXTS[:10])), distinct)
    assert told[-1] == (distinct, distinct)
    assert told == sorted(told)


# --- the cache -------------------------------------------------------------------------------------------------------


def test_a_full_cache_encodes_nothing(tmp_path: Path) -> None:
    """The second time, in another process as it were, every vector comes from the files."""
    encode(TEXTS, CountingEncoder(), cache=EmbeddingCache(tmp_path, "model", ""))
    encoder = CountingEncoder()
    vectors = encode(TEXTS[::-1], encoder, cache=EmbeddingCache(tmp_path, "model", ""))
    np.testing.assert_array_equal(vectors, expected(TEXTS[::-1]))
    assert encoder.encoded == []


def test_models_and_prompts_are_kept_apart(tmp_path: Path) -> None:
    """Another prompt or another model finds nothing of what the first left."""
    encode(TEXTS, CountingEncoder(), prompt="query: ", cache=EmbeddingCache(tmp_path, "model", "query: "))
    for model, prompt in (("model", ""), ("model", "passage: "), ("other", "query: ")):
        encoder = CountingEncoder()
        vectors = encode(TEXTS, encoder, prompt=prompt, cache=EmbeddingCache(tmp_path, model, prompt))
        np.testing.assert_array_equal(vectors, expected(TEXTS, prompt))
        assert len(encoder.encoded) == len(set(TEXTS))
    with pytest.raises(EmbeddingError, match=r"passage: .*query: "):
        encode(TEXTS, CountingEncoder(), prompt="passage: ", cache=EmbeddingCache(tmp_path, "model", "query: "))


def test_interrupted_encoding_goes_on_where_it_was(tmp_path: Path) -> None:
    """Interrupted after three chunks it encodes the rest only, and no text twice."""
    first, second = CountingEncoder(calls=3), CountingEncoder()
    with pytest.raises(KeyboardInterrupt):
        encode(TEXTS, first, cache=EmbeddingCache(tmp_path, "model", ""))
    vectors = encode(TEXTS, second, cache=EmbeddingCache(tmp_path, "model", ""))
    np.testing.assert_array_equal(vectors, expected(TEXTS))
    assert first.encoded
    assert sorted(first.encoded + second.encoded) == sorted(set(TEXTS))


def test_parts_are_written_while_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed outright leaves all but the last part: parts come by size and by time."""
    written: list[int] = []

    def encoder(texts: list[str]) -> np.ndarray:
        written.append(len([*tmp_path.rglob(f"*{cache_module.KEYS_SUFFIX}")]))
        return expected(texts)

    monkeypatch.setattr(cache_module, "PART_BYTES", 4 * WIDTH * 8)
    encode(TEXTS, encoder, cache=EmbeddingCache(tmp_path, "model", ""))
    assert written[-1] >= 2
    monkeypatch.setattr(cache_module, "PART_BYTES", 2**30)
    monkeypatch.setattr(cache_module, "PART_SECONDS", 0.0)
    written.clear()
    encode(TEXTS, encoder, cache=EmbeddingCache(tmp_path, "other", ""))
    assert np.diff(written).tolist() == [1] * (len(written) - 1)


def test_two_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Caches opened before either wrote both keep their parts, and both see all after a refresh."""
    first, second = EmbeddingCache(tmp_path, "model", ""), EmbeddingCache(tmp_path, "model", "")
    for cache, texts in ((first, ["a", "b"]), (second, ["b", "c"])):
        cache.add(text_keys(texts), expected(texts))
        cache.flush()
    for cache in (first, second):
        cache.refresh()
        rows = cache.find(text_keys(["c", "nothing", "a", "b"]))
        assert (rows >= 0).tolist() == [True, False, True, True]
        np.testing.assert_array_equal(cache.read(rows[rows >= 0]), expected(["c", "a", "b"]))


def one_part(folder: Path) -> Path:
    """A cache of one part; the file of its vectors."""
    cache = EmbeddingCache(folder, "model", "")
    cache.add(text_keys(["a", "b", "c"]), expected(["a", "b", "c"]))
    cache.flush()
    (keys,) = folder.rglob(f"*{cache_module.KEYS_SUFFIX}")
    return keys.with_name(keys.name.replace(cache_module.KEYS_SUFFIX, ".npy"))


@pytest.mark.parametrize("left", ["vectors", "partial"])
def test_a_torn_part_is_left_out_and_said(left: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A part whose writer was killed before its keys had their name is not used, and a warning counts it."""
    path = one_part(tmp_path)
    keys = path.with_suffix(cache_module.KEYS_SUFFIX)
    if left == "vectors":
        keys.unlink()
    else:
        keys.rename(keys.with_name(keys.name + cache_module.PARTIAL_SUFFIX))
    with caplog.at_level(logging.WARNING):
        cache = EmbeddingCache(tmp_path, "model", "")
    assert "unfinished" in caplog.text
    assert path.stem in caplog.text
    encoder = CountingEncoder()
    np.testing.assert_array_equal(encode(["c", "a"], encoder, cache=cache), expected(["c", "a"]))
    assert sorted(encoder.encoded) == ["a", "c"]


def test_a_whole_cache_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No warning without a torn part."""
    one_part(tmp_path)
    EmbeddingCache(tmp_path, "model", "")
    assert caplog.text == ""


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"12345")


def _no_array(path: Path) -> None:
    path.write_bytes(b"something else")


def _fewer(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


def _doubles(path: Path) -> None:
    np.save(path, np.load(path).astype(np.float64))


def _not_finite(path: Path) -> None:
    vectors = np.load(path)
    vectors[1, 2] = np.nan
    np.save(path, vectors)


@pytest.mark.parametrize("damage", [_cut, _lengthen, _no_array, _fewer, _doubles, _not_finite, Path.unlink])
def test_damaged_vectors_are_an_error_that_names_the_file(damage: Callable[[Path], None], tmp_path: Path) -> None:
    """Wrong size, unreadable, of another type, not finite, gone: the file to delete is named."""
    path = one_part(tmp_path)
    damage(path)
    with pytest.raises(EmbeddingError) as error:
        encode(["b"], CountingEncoder(), cache=EmbeddingCache(tmp_path, "model", ""))
    assert str(path) in str(error.value)
    assert "Delete" in error.value.fix
    assert path.name in error.value.fix


@pytest.mark.parametrize("damage", [_cut, _lengthen, _no_array, _fewer])
def test_damaged_keys_are_an_error_that_names_the_file(damage: Callable[[Path], None], tmp_path: Path) -> None:
    """The same for the file of keys."""
    path = one_part(tmp_path)
    keys = path.with_suffix(cache_module.KEYS_SUFFIX)
    damage(keys)
    with pytest.raises(EmbeddingError) as error:
        EmbeddingCache(tmp_path, "model", "")
    assert keys.name in error.value.fix


def test_another_dimension_under_the_same_hash_is_refused(tmp_path: Path) -> None:
    """Vectors of another width are neither added, nor read, nor handed to a model of another width."""
    path = one_part(tmp_path)
    cache = EmbeddingCache(tmp_path, "model", "")
    with pytest.raises(EmbeddingError, match="5 dimensions"):
        cache.add(text_keys(["d"]), np.zeros((1, 5), dtype=np.float32))
    with pytest.raises(EmbeddingError, match=f"{WIDTH} dimensions"):
        encode_texts(["d"], in_process(CountingEncoder()), 5, cache=cache)
    np.save(path.with_name("part-other.npy"), np.zeros((1, 5), dtype=np.float32))
    np.save(path.with_name(f"part-other{cache_module.KEYS_SUFFIX}"), text_keys(["d"]))
    with pytest.raises(EmbeddingError, match="dimensions"):
        EmbeddingCache(tmp_path, "model", "")


def test_vectors_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    """A model that gives NaN does not fill the cache with it."""
    cache = EmbeddingCache(tmp_path, "model", "")
    with pytest.raises(EmbeddingError, match="not finite"):
        cache.add(text_keys(["d"]), np.full((1, WIDTH), np.nan, dtype=np.float32))
    cache.flush()
    assert [*tmp_path.rglob("*.npy")] == []


# --- collections -----------------------------------------------------------------------------------------------------


class LocalPool(EncodingPool):
    """A pool of no actors: the model is in this process."""

    def __init__(self, encode_here: Callable[[list[str]], np.ndarray], width: int) -> None:
        super().__init__([], width, CPU_CHUNK)
        self.encode_chunks = in_process(encode_here)


def small_collection() -> Collection:
    """Two languages that share a text, and a query that is also a candidate."""
    queries = {"en": ("aa bb", "cc"), "de": ("kk",)}
    candidates = {"de": ("kk", "ll mm"), "en": ("aa bb", "aa", "kk")}
    no_qrels = np.zeros(0, dtype=np.int64)
    return Collection(
        name="small",
        queries={code: Texts(tuple(map(str, range(len(texts)))), texts) for code, texts in queries.items()},
        candidates={code: Texts(tuple(map(str, range(len(texts)))), texts) for code, texts in candidates.items()},
        qrels={
            code: Qrels(np.zeros(len(texts) + 1, dtype=np.int64), no_qrels, no_qrels, no_qrels)
            for code, texts in queries.items()
        },
        merged_pool=True,
        parallel=False,
    )


@pytest.mark.parametrize(("query_prefix", "passage_prefix", "calls"), [("", "", 5), ("q: ", "p: ", 7)])
def test_a_collection_is_encoded_by_side_and_language(
    query_prefix: str, passage_prefix: str, calls: int, tmp_path: Path
) -> None:
    """Each side has its prompt; texts of both sides and all languages are shared where the prompts are equal."""
    collection = small_collection()
    settings = EncoderSettings("mean", query_prefix, passage_prefix, 16)
    for cache, scratch in ((None, None), (tmp_path / "cache", tmp_path / "scratch"), (tmp_path / "cache", None)):
        encoder = CountingEncoder()
        embeddings = encode_collection(
            collection, LocalPool(encoder, WIDTH), settings, model_hash="model", cache=cache, scratch=scratch
        )
        assert list(embeddings.queries) == ["en", "de"]
        assert list(embeddings.candidates) == ["de", "en"]
        for code, texts in collection.queries.items():
            np.testing.assert_array_equal(embeddings.queries[code], expected(texts.texts, query_prefix))
        for code, texts in collection.candidates.items():
            np.testing.assert_array_equal(embeddings.candidates[code], expected(texts.texts, passage_prefix))
        from_cache = cache is not None and scratch is None  # the third time round
        assert len(encoder.encoded) == (0 if from_cache else calls)
        assert isinstance(embeddings.candidates["en"], np.memmap) == (scratch is not None)


def test_the_real_model_gives_the_vectors_of_sentence_transformers(toy_model: Path, tmp_path: Path) -> None:
    """Chunked, cached and read back, vectors are those of SentenceTransformer.encode."""
    encoder = TextEncoder(str(toy_model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own deprecations are not ours
        from sentence_transformers import SentenceTransformer

        theirs = SentenceTransformer(str(toy_model), device="cpu").encode(TEXTS)
    for _ in range(2):
        cache = EmbeddingCache(tmp_path, "toy", "")
        ours = encode_texts(TEXTS, in_process(encoder.encode), encoder.width, cache=cache, chunk_characters=300)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


# --- actors ----------------------------------------------------------------------------------------------------------


def test_actors_need_ray() -> None:
    """Without Ray, or with no actor at all, the message says so."""
    with pytest.raises(ResourceError, match="Ray"), encoding_pool("model", 1):
        pass
    with pytest.raises(ConfigError, match="at least 1"), encoding_pool("model", 0):
        pass


@pytest.mark.ray
def test_actors_give_the_vectors_of_one_process(toy_model: Path, local_ray: None, tmp_path: Path) -> None:
    """Two actors, more chunks than calls in flight: the vectors of one process; the actors end with the pool."""
    import ray

    encoder = TextEncoder(str(toy_model))
    free = ray.available_resources()["CPU"]
    with encoding_pool(str(toy_model), 2) as pool:
        assert pool.width == encoder.width
        ours = encode_texts(TEXTS, pool.encode_chunks, pool.width, chunk_characters=100)
        embeddings = encode_collection(small_collection(), pool, encoder.settings, model_hash="toy", cache=tmp_path)
        handles = pool._actors
        assert ray.available_resources()["CPU"] == free - 2
    np.testing.assert_allclose(ours, encoder.encode(TEXTS), atol=1e-6)
    np.testing.assert_allclose(
        embeddings.queries["en"], encoder.encode(["aa bb", "cc"], encoder.settings.query_prefix), atol=1e-6
    )
    for handle in handles:
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(handle.width.remote())


@pytest.mark.slow
@pytest.mark.ray
def test_a_lost_actor_is_started_again(toy_model: Path, local_ray: None) -> None:
    """An actor whose process dies loads the model again and its chunk is encoded again."""
    import ray

    encoder = TextEncoder(str(toy_model))
    with encoding_pool(str(toy_model), 1) as pool:
        ray.kill(pool._actors[0], no_restart=False)
        ours = encode_texts(TEXTS, pool.encode_chunks, pool.width, chunk_characters=500)
    np.testing.assert_allclose(ours, encoder.encode(TEXTS), atol=1e-6)


@pytest.mark.ray
def test_a_model_that_cannot_be_loaded_is_named(local_ray: None, tmp_path: Path) -> None:
    """The actor's ModelError arrives as it is; more actors than CPUs is refused instead of waiting."""
    with pytest.raises(ModelError, match="nothing"), encoding_pool(str(tmp_path / "nothing"), 1):
        pass
    with pytest.raises(ResourceError, match="1000"), encoding_pool(str(tmp_path), 1000):
        pass
