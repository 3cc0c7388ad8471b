"""Whether `rollout.deterministic` can be kept on this machine: asked of an engine in a process of its own.

    python -m tests.determinism [--unpadded]      prints {"padding": …, "refusal": …}

`--unpadded` leaves products with as many rows as they have, as on a machine where no padding is enough.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rl.config.errors import ConfigError
from rl.config.policy import PolicyConfig, ScenesConfig, TinyPolicyConfig
from rl.config.rollout import EngineConfig
from rl.policy.vllm.plugin import engine_environment

ROOT = Path(__file__).parents[1]
SMALL = TinyPolicyConfig(hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1)


def ask_engine(*options: str, **settings: str) -> dict[str, str]:
    """What an engine answers that is started with these options and environment variables."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | settings
    command = [sys.executable, "-m", "tests.determinism", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Start a deterministic engine with a tiny policy, and print how it pads rows, or why it refuses."""
    os.environ.update(engine_environment("cpu"))
    from actors.engine import engine as engines
    from rl.policy.batch_invariant import RowPadding
    from rl.policy.tiny import build_tiny_policy
    from rl.policy.vllm import plugin

    plugin.register()
    if "--unpadded" in sys.argv:
        engines.PADDINGS = (RowPadding(1),)
    scenes = ScenesConfig()
    with tempfile.TemporaryDirectory() as folder:
        policy_dir = build_tiny_policy(SMALL, scenes, folder, seed=0)
        config = EngineConfig(kv_cache_bytes=64 * 2**20)
        try:
            engine = engines.make_engine(policy_dir, PolicyConfig(scenes=scenes), config, seed=0, deterministic=True)
        except ConfigError as error:
            answer = {"padding": "", "refusal": str(error)}
        else:
            answer = {"padding": engine.row_padding, "refusal": ""}
            engine.close()
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
