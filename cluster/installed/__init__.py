"""dynframe-rl as a wheel installs it: everything below this one name, importable in the processes that want it.

The project's packages have names that others have, too: `rl`, `actors`, `rewards`, `envs`, `cluster`. Installed, they
lie in this package's folder, where no other program sees them. `activate` puts that folder first on the search path of
this process and of those it starts; the command, `python -m dynframe_rl` and Ray's workers begin with it. So does a
program of your own:

    import dynframe_rl

    dynframe_rl.activate()
    from rl.config.file import load_config

In a checkout the packages are importable as they are, and both functions do nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

HOME = Path(__file__).parent
PACKAGES = ("rl", "actors", "rewards", "envs", "cluster")
INSTALLED = (HOME / "rl").is_dir()  # by a wheel


class ForeignPackageError(ImportError):
    """A package of another program has the name of one of ours in this process; the message says which and where."""


def activate() -> None:
    """Make the project's packages the ones that this process and its children import by these names.

    They are imported at once, each an almost empty file: what a library then puts before them on the search path, as
    Ray does with the working directory, cannot take their place.

    Raises:
        ForeignPackageError: another package of such a name is imported already.
    """
    if not INSTALLED:
        return
    _refuse_foreign()
    home = str(HOME)
    sys.path[:] = [home, *(entry for entry in sys.path if entry != home)]
    inherited = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry not in ("", home)]
    os.environ["PYTHONPATH"] = os.pathsep.join([home, *inherited])
    for name in PACKAGES:
        importlib.import_module(name)


def offer() -> None:
    """Make them importable in a process of another program, after everything of its own.

    Raises:
        ForeignPackageError: it has a package of such a name.
    """
    home = str(HOME)
    if not INSTALLED or home in sys.path:
        return
    _refuse_foreign()
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        if found is not None and found.origin:  # a mere folder of that name comes after any package
            raise ForeignPackageError(_clash(name, found.origin))
    sys.path.append(home)


def _refuse_foreign() -> None:
    for name in PACKAGES:
        file = getattr(sys.modules.get(name), "__file__", None) or ""
        if name in sys.modules and not Path(file).is_relative_to(HOME):
            raise ForeignPackageError(_clash(name, file))


def _clash(name: str, found: str) -> str:
    return (
        f"dynframe-rl has a package {name!r}, and this process has another one ({found or 'no file'}): rename that, or "
        f"start Python with PYTHONPATH={HOME}, so that dynframe-rl's is found first"
    )
