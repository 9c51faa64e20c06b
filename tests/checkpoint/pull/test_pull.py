"""Whole pulls from a server that misbehaves; the server and the puller are in conftest.py."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expertfleet.checkpoint.errors import CheckpointError
from expertfleet.checkpoint.files import INDEX_FILE, SINGLE_FILE, CheckpointFiles
from expertfleet.checkpoint.pull.errors import PullError, StatusError
from expertfleet.checkpoint.pull.partial import Partial

SHARD = "model-00002-of-000004.safetensors"
NANO_K2 = Path(__file__).parents[3] / "demo" / "nano-k2"
# Fixtures' types: tests are no package, so their classes cannot be imported.
FileServer = Any
Puller = Any
Serve = Callable[[Path], FileServer]


def assert_equal(directory: Path, source: Path) -> None:
    for path in source.glob("*"):
        if path.name != "make_tiny.json":
            assert (directory / path.name).read_bytes() == path.read_bytes(), path.name
    with CheckpointFiles.open(directory) as pulled, CheckpointFiles.open(source) as original:
        assert pulled.fingerprint == original.fingerprint


def leave_partial(puller: Puller, content: bytes, etag: str) -> None:
    """What a process that was killed leaves."""
    puller.directory.mkdir(exist_ok=True)
    (puller.directory / f"{SHARD}.partial").write_bytes(content)
    (puller.directory / f"{SHARD}.partial.etag").write_text(etag)


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def test_all_files_that_a_loader_reads_arrive_and_no_others(site: FileServer, tiny: Path, puller: Puller) -> None:
    report = puller(site)
    assert_equal(puller.directory, tiny)
    names = {path.name for path in puller.directory.iterdir()}
    assert names == {path.name for path in tiny.iterdir()} - {"make_tiny.json"}
    assert (report.num_files, report.bytes_received) == (len(names), report.num_bytes)
    (line,) = puller.said
    assert line.startswith(f"no checksum is known for {len(names)} of {len(names)} files: chat_template.jinja, config")


def test_a_second_pull_fetches_nothing(site: FileServer, puller: Puller) -> None:
    site.add_sums()
    puller(site)
    site.seen.clear()
    report = puller(site)
    assert [seen.name for seen in site.seen if seen.method == "GET"] == ["SHA256SUMS"]
    assert report.bytes_received == 0
    assert puller.said == []


def test_a_single_file_without_index_will_do(serve: Serve, puller: Puller) -> None:
    site = serve(NANO_K2)
    del site.files[INDEX_FILE]
    report = puller(site)
    assert (puller.directory / SINGLE_FILE).read_bytes() == site.files[SINGLE_FILE]
    assert report.num_files == 6


def test_broken_connections_are_continued_where_they_broke(site: FileServer, tiny: Path, puller: Puller) -> None:
    """More breaks than tries: each brings bytes, and that counts."""
    site.cuts[SHARD] = [1000] * 9
    report = puller(site)
    asked = site.gets(SHARD)
    assert [headers.get("range") for headers in asked] == [None, *(f"bytes={1000 * n}-" for n in range(1, 10))]
    assert {headers["if-range"] for headers in asked[1:]} == {site.etag(SHARD)}
    assert_equal(puller.directory, tiny)
    assert report.bytes_received == report.num_bytes, "no byte came twice"


def test_breaks_that_bring_nothing_come_to_an_end(site: FileServer, puller: Puller) -> None:
    site.cuts[SHARD] = [5000, *[0] * 99]
    with pytest.raises(PullError, match=rf"{site.url}/{SHARD}: .*; given up after 6 tries"):
        puller(site)
    assert len(site.gets(SHARD)) == 1 + 6 - 1
    assert (puller.directory / f"{SHARD}.partial").stat().st_size == 5000


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_servers_are_asked_again(site: FileServer, tiny: Path, puller: Puller, status: int) -> None:
    site.statuses[SHARD] = [(status, {})] * 5
    puller(site)
    assert_equal(puller.directory, tiny)
    assert sum(f"{SHARD}: HTTP {status}; try " in line for line in puller.said) == 5


def test_a_server_that_stays_busy_ends_the_pull(site: FileServer, puller: Puller) -> None:
    site.statuses[SHARD] = [(503, {})] * 6
    with pytest.raises(PullError, match=rf"{SHARD}: HTTP 503; given up after 6 tries"):
        puller(site)


def test_retry_after_is_waited_for(site: FileServer, puller: Puller) -> None:
    site.statuses[SHARD] = [(429, {"Retry-After": "1"})]
    start = time.monotonic()
    puller(site)
    assert time.monotonic() - start >= 1.0


def test_a_refusal_ends_the_pull_at_once(site: FileServer, puller: Puller) -> None:
    site.heeds_head = False
    site.statuses[SHARD] = [(405, {}), (403, {})]
    with pytest.raises(StatusError) as caught:
        puller(site)
    assert str(caught.value) == f"{site.url}/{SHARD}: HTTP 403"
    assert len(site.gets(SHARD)) == 1


def test_a_refusal_keeps_what_is_there(site: FileServer, tiny: Path, puller: Puller) -> None:
    leave_partial(puller, site.files[SHARD][:9000], site.etag(SHARD))
    site.statuses[SHARD] = [(403, {})] * 2
    with pytest.raises(StatusError):
        puller(site)
    puller(site)
    assert site.gets(SHARD)[-1]["range"] == "bytes=8998-", "a byte is given up each time"
    assert_equal(puller.directory, tiny)


def test_what_a_killed_process_left_is_continued(site: FileServer, tiny: Path, puller: Puller) -> None:
    leave_partial(puller, site.files[SHARD][:9000], site.etag(SHARD))
    report = puller(site)
    assert [(headers["range"], headers["if-range"]) for headers in site.gets(SHARD)] == [
        ("bytes=8999-", site.etag(SHARD))
    ]
    assert report.bytes_received == report.num_bytes - 8999
    assert_equal(puller.directory, tiny)
    assert puller.left() == []


def test_a_partial_file_that_is_whole_only_needs_its_end(site: FileServer, tiny: Path, puller: Puller) -> None:
    leave_partial(puller, site.files[SHARD], site.etag(SHARD))
    puller(site)
    assert site.gets(SHARD)[0]["range"] == f"bytes={len(site.files[SHARD]) - 1}-"
    assert_equal(puller.directory, tiny)


@pytest.mark.parametrize("etag", ['"another-version"', "", 'W/"weak"', '"torn'])
def test_bytes_of_another_or_unknown_version_are_given_up(
    site: FileServer, tiny: Path, puller: Puller, etag: str
) -> None:
    leave_partial(puller, b"x" * 9000, etag)
    puller(site)
    assert_equal(puller.directory, tiny)


def test_a_server_that_overlooks_if_range_cannot_mix_versions(site: FileServer, tiny: Path, puller: Puller) -> None:
    site.heeds_if_range = False
    leave_partial(puller, b"x" * 9000, '"another-version"')
    puller(site)
    assert [headers.get("range") for headers in site.gets(SHARD)] == ["bytes=8999-", None]
    assert_equal(puller.directory, tiny)


def test_bytes_beyond_the_end_are_given_up(site: FileServer, tiny: Path, puller: Puller) -> None:
    leave_partial(puller, b"x" * (len(site.files[SHARD]) + 10), site.etag(SHARD))
    puller(site)
    assert [headers.get("range") for headers in site.gets(SHARD)] == [f"bytes={len(site.files[SHARD]) + 9}-", None]
    assert_equal(puller.directory, tiny)


def test_a_server_that_ignores_range_is_read_from_the_start(site: FileServer, tiny: Path, puller: Puller) -> None:
    site.heeds_range = False
    site.cuts[SHARD] = [4000, 4000]
    report = puller(site)
    assert len(site.gets(SHARD)) == 3
    assert report.bytes_received == report.num_bytes + 8000
    assert_equal(puller.directory, tiny)


def test_without_an_etag_a_break_starts_anew(site: FileServer, tiny: Path, puller: Puller) -> None:
    site.etags[SHARD] = "unquoted"
    site.cuts[SHARD] = [4000]
    puller(site)
    assert_equal(puller.directory, tiny)


def test_a_version_that_changes_under_way_starts_anew(site: FileServer, puller: Puller) -> None:
    site.cuts[SHARD] = [4000]
    new = flipped(site.files[SHARD])
    said = puller.said.append

    def change(line: str) -> None:
        site.files[SHARD] = new
        said(line)

    puller.said = type("Said", (list,), {"append": staticmethod(change)})()
    puller(site)
    assert (puller.directory / SHARD).read_bytes() == new


def test_a_corrupted_byte_is_found_and_its_file_deleted(site: FileServer, tiny: Path, puller: Puller) -> None:
    site.add_sums()
    good = site.files[SHARD]
    site.files[SHARD] = flipped(good)
    got, expected = hashlib.sha256(site.files[SHARD]).hexdigest(), hashlib.sha256(good).hexdigest()
    with pytest.raises(PullError, match=rf"{site.url}/{SHARD}: SHA-256 is {got}, must be {expected}"):
        puller(site)
    assert not (puller.directory / SHARD).exists()
    assert not {f"{SHARD}.partial", f"{SHARD}.partial.etag"} & set(puller.left())
    site.files[SHARD] = good
    puller(site)
    assert_equal(puller.directory, tiny)


def test_a_finished_file_with_a_wrong_byte_or_size_is_pulled_again(
    site: FileServer, tiny: Path, puller: Puller
) -> None:
    site.add_sums()
    puller(site)
    (puller.directory / SHARD).write_bytes(flipped(site.files[SHARD]))
    (puller.directory / "config.json").write_bytes(b"{}")
    puller(site)
    assert_equal(puller.directory, tiny)
    assert [line.rpartition("; ")[2] for line in puller.said] == ["pulled again"] * 2


def test_checksums_can_come_from_a_file_or_another_address(
    site: FileServer, serve: Serve, tiny: Path, tmp_path: Path, puller: Puller
) -> None:
    wrong = f"{'0' * 64}  {SHARD}\n"
    (tmp_path / "sums").write_text(wrong)
    with pytest.raises(PullError, match=rf"{SHARD}: SHA-256 is \w+, must be 0{{64}}"):
        puller(site, sha256sums=str(tmp_path / "sums"))
    elsewhere = serve(tiny)
    elsewhere.files["sums"] = wrong.encode()
    with pytest.raises(PullError, match=rf"{SHARD}: SHA-256 is \w+, must be 0{{64}}"):
        puller(site, sha256sums=f"{elsewhere.url}/sums", token="s3cret")
    assert "authorization" not in elsewhere.gets("sums")[0]
    with pytest.raises(StatusError, match="/none: HTTP 404"):
        puller(site, sha256sums=f"{elsewhere.url}/none")
    with pytest.raises(OSError, match="No such file"):
        puller(site, sha256sums=str(tmp_path / "none"))


def test_storage_that_answers_403_for_what_is_not_there_has_no_sums(site: FileServer, puller: Puller) -> None:
    site.statuses["SHA256SUMS"] = [(403, {})]
    assert puller(site).num_files == 10


def test_the_hubs_own_checksum_counts(site: FileServer, serve: Serve, tiny: Path, puller: Puller) -> None:
    hub = site
    storage = serve(tiny)
    hub.redirect_to = storage.url
    size = str(len(hub.files[SHARD]))
    hub.headers[SHARD] = {"X-Linked-ETag": f'"{"0" * 64}"', "X-Linked-Size": size, "X-Repo-Commit": "c0ffee"}
    storage.etags[SHARD] = storage.etags["tiktoken.model"] = f'"{"1" * 64}"'
    with pytest.raises(PullError, match=rf"{hub.url}/{SHARD}: SHA-256 is \w+, must be 0{{64}}"):
        puller(hub)
    hub.headers[SHARD]["X-Linked-ETag"] = hashlib.sha256(hub.files[SHARD]).hexdigest()
    puller(hub)
    assert_equal(puller.directory, tiny)
    assert "no checksum is known for 9 of 10 files" in puller.said[-1], "an ETag of 64 digits is not always a checksum"


def test_an_etag_that_the_hub_answers_with_itself_counts_too(site: FileServer, puller: Puller) -> None:
    site.etags["tiktoken.model"] = f'"{"1" * 64}"'
    site.headers["tiktoken.model"] = {"X-Repo-Commit": "c0ffee"}
    with pytest.raises(PullError, match=r"tiktoken\.model: SHA-256 is \w+, must be 1{64}"):
        puller(site)


def test_the_token_is_sent_to_the_base_address_alone(
    site: FileServer, serve: Serve, tiny: Path, puller: Puller
) -> None:
    storage = serve(tiny)
    site.redirect_to = storage.url
    storage.cuts[SHARD] = [10]
    puller(site, token="s3cret")
    assert {seen.headers.get("authorization") for seen in site.seen} == {"Bearer s3cret"}
    assert len(storage.seen) >= 20
    assert [headers.get("range") for headers in storage.gets(SHARD)] == [None, "bytes=10-"]
    assert {seen.headers.get("authorization") for seen in storage.seen} == {None}
    assert "s3cret" not in "".join(puller.said)


def test_a_token_that_cannot_be_a_header_is_refused_without_being_shown(site: FileServer, puller: Puller) -> None:
    with pytest.raises(PullError, match="token must be printable") as caught:
        puller(site, token="s3cret\r\nX-Other: 1")
    assert "s3cret" not in str(caught.value)
    assert site.seen == []


def test_a_signature_in_the_address_is_sent_and_not_shown(site: FileServer, puller: Puller) -> None:
    site.statuses[SHARD] = [(503, {}), (403, {}), (403, {})]
    with pytest.raises(StatusError) as caught:
        puller(site, url=f"{site.url}/?sig=s3cret%2Fx")
    assert {seen.query for seen in site.seen} == {"sig=s3cret%2Fx"}
    assert str(caught.value) == f"{site.url}/{SHARD}: HTTP 403"
    assert "s3cret" not in "".join(puller.said)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("ftp://host/x", "begins with http"),
        ("host/x", "begins with http"),
        ("http://user:s3cret@host/x", "no user, password"),
        ("http://host/x#y", "fragment"),
        ("http://host:s3cret/x", "not an address"),
    ],
)
def test_a_base_address_that_is_none_is_refused(url: str, problem: str, site: FileServer, puller: Puller) -> None:
    with pytest.raises(PullError, match=problem) as caught:
        puller(site, url=url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "file", ["../evil.safetensors", "/tmp/evil.safetensors", "..", "evil.sh", "a\nb.safetensors", ""]
)
def test_a_hostile_index_cannot_write_elsewhere(site: FileServer, puller: Puller, tmp_path: Path, file: str) -> None:
    index = json.loads(site.files[INDEX_FILE])
    index["weight_map"]["model.norm.weight"] = file
    site.files[INDEX_FILE] = json.dumps(index).encode()
    site.files["evil.safetensors"] = site.files["evil.sh"] = b"evil"
    with pytest.raises(
        CheckpointError, match=r"model\.norm\.weight: .* is not the name of a safetensors file"
    ) as caught:
        puller(site)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["pulled"]
    assert not any("safetensors" in path.name for path in puller.directory.iterdir() if path.name != INDEX_FILE)


def test_strange_names_are_quoted(site: FileServer, puller: Puller) -> None:
    index = site.files[INDEX_FILE].decode().replace(SHARD, "a b%2f?#.safetensors")
    site.files["a b%2f?#.safetensors"] = site.files.pop(SHARD)
    site.files[INDEX_FILE] = index.encode()
    puller(site)
    assert (puller.directory / "a b%2f?#.safetensors").read_bytes() == site.files["a b%2f?#.safetensors"]


def test_too_little_space_is_said_before_any_shard_comes(
    site: FileServer, puller: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = sum(len(content) for name, content in site.files.items() if name.endswith(".safetensors"))
    free = (64 << 20) + shards - 1
    monkeypatch.setattr("expertfleet.checkpoint.pull.pull.free_bytes", lambda directory: free)
    with pytest.raises(PullError, match=rf"{puller.directory}: 0\.1 GB more needed, 0\.1 GB free"):
        puller(site)
    assert site.gets(SHARD) == []
    leave_partial(puller, site.files[SHARD][:1], site.etag(SHARD))
    assert puller(site).num_files == 10, "what is there already needs no room"
    free = 0
    assert puller(site).num_files == 10, "a full disk does where nothing is to come"


def test_what_the_loader_can_do_without_may_be_missing(site: FileServer, puller: Puller) -> None:
    del site.files["generation_config.json"]
    assert puller(site).num_files == 9
    (puller.directory / "generation_config.json").write_text("{}")
    with pytest.raises(PullError, match=r"generation_config\.json: the source has no such file; remove it"):
        puller(site)


def test_what_is_refused_is_not_taken_for_missing(site: FileServer, puller: Puller) -> None:
    site.statuses["generation_config.json"] = [(403, {})] * 2
    with pytest.raises(StatusError, match=r"generation_config\.json: HTTP 403"):
        puller(site)


@pytest.mark.parametrize("heeds_head", [True, False])
@pytest.mark.parametrize("name", ["config.json", "tiktoken.model", "tokenizer_config.json", SHARD])
def test_what_the_loader_needs_may_not_be_missing(
    site: FileServer, puller: Puller, name: str, heeds_head: bool
) -> None:
    site.heeds_head = heeds_head
    del site.files[name]
    with pytest.raises(StatusError, match=rf"{site.url}/{name}: HTTP 404"):
        puller(site)


def test_a_checkpoint_that_cannot_be_served_costs_no_shard(site: FileServer, puller: Puller) -> None:
    site.files["config.json"] = b'{"model_type": "other"}'
    with pytest.raises(CheckpointError, match=r"config\.json: architectures"):
        puller(site)
    assert site.gets(SHARD) == []


def test_an_index_without_a_needed_tensor_costs_no_shard(site: FileServer, puller: Puller) -> None:
    index = json.loads(site.files[INDEX_FILE])
    renamed = {f"language_model.{name}": file for name, file in index["weight_map"].items()}
    site.files[INDEX_FILE] = json.dumps({"weight_map": renamed}).encode()
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight: is in no file .* begin with 'language_model\.'"):
        puller(site)
    assert site.gets(SHARD) == []


def test_a_server_without_head_will_do(site: FileServer, tiny: Path, puller: Puller) -> None:
    site.heeds_head = False
    del site.files["generation_config.json"]
    puller(site)
    (puller.directory / "generation_config.json").write_bytes((tiny / "generation_config.json").read_bytes())
    assert_equal(puller.directory, tiny)
    assert puller.left() == []


def test_a_file_whose_end_nothing_tells_is_refused(site: FileServer, tiny: Path, puller: Puller) -> None:
    site.sends_length = False
    with pytest.raises(PullError, match="nothing would tell whether it is whole"):
        puller(site)
    site.add_sums()
    puller(site)
    assert_equal(puller.directory, tiny)


def test_a_compressed_answer_is_refused(site: FileServer, puller: Puller) -> None:
    site.headers["config.json"] = {"Content-Encoding": "gzip"}
    with pytest.raises(PullError, match=r"config\.json: comes as gzip"):
        puller(site)


def test_two_pulls_do_not_write_one_file(site: FileServer, puller: Puller) -> None:
    puller.directory.mkdir()
    other = Partial(puller.directory, SHARD, puller.said.append)
    try:
        with pytest.raises(PullError, match=rf"{SHARD}\.partial: another process is pulling it"):
            puller(site)
    finally:
        other.close()
    puller(site)


def test_a_process_killed_under_way_is_continued(serve: Serve, puller: Puller) -> None:
    site = serve(NANO_K2)
    site.bytes_per_s = 8e6
    code = "import sys; from pathlib import Path; from expertfleet.checkpoint.pull.pull import pull; "
    code += "pull(sys.argv[1], Path(sys.argv[2]), jobs=2, say=print)"
    process = subprocess.Popen([sys.executable, "-c", code, site.url, str(puller.directory)], env=dict(os.environ))
    partial = puller.directory / f"{SINGLE_FILE}.partial"
    try:
        while not partial.exists() or partial.stat().st_size < 3 << 20:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert not (puller.directory / SINGLE_FILE).exists()
    left = partial.stat().st_size
    site.bytes_per_s = None
    report = puller(site)
    assert site.gets(SINGLE_FILE)[-1]["range"] == f"bytes={left - 1}-"
    assert report.bytes_received == len(site.files[SINGLE_FILE]) - left + 1
    assert (puller.directory / SINGLE_FILE).read_bytes() == site.files[SINGLE_FILE]
    assert puller.left() == []
