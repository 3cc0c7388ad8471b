"""The page of a run, opened in a real Chromium as a reader opens it: from disk, without network.

Screenshots of all three pages, light and dark, are kept in build/screenshots.
"""

from __future__ import annotations

import json
import math
import threading

import pytest

from rl.report.http import PageServer
from rl.report.live import LiveRun
from rl.tracking.faults import write_faults
from rl.trajectory import Fault, WorkerFailure
from tests.browser import HOSTILE, READY, shot
from tests.rl.report.recorded_run import append_step, write_failures, write_run

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def report(tmp_path_factory, clips):
    """The page of a run with real clips, as the command writes it."""
    return written(write_run(tmp_path_factory.mktemp("recorded") / "run", clips, steps=6))


def written(run):
    from rich.console import Console

    from rl.cli.viewer import run_report

    run_report(run, None, max_mib=4, console=Console(quiet=True))
    return run / "report.html"


def test_the_run_is_shown_with_headline_curves_tables_and_configuration(report, open_page):
    page = open_page(report.as_uri())
    assert page.locator(".tile", has_text="Answer accuracy").locator(".tile-value").inner_text() == "0.900"
    titles = page.locator(".chart-card h3").all_inner_texts()
    assert {"Retrieval and answer reward", "Advantage, mean size", "Policy entropy", "Seconds per stage"} <= set(titles)
    assert "KL to the reference" in page.locator(".missing").inner_text()  # this run has no reference
    assert page.locator("#held-out-table tbody tr").count() == 2
    _, *rows = page.locator("#eval-table tr").all_inner_texts()
    first, second = (" ".join(row.split()) for row in rows)
    assert first.endswith("mIoU 0.410 0.380 0.440 3,720 yes")
    assert second.endswith("R1@0.5 0.410 0.380 0.440 3,720 41.02 no: no script prints it")
    page.fill("#config-search", "answer.weight")
    assert page.locator("#config-table dl div").count() == 1 and "1 of" in page.locator("#config-count").inner_text()


def test_what_has_no_curves_opens_at_its_trajectory(tmp_path, clips, open_page):
    """As a question that was asked (`dynframe ask --html`)."""
    run = write_run(tmp_path / "run", clips, steps=1)
    (run / "metrics.jsonl").unlink()
    page = open_page(written(run).as_uri())
    assert page.get_attribute("#tab-trajectory", "aria-current") == "page"
    assert page.locator("h1", has_text="Sibling 0").count() == 1


def test_pointing_at_a_step_reads_every_curve_there(report, open_page):
    page = open_page(report.as_uri())
    entropy = page.locator("[data-chart='Policy entropy']")
    reading, at = entropy.locator(".reading"), entropy.locator(".at-step")
    assert reading.inner_text() == "0.050"  # 0.3 / 6, the last step
    other = page.locator("[data-chart='Seconds per stage'] .surface")
    other.focus()
    page.keyboard.press("Home")  # the first step, in every chart
    assert (reading.inner_text(), at.inner_text()) == ("0.300", "step 1")
    box = other.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    assert at.inner_text() in ("step 3", "step 4")


def test_who_worked_when_is_drawn_worker_by_worker_and_what_overlaps_side_by_side(report, open_page):
    page = open_page(report.as_uri())
    lanes = page.locator("#lanes svg")
    assert lanes.locator(".lane-label").all_text_contents() == [
        *("rollout/0", "rollout/1", "reward/0", "learner/0", "learner/1", "push", "save", "checkpoint")
    ]
    said = lanes.get_attribute("aria-label")  # of 1.7 s
    assert said.startswith("Step 6, ") and "rollout/0 43 %, rollout/1 41 %, reward/0 10 %, learner/0 39 %" in said

    def bars(color):
        found = lanes.locator(f".work-span[style*='{color}']").evaluate_all(
            "bars => bars.map((bar) => ['x', 'width', 'y'].map((name) => Number(bar.getAttribute(name))))"
        )
        return sorted(found)

    first, second = bars("--c8")  # the checkpoint of the step before is still being written while this one's is
    assert first[0] < second[0] < first[0] + first[1] and first[2] != second[2]
    engines, ranks = bars("--c1"), bars("--c2")
    assert max(x + width for x, width, _ in engines) < min(x for x, *_ in ranks)  # no overlap is made up
    lanes.locator(".work-span").first.hover()
    assert page.locator("#pop p").all_inner_texts() == ["rollout/0: rollout", "0.500 s, from 0 s to 0.500 s"]
    page.click("#lanes-before")
    assert page.input_value("#lanes-step") == "5" and page.is_enabled("#lanes-after")
    page.select_option("#lanes-step", "1")
    assert page.is_disabled("#lanes-before") and len(bars("--c8")) == 1
    page.locator("#lanes").scroll_into_view_if_needed()
    shot(page, "lanes")

    narrow = open_page(report.as_uri(), viewport={"width": 360, "height": 800})
    assert narrow.evaluate("document.documentElement.scrollWidth") <= 360


