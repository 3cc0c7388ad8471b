"""Which rows a fine-tuning run learns from, and which it only is evaluated on."""

import json

import pytest
from rich.console import Console

from rl.config.errors import ConfigError
from rl.config.file import load_config
from rl.run.prepare.conversations import prepare_examples, require_conversation_sources
from tests.envs.data.published import LLAVA, SHAREGPT4VIDEO, write_json

CLIPS = 10


@pytest.fixture
def prepare(tmp_path):
    """From ten clips with two rows each, and a caption each in another source."""
    for number in range(CLIPS):
        (tmp_path / f"{number}.mp4").write_bytes(b"-")
    write_json(tmp_path / "a.json", [LLAVA | {"video": f"{number // 2}.mp4"} for number in range(2 * CLIPS)])
    write_json(tmp_path / "b.json", [SHAREGPT4VIDEO | {"video_path": f"{number}.mp4"} for number in range(CLIPS)])

    def run(*overrides, format="llava"):
        paths = [f"finetune.sources.{name}.path={tmp_path}/{name}.json" for name in "ab"]
        forms = [f"finetune.sources.a.format={format}", "finetune.sources.b.format=sharegpt4video"]
        config = load_config([], [*paths, *forms, f"cache_dir={tmp_path}/cache", *overrides])
        require_conversation_sources(config)
        return prepare_examples(config, Console(quiet=True))

    return run


def clips(examples):
    return [example.media[0].path.rpartition("/")[2] for example in examples]


def test_no_clip_that_is_held_out_is_learned_from_whichever_source_shows_it(prepare):
    found = prepare("finetune.sources.a.held_out=2", "finetune.sources.b.held_out=2")
    names, held_out = zip(*found.held_out, strict=True)
    assert names == ("a", "b", "a", "b") and set(clips(held_out)) == {"0.mp4", "5.mp4"}
    assert set(clips(found.train)) == {f"{number}.mp4" for number in range(CLIPS)} - {"0.mp4", "5.mp4"}
    assert len(found.train) == 3 * (CLIPS - 2)


def test_rows_are_taken_evenly_and_evaluations_have_as_many_tasks_as_the_trainer_says(prepare):
    found = prepare("finetune.sources.a.rows=4", "finetune.sources.b.rows=2", "finetune.sources.b.held_out=1")
    assert len(found.train) == 6 and clips(found.held_out[0][1:]) == ["0.mp4"]
    assert prepare("finetune.sources.a.held_out=5", "trainer.eval_tasks=3").held_out[2:][0][0] == "a"
    assert prepare("finetune.sources.a.held_out=5", "trainer.eval_tasks=0").held_out == ()


def test_a_file_of_another_data_set_stops_the_run_with_the_form_that_reads_it(prepare):
    with pytest.raises(ConfigError, match=r"finetune.sources.a: no usable row in .*a.json.*format=llava"):
        prepare(format="pixmo")


def test_rows_left_out_are_refused_where_it_is_said_so(prepare, tmp_path):
    (tmp_path / "3.mp4").unlink()
    assert prepare().rejected == 3
    kept = (tmp_path / "cache" / "rejected_rows-finetune-a.jsonl").read_text().splitlines()
    assert ["3.mp4" in json.loads(line)["reason"] for line in kept] == [True, True]
    with pytest.raises(ConfigError, match=r"video '3.mp4' cannot be found .* data.bad_rows=skip leaves them out"):
        prepare("data.bad_rows=refuse")


def test_when_all_is_held_out_nothing_is_left_to_learn_from(prepare):
    with pytest.raises(ConfigError, match="nothing is left to learn from: hold fewer rows out"):
        prepare("finetune.sources.a.held_out=20", "finetune.sources.b.held_out=10")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("finetune.sources.a.path=", "finetune.sources.a: path is empty; name the annotation file"),
        ("finetune.sources.a.path=none.json", "finetune.sources.a: .*none.json: no such annotation file"),
        ("finetune.sources.a.media_root=none", "finetune.sources.a: .*none: no such folder"),
        ("finetune.sources.a.format=llave", "finetune.sources.a.format must be one of dm_cot, llava"),
        ("finetune.sources.a.formt=llava", "unknown key .*; did you mean 'finetune.sources.a.format'"),
        ("finetune.batch_size=0", "finetune.batch_size must be >= 1, got 0"),
        ("finetune.max_tokens=9999", r"finetune.max_tokens \(9999\) must be <= policy.tiny.max_position_embeddings"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused_by_its_key(prepare, override, said):
    with pytest.raises(ConfigError, match=said):
        prepare(override)
