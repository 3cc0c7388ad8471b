"""What an installation holds: a wheel has everything below the one import name `dynframe_rl`, a checkout its folders.

All else stands in pyproject.toml. Why: docs/decisions/0049-wheel.md
"""

from setuptools import find_packages, setup
from setuptools.command.editable_wheel import editable_wheel

FRONT = {"dynframe_rl": "cluster/installed"}
ROOMS = ("rl", "actors", "rewards", "envs", "cluster")
WITHIN = [pattern for room in ROOMS for pattern in (room, f"{room}.*")]
PACKAGES = find_packages(include=WITHIN, exclude=["cluster.installed"])
DATA = ("configs", "examples", "examples.my_project")  # folders that are no Python packages


class EditableWheel(editable_wheel):
    """A checkout's own folders, importable by their names."""

    def run(self) -> None:
        self.distribution.packages = [*FRONT, *PACKAGES]
        self.distribution.package_dir = self.package_dir = dict(FRONT)
        super().run()


setup(
    packages=[*FRONT, *(f"dynframe_rl.{name}" for name in (*PACKAGES, *DATA))],
    package_dir=FRONT | {f"dynframe_rl.{name}": name.replace(".", "/") for name in (*ROOMS, *DATA)},
    package_data={"": ["assets/**/*", "*.yaml", "*.yml", "*.json", "*.txt", "*.sh", "*.md", "*.ipynb", "grafana/**/*"]},
    cmdclass={"editable_wheel": EditableWheel},
)