def fault(kind, worker="rollout/0", *, cause="killed by signal 9", after_s=0.0, failure=None):
    return Fault(kind, worker, cause, "replaced, 3 groups went on elsewhere", 1.76e9 + after_s, 21.4, failure)


def test_faults_are_marked_under_the_curves_shown_at_the_mark_and_listed(tmp_path, clips, open_page):
    run = write_run(tmp_path / "run", clips, steps=6)
    lost = WorkerFailure("NAME/rollout/0", "10.0.0.2", 7, "/tmp/worker.out", ("loading weights", "out of <memory>"))
    write_faults(run, 2, [fault("worker_died", failure=lost), fault("worker_hung", "rollout/1", after_s=5)])
    write_faults(run, 5, [fault("learner_lost", "learner", cause="rank 1: exit code 9", after_s=90)])
    append_step(run, 7, {"state/hash": "sha256:0123456789abcdef"})
    page = open_page(written(run).as_uri())

    entropy = page.locator("[data-chart='Policy entropy']")
    assert entropy.locator(".fault-mark").count() == 2
    assert "2 marks of faults" in entropy.locator("svg").get_attribute("aria-label")
    assert page.locator("[data-chart='Seconds per stage'] .fault-mark").count() == 2
    assert "3 faults recovered" in page.locator(".facts").inner_text()

    entropy.locator(".fault-mark").first.hover()
    popped = page.locator(".fault-pop")
    assert popped.locator("p").all_inner_texts() == [
        "step 2: 2 faults",
        "worker_hung rollout/1: killed by signal 9 → replaced, 3 groups went on elsewhere (21.40 s)",
        "worker_died rollout/0: killed by signal 9 → replaced, 3 groups went on elsewhere (21.40 s)",
    ]
    assert entropy.locator(".at-step").inner_text() == "step 2 · 2 faults"
    shot(page, "faults")
    surface = entropy.locator(".surface")
    surface.focus()
    page.keyboard.press("Home")  # step 1 had none
    assert popped.count() == 0 and entropy.locator(".at-step").inner_text() == "step 1"
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert popped.locator("b").all_inner_texts() == ["learner_lost"]
    surface.blur()
    assert popped.count() == 0

    rows = page.locator("#fault-table tbody tr")
    assert [row.split("\t")[:3] for row in rows.all_inner_texts()] == [
        ["5", "learner_lost", "learner"],
        ["2", "worker_hung", "rollout/1"],
        ["2", "worker_died", "rollout/0"],
    ]
    assert rows.first.inner_text().split("\t")[3:] == [
        "rank 1: exit code 9",
        "replaced, 3 groups went on elsewhere",
        "21.40 s",
        "2025-10-09 08:54:50",  # 1.76e9 s + 90 s after 1970 began
    ]
    page.select_option("#fault-kind", "worker_died")
    assert rows.count() == 1 and page.locator("#fault-count").inner_text() == "1 of 3 faults"
    rows.locator("summary").click()
    assert rows.locator("pre").inner_text() == str(lost)
    page.locator("#fault-table").scroll_into_view_if_needed()
    shot(page, "faults-table")
    rows.locator("a").click()
    page.wait_for_selector("h1:text('Step 2')")

    narrow = open_page((run / "report.html").as_uri(), viewport={"width": 360, "height": 800})
    narrow.locator(".fault-mark").first.hover()
    assert narrow.locator(".fault-pop").count() == 1
    assert narrow.evaluate("document.documentElement.scrollWidth") <= 360

    page.click("#tab-run")
    page.click("#metrics-details summary")
    page.fill("#metric-search", "state/hash")  # it is no number: no curve, and its last text
    assert "sha256:0123456789abcdef" in page.locator("#metric-rows tr").inner_text()
    assert page.locator("#metric-rows .curve").count() == 0


