"""A policy's folder that somebody else made: nothing in it runs, whatever its files are called."""

import json
import os
import pickle
import shutil

import pytest

from rl.policy.convert import convert_stock_checkpoint, prepare_policy
from rl.policy.model import load_policy, save_policy
from rl.policy.processor import Processor
from rl.policy.token_ids import PolicyFilesError
from tests.rl.policy.conftest import SCENES


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, mark):
        self._mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self._mark,)


@pytest.fixture
def copy_of(tmp_path):
    def copied(folder):
        shutil.copytree(folder, tmp_path / "policy")
        return tmp_path / "policy"

    return copied


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "it-ran"


def refused(folder, message, tmp_path):
    for read in (
        lambda: load_policy(folder, SCENES),
        lambda: Processor.from_pretrained(folder, SCENES),
        lambda: prepare_policy(folder, SCENES, tmp_path / "cache"),
        lambda: convert_stock_checkpoint(folder, tmp_path / "converted", SCENES),
    ):
        with pytest.raises(PolicyFilesError, match=message):
            read()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "pytorch_model-00001-of-00002.bin"])
def test_weights_as_a_pickle_are_refused_and_never_unpickled(name, tiny_dir, copy_of, mark, tmp_path):
    folder = copy_of(tiny_dir)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    refused(folder, rf"{name}: weights as a pickle run code", tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["pickle", "header of 2**60 bytes", "empty", "eight bytes", "text"])
def test_what_only_calls_itself_safetensors_is_refused(kind, tiny_dir, copy_of, mark, tmp_path):
    folder = copy_of(tiny_dir)
    content = {
        "pickle": pickle.dumps(Bomb(mark)),
        "header of 2**60 bytes": (2**60).to_bytes(8, "little") + b"{}",
        "empty": b"",
        "eight bytes": (2).to_bytes(8, "little"),
        "text": b"version https://git-lfs.github.com/spec/v1\n",
    }
    (folder / "model.safetensors").write_bytes(content[kind])
    refused(folder, r"model\.safetensors: cannot be read: not a safetensors file", tmp_path)
    assert not mark.exists()


def with_code(folder, file, mark):
    """The folder, one of its files naming code that makes a folder when it is imported."""
    path = folder / file
    evil = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoProcessor": "evil.Evil"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": evil}))
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Evil: pass\n")
    return folder


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_beside_the_weights_is_refused_and_not_imported(file, stock_dir, copy_of, mark, tmp_path):
    refused(with_code(copy_of(stock_dir), file, mark), r"names code of its own \(auto_map\)", tmp_path)
    assert not mark.exists()


def test_an_export_of_ours_is_read_by_this_package_whatever_code_lies_in_it(tiny_dir, copy_of, mark, tmp_path):
    folder = with_code(copy_of(tiny_dir), "config.json", mark)
    model = load_policy(folder, SCENES)
    processor = Processor.from_pretrained(folder, SCENES)
    assert prepare_policy(folder, SCENES, tmp_path / "cache") == folder
    save_policy(model, processor, tmp_path / "saved")
    assert "auto_map" not in (tmp_path / "saved" / "config.json").read_text() and not mark.exists()


def test_shards_lie_beside_their_index(tiny_dir, copy_of, tmp_path):
    folder = copy_of(tiny_dir)
    index = {"weight_map": {"lm_head.weight": "../../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "is not a file beside it", tmp_path)


@pytest.mark.parametrize(
    "content, told",
    [
        ("[" * 100_000, "cannot be read as a model's configuration"),
        ("[]", "holds no configuration"),
        ("null", "holds no configuration"),
        ('{"vision_config": 3}', r"model_type \(none\)"),
        ('{"model_type": "qwen3_vl", "vision_config": 3}', "no vision_config"),
        ("{", "cannot be read as a model's configuration"),
    ],
)
def test_a_configuration_of_the_wrong_shape_is_refused_with_its_name(content, told, tiny_dir, copy_of):
    folder = copy_of(tiny_dir)
    (folder / "config.json").write_text(content)
    with pytest.raises(PolicyFilesError, match=rf"config\.json: .*{told}"):
        Processor.from_pretrained(folder, SCENES)
