"""Starts that get nowhere are counted; what helps is not held against the run."""

import pytest

from ldm.runs.attempts import Attempts


def test_starts_at_one_step_that_died_are_counted(tmp_path):
    attempts = Attempts(tmp_path)
    assert attempts.fruitless(0) == 0
    for number in range(3):
        attempts.start(40)
        if number:  # a killed one cannot tell
            attempts.end(41, 1, "boom")
        assert attempts.fruitless(40) == number + 1
    assert attempts.last_failure() == "boom"
    assert attempts.fruitless(50) == 1  # the last of them had got there


@pytest.mark.parametrize(("code", "step"), [(0, 40), (85, 41)])
def test_what_got_somewhere_begins_the_count_anew(tmp_path, code, step):
    attempts = Attempts(tmp_path)
    attempts.start(40)
    attempts.start(40)
    attempts.end(step, code, "")
    attempts.start(40)
    assert attempts.fruitless(40) == 1


@pytest.mark.parametrize(("code", "step"), [(85, 40), (75, 43)])
def test_stopped_while_it_starts_or_by_another_rank_is_no_progress(tmp_path, code, step):
    attempts = Attempts(tmp_path)
    for number in range(3):
        attempts.start(40)
        attempts.end(step, code, "stopped by signal 10 at step 40")
        assert attempts.fruitless(40) == number + 1


def test_a_step_further_on_begins_the_count_anew(tmp_path):
    """Where the second start died it had saved step 60, so that there were three deaths there."""
    attempts = Attempts(tmp_path)
    for step in (40, 40, 60, 60):
        attempts.start(step)
    assert attempts.fruitless(60) == 3
    attempts.start(60)
    assert attempts.fruitless(80) == 1


def test_half_a_line_of_a_killed_process_is_passed_over(tmp_path):
    attempts = Attempts(tmp_path)
    attempts.start(1)
    with attempts.file.open("a") as file:
        file.write('{"event": "sta')
    assert attempts.fruitless(1) == 1


def test_what_restarts_cost(tmp_path):
    attempts = Attempts(tmp_path)
    attempts.file.write_text(
        '{"event": "start", "step": 0, "time": 10}\n{"event": "end", "step": 5, "time": 20, '
        '"code": 85, "why": ""}\n{"event": "start", "step": 5, "time": 50}\n'
    )
    assert attempts.lost() == (1, 30.0)