def test_a_failure_is_listed_once_with_its_traceback_folded(tmp_path, clips, open_page):
    run = write_run(tmp_path / "run", clips, steps=2)
    write_failures(run, {})
    page = open_page(written(run).as_uri())
    row = page.locator("#failure-table tbody tr")
    assert row.count() == 1 and "1 cause, 8 trajectories masked" in page.locator("main").inner_text()
    assert [cell.inner_text() for cell in row.locator("td.number").all()] == ["8", "1", "2"]
    assert row.locator("a").first.get_attribute("href") == "#/steps/1"
    traceback = row.locator(".traceback").first
    assert not traceback.is_visible()
    row.locator("summary").first.click()
    assert "KeyError: 'gold'" in traceback.inner_text()


def test_a_run_without_faults_has_no_word_of_them(report, open_page):
    page = open_page(report.as_uri())
    assert page.locator("text=/fault/i").count() == 0 and page.locator(".fault-mark").count() == 0


def test_groups_are_filtered_and_sorted(report, open_page):
    page = open_page(f"{report.as_uri()}#/steps/2")
    groups = page.locator("#groups > li")
    assert page.locator("h1").inner_text() == "Step 2" and groups.count() == 3
    assert page.locator(".badge", has_text="zero variance in both").count() == 1
    zero_variance = page.locator(".badge").count()
    page.check("#filter-zeroVariance")
    assert groups.count() == zero_variance and "Group 2" in groups.last.inner_text()
    page.check("#filter-everywhere")
    page.wait_for_selector(f"text=of {6 * 3 + 1} groups")
    assert groups.count() == page.locator(".badge").count() >= 6  # the third group of each step, at least
    page.uncheck("#filter-zeroVariance")
    page.fill("#filter-text", "no policy wrote this")
    page.wait_for_selector("text=No group passes")
    page.fill("#filter-text", "see YELLOW")
    page.wait_for_selector("text=19 of 19 groups")
    page.fill("#filter-text", "train:1")
    page.wait_for_selector("#group-count:not(:text('19 of 19'))")
    assert all("train:1" in text for text in groups.all_inner_texts())
    page.fill("#filter-text", "")
    page.uncheck("#filter-everywhere")
    page.select_option("#filter-sort", "low_sampling")
    shown = [float(text) for text in page.locator(".group .strip-row:first-child .strip-value").all_text_contents()]
    assert len(shown) == 3 and shown == sorted(shown)
    page.select_option("#filter-call", "malformed")
    page.fill("#filter-reasoning-low", "1.01")
    page.wait_for_selector("text=No group passes")


def test_rewards_below_0_pass_open_filters_and_stand_on_the_axis(tmp_path, clips, open_page):
    run = write_run(tmp_path / "run", clips, steps=1)
    (path,) = (run / "trajectories").glob("*.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        record["rewards"]["sampling"] -= 2.0
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))

    page = open_page(f"{written(run).as_uri()}#/steps/1")
    dots = page.locator(".group .strip-row:first-child circle")
    assert dots.count() == len(records) and page.locator(".sibling-dot.faint").count() == 0
    (start,) = {float(line.get_attribute("x1")) for line in page.locator(".strip-row:first-child line.axis").all()[::4]}
    assert start == min(float(dot.get_attribute("cx")) for dot in dots.all()) and len(records) == 12
    page.fill("#filter-sampling-low", "0.05")
    page.wait_for_selector("text=No group passes")


def test_a_trajectory_opens_by_click_and_shows_its_looks(report, open_page):
    page = open_page(f"{report.as_uri()}#/steps/2")
    page.click("#groups .open >> nth=0")
    page.wait_for_selector(".timeline .asked")
    assert page.url.endswith("#/trajectory/2/0/0")
    assert page.locator(".film").count() == 2  # coarse, retrieved
    pictures = page.locator("img.frame")
    assert pictures.count() == 8 + 12  # 2 s at 6 fps
    assert page.evaluate("[...document.querySelectorAll('img.frame')].every(i => i.complete && i.naturalWidth === 56)")
    assert page.locator(".bracket").count() == 3 + 4  # scenes of at most three frames
    assert page.locator(".sibling").count() == 4


def test_a_zoom_is_named_on_the_axis_and_its_box_drawn_in_the_frame(tmp_path, clips, open_page):
    run = write_run(tmp_path / "run", clips, steps=1)
    path = run / "trajectories" / "step_000001.jsonl"
    first, *rest = path.read_text().splitlines()
    record = json.loads(first)
    turn, after = record["turns"][0], record["turns"][1]
    moment = after["frames"]["timestamps_s"][0]
    at = {"granted_s": [moment, moment], "box": [250, 0, 750, 500], "clamped": ["box"]}
    turn["call"] = {"tool": "zoom", "arguments": {"time_s": moment}, **at}
    after["frames"] |= {"timestamps_s": [moment] * 4, "scene_lengths": [4]}
    path.write_text("\n".join([json.dumps(record), *rest]) + "\n")
    page = open_page(f"{written(run).as_uri()}#/trajectory/1/0/0")
    page.wait_for_selector(".boxed-frame img")
    frame, box = (page.locator(name).bounding_box() for name in (".boxed-frame", ".boxed-frame .box"))
    assert box["width"] == pytest.approx(frame["width"] / 2, abs=2)
    assert box["x"] == pytest.approx(frame["x"] + frame["width"] / 4, abs=2)
    assert "box 250 0 750 500 (clamped: box)" in page.locator("svg.timeline").inner_html()
    assert page.locator("h3", has_text="Call 1: zoom").count() == 1


