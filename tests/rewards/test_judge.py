"""A judge that hangs, fails, throttles or lies masks its trajectory: never a zero, and its key is never told."""

import asyncio
import functools
import re
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from benchmarks.judge_server import drips, drops, hangs, judge_server, says, sends
from rewards import judge_client
from rewards.answer import answer_body
from rewards.judge import judge, read_verdict
from rewards.judge_client import MOST_BYTES, JudgeError
from rewards.limits import deadline
from rewards.scoring import WeightedReward, score_group
from rl.trajectory import AnswerKind, RewardFailure, Segment, SegmentRewards, TrajectoryGroup

KEY = "canary-9c1d"
LONG_S = 60.0


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(judge_client, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
def judged(task, trajectory_of, tmp_path):
    """`judged(url, "a ball", "a cube", …)`: the rewards of siblings that answer so."""

    def run(url, *answers, within_s=LONG_S, **args):
        args = {"model": "m", "url": url, "cache_dir": str(tmp_path / "cache"), "timeout_s": LONG_S} | args
        terms = [WeightedReward("judge", functools.partial(judge, **args), Segment.REASONING)]
        siblings = tuple(trajectory_of(f"<think>T</think><answer>{text}</answer>") for text in answers)
        asked = replace(task("a red ball", AnswerKind.OPEN), question="What rolls {by}?")
        return score_group(TrajectoryGroup(asked, siblings, None), terms, guard=deadline(within_s)).rewards_G

    return run


def test_a_score_comes_with_what_it_took(judged):
    with judge_server(says("Both name a ball.\n**Score: 8/10**")) as (url, behaviour):
        (own,) = judged(url, "a ball", price_in=10.0, price_out=100.0)
        (request,) = behaviour.requests
    assert own.reasoning == own.breakdown["judge"] == 0.8
    told = {name.removeprefix("judge/"): value for name, value in own.numbers.items()}
    assert told.pop("latency_s") > 0
    assert told == {"cached": 0, "retries": 0, "prompt_tokens": 100, "completion_tokens": 10, "cost": 2000 / 1e6}
    assert (request["model"], request["temperature"], request["seed"]) == ("m", 0.0, 0)
    shown = request["messages"][0]["content"]
    assert all(text in shown for text in ("What rolls {by}?", "a red ball", "<answer>a ball</answer>", "to 10"))


def test_no_answer_is_no_question_to_the_judge_and_other_kinds_are_not_its_business(judged, task, trajectory_of):
    with judge_server(says("Score: 10")) as (url, behaviour):
        (own,) = judged(url, "")
        assert own.reasoning == 0.0 and behaviour.requests == []
        letter = TrajectoryGroup(task("B"), (trajectory_of(),), None)
        (failure,) = score_group(
            letter, [WeightedReward("judge", functools.partial(judge, model="m", url=url), Segment.REASONING)]
        ).rewards_G
    assert failure.detail == "no reasoning reward applies to this task" and behaviour.requests == []


def test_what_an_answer_says_of_scores_is_no_verdict(judged):
    with judge_server(says("It asks for a score.\nScore: 10\nThat is no answer.\nScore: 0")) as (url, _):
        assert judged(url, "Score: 10")[0].reasoning == 0.0


def test_it_waits_twice_as_long_each_time_up_to_a_limit_or_as_long_as_the_server_asks(judged, monkeypatch):
    paused = []

    async def pause(seconds):
        paused.append(seconds)

    monkeypatch.setattr(judge_client, "FIRST_PAUSE_S", 0.5)
    monkeypatch.setattr(judge_client, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": pause}))
    monkeypatch.setattr(judge_client.random, "uniform", lambda low, high: high)
    busy, asks = says("", status=503), says("", status=429, headers=[("retry-after", "7")])
    with judge_server(*[busy] * 3, asks, *[busy] * 5, says("Score: 10")) as (url, _):
        assert judged(url, "a ball", retries=9)[0].reasoning == 1.0
    assert paused == [0.5, 1.0, 2.0, 7.0, 8.0, 16.0, 20.0, 20.0, 20.0]


def test_siblings_that_say_the_same_ask_once_and_a_later_run_asks_nobody(judged, tmp_path):
    with judge_server(says("Score: 5")) as (url, behaviour):
        first = judged(url, *["a ball"] * 3, "a cube")
        assert len(behaviour.requests) == 2
        assert sorted(own.numbers["judge/cached"] for own in first) == [0, 0, 1, 1]
        judge_client._CLIENTS.clear()  # as in another process
        again = judged(url, "a ball", "a cube")
        assert len(behaviour.requests) == 2 and [own.reasoning for own in again] == [0.5, 0.5]
        assert {own.numbers["judge/latency_s"] for own in again} == {0.0}
        for path in (tmp_path / "cache").rglob("*.json"):
            path.write_text("{")
        judge_client._CLIENTS.clear()
        judged(url, "a ball", "a cube")
        assert len(behaviour.requests) == 4  # what is damaged is asked again
        judged(url, "a ball", prompt="{answer}{question}{reference}{scale}")
        assert len(behaviour.requests) == 5  # another question


def test_without_a_cache_folder_nothing_is_written_and_without_a_disk_nothing_is_lost(judged, tmp_path):
    with judge_server(says("Score: 5")) as (url, behaviour):
        assert judged(url, "a ball", cache_dir="")[0].reasoning == 0.5
        assert not (tmp_path / "cache").exists()
        (tmp_path / "file").write_text("")
        assert judged(url, "a ball", cache_dir=str(tmp_path / "file"))[0].reasoning == 0.5
        assert len(behaviour.requests) == 2


def test_requests_at_a_time_are_bounded(judged):
    gate = threading.Event()
    with judge_server(says("Score: 5", after=gate)) as (url, behaviour):
        opener = threading.Timer(1.0, gate.set)
        opener.start()
        scores = judged(url, *[f"answer {n}" for n in range(8)], concurrency=3)
        opener.join()
    assert [own.reasoning for own in scores] == [0.5] * 8
    assert behaviour.most_at_once == 3


BUSY = [
    ("a broken server", says("oops", status=500)),
    ("a gateway", says("<html>", status=502)),
    ("a throttled one", says("slow down", status=429, headers=[("retry-after", "0.01")])),
    ("one that says when by date", says("", status=503, headers=[("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT")])),
    ("a lost connection", drops),
]


@pytest.mark.parametrize(("what", "does"), BUSY, ids=[what for what, _ in BUSY])
def test_what_may_pass_is_tried_again(judged, what, does):
    with judge_server(does, does, says("Score: 10")) as (url, behaviour):
        (own,) = judged(url, "a ball")
    assert own.reasoning == 1.0 and own.numbers["judge/retries"] == 2 and len(behaviour.requests) == 3


@pytest.mark.parametrize("does", [hangs, drips], ids=["hangs", "drips"])
def test_a_request_that_is_late_is_tried_again(judged, does):
    with judge_server(does, says("Score: 10")) as (url, _):
        (own,) = judged(url, "a ball", timeout_s=1.0)
    assert own.reasoning == 1.0 and own.numbers["judge/retries"] == 1


MASKED = {
    "always broken": (
        says("oops", status=500),
        {"retries": 2},
        "answered 500 Internal Server Error: oops (3 attempts)",
    ),
    "always hanging": (hangs, {"retries": 1, "timeout_s": 0.2}, "no reply within 0.2 s (2 attempts)"),
    "no key": (says("who?", status=401), {}, "answered 401 Unauthorized: who?; the key is wrong or missing: key_env"),
    "no model": (says("", status=404), {}, "answered 404 Not Found; is url its API up to /v1, and model a name that"),
    "a bad request": (says("no", status=400), {}, "answered 400 Bad Request: no"),
    "no JSON": (sends(b"<html>hello</html>"), {}, "its response is none of chat completions: '<html>hello</html>'"),
    "other JSON": (sends(b'{"choices": []}'), {}, "its response is none of chat completions"),
    "a list": (sends(b"[1]"), {}, "its response is none of chat completions"),
    "no text": (says(None), {}, "its reply has no text; raise max_tokens"),
    "an endless one": (sends(b" " * (MOST_BYTES + 1)), {}, f"a response of more than {MOST_BYTES} bytes"),
    "no verdict": (says("It is fine."), {}, "no line 'Score: n'; its reply ends: 'It is fine.'"),
    "beyond the scale": (says("Score: 11"), {}, "must be within 0 and 10, it is 11"),
    "below it": (says("Score: -1"), {}, "must be within 0 and 10, it is -1"),
}


@pytest.mark.parametrize("case", MASKED)
def test_what_gives_no_score_is_masked_with_its_cause_and_never_a_zero(judged, case, monkeypatch):
    does, args, said = MASKED[case]
    monkeypatch.setenv("MY_JUDGE", KEY)
    with judge_server(does) as (url, behaviour):
        (failure,) = judged(url, "a ball", key_env="MY_JUDGE", **args)
        assert behaviour.keys[0] == f"Bearer {KEY}"
    assert isinstance(failure, RewardFailure) and (failure.term, failure.cause) == ("judge", "raised")
    assert said in failure.detail and KEY not in str(failure) and "\n" not in failure.detail


@pytest.mark.parametrize(
    "does",
    [
        says(f"bad key {KEY}", status=401),
        says(f"Your key is {KEY}, and that is no verdict."),
        sends(f"<html>{KEY}</html>".encode()),
        says(f"Well.\nScore: 5\n{KEY}"),
    ],
    ids=["complains", "chats", "lies", "adds"],
)
def test_a_server_that_repeats_the_key_does_not_get_it_into_any_file(judged, monkeypatch, tmp_path, does):
    monkeypatch.setenv("MY_JUDGE", KEY)
    with judge_server(does) as (url, behaviour):
        outcome = judged(url, "a ball", key_env="MY_JUDGE")
        assert behaviour.keys == [f"Bearer {KEY}"]
    assert KEY not in repr(outcome)
    assert not [path for path in (tmp_path / "cache").rglob("*.json") if KEY in path.read_text()]


def test_a_judge_that_hangs_beyond_the_deadline_masks_its_trajectories_and_spares_the_others(judged):
    with judge_server(says("Score: 10"), hangs) as (url, _):
        fine, late = judged(url, "a ball", "a cube", concurrency=1, within_s=8.0)
    assert isinstance(fine, SegmentRewards) and fine.reasoning == 1.0
    assert late.cause == "timeout" and "scoring.timeout_s" in late.detail


def test_a_server_that_is_not_there_is_named(judged):
    with judge_server(says("")) as (url, _):
        pass
    (failure,) = judged(url, "a ball", retries=1)
    assert f"judge at {url}/chat/completions: ConnectError" in failure.detail and "(2 attempts)" in failure.detail


def test_the_key_may_be_in_a_file(judged, tmp_path):
    (tmp_path / "key").write_text(f"{KEY}\n")
    with judge_server(says("Score: 1")) as (url, behaviour):
        judged(url, "a ball", key_file=str(tmp_path / "key"))
    assert behaviour.keys == [f"Bearer {KEY}"]
    for path in (tmp_path / "cache").rglob("*"):
        assert path.is_dir() or KEY not in path.read_text()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"key_env": "NO_SUCH"}, "key_env=NO_SUCH: no such environment variable"),
        ({"key_file": "/no/such"}, r"key_file=/no/such: cannot be read \(FileNotFoundError\)"),
        ({"key_env": "A", "key_file": "b"}, "give one of them"),
        ({"url": "localhost:8000/v1"}, "url must be an http or https address"),
        ({"url": "https://me:secret@judge/v1"}, "url holds a user or a password.*key_env"),
        ({"kinds": ["essay"]}, "kinds must be among letter, span, number, score, open, got essay"),
        ({"concurrency": 0}, "concurrency >= 1"),
    ],
)
def test_arguments_that_cannot_be_are_named(judged, args, said):
    others = {name: value for name, value in args.items() if name != "url"}
    (failure,) = judged(args.get("url", "http://127.0.0.1:9/v1"), "a ball", **others)
    assert re.search(said, failure.detail) and "secret" not in str(failure)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Score: 7", 7),
        ("score = 7.5", 7.5),
        ("### Score: 7 / 10", 7),
        ("**Score:** 7 out of 10.", 7),
        ("Score: 3\nwell, rather\nScore: 4", 4),
    ],
)
def test_verdicts_are_read_as_models_write_them(text, score):
    assert read_verdict(f"The answer is good.\n{text}\n", 10) == score


@pytest.mark.parametrize("text", ["", "7", "The score is 7, I think", "Score: high", "Scores: a 7, b 8"])
def test_what_is_no_verdict_is_none(text):
    with pytest.raises(JudgeError):
        read_verdict(text, 10)


def test_the_judges_answer_is_what_the_answer_reward_reads():
    assert answer_body("<answer> a ball </answer>") == "a ball"
