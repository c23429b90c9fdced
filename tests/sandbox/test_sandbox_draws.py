"""The pure parts: draws, runs as formulas of time, settings of switches, options."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.sandbox import SWITCHES, FaultError, OptionError
from receiver.sandbox.draws import between, draw, token, uuid
from receiver.sandbox.faults import Faults
from receiver.sandbox.options import options
from receiver.sandbox.rounds import Round

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.integers(), st.lists(st.text() | st.integers(), max_size=4))
def test_a_draw_is_from_zero_to_below_one_and_always_the_same(seed: int, about: list[object]) -> None:
    assert 0 <= draw(seed, *about) < 1
    assert draw(seed, *about) == draw(seed, *about)
    assert draw(seed, *about) != draw(seed + 1, *about)


def test_draws_are_evenly_spread() -> None:
    drawn = [draw(1, "spread", n) for n in range(2000)]
    tenths = [sum(int(each * 10) == tenth for each in drawn) for tenth in range(10)]
    assert min(tenths) > 150
    assert max(tenths) < 250


def test_what_is_asked_about_is_not_glued_together() -> None:
    assert draw(1, "a", "bc") != draw(1, "ab", "c")
    assert token(1, 20, "x") != token(1, 20, "y")
    assert len(token(1, 7, "x")) == 7
    assert uuid(1, "x")[14] == "4"


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.integers())
def test_a_number_between_two_is_between_them(one: float, two: float, seed: int) -> None:
    low, high = sorted((one, two))
    assert low <= between(low, high, seed, "x") <= high * (1 + 1e-9)


runs = st.builds(
    lambda count, span, queue, fatal: Round(
        1, range(count), queued_at=100.0, queue=queue, span=span, errors=[], fatal=fatal % count if fatal is not None else None,
        seed=1, about="job",
    ),
    st.integers(1, 40), st.floats(0.01, 100), st.floats(0, 10), st.none() | st.integers(0, 39),
)  # fmt: skip


@given(runs, st.lists(st.floats(90, 300), min_size=2, max_size=20))
def test_a_run_only_ever_advances_and_ends_with_all_there_is_to_do(run: Round, moments: list[float]) -> None:
    done = [run.done(now) for now in sorted(moments)]
    assert done == sorted(done)
    assert run.done(run.started_at - 0.001) == 0
    assert run.done(run.ends_at) == (len(run.pages) if run.fatal is None else run.fatal)


@given(runs)
def test_each_page_is_done_when_it_says_it_finishes(run: Round) -> None:
    most = len(run.pages) if run.fatal is None else run.fatal
    finishes = [run.finish(position) for position in range(most)]
    assert finishes == sorted(finishes)
    for position, at in enumerate(finishes):
        assert run.done(at + 1e-6) > position
        assert run.done(at - 1e-6) <= position


@given(runs, st.floats(90, 300))
def test_a_stopped_run_stays_where_it_was(run: Round, stop: float) -> None:
    done = run.done(stop)
    run.stopped_at = stop
    assert run.done(stop + 1e6) == done
    assert run.errored(stop + 1) == list(run.pages[done:]), "it was not their first attempt"
    run.untried = run.pages
    assert (run.errored(stop + 1), run.never(stop + 1)) == ([], list(run.pages[done:]))


@given(st.lists(st.tuples(st.integers(0, 25), st.integers(0, 10)), max_size=20))
def test_a_whole_reading_is_noticed_exactly_when_every_row_was_told(reads: list[tuple[int, int]]) -> None:
    run = Round(1, range(20), queued_at=0, queue=0, span=1, errors=[], fatal=None, seed=1, about="job")
    seen: set[int] = set()
    for skip, limit in reads:
        count = max(0, min(limit, 20 - skip))
        run.note_read(skip, count, 20)
        seen |= set(range(skip, skip + count))
        assert run.whole_read is (seen == set(range(20)))


@given(st.sampled_from(sorted(SWITCHES)), json_values)
def test_a_setting_is_taken_or_refused_with_a_sentence_never_with_anything_else(name: str, value: object) -> None:
    faults = Faults(1)
    refused: FaultError | None = None
    try:
        faults[name] = value
    except FaultError as exc:
        refused = exc
    faults.next_strikes(name, "x", subject="x")
    faults.choice(name)
    assert refused is None or (faults.active == {} and str(refused).startswith(f"{name}: "))


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("lose", 1.1), ("lose", -0.1), ("lose", "often"), ("lose", [1]), ("lose", float("nan")), ("lose", 10**400),
        ("lose", {"rat": 1}), ("lose", {"times": 1.5}), ("lose", {"after": -1}), ("lose", {"times": True}),
        ("rate_limit", {"value": "x"}), ("rate_limit", {"value": -1}), ("delay", -1), ("delay", "soon"), ("delay", 1e300),
        ("order", "backwards"), ("order", {"rate": 1}), ("rotate_key", 7), ("redirect", {"value": []}),
    ],
)  # fmt: skip
def test_an_impossible_setting_is_refused_and_changes_nothing(name: str, given: object) -> None:
    faults = Faults(1)
    faults["lose"] = 0.5
    with pytest.raises(FaultError, match=name):
        faults[name] = given
    with pytest.raises(FaultError, match=name):
        faults.merge({"duplicate": 1, name: given})
    with pytest.raises(FaultError, match="no fault 'loose'"):
        faults.replace({"loose": 1})
    assert faults.active == {"lose": 0.5}


def test_flags_and_environment_say_the_same_as_json() -> None:
    faults = Faults(1)
    faults.replace(
        {"lose": "0.5", "delay": "2", "order": "unstable", "attempts": "4", "cut": '{"rate": 1, "times": 2}', "html": "true"}
    )
    assert faults["lose"] == 0.5
    assert faults["attempts"] == "4"
    assert faults.choice("attempts") == "4"
    assert [faults.next_strikes("cut", "x") is not None for _ in range(3)] == [True, True, False]
    assert faults.next_strikes("html", "x")


def test_a_setting_counts_its_times_and_lets_some_pass_first() -> None:
    faults = Faults(1)
    faults["lose"] = {"rate": 1, "times": 2, "after": 1, "match": "job_1"}
    asked = ["job_2", "job_1", "job_1", "job_2", "job_1", "job_1"]
    struck = [faults.next_strikes("lose", "x", subject=subject) is not None for subject in asked]
    assert struck == [False, False, True, False, True, False]


def test_switches_go_back_by_deleting_by_zero_by_none_and_all_at_once() -> None:
    faults = Faults(1)
    for back in (0, None, False):
        faults["lose"] = 1
        faults["lose"] = back
        assert faults.active == {}
    faults.merge({"lose": 1, "order": "unstable"})
    del faults["lose"]
    assert faults.active == {"order": "unstable"}
    faults.merge({})
    assert faults.active == {}
    assert dict(faults)["order"] == "submitted"


@pytest.mark.parametrize(
    "given",
    [
        {"tier": "gold"}, {"page_errors": 2}, {"speed": 0}, {"rpm": 0}, {"queue_seconds": -1}, {"page_size": "big"},
        {"page_size": "1KB..x"}, {"page_size": "9KB..1KB"}, {"job_seconds": "1..2..3"}, {"job_seconds": -1}, {"text": "weird"},
        {"huge_size": "1TB"}, {"page_size": None}, {"page_size": float("inf")},
    ],
)  # fmt: skip
def test_an_impossible_option_is_refused_by_name(given: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(given))):
        options(**given)
