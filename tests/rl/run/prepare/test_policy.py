"""`policy.path` is looked at first: what is no policy is refused in one line, before torch or a clip is touched."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rl.config.errors import ConfigError
from rl.config.file import load_config
from rl.policy.processor import Processor
from rl.policy.stock.make import make_checkpoint
from rl.run.prepare.policy import local_folder, prepare_policy, prepare_processor, require_given_policy, tiny_folder
from tests.hub_cache import COMMIT, NAME, put_in_cache
from tests.rl.policy.stock.test_make import small as small_size

REPOSITORY = Path(__file__).parents[4]
QUICKSTART = REPOSITORY / "configs" / "quickstart.yaml"
CONFIG = load_config([QUICKSTART])


def given(path):
    return replace(CONFIG, policy=replace(CONFIG.policy, path=str(path)))


def write(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


QWEN = json.dumps({"model_type": "qwen2_5_vl"})
WRONG = {
    "nothing there": (
        lambda folder: folder / "nowhere",
        r"^policy\.path: no folder .*nowhere; give a Hugging Face fol",
    ),
    "a file": (lambda folder: write(folder, a="x") / "a", "is a file; give a Hugging Face folder"),
    "an empty folder": (lambda folder: folder, "the folder is empty; was the download interrupted"),
    "another folder": (lambda folder: write(folder, a="x"), "no config.json in it; give a Hugging Face folder"),
    "a checkpoint": (
        lambda folder: write(folder, policy__config_json=QWEN),
        r"that is a checkpoint; its policy is policy\.path=.*/policy$",
    ),
    "a run": (lambda folder: write(folder, checkpoints__latest="x"), r"that is a run; `dynframe export .* FOLDER`"),
    "another architecture": (
        lambda folder: write(folder, config_json=json.dumps({"model_type": "llava_next_video"})),
        "model_type 'llava_next_video' cannot be trained here; what can is 'qwen2_5_vl' such as Qwen/Qwen2.5-VL-3B",
    ),
    "no architecture": (lambda folder: write(folder, config_json="{}"), r"model_type \(none\)"),
    "not JSON": (lambda folder: write(folder, config_json="{"), r"config\.json: cannot be read"),
    "a list": (lambda folder: write(folder, config_json="[]"), "holds no configuration of a model"),
    "no weights": (lambda folder: write(folder, config_json=QWEN), r"no weights: neither .*; was it copied in full\?"),
    "pickled weights": (
        lambda folder: write(folder, config_json=QWEN, **{"a.bin": "x"}),
        "weights as a pickle run code",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_policy_is_refused_with_what_to_give_instead(case, tmp_path):
    make, message = WRONG[case]
    with pytest.raises(ConfigError, match=message) as refusal:
        require_given_policy(given(make(tmp_path)))
    assert "\n" not in str(refusal.value)


def test_the_name_of_a_model_on_the_hub_is_answered_with_the_command_that_fetches_it():
    with pytest.raises(ConfigError) as refusal:
        require_given_policy(given("Qwen/Qwen2.5-VL-7B-Instruct"))
    assert "`hf download Qwen/Qwen2.5-VL-7B-Instruct --local-dir models/Qwen2.5-VL-7B-Instruct`" in str(refusal.value)


def test_a_wrong_policy_is_refused_before_torch_is_imported_or_a_clip_rendered(tmp_path):
    program = (
        "import sys; from rl.cli.main import main\n"
        "try: main()\n"
        "finally: print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    cache = tmp_path / "cache"
    answer = subprocess.run(
        [sys.executable, "-c", program, "train", str(QUICKSTART), f"policy.path={tmp_path}", f"cache_dir={cache}"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 2 and "the folder is empty" in answer.stderr
    assert answer.stdout.strip() == "[]" and not cache.exists()


def test_a_tiny_policys_processor_is_the_same_before_and_after_it_is_built(tmp_path):
    config = replace(CONFIG, cache_dir=str(tmp_path))
    before = prepare_processor(config)
    assert not tiny_folder(config).exists()
    assert prepare_policy(config) == tiny_folder(config)
    after = prepare_processor(config)
    assert before.geometry == after.geometry and before.ids == after.ids
    text = "<|im_start|>user\nWhat colour flashes? <span>1.00 - 2.50</span><fps>4</fps>"
    assert before.encode(text) == after.encode(text)


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    size = small_size("qwen3_vl", "8b")
    return make_checkpoint(size, tmp_path_factory.mktemp("stock") / "folder", vocabulary="tiny")


def test_check_plans_a_conversion_and_writes_nothing_and_the_run_has_the_same_processor(stock, tmp_path):
    config = replace(given(stock), cache_dir=str(tmp_path / "cache"))
    planned = prepare_processor(config)
    assert not (tmp_path / "cache").exists()
    converted = Processor.from_pretrained(prepare_policy(config), config.policy.scenes)
    assert planned.geometry == converted.geometry and planned.ids == converted.ids
    assert (planned.allowed_token_mask() == converted.allowed_token_mask()).all()


def test_a_repository_in_the_hubs_cache_is_read_where_it_lies(stock, tmp_path, monkeypatch):
    config = replace(given(NAME), cache_dir=str(tmp_path / "cache"))
    assert local_folder(config) is None
    cached = put_in_cache(stock, tmp_path / "hub", monkeypatch)
    assert local_folder(config) == cached
    planned = prepare_processor(config)
    assert planned.geometry == prepare_processor(given(stock)).geometry and not (tmp_path / "cache").exists()
    converted = prepare_policy(config)
    assert prepare_processor(config).ids == Processor.from_pretrained(converted, config.policy.scenes).ids


@pytest.mark.parametrize("revision", ["", COMMIT])
@pytest.mark.parametrize(
    "absent", ["config.json", "tokenizer.json", "model-00002-of-00002.safetensors", "*.safetensors*"]
)
def test_a_repository_that_is_cached_in_part_is_still_to_be_downloaded(revision, absent, stock, tmp_path, monkeypatch):
    cached = put_in_cache(stock, tmp_path / "hub", monkeypatch)
    (shard,) = cached.glob("*.safetensors")
    shutil.copyfile(shard, cached / "model-00001-of-00002.safetensors")
    shard.rename(cached / "model-00002-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (cached / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = replace(CONFIG, policy=replace(CONFIG.policy, path=NAME, revision=revision))
    assert local_folder(config) == cached
    for path in cached.glob(absent):
        path.unlink()
    assert local_folder(config) is None
    with pytest.raises(ConfigError, match=r"it is not in .*, and HF_HUB_OFFLINE is set"):
        prepare_policy(config)


@pytest.mark.parametrize("prepare", [prepare_processor, prepare_policy])  # in `check`, and at a run's start
def test_weights_of_another_model_are_refused_without_a_worker(prepare, stock, tmp_path):
    folder = shutil.copytree(stock, tmp_path / "folder")
    settings = json.loads((folder / "config.json").read_text())
    settings["text_config"]["intermediate_size"] = 64
    (folder / "config.json").write_text(json.dumps(settings))
    config = replace(given(folder), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match=r"mlp\.\S+ has shape \(.*, config\.json asks for \(.*different checkpoints"):
        prepare(config)
    assert not (tmp_path / "cache").exists()
