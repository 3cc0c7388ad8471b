"""Keys of 0.3.0: refused by their new names where somebody writes them, understood where a run has stored them."""

from pathlib import Path

import pytest
import yaml

from rl.config.errors import ConfigError
from rl.config.file import load_config, stored_settings, to_dict
from rl.config.keys import is_known
from rl.config.renamed import REMOVED_KEYS, RENAMED_KEYS, RENAMED_VALUES, new_name, translated

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
OF_0_3_0 = """
name: quickstart
video:
  v0: {fps: 1.0, min_frames: 4, max_frames: 16, max_pixels: 3136, max_visual_tokens: 512}
  decode_workers: 0
  store_bytes: 67108864
trainer: {best_metric: held_out/calls}
rewards:
  answer: {fn: answer, segment: reasoning}
"""  # of the quickstart of 0.3.0


@pytest.fixture
def old_file(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(OF_0_3_0)
    return path


def test_every_renamed_key_has_a_new_name_that_exists_and_an_old_one_that_does_not():
    assert [new for new in RENAMED_KEYS.values() if not is_known(new)] == []
    assert [old for old in (*RENAMED_KEYS, *REMOVED_KEYS) if is_known(old)] == []
    for key, values in RENAMED_VALUES.items():
        for new in values.values():
            assert load_config([QUICKSTART], [f"{key}={new}"])


def test_a_file_of_0_3_0_is_answered_with_the_new_name_of_every_old_key(old_file):
    with pytest.raises(ConfigError) as refusal:
        load_config([old_file], ["video.v0.fps=2"])
    message = str(refusal.value)
    assert message.startswith("3 unknown keys: ") and "\n" not in message
    assert f"'video.v0' in {old_file}: since 0.4.0 it is 'video.coarse'" in message
    assert f"'video.store_bytes' in {old_file}: since 0.4.0 it is 'video.frame_cache_bytes'" in message
    assert "'video.v0.fps' in command line: since 0.4.0 it is 'video.coarse.fps'" in message


def test_an_old_key_on_the_command_line_is_one_line_with_the_new_one(tmp_path):
    new = tmp_path / "new.yaml"
    new.write_text("rewards: {answer: {fn: answer}}\n")
    with pytest.raises(ConfigError, match=r"^command line: unknown key 'video\.v0\.fps'; .* is 'video\.coarse\.fps'$"):
        load_config([new], ["video.v0.fps=2"])


def test_a_key_that_there_is_no_more_is_refused_with_the_reason_and_left_out_of_what_a_run_has_stored(tmp_path):
    stored = translated({"weight_sync": {"verify_tensors": 4, "timeout_s": 9.0}})
    assert stored == {"weight_sync": {"timeout_s": 9.0}}
    with pytest.raises(
        ConfigError, match=r"weight_sync\.verify_tensors.*none since 0\.4\.0: every parameter is compared"
    ):
        load_config([QUICKSTART], ["weight_sync.verify_tensors=8"])


def test_what_a_run_of_0_3_0_has_stored_is_read_under_the_names_of_today(tmp_path):
    settings = stored_settings(OF_0_3_0, "RUN/config.yaml")
    assert settings["video"] == {
        "coarse": {"fps": 1.0, "min_frames": 4, "max_frames": 16, "max_pixels": 3136, "max_visual_tokens": 512},
        "decode_workers": 0,
        "frame_cache_bytes": 67108864,
    }
    assert settings["trainer"] == {"best_metric": "held_out/granted_calls"}
    path = tmp_path / "translated.yaml"
    path.write_text(yaml.safe_dump(settings))
    assert load_config([path]).video.coarse.max_visual_tokens == 512


@pytest.mark.parametrize(("stored", "today"), [(True, "all"), (False, "none"), ("vision", "vision")])
def test_what_was_true_or_false_is_read_as_what_these_stand_for(stored, today):
    settings = stored_settings(yaml.safe_dump({"learner": {"activation_checkpointing": stored}}), "RUN/config.yaml")
    assert settings == {"learner": {"activation_checkpointing": today}}


def test_settings_of_today_are_translated_to_themselves(tmp_path):
    path = tmp_path / "new.yaml"
    path.write_text("rewards: {answer: {fn: answer}}\n")
    settings = to_dict(load_config([path]))
    assert translated(settings) == settings
    assert translated({"video": {"v0": {"fps": 1, "min_frames": 2}, "coarse": {"fps": 3}}}) == {
        "video": {"coarse": {"fps": 3, "min_frames": 2}}
    }
    assert translated({"video": "nonsense"}) == {"video": "nonsense"}


def test_a_key_that_only_begins_like_a_renamed_one_is_not_it():
    assert new_name("video.v0") == "video.coarse" and new_name("video.v01") is None
