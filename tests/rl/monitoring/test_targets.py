"""The addresses of all Rays that run on a machine, from the lists that they keep themselves."""

import json
import os

from rl.monitoring.targets import FRESH_S, LIST, RaySession, running_sessions, write_targets

NOW_S = 1_000_000.0


def session(folder, name, *addresses, age_s=0.0, text=None):
    place = folder / name
    place.mkdir()
    listed = [{"labels": {"job": "ray"}, "targets": list(addresses)}]
    (place / LIST).write_text(json.dumps(listed) if text is None else text)
    os.utime(place / LIST, (NOW_S - age_s, NOW_S - age_s))
    return place


def test_every_ray_that_runs_is_found_and_one_that_has_ended_is_not(tmp_path):
    first = session(tmp_path, "session_1", "127.0.0.1:4000", "127.0.0.1:4001")
    session(tmp_path, "session_2", "127.0.0.1:5000", age_s=FRESH_S - 1)
    session(tmp_path, "session_0", "127.0.0.1:3000", age_s=FRESH_S + 1)
    (tmp_path / "session_latest").symlink_to(first)  # as Ray makes it: no Ray of its own
    found = running_sessions(tmp_path, NOW_S)
    assert found == [
        RaySession("session_1", ("127.0.0.1:4000", "127.0.0.1:4001")),
        RaySession("session_2", ("127.0.0.1:5000",)),
    ]
    write_targets(tmp_path / "targets.json", found)
    (listed,) = json.loads((tmp_path / "targets.json").read_text())
    assert listed == {"targets": ["127.0.0.1:4000", "127.0.0.1:4001", "127.0.0.1:5000"]}


def test_a_list_that_cannot_be_read_is_left_out_until_it_can(tmp_path):
    for number, text in enumerate(("", "{", '{"targets": 1}', "[1]", '[{"targets": 5}]')):
        session(tmp_path, f"session_{number}", text=text)
    session(tmp_path, "session_9", "127.0.0.1:4000")
    assert [found.name for found in running_sessions(tmp_path, NOW_S)] == ["session_9"]


def test_without_a_ray_there_is_an_empty_list(tmp_path):
    assert running_sessions(tmp_path / "nowhere") == []
    write_targets(tmp_path / "targets.json", [])
    assert json.loads((tmp_path / "targets.json").read_text()) == []