def test_a_trajectory_opens_by_deep_link_and_keys_go_to_its_siblings_and_groups(report, open_page):
    page = open_page(f"{report.as_uri()}#/trajectory/2/1/1")
    page.wait_for_selector("text=clamped: end, frames")
    assert page.locator(".sibling.current b").inner_text() == "1"
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("text=did not look again")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("text=malformed, nothing granted")
    page.keyboard.press("Shift+ArrowRight")
    page.wait_for_selector("text=group 2 of 3")
    page.go_back()
    page.wait_for_selector("text=group 1 of 3")
    page.goto(f"{report.as_uri()}#/trajectory/99/0/0")
    page.wait_for_selector("text=no such trajectory")


def test_a_token_shows_both_log_probs_their_gap_and_its_advantage_on_hover_and_by_key(report, open_page):
    record = json.loads((report.parent / "trajectories" / "step_000002.jsonl").read_text().splitlines()[0])
    turn = record["turns"][0]
    page = open_page(f"{report.as_uri()}#/trajectory/2/0/0")
    page.hover(".token >> nth=2")
    reading = page.locator("#token-reading").inner_text().replace("\u2212", "-")
    engine, learner = turn["logprobs"][2], turn["learner_logprobs"][2]
    assert turn["tokens"][2] in reading and f"{engine:.5f} nat" in reading and f"{learner:.5f} nat" in reading
    assert f"{engine - learner:+.5f} nat" in reading and f"{turn['advantage']:+.3f}" in reading
    page.focus("#text-flow")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert turn["tokens"][1] in page.locator("#token-reading").inner_text()
    assert page.url.endswith("#/trajectory/2/0/0")  # the arrow read a token, it did not go to a sibling


def test_dark_and_light_follow_the_system_until_chosen(report, open_page):
    colour = "getComputedStyle(document.body).backgroundColor"
    page = open_page(report.as_uri(), color_scheme="dark")
    dark = page.evaluate(colour)
    page.click("#theme")
    light = page.evaluate(colour)
    assert sum(map(int, dark[4:-1].split(","))) < 120 < 600 < sum(map(int, light[4:-1].split(",")))
    for _ in range(20):  # Chromium hands a choice to its storage in its own time: a reload at once may come before
        page.reload()
        page.wait_for_selector(READY)
        if page.evaluate(colour) == light:
            break
    assert page.evaluate(colour) == light
    page.click("#theme")
    assert page.evaluate(colour) == dark


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_screenshots_of_all_pages_are_kept(report, open_page, scheme):
    page = open_page(report.as_uri(), color_scheme=scheme)
    for name in ("run", "steps/4", "trajectory/4/0/0"):
        page.goto(f"{report.as_uri()}#/{name}")
        page.wait_for_selector({"run": ".chart", "steps": "#groups .strip"}.get(name.split("/")[0], "img.frame"))
        shot(page, f"{name.split('/')[0]}-{scheme}")


@pytest.mark.parametrize("width", [360, 760, 1280])
def test_no_page_is_wider_than_its_window(report, open_page, width):
    page = open_page(report.as_uri(), viewport={"width": width, "height": 800})
    for name, drawn in (("run", ".chart"), ("steps/4", "#groups .strip"), ("trajectory/4/0/1", "img.frame")):
        page.goto(f"{report.as_uri()}#/{name}")
        page.wait_for_selector(drawn)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name


