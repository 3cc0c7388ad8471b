"""The notebook in examples/: every cell runs, in order, and draws what it says; committed without outputs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
NOTEBOOK = REPOSITORY / "examples" / "clip_to_policy.ipynb"
RUNS_CELLS = """
import json, pathlib, sys
import matplotlib.pyplot as plt

home, drawn = pathlib.Path(sys.argv[2]), []

def save():
    for number in plt.get_fignums():
        drawn.append(number)
        plt.figure(number).savefig(home / f"figure{len(drawn)}.png", dpi=110)
        plt.close(number)

plt.show = save
names = {"__name__": "__main__"}
for place, cell in enumerate(json.loads(pathlib.Path(sys.argv[1]).read_text())["cells"]):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {place}", "exec"), names)
"""


def test_it_is_committed_without_outputs_and_is_a_notebook_of_the_current_format():
    content = json.loads(NOTEBOOK.read_text())
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in content["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in content["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.mark.cli
@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.deepspeed
def test_every_cell_runs_and_draws_clip_look_and_curves(tmp_path):
    sizes = {"NOTEBOOK_HOME": str(tmp_path), "NOTEBOOK_STEPS": "1", "NOTEBOOK_COLD_START_STEPS": "60"}
    answer = subprocess.run(
        [sys.executable, "-c", RUNS_CELLS, str(NOTEBOOK), str(tmp_path)],
        cwd=REPOSITORY,
        env=os.environ | sizes | {"MPLBACKEND": "Agg", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=420,
    )
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    assert "<span>" in answer.stdout and "held-out reward, retrieval" in answer.stdout and "scenes of" in answer.stdout
    assert len(list(tmp_path.glob("figure*.png"))) >= 3
