"""Downloads: from a server of our own, and all that can stand in their way."""

from __future__ import annotations

import hashlib
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from fewstep.errors import DataError
from fewstep.tasks import download
from fewstep.tasks.download import download_omniglot

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytest.importorskip("pooch", reason="downloads need the extra `data`")
BY_HAND = r"Put images_background\.zip and images_evaluation\.zip from https://.* into .*omniglot yourself\."


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that has the two archives."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    place = tmp_path / "served"
    place.mkdir()
    sums = {}
    for part in download.OMNIGLOT_MD5:
        (place / f"{part}.zip").write_bytes(part.encode())
        sums[part] = hashlib.md5(part.encode(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(download, "OMNIGLOT_MD5", sums)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(place))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_both_archives_are_fetched_and_what_is_there_stays(tmp_path: Path, source: str) -> None:
    (tmp_path / "data" / "omniglot").mkdir(parents=True)
    (tmp_path / "data" / "omniglot" / "images_background.zip").write_bytes(b"mine")
    download_omniglot(tmp_path / "data", source)
    assert {file.name: file.read_bytes() for file in (tmp_path / "data" / "omniglot").iterdir()} == {
        "images_background.zip": b"mine",
        "images_evaluation.zip": b"images_evaluation",
    }
    download_omniglot(tmp_path / "data", "http://nowhere.invalid")  # nothing is left to fetch


def test_another_file_than_the_published_one_is_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / "served" / "images_background.zip").write_bytes(b"other")
    with pytest.raises(DataError, match=r"MD5 hash of downloaded file.* does not match.*" + BY_HAND):
        download_omniglot(tmp_path / "data", source)
    assert [file.name for file in (tmp_path / "data").rglob("*.zip")] == []


def test_without_a_network_it_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(DataError, match=r"images_background\.zip could not be downloaded: .*" + BY_HAND):
        download_omniglot(tmp_path, "http://127.0.0.1:9")


def test_without_pooch_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DataError, match=r"pip install 'fewstep\[data\]'`\. Or: " + BY_HAND):
        download_omniglot(tmp_path)
