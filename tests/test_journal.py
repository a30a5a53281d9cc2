"""A journal holds what was finished, whatever interrupted it."""

import pytest

from fsqcodec.evaluation.journal import Journal


def test_finished_pieces_survive(tmp_path):
    first = Journal(tmp_path / "deep" / "j.jsonl", {"asked": (1, 2)})
    first.add("a", {"x": [1.5, None]})
    again = Journal(first.path, {"asked": [1, 2]})
    assert "a" in again and "b" not in again
    assert again["a"] == {"x": [1.5, None]}
    again.add("b", 2)
    assert Journal(first.path, {"asked": [1, 2]})["b"] == 2


def test_cut_off_anywhere_it_goes_on(tmp_path):
    whole = Journal(tmp_path / "whole", {"asked": 1})
    for number in range(3):
        whole.add(str(number), "ä" * number)
    content = whole.path.read_bytes()
    for length in range(len(content) + 1):
        path = tmp_path / "cut"
        path.write_bytes(content[:length])
        journal = Journal(path, {"asked": 1})
        for number in range(3):
            if str(number) not in journal:
                journal.add(str(number), "ä" * number)
        assert path.read_bytes() == content


def test_another_run_is_refused_and_left_alone(tmp_path):
    first = Journal(tmp_path / "j", {"asked": 1, "of": 2})
    first.add("a", 1)
    before = first.path.read_bytes()
    with pytest.raises(ValueError, match=r"asked for something else \(its of differ\)"):
        Journal(first.path, {"asked": 1, "of": 3})
    assert first.path.read_bytes() == before


def test_what_json_does_not_hold_is_not_written(tmp_path):
    journal = Journal(tmp_path / "j", {})
    with pytest.raises(ValueError):
        journal.add("a", float("nan"))
    assert "a" not in Journal(journal.path, {})


def test_removed_when_complete(tmp_path):
    journal = Journal(tmp_path / "j", {})
    journal.remove()
    assert not journal.path.exists()