def test_an_older_run_says_what_it_did_not_record_and_a_lost_clip_why_it_is_not_shown(tmp_path, clips, open_page):
    run = write_run(tmp_path / "run", clips, steps=1)
    path = run / "trajectories" / "step_000001.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["task"]["video"] = str(tmp_path / "lost.mp4")
        del row["duration_s"], row["group"]
        for turn in row["turns"]:
            for name in ("tokens", "logprobs", "learner_logprobs", "advantage"):
                del turn[name]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{torn")
    page = open_page(f"{written(run).as_uri()}#/trajectory/1/0/0")
    page.wait_for_selector(".frame.missing")
    assert "lost.mp4: cannot be opened" in page.locator(".film-head >> nth=0").inner_text()
    assert "did not record tokens" in page.locator("#token-reading").inner_text()
    assert page.locator(".turn.sampling .turn-text").inner_text().endswith("</fps>")  # the text, cut at its video
    assert "the run did not record the clip's length" in page.locator(".timeline-head").inner_text()
    page.click("#tab-run")
    page.wait_for_selector("text=1 broken line or file was skipped")


def test_hostile_text_is_inert_and_the_layout_holds(tmp_path, clips, open_page):
    run = write_run(tmp_path / "run", clips, steps=1, written=HOSTILE)
    path = run / "trajectories" / "step_000001.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    for row in rows:
        row["task"] |= {"id": HOSTILE[:300], "question": HOSTILE, "answer": HOSTILE[:200]}
        row["turns"][0]["call"] = {"malformed": HOSTILE[:300]}
        row["rewards"]["terms"][HOSTILE[:200]] = 0.5
        row["stop"] = "</script><b>stopped"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "config.yaml").write_text(f"name: {json.dumps(HOSTILE)}\n")
    append_step(run, 2, {"</script><img src=x onerror=window.bad=1>": 1.0, "state/hash": HOSTILE[:300]})
    write_faults(run, 1, [Fault(HOSTILE[:30], HOSTILE, HOSTILE, HOSTILE, 1e300, math.nan)] * 3)
    write_failures(run, {"cause": HOSTILE, "task": {"id": HOSTILE}, "traceback": HOSTILE, "kind": HOSTILE})
    page = open_page(written(run).as_uri())
    for name, drawn in (("run", ".chart"), ("steps/1", "#groups .group"), ("trajectory/1/0/0", ".turn-text")):
        page.goto(f"{(run / 'report.html').as_uri()}#/{name}")
        page.wait_for_selector(drawn)
        assert page.evaluate("window.bad") is None
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280, name
    text = page.locator(".text-flow").inner_text()
    page.click("#tab-run")
    page.locator(".fault-mark").first.hover()
    assert "<script>window.bad=1</script>" in page.locator(".fault-pop").inner_text()
    assert (
        page.evaluate("window.bad") is None
        and page.locator(".fault-pop img, #fault-table img, #failure-table img").count() == 0
    )
    assert "<script>window.bad=1</script>" in text  # shown as it was written
    assert "\u202e" not in page.content() and "⟨U+202E⟩gnihton" in text  # what would turn text round is spelled out
    assert page.locator("main script, main img:not(.frame):not(.chip-frame), main b >> text=stopped").count() == 0
    shot(page, "hostile")


def test_a_live_page_of_a_run_that_has_only_begun_waits_for_its_first_step(tmp_path, open_page):
    (tmp_path / "config.yaml").write_text("name: begun\n")
    with PageServer(LiveRun(tmp_path, source=None), port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        try:
            page = open_page(address, allowed=address)
            page.wait_for_selector("text=live · step 0")
            for tab, text in (("steps", "No trajectories have been recorded"), ("trajectory", "No trajectories")):
                page.click(f"#tab-{tab}")
                page.wait_for_selector(f"text={text}")
            page.click("#tab-run")
            append_step(tmp_path, 1, {"reward/sampling": 0.25})
            page.wait_for_selector("[data-chart='Retrieval and answer reward'] >> text=0.250")
        finally:
            server.shutdown()
            thread.join()


def test_a_live_page_shows_a_new_step_without_being_loaded_again(tmp_path, clips, open_page):
    from envs.video.reader import VideoReader
    from rl.run.page import ClipFrames

    run = write_run(tmp_path / "run", clips, steps=2)
    with VideoReader(workers=0) as reader, PageServer(LiveRun(run, ClipFrames(reader)), port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        try:
            page = open_page(address, allowed=address)
            page.evaluate("window.loaded = 1")
            page.wait_for_selector("text=live · step 2")
            append_step(run, 3, {"reward/sampling": 0.875, "reward/reasoning": 0.5})
            page.wait_for_selector("text=live · step 3")
            assert page.locator("[data-chart='Retrieval and answer reward'] .reading >> nth=0").inner_text() == "0.875"
            page.goto(f"{address}#/trajectory/2/0/0")
            page.wait_for_selector("img.frame")
            assert page.evaluate("window.loaded") == 1
        finally:
            server.shutdown()
            thread.join()
