"""Dashboards of Grafana, one file per section: `python -m rl.monitoring.dashboards` writes cluster/grafana/ anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rl.monitoring.panels import SECTIONS
from rl.monitoring.queries import Panel, Section
from rl.tracking.metrics import STEP, prometheus_name

SHIPPED = Path(__file__).parents[2] / "cluster" / "grafana"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS, WIDTH, HEIGHT = 3, 8, 8  # of panels; Grafana's grid is 24 wide
TAG = "dynframe"


def main() -> None:
    """Write every dashboard."""
    for section in SECTIONS:
        path = SHIPPED / f"{section.name}.json"
        path.write_text(dashboard_text(section), encoding="utf-8")


def dashboard_text(section: Section) -> str:
    """The file of a section."""
    return json.dumps(dashboard(section), indent=1) + "\n"


def dashboard(section: Section) -> dict[str, Any]:
    """A section as Grafana (10 and later) reads it."""
    return {
        "uid": f"dynframe-{section.name}",
        "title": f"dynframe: {section.title}",
        "tags": [TAG],
        "schemaVersion": 38,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # one crosshair through all panels
        "refresh": "10s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "links": [{"type": "dashboards", "tags": [TAG], "title": "Sections", "asDropdown": False, "keepTime": True}],
        "annotations": {"list": []},
        "templating": {"list": [_source(), _runs()]},
        "panels": [_panel(index, one) for index, one in enumerate(section.panels)],
    }


def _source() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 2}


def _runs() -> dict[str, Any]:
    query = f"label_values({prometheus_name(STEP)}, run)"
    return {
        "name": "run",
        "label": "Run",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "runs"},
        "refresh": 2,  # whenever the time range changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"text": "All", "value": "$__all"},
    }


def _panel(index: int, panel: Panel) -> dict[str, Any]:
    return {
        "id": index + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.meaning,
        "datasource": SOURCE,
        "gridPos": {"x": index % COLUMNS * WIDTH, "y": index // COLUMNS * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "custom": {"lineWidth": 2, "showPoints": "never", "spanNulls": 60000}},
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": SOURCE,
                "expr": query.expression,
                "legendFormat": query.curve,
                "range": True,
            }
            for place, query in enumerate(panel.queries)
        ],
    }


if __name__ == "__main__":
    main()
