"""The store of blobs, in a folder and over the S3 protocol."""

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapestry.errors import ConfigError, UnavailableError
from tapestry.storage.blobs import Blobs
from tests.servers import Store, running_store


@pytest.fixture(scope="module")
def s3() -> Iterator[Store]:
    with running_store() as store:
        yield store


@pytest.fixture(params=["file", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "file":
        return Blobs((tmp_path / "shared folder").as_uri())
    store: Store = request.getfixturevalue("s3")
    return Blobs(f"{store.url}/{tmp_path.name}", endpoint=store.endpoint)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_what_is_put_comes_back_and_is_listed(blobs: Blobs, tmp_path: Path) -> None:
    data = os.urandom(20 * 2**20 + 1)  # three parts
    blobs.put(written(tmp_path / "large", data), "contributions/round-000001/fr-bnf-9e0d")
    blobs.put_bytes(b"small", "contributions/round-000002/a b")
    blobs.put_bytes(b"", "published/empty")
    assert blobs.size("contributions/round-000001/fr-bnf-9e0d") == len(data)
    assert blobs.get("contributions/round-000001/fr-bnf-9e0d", tmp_path / "new" / "back")
    assert (tmp_path / "new" / "back").read_bytes() == data
    assert blobs.get("published/empty", tmp_path / "new" / "empty")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["back", "empty"]
    assert blobs.names("contributions") == [
        "contributions/round-000001/fr-bnf-9e0d",
        "contributions/round-000002/a b",
    ]
    assert blobs.names("published") == ["published/empty"]


def test_what_is_not_there_is_said_so_and_leaves_nothing(blobs: Blobs, tmp_path: Path) -> None:
    assert blobs.size("nothing") is None
    assert not blobs.get("nothing", tmp_path / "new" / "nothing")
    assert not (tmp_path / "new").exists()
    assert blobs.names("nothing") == []
    blobs.delete(["nothing"])


def test_a_name_is_another_thing_than_what_begins_with_it(blobs: Blobs) -> None:
    for key in ("outer/round-1/x", "outer/round-10/x", "outer/round-1x"):
        blobs.put_bytes(b"1", key)
    assert blobs.names("outer/round-1") == ["outer/round-1/x"]
    blobs.delete(["outer/round-1/x"])
    assert blobs.names("outer") == ["outer/round-10/x", "outer/round-1x"]


def test_a_fetch_that_broke_off_goes_on_where_it_stood(blobs: Blobs, tmp_path: Path) -> None:
    data = os.urandom(3 * 2**20)
    blobs.put(written(tmp_path / "large", data), "large")
    written(tmp_path / "back.arriving", b"\0" * 2**20)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (tmp_path / "back.arriving.have").write_text(f"{2**20:020} {2**20:020} {boot}\n")
    assert blobs.get("large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"\0" * 2**20 + data[2**20 :], "the rest alone"


def test_a_large_file_passes_in_pieces(tmp_path: Path) -> None:
    blobs = Blobs((tmp_path / "shared").as_uri())  # the other server is in this process itself
    blobs.put(written(tmp_path / "large", b"x" * (64 * 2**20)), "large")
    tracemalloc.start()
    blobs.get("large", tmp_path / "back")
    _now, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 24 * 2**20, "a piece of 8 MiB, and the next one while it is taken"
    assert (tmp_path / "back").stat().st_size == 64 * 2**20


def test_a_store_that_is_gone_is_to_be_asked_again(s3: Store, tmp_path: Path) -> None:
    blobs = Blobs(f"{s3.url}/gone", endpoint=s3.endpoint)
    blobs.put_bytes(b"before", "one")
    s3.stop()
    try:
        for call in (
            lambda: blobs.put(written(tmp_path / "f", b"2"), "two"),
            lambda: blobs.size("one"),
            lambda: blobs.get("one", tmp_path / "back"),
            lambda: blobs.names("x"),
            lambda: blobs.delete(["one"]),
        ):
            with pytest.raises(UnavailableError, match=r"s3://.*: the store cannot be used now: "):
                call()
    finally:
        s3.start()
    assert blobs.get("one", tmp_path / "back")


def test_a_bucket_that_is_not_there_and_no_secret_in_what_is_said(
    s3: Store, tmp_path: Path
) -> None:
    blobs = Blobs("s3://no-such-bucket/x", endpoint=s3.endpoint)
    with pytest.raises(UnavailableError, match="no-such-bucket") as caught:
        blobs.put(written(tmp_path / "f", b"2"), "two")
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        assert os.environ[name] not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_to_be_tried_again(tmp_path: Path) -> None:
    written(tmp_path / "file", b"")
    with pytest.raises(UnavailableError, match="the store cannot be used now"):
        Blobs((tmp_path / "file" / "below").as_uri())


@pytest.mark.parametrize("url", ["s3://", "file:///", "file://", "http://host/x", "/a/folder"])
def test_a_url_of_no_store_says_how_one_looks(url: str) -> None:
    with pytest.raises(ConfigError, match=r"write s3://bucket/prefix or file:///shared/folder"):
        Blobs(url)
