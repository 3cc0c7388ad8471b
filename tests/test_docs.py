"""The documentation builds strictly, and its references are whole."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from rl.config.reference import configuration_reference
from rl.tracking.metrics import metrics_reference

REPOSITORY = Path(__file__).parents[1]
SITE = REPOSITORY / "build" / "site"

pytestmark = pytest.mark.cli


@pytest.fixture(scope="module")
def site():
    """The built site, and what the builder printed."""
    built = subprocess.run(
        [sys.executable, "docs/build.py"], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return re.sub(r"\x1b\[[0-9;]*m", "", built.stdout + built.stderr)


def test_no_link_or_anchor_leads_nowhere_and_every_docstring_is_read(site):
    assert "No issues found" in site
    assert "griffe:" not in site, site


def test_the_references_name_every_key_metric_and_command(site):
    pages = {name: (SITE / "reference" / name / "index.html").read_text() for name in ("configuration", "metrics")}
    keys = [key.name for section in configuration_reference() for key in section.keys]
    assert len(keys) > 150 and [key for key in keys if f"<code>{key}</code>" not in pages["configuration"]] == []
    assert [row for row in metrics_reference() if f"<code>{row.name}</code>" not in pages["metrics"]] == []


def test_nothing_is_fetched_from_elsewhere_when_a_page_is_read(site):
    for page in SITE.rglob("*.html"):
        fetched = re.findall(r'(?:src|href)="(https?:)?//[^"]+\.(?:js|css|woff2?)"', page.read_text())
        assert fetched == [], page
