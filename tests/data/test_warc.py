"""Web archives: pages and texts come out whole, everything else is counted with its reason."""

import gzip
import json

import pytest

from tilth.data.auto import AutoInput
from tilth.data.records import Quarantine
from tilth.data.warc import WarcInput, decoded
from tilth.recipe import BadInput

pytest.importorskip("fastwarc", reason="needs tilth[web]")
pytest.importorskip("resiliparse", reason="needs tilth[web]")


def entry(kind: str, body: bytes, number: int, uri: str = "http://a.org/x", content_type: str = "") -> bytes:
    head = (f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:0000000{number}>\r\n"
            f"WARC-Date: 2024-01-02T03:04:05Z\r\nWARC-Target-URI: {uri}\r\n"
            f"Content-Type: {content_type or 'application/http; msgtype=response'}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n")
    return head.encode() + body + b"\r\n\r\n"


def response(text: bytes, status: str = "200 OK", content_type: str = "text/html; charset=utf-8",
             more: str = "") -> bytes:
    return (f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n{more}Content-Length: {len(text)}\r\n\r\n"
            ).encode() + text


PAGES = [
    entry("warcinfo", b"software: x", 0, content_type="application/warc-fields"),
    entry("response", response("<p>Grüße</p>".encode()), 1, "http://a.org/1"),
    entry("request", b"GET / HTTP/1.1\r\n\r\n", 2),
    entry("response", response(b"gone", "404 Not Found"), 3),
    entry("response", response(b"\x89PNG", content_type="image/png"), 4),
    entry("response", response("<p>Grüße</p>".encode("latin-1"), content_type="text/html; charset=iso-8859-1"), 5),
    entry("response", response(gzip.compress(b"<p>packed</p>"), more="Content-Encoding: gzip\r\n"), 6),
    entry("response", response(b"  \n"), 7),
]


def read(path, **fields) -> tuple[list[dict], Quarantine]:
    with Quarantine() as quarantine:
        batches = list(WarcInput(path=str(path), **fields).read(quarantine))
    return [row for batch in batches for row in batch.to_pylist()], quarantine


@pytest.fixture(params=["plain", "gzip"])
def archive(request, tmp_path):
    path = tmp_path / ("a.warc" if request.param == "plain" else "a.warc.gz")
    path.write_bytes(b"".join(PAGES if request.param == "plain" else [gzip.compress(page) for page in PAGES]))
    return path


def test_pages_come_decoded_and_the_rest_is_counted(archive):
    records, quarantine = read(archive, license="unknown")
    assert [record["text"] for record in records] == ["<p>Grüße</p>", "<p>Grüße</p>", "<p>packed</p>"]
    assert [record["id"] for record in records] == ["00000001", "00000005", "00000006"]
    assert json.loads(records[0]["metadata"]) == {
        "url": "http://a.org/1", "date": "2024-01-02T03:04:05Z", "content_type": "text/html"}
    assert quarantine.counts == {"HTTP status": 1, "content type": 1, "empty text": 1}


def test_texts_of_wet_files(tmp_path):
    path = tmp_path / "a.wet.gz"
    path.write_bytes(gzip.compress(entry("conversion", "Zwölf Wörter".encode(), 1, content_type="text/plain")))
    with Quarantine() as quarantine:
        [batch] = AutoInput(path=str(tmp_path)).read(quarantine)
    assert batch.column("text").to_pylist() == ["Zwölf Wörter"] and not quarantine.total


def test_unreadable_bytes_become_text_by_what_they_look_like():
    assert decoded("Grüße".encode("latin-1"), None) == "Grüße"
    assert decoded("Grüße".encode(), "klingon") == "Grüße"
    assert isinstance(decoded(bytes(range(256)), "utf-8"), str)


def test_an_archive_cut_short_gives_what_is_whole_and_says_so(tmp_path):
    path = tmp_path / "a.warc.gz"
    whole = gzip.compress(PAGES[1])
    path.write_bytes(whole + gzip.compress(PAGES[5])[:-20])
    records, quarantine = read(path)
    assert [record["id"] for record in records][:1] == ["00000001"]
    assert len(records) + quarantine.total >= 1


def test_records_and_archives_have_their_limits(archive):
    records, quarantine = read(archive, max_record_bytes=10)
    assert not records and quarantine.counts["longer than max_record_bytes"] == 3
    with pytest.raises(BadInput, match="unpacks to more than 40 bytes"):
        read(archive, max_decompressed_bytes=40)
