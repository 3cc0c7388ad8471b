"""`make schemas`: the files of cluster/ as SkyPilot and Kubernetes read them; run by schemas.sh, where both are.

SkyPilot's own parser takes skypilot.yaml; the pods of kuberay_rayjob.yaml are held strictly against Kubernetes' schema.
"""

from __future__ import annotations

import sys
from pathlib import Path

import kubernetes_validate
import sky
import yaml

FOLDER = Path(__file__).parent
KUBERNETES = "1.37"


def main() -> None:
    """Print what was read; the first fault ends it with exit code 1."""
    try:
        task = sky.Task.from_yaml(str(FOLDER / "skypilot.yaml"))
    except ValueError as error:
        sys.exit(f"cluster/skypilot.yaml: {error}")
    print(f"cluster/skypilot.yaml: SkyPilot {sky.__version__} reads {task.name}, {task.num_nodes} node")
    job = yaml.safe_load((FOLDER / "kuberay_rayjob.yaml").read_text(encoding="utf-8"))
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        name = group.get("groupName", "head")
        pod = {"apiVersion": "v1", "kind": "Pod", **group["template"]}
        try:
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = ".".join(map(str, error.absolute_path))
            sys.exit(f"cluster/kuberay_rayjob.yaml: the pod of {name}: {where}: {error.message}")
        print(f"cluster/kuberay_rayjob.yaml: the pod of {name} has the schema of Kubernetes {KUBERNETES}")


if __name__ == "__main__":
    main()
