"""Dashboards and alerts speak of metrics that there are, and the files that are shipped are those made of them."""

import json
import re
from itertools import combinations

import pytest
import yaml

from rl.monitoring.dashboards import SHIPPED, dashboard, dashboard_text
from rl.monitoring.panels import SECTIONS
from rl.monitoring.prometheus import grafana_command
from rl.monitoring.queries import Query
from rl.tracking.metrics import METRICS, describe, prometheus_name

ALERTS = SHIPPED.parent / "alerts.yml"


def test_a_metric_that_was_renamed_has_no_query():
    with pytest.raises(KeyError, match="reward/samplin"):
        Query("rollout/reward/samplin")


def test_one_metric_is_one_curve_per_run_and_a_prefix_one_per_name():
    assert Query("reward/sampling").expression == 'max by (run) (ray_dynframe_reward_sampling{run=~"$run"})'
    assert Query("reward/sampling", "retrieval").curve == "{{run}} retrieval"
    terms = Query("reward/term/")
    assert '{__name__=~"ray_dynframe_reward_term_(.+)", run=~"$run"}' in terms.expression
    assert terms.expression.startswith("max by (run, part)") and terms.curve == "{{run}} {{part}}"


def test_faults_are_counters_and_none_is_a_zero():
    faults = Query("faults/").expression
    assert "ray_dynframe_faults_(.+)_total" in faults and "or on (run)" in faults and "0 * max" in faults


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_the_dashboards_that_are_shipped_are_those_of_the_panels(section):
    shipped = (SHIPPED / f"{section.name}.json").read_text()
    assert shipped == dashboard_text(section), "run `python -m rl.monitoring.dashboards`"


def test_every_dashboard_has_its_section():
    assert {path.stem for path in SHIPPED.glob("*.json")} == {section.name for section in SECTIONS}


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_panels_say_what_they_show_and_do_not_cover_each_other(section):
    panels = json.loads(json.dumps(dashboard(section)))["panels"]
    for one in panels:
        assert one["title"] and one["targets"]
        assert one["gridPos"]["x"] + one["gridPos"]["w"] <= 24
        metrics = [query for query in one["description"].split("\n\n") if query]
        assert metrics or "node" in one["title"] or one["title"].startswith("Object store")
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]


def test_grafana_finds_the_dashboards_and_the_prometheus_by_the_line_that_is_printed():
    line = grafana_command(9191)
    (source,) = yaml.safe_load((SHIPPED / "provisioning/datasources/dynframe.yml").read_text())["datasources"]
    assert source["url"] == "${DYNFRAME_PROMETHEUS}" and source["type"] == "prometheus"
    assert "DYNFRAME_PROMETHEUS=http://127.0.0.1:9191 " in line and f"DYNFRAME_DASHBOARDS={SHIPPED} " in line
    assert f"GF_PATHS_PROVISIONING={SHIPPED}/provisioning GF_SERVER_HTTP_ADDR=127.0.0.1 " in line
    (provider,) = yaml.safe_load((SHIPPED / "provisioning/dashboards/dynframe.yml").read_text())["providers"]
    assert provider["options"]["path"] == "${DYNFRAME_DASHBOARDS}"


def test_alerts_speak_of_metrics_that_there_are_and_say_what_to_do():
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    declared = {prometheus_name(name) for name in METRICS if not name.endswith("/")}
    spoken_of = {name for rule in rules for name in re.findall(r"ray_dynframe_[a-z_]+", rule["expr"])}
    assert len(spoken_of) > 10
    for name in spoken_of - declared:  # one of a prefix
        told = name.removeprefix("ray_dynframe_").removesuffix("_total").rstrip("_").replace("_", "/", 1)
        assert describe(f"{told}/") or describe(told), name
    recorded = {rule["record"] for rule in rules if "record" in rule}
    used = {name for rule in rules for name in re.findall(r"dynframe:\w+", rule["expr"])}
    assert used <= recorded
    for rule in rules:
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("critical", "warning")
            assert rule["annotations"]["summary"] and rule["annotations"]["action"]
