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
    assert attempts.fruitless(50) == 0


@pytest.mark.parametrize("code", [0, 85, 75])
def test_an_orderly_end_begins_the_count_anew(tmp_path, code):
    attempts = Attempts(tmp_path)
    attempts.start(40)
    attempts.start(40)
    attempts.end(40, code, "")
    attempts.start(40)
    assert attempts.fruitless(40) == 1


def test_a_start_further_on_begins_the_count_anew(tmp_path):
    attempts = Attempts(tmp_path)
    for step in (40, 40, 60, 60):
        attempts.start(step)
    assert attempts.fruitless(60) == 2


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
