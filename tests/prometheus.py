"""A real Prometheus for tests: `dynframe monitor` in a process of its own, and questions to its API."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from rl.fault_injection.run_process import ProcessTree
from tests.calibration import within

REPOSITORY = Path(__file__).parents[1]
MISSING = [program for program in ("prometheus", "promtool") if shutil.which(program) is None]
needs_prometheus = pytest.mark.skipif(
    bool(MISSING), reason=f"no {' and no '.join(MISSING)} on PATH; Debian: apt-get install prometheus"
)


class Monitor:
    """`dynframe monitor` beside the Rays of a folder."""

    def __init__(self, folder: Path, ray_tmpdir: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        arguments = ["--port", str(self.port), "--folder", str(folder), "--every", "1", *options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rl", "monitor", *arguments],
            cwd=REPOSITORY,
            env=os.environ | {"RAY_TMPDIR": str(ray_tmpdir)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.tree = ProcessTree(self.process)
        self.said = [self.process.stdout.readline()]  # it answers, or has ended
        self.tree.refresh()

    def get(self, path: str, **parameters: object) -> dict:
        """The data of an answer of Prometheus."""
        asked = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}?{asked}", timeout=30) as answer:
            return json.load(answer)["data"]

    def series(self, expression: str, start_s: float, end_s: float) -> list[dict]:
        """What a query finds between two times, second by second."""
        return self.get("query_range", query=expression, start=start_s, end=end_s, step=1)["result"]

    def wait_for(self, expression: str, *, timeout_s: float = 60.0) -> list[dict]:
        """What a query finds, as soon as that is something."""
        deadline_s = time.monotonic() + within(timeout_s)
        while not (found := self.get("query", query=expression)["result"]):
            assert time.monotonic() < deadline_s, f"nothing for {expression}"
            time.sleep(0.2)  # a scrape is a second away
        return found

    def stop(self) -> int:
        """Ask it to stop, as a shell does; its exit code."""
        self.process.terminate()
        self.said += self.process.communicate(timeout=within(60))[0].splitlines(keepends=True)
        return self.process.returncode
