"""A policy named by its repository on the hub: downloaded by revision, or refused in one line that says what to do.

The hub is a server on loopback that speaks what huggingface_hub's own client asks for.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.cli

REPOSITORY = Path(__file__).parents[4]
COMMIT, OLDER = "a" * 40, "b" * 40
TOKEN = "hf_not_to_be_told"
WEIGHTS = bytes(range(256)) * 2**17  # 32 MiB: the client writes 10 MiB at a time
FILES = {
    "config.json": b'{"model_type": "qwen3_vl"}',
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"never fetched",
    "modelling.py": b"never fetched",
}


class Hub(ThreadingHTTPServer):
    """Repositories `open/tiny` and `gated/tiny`; keeps every request, and may drop the weights halfway."""

    def __init__(self, drops: int = 0, size: int = 0):
        super().__init__(("127.0.0.1", 0), Repository)
        self.drops, self.size, self.asked = drops, size, []


class Repository(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.asked.append((self.command, self.path, self.headers.get("Range")))
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/(\w+/\w+)/(revision|tree)/([\w.-]+)", path):
            self.describe(*match.groups())
        elif match := re.fullmatch(r"/(\w+/\w+)/resolve/([\w.-]+)/([\w.]+)", path):
            self.send_file(match[3], OLDER if match[2] == "v1" else match[2])
        else:
            self.refuse(404, "EntryNotFound")

    def describe(self, repository, what, revision):
        if repository == "gated/tiny":
            return self.refuse(403, "GatedRepo")
        if repository != "open/tiny":
            return self.refuse(401, "RepoNotFound")
        if revision not in ("main", "v1", COMMIT, OLDER):
            return self.refuse(404, "RevisionNotFound")
        sha = OLDER if revision in ("v1", OLDER) else COMMIT
        entries = [{"type": "file", "oid": oid(data), "size": len(data), "path": name} for name, data in FILES.items()]
        for entry in entries:
            entry["size"] = entry["size"] + self.server.size * (entry["path"] == "model.safetensors")
        found = {"id": repository, "sha": sha, "siblings": [{"rfilename": name} for name in FILES]}
        return self.answer(200, json.dumps(found if what == "revision" else entries).encode())

    def send_file(self, name, commit):
        data = FILES[name]
        first = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "bytes=0-")[1])
        self.send_response(206 if first else 200)
        self.send_header("ETag", f'"{oid(data)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header(
            "Content-Length", str(len(data) - first + (self.server.size if name.startswith("model.") else 0))
        )
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if name == "model.safetensors" and self.server.drops:
            self.server.drops -= 1
            self.wfile.write(data[first : len(data) // 2])
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(data[first:])

    def refuse(self, code, reason):
        self.answer(code, json.dumps({"error": reason}).encode(), reason)

    def answer(self, code, body, reason=""):
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        if reason:
            self.send_header("X-Error-Code", reason)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def oid(data):
    return hashlib.sha1(data).hexdigest()


@contextmanager
def hub(**options):
    with Hub(**options) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


PROGRAM = """
import logging, sys
logging.basicConfig(level="DEBUG")
from rich.console import Console
from rl.config.errors import ConfigError
from rl.config.policy import PolicyConfig
from rl.run.prepare.hub import download
for revision in sys.argv[2].split(","):
    try:
        print(download(PolicyConfig(path=sys.argv[1], revision=revision), Console()))
    except ConfigError as error:
        print("error:", error)
"""


def fetch(home, server, repository="open/tiny", revisions="", **environment):
    """What a process prints that downloads a repository at each of some revisions, with all that it logs."""
    address = f"http://127.0.0.1:{server.server_address[1]}" if server else "http://127.0.0.1:9"
    named = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"} | environment
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, repository, revisions],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "*"} | named,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert TOKEN not in done.stdout + done.stderr
    return done.stdout.strip().splitlines()


def test_a_repository_is_downloaded_without_code_or_pickles_and_then_found_without_the_hub(tmp_path):
    with hub() as server:
        begun, ended, folder = fetch(tmp_path, server)
    assert re.search(r"downloading open/tiny \(a{12}, 0\.0 GB\), file by file …$", begun) and "done in" in ended
    assert sorted(path.name for path in Path(folder).iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (Path(folder) / "model.safetensors").read_bytes() == WEIGHTS
    assert fetch(tmp_path, None, HF_HUB_OFFLINE="1") == [folder]
    with hub() as server:
        assert fetch(tmp_path, server) == [folder]
        assert not [asked for asked in server.asked if asked[0] == "GET" and "/resolve/" in asked[1]]


def test_what_was_interrupted_goes_on_where_it_stopped_at_the_revision_that_was_asked_for(tmp_path):
    with hub(drops=100) as server:
        *_, said = fetch(tmp_path, server, revisions="v1")
        assert re.search(
            r"error: policy\.path=open/tiny: http://.* did not give it \(\w+\); give the command again", said
        )
        server.drops = 0
        *_, folder, again = fetch(tmp_path, server, revisions=f"{OLDER},v1")  # a commit's files, and no list of them
        resumed = [byte_range for _, path, byte_range in server.asked if "model.safetensors" in path and byte_range]
    assert Path(folder).name == OLDER and again == folder
    assert (Path(folder) / "model.safetensors").read_bytes() == WEIGHTS
    assert f"bytes={10 * 2**20}-" in resumed


def test_every_refusal_is_one_line_that_says_what_to_do(tmp_path):
    with hub(size=2**60) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        (absent,) = fetch(tmp_path, server, "nobody/nothing")
        (gated,) = fetch(tmp_path, server, "gated/tiny")
        (revision, large) = fetch(tmp_path, server, revisions="v9,main")
    assert absent.endswith(
        f"policy.path=nobody/nothing: neither a folder here nor a repository at {address} that this machine may read; "
        "check the name, or `hf auth login` if it is a private one"
    )
    assert f"accept its terms at {address}/gated/tiny, then `hf auth login`" in gated
    assert revision == "error: policy.revision: policy.path=open/tiny has no revision 'v9'"
    assert re.search(r"open/tiny, downloaded to HF_HOME, takes 1073741824\.\d GiB and a spare one, .* GiB free", large)


def test_without_a_network_the_command_is_told_that_downloads_where_there_is_one(tmp_path):
    (offline,) = fetch(tmp_path, None, revisions="v1", HF_HUB_OFFLINE="1")
    (unreachable,) = fetch(tmp_path, None, revisions="v1")
    by_hand = "`hf download open/tiny --revision v1 --local-dir models/tiny`, and set policy.path=models/tiny"
    assert "HF_HUB_OFFLINE is set; " in offline and offline.endswith(by_hand)
    assert "http://127.0.0.1:9 did not give it (ConnectError)" in unreachable and unreachable.endswith(by_hand)
