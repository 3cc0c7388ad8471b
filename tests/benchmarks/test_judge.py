"""The judge's benchmark, run small: speed by requests at a time, and what comes of a server that fails."""

from tests.benchmarks.test_programs import run


def test_a_fault_that_passes_costs_tries_and_a_lie_is_masked():
    few = ("--groups", 1, "--latency", 0, "--concurrency", 16, "--share", 0.5, "--retries", 8, "--timeout", 30)
    (speed,), (broken, lying) = run("benchmarks.judge", *few, "--faults", "answers 500", "lies: no verdict")
    assert speed["requests at a time"] == "16" and float(speed["judged/s"]) > 0
    assert (broken["scored"], broken["masked"]) == ("16", "0") and float(broken["tries"]) > 1
    masked, cause = lying["masked"].split(" ", 1)
    assert int(lying["scored"]) + int(masked) == 16 and 0 < int(masked) < 16
    assert cause.startswith("the judge has given no line") and lying["tries"] == "1.00"
