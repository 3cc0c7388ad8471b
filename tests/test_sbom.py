"""The bill of materials names every pinned package; an audit without a network checks nothing, and says so."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from cluster.sbom import OWN, write_bill

REPOSITORY = Path(__file__).parents[1]
TORCH = re.search(r"^TORCH := (\S+)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)[1]  # has a pin of its own
PIN = re.compile(r"^([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?==(\S+)", re.MULTILINE)


@pytest.fixture(scope="module")
def bill(tmp_path_factory):
    path = tmp_path_factory.mktemp("build") / "deep" / "sbom.json"
    assert write_bill(path) > 100
    return json.loads(path.read_text())


def test_every_pinned_requirement_is_in_the_bill_as_it_is_installed(bill):
    pinned = dict(PIN.findall((REPOSITORY / "cluster" / "requirements-cpu.txt").read_text()))
    listed = {canonicalize_name(one["name"]): one["version"] for one in bill["components"]}
    assert len(pinned) > 200
    assert {name: listed.get(canonicalize_name(name)) for name in pinned} == pinned


def test_the_pins_are_within_what_a_wheel_asks_for():
    """Who installs the wheel resolves the ranges anew; what is tested here are the pins."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    pins = PIN.findall((REPOSITORY / "cluster" / "requirements-cpu.txt").read_text())
    pinned = {"torch": TORCH} | {canonicalize_name(name): version for name, version in pins}
    asked = [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["cpu"])]
    wrong = [str(one) for one in asked if not one.specifier.contains(pinned.get(canonicalize_name(one.name), "0"))]
    assert len(asked) > 25 and wrong == []


def test_the_pins_install_on_the_python_that_the_images_have():
    """Debian 12's, which `make setup` recommends, too: an early 3.11, which some releases no longer take."""
    pins = PIN.findall((REPOSITORY / "cluster" / "requirements-cpu.txt").read_text())
    needs = {name: distribution(name).metadata["Requires-Python"] or "" for name, _ in pins}
    assert {name: python for name, python in needs.items() if not SpecifierSet(python).contains("3.11.2")} == {}


def test_each_package_has_a_name_that_others_understand_and_most_say_their_licence(bill):
    assert bill["bomFormat"] == "CycloneDX" and bill["metadata"]["component"]["name"] == OWN
    assert all(one["purl"].startswith("pkg:pypi/") for one in bill["components"])
    told = [one["name"] for one in bill["components"] if one.get("licenses")]
    assert len(told) > 0.8 * len(bill["components"])


def test_what_this_project_needs_is_known_to_be_needed_by_it(bill):
    needs = {one["ref"]: one.get("dependsOn", ()) for one in bill["dependencies"]}
    root = bill["metadata"]["component"]["bom-ref"]
    needed = {canonicalize_name(re.match(r"pkg:pypi/([^@]+)@", ref)[1]) for ref in needs[root]}
    asked = [Requirement(text) for text in requires(OWN)]
    assert needed == {canonicalize_name(one.name) for one in asked if not one.marker}
    assert distribution("ray").version in " ".join(needs[root])


@pytest.mark.cli
def test_an_audit_without_a_network_checks_nothing_says_so_and_fails_nothing(tmp_path):
    answer = subprocess.run(
        ["bash", "cluster/audit.sh", str(tmp_path / "audit"), sys.executable],
        cwd=REPOSITORY,
        env=os.environ | {"AUDIT_INDEX": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("audit: SKIPPED, nothing was checked: no answer from http://127.0.0.1:9/pypi/")
