"""What a command reads before it answers: the small things stay small by what they leave alone."""

import json
import subprocess
import sys

HEAVY = ("torch", "numpy", "omegaconf", "yaml", "ray", "vllm", "transformers", "deepspeed", "jinja2", "PIL")


def modules_after(*arguments):
    """The modules that a command of this program has imported when it ends."""
    program = (
        "import atexit, json, sys; from rl.cli.main import main; sys.argv = ['dynframe', *sys.argv[1:]]; "
        "atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr)); main()"
    )
    ended = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return json.loads(ended.stderr.splitlines()[-1])


def test_help_reads_no_configuration_and_nothing_heavy():
    modules = modules_after("--help")
    assert not {name.partition(".")[0] for name in modules} & set(HEAVY)
    own = [name for name in modules if name.startswith(("rl.config.", "rl.run.", "rl.report.", "rl.policy."))]
    assert own == ["rl.config.errors", "rl.config.installation", "rl.run.imports", "rl.run.stop_signals"]
