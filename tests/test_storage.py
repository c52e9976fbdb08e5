from __future__ import annotations

import logging
import os
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from faulty_s3 import BUCKET, PASSING, FaultyS3, environment, serve

from hbt_ray import storage
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.shards import MANIFEST, open_corpus, part_name
from hbt_ray.corpus.validate import validate
from hbt_ray.corpus.writer import write_pairs
from hbt_ray.errors import ConfigError, CorpusError, ResourceError
from hbt_ray.storage import Folder, Retries, s3_address

PAIRS = [
    ParallelPair(f"p{n}", f"s{n}", f"g{n}", {"en": f"question {n}", "de": f"Frage {n}"}, {"de": f"Antwort {n}"})
    for n in range(11)
]


QUICK = Retries(attempts=12, first_wait=0.001, longest_wait=0.01)


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyS3]:
    with serve(FaultyS3()) as server:
        yield server


@pytest.fixture
def s3(server: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """A server that does not fail before a test asks it to, and the environment of its clients."""
    for name, value in environment(server.endpoint).items():
        monkeypatch.setenv(name, value)
    yield server
    server.share, server.failing, server.next_failing = 0.0, None, 0


@pytest.fixture
def bucket(s3: FaultyS3) -> str:
    return BUCKET


@pytest.fixture
def only_our_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the SDK's own, whose waits nobody can shorten."""
    monkeypatch.setattr(storage, "OWN_REQUESTS", 1)


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """An empty folder on disk, and one in a bucket."""
    if request.param == "local":
        return Folder(str(tmp_path / "corpus"))
    return Folder(f"s3://{request.getfixturevalue('bucket')}/{tmp_path.name}")


def write(folder: Folder) -> None:
    write_pairs(folder, "mt", PAIRS, ["en", "de"], {"source": "made up"}, rows_per_part=6, rows_per_group=4)


def test_files_come_back(folder: Folder) -> None:
    """Local or S3: what is written is read, listed, and gone after its removal."""
    assert (folder.exists(), folder.entries(), folder.folders()) == (False, [], [])
    folder.write("b/deep/file", b"\0one")
    folder.write("a", b"two")
    assert (folder / "b").read("deep/file") == b"\0one"
    assert (folder.entries(), folder.folders()) == (["a", "b"], ["b"])
    assert (folder.exists(), folder.exists("a"), folder.exists("b"), folder.exists("c")) == (True, True, True, False)
    folder.write("a", b"three")
    assert folder.read("a") == b"three"
    folder.remove("a")
    folder.remove("a")
    assert folder.entries() == ["b"]


def test_an_absent_file_is_an_os_error(folder: Folder) -> None:
    """Local or S3: reading what is not there raises FileNotFoundError, as with open()."""
    with pytest.raises(FileNotFoundError):
        folder.read("none")


def test_a_folder_travels_between_processes(folder: Folder) -> None:
    """A folder is pickled to other processes, before and after its first use."""
    fresh = pickle.loads(pickle.dumps(folder))
    folder.write("a", b"one")
    assert [copy.read("a") for copy in (fresh, pickle.loads(pickle.dumps(folder)))] == [b"one", b"one"]
    assert fresh == folder


def test_shards_live_anywhere(folder: Folder) -> None:
    """Local or S3: the same shard code writes, opens, validates and reads a dataset cell by cell."""
    write(folder)
    (dataset,) = open_corpus(folder)
    validate(dataset)
    groups = range(len(dataset.group_starts) - 1)
    cells = [dataset.read_group("de", group, ["query", "passage"]) for group in groups]
    assert [cell.num_rows for cell in cells] == [4, 2, 4, 1]
    assert sorted(text for cell in cells for text in cell["query"].to_pylist()) == sorted(p.query["de"] for p in PAIRS)
    with pytest.raises(CorpusError, match="no dataset 'x'"):
        open_corpus(folder, ["x"])


def test_shards_are_byte_for_byte_the_same_on_s3(bucket: str, tmp_path: Path) -> None:
    """A corpus in a bucket has the bytes of the corpus on disk, so the two can be copied into each other."""
    local, remote = Folder(str(tmp_path)), Folder(f"s3://{bucket}/copy")
    write(local)
    write(remote)
    (dataset,) = open_corpus(local)
    for name in [*dataset.manifest.files, MANIFEST]:
        assert local.read(f"mt/{name}") == remote.read(f"mt/{name}")


def test_an_incomplete_dataset_is_noticed(folder: Folder) -> None:
    """Local or S3: parts without manifest, and a part that is gone, are named."""
    write(folder)
    (dataset,) = open_corpus(folder)
    (folder / "mt").remove(part_name("de", 1))
    with pytest.raises(CorpusError, match="no such file") as info:
        dataset.read_group("de", 3, ["query"])
    assert info.value.where == f"{folder.uri}/mt/{part_name('de', 1)}"
    with pytest.raises(CorpusError, match=part_name("de", 1)):
        validate(dataset)
    (folder / "mt").remove(MANIFEST)
    with pytest.raises(CorpusError, match=r"no manifest\.json"):
        open_corpus(folder)


def test_a_corpus_that_is_not_there(folder: Folder) -> None:
    """Local or S3: an address without anything behind it is refused as such."""
    with pytest.raises(CorpusError, match="no such folder"):
        open_corpus(folder)


def test_an_address_of_no_known_kind() -> None:
    """A scheme that no filesystem answers to is a mistake of the user, reported with the address."""
    with pytest.raises(ConfigError, match="ftp://host/corpus"):
        open_corpus(Folder("ftp://host/corpus"))


@pytest.mark.parametrize(
    ("uri", "options", "path"),
    [
        ("s3://b/p/", {"region": "eu-west-3", "scheme": "http", "endpoint_override": "host:1"}, "b/p"),
        ("s3://b?region=x", {"region": "x", "scheme": "http", "endpoint_override": "host:1"}, "b"),
        ("s3://b/a%20b?endpoint_override=o:2", {"region": "eu-west-3", "endpoint_override": "o:2"}, "b/a b"),
    ],
)
def test_what_an_address_leaves_out_comes_from_the_environment(
    uri: str, options: dict[str, str], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Region and endpoint of the address win over AWS_REGION and AWS_ENDPOINT_URL."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://host:1/")
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    assert s3_address(uri) == (options, path)


def test_a_region_that_nobody_names_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without endpoint and region the bucket's own region is looked up, again after a failure."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    answers = iter([OSError("AWS Error NETWORK_CONNECTION during HeadBucket operation"), "ap-south-2"])
    asked: list[str] = []

    def resolve(bucket: str) -> str:
        asked.append(bucket)
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(pafs, "resolve_s3_region", resolve)
    folder = Folder("s3://b/p", QUICK)
    assert [folder.filesystem.region, folder.filesystem.region] == ["ap-south-2"] * 2
    assert asked == ["b", "b"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [("s3:///p", "no bucket"), ("s3://b/p?zone=x", "'zone'"), ("s3://KEY:secret@b/p", "credentials in the address")],
)
def test_an_s3_address_that_cannot_work_is_refused(uri: str, message: str) -> None:
    """No bucket, an unknown option, credentials: said without repeating the secret."""
    with pytest.raises(ConfigError, match=message) as info:
        Folder(uri).exists()
    assert "secret" not in str(info.value)


def test_options_of_an_address_stay_with_the_folders_below_it(
    s3: FaultyS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`s3://bucket/prefix?endpoint_override=..` / name is a folder at the same endpoint, without the environment's."""
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    endpoint = s3.endpoint.removeprefix("http://")
    root = Folder(f"s3://{BUCKET}/{tmp_path.name}?scheme=http&endpoint_override={endpoint}")
    (root / "a" / "b").write("c", b"deep")
    assert (root.read("a/b/c"), root.sizes()) == (b"deep", {"a/b/c": 4})


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def local_files(tmp_path: Path) -> Path:
    """Files of very different sizes at several depths; one takes several parts of an upload."""
    folder = tmp_path / "files"
    for name, size in {"empty": 0, "a/one": 1, "a/b/many": 3_000, "a/c/d/large": 25_000_000}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(size))
    return folder


def test_folders_are_copied_whole(folder: Folder, local_files: Path, tmp_path: Path) -> None:
    """Local or S3: what is uploaded has its sizes and comes back byte for byte; or only what is asked for."""
    expected = files_of(local_files)
    assert folder.sizes() == {}
    folder.upload(local_files)
    assert folder.sizes() == {name: len(data) for name, data in expected.items()}
    folder.download(tmp_path / "all")
    assert files_of(tmp_path / "all") == expected
    folder.download(tmp_path / "some", ["a/one", "empty"])
    assert files_of(tmp_path / "some") == {name: expected[name] for name in ("a/one", "empty")}


def test_what_is_not_there_is_not_copied(folder: Folder, tmp_path: Path) -> None:
    """Local or S3: a missing file or folder to copy is a FileNotFoundError, and no part of it appears."""
    with pytest.raises(FileNotFoundError):
        folder.download(tmp_path / "copy", ["none"])
    with pytest.raises(FileNotFoundError):
        folder.upload(tmp_path / "none")
    assert files_of(tmp_path) == {}


def test_a_block_at_a_time(folder: Folder, local_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local or S3: files of many blocks are those of one."""
    monkeypatch.setattr(storage, "BLOCK", 6_000_000)
    folder.upload(local_files)
    folder.download(tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(local_files)


def test_a_writable_folder_is_left_as_it_was(folder: Folder) -> None:
    """Local or S3: the check leaves nothing behind."""
    folder.check_writable()
    assert folder.entries() == []


@pytest.mark.usefixtures("only_our_retries")
def test_a_failing_server_is_not_noticed_but_in_the_log(
    s3: FaultyS3, local_files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A quarter of the requests fail, in four ways: everything comes back right, and every retry is a warning."""
    s3.share = 0.25
    s3.faults.clear()
    folder = Folder(f"s3://{BUCKET}/{tmp_path.name}", QUICK)
    with caplog.at_level(logging.WARNING, "hbt_ray.storage"):
        for n in range(12):
            folder.write(f"small/{n}", str(n).encode())
        assert [int((folder / "small").read(str(n))) for n in range(12)] == list(range(12))
        assert (folder / "small").entries() == sorted(str(n) for n in range(12))
        assert [folder.exists(f"small/{n}") for n in range(14)] == [True] * 12 + [False] * 2
        for n in range(12):
            folder.remove(f"small/{n}")
        assert (folder / "small").sizes() == {}
        folder.upload(local_files)
        folder.download(tmp_path / "back")
        folder.check_writable()
    assert files_of(tmp_path / "back") == files_of(local_files)
    assert set(s3.faults) == set(PASSING)
    assert 0 < len(caplog.messages) <= s3.faults.total()  # a cut of an answer without body goes unnoticed, rightly
    assert all("trying again" in message for message in caplog.messages)
    assert {message.split(": ")[0].split("/")[2] for message in caplog.messages} == {BUCKET}


@pytest.mark.usefixtures("only_our_retries")
def test_shards_are_read_from_a_failing_server(s3: FaultyS3, tmp_path: Path) -> None:
    """A quarter of the requests fail: a dataset is written, opened, validated and read cell by cell."""
    s3.share = 0.25
    folder = Folder(f"s3://{BUCKET}/{tmp_path.name}", QUICK)
    write(folder)
    (dataset,) = open_corpus(folder)
    validate(dataset)
    cells = [dataset.read_group("de", group, ["query"]) for group in range(4)]
    assert sorted(text for cell in cells for text in cell["query"].to_pylist()) == sorted(p.query["de"] for p in PAIRS)


def test_a_lent_filesystem_keeps_trying_after_a_journey(s3: FaultyS3, tmp_path: Path) -> None:
    """Three requests in a row fail: pyarrow's own filesystem gives up, ours does not, nor does its pickled copy."""
    folder = Folder(f"s3://{BUCKET}/{tmp_path.name}")
    folder.write("a", b"one")
    options, _ = s3_address(folder.uri)
    s3.next_failing = 3
    with pytest.raises(OSError, match="503"):
        pafs.S3FileSystem(**options).get_file_info(folder.path("a"))
    storage.s3_filesystem.cache_clear()
    travelled = pickle.loads(pickle.dumps(folder.filesystem))
    storage.s3_filesystem.cache_clear()
    assert isinstance(travelled, pafs.S3FileSystem)
    s3.next_failing = 3
    with travelled.open_input_stream(folder.path("a")) as file:
        assert file.read() == b"one"
    assert s3.next_failing == 0


@pytest.mark.usefixtures("only_our_retries")
def test_a_server_that_never_answers_is_a_clear_error(s3: FaultyS3, caplog: pytest.LogCaptureFixture) -> None:
    """After the last attempt: where, what the server said, how often it was asked."""
    s3.failing = "slow down"
    s3.requests.clear()
    with pytest.raises(ResourceError, match=r"s3://corpora/x/a: got .*SLOW_DOWN.*\(after 5 attempts\)") as info:
        Folder(f"s3://{BUCKET}/x", Retries(5, 0.001, 0.01)).write("a", b"one")
    assert len(s3.requests) == 5
    assert len(caplog.messages) == 4
    assert str(pickle.loads(pickle.dumps(info.value))) == str(info.value)


def test_waits_grow_to_the_longest(s3: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wait is drawn below a limit that doubles up to the longest."""
    waits: list[float] = []
    monkeypatch.setattr(storage, "OWN_REQUESTS", 1)
    monkeypatch.setattr("time.sleep", waits.append)
    s3.failing = "slow down"
    with pytest.raises(ResourceError):
        Folder(f"s3://{BUCKET}/x", Retries(6, first_wait=2.0, longest_wait=10.0)).read("a")
    assert all(0 <= wait <= most for wait, most in zip(waits, (2, 4, 8, 10, 10), strict=True))


def test_a_refusal_is_not_repeated(s3: FaultyS3) -> None:
    """Denied access, to whoever meets it: one request, and what to check."""
    s3.failing = "denied"
    s3.requests.clear()
    folder = Folder(f"s3://{BUCKET}/x")
    for meet in (folder.check_writable, lambda: open_corpus(folder), lambda: folder.read("a")):
        with pytest.raises(ResourceError, match=r"credentials that may read and write there.*AWS_ACCESS_KEY_ID"):
            meet()
    assert len(s3.requests) == 3


def test_a_bucket_that_is_not_there(s3: FaultyS3) -> None:
    """Nothing is in it, nothing can be written to it."""
    folder = Folder("s3://no-such-bucket/run")
    assert folder.sizes() == {}
    with pytest.raises(ResourceError, match=r"no-such-bucket.*a bucket that exists\. Create the bucket"):
        folder.check_writable()
    with pytest.raises(CorpusError, match="no such folder"):
        open_corpus(folder)


@pytest.mark.usefixtures("only_our_retries")
def test_an_endpoint_that_is_not_there(s3: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens: the endpoint is named, to the writer and to the reader of a corpus."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
    folder = Folder(f"s3://{BUCKET}/x", Retries(2, 0.001, 0.01))
    for meet in (folder.check_writable, lambda: open_corpus(folder)):
        with pytest.raises(ResourceError, match=rf"an answer from {os.environ['AWS_ENDPOINT_URL']}\. Check"):
            meet()


def test_a_local_folder_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file in the way, a system folder: a ResourceError at once."""
    (tmp_path / "file").write_bytes(b"")
    for uri in (str(tmp_path / "file" / "run"), "/proc/run"):
        with pytest.raises(ResourceError, match="that can be read and written") as info:
            Folder(uri).check_writable()
        assert info.value.where.startswith(uri)
    assert caplog.messages == []
