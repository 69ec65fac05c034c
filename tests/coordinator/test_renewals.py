"""A file that is written anew loses no change: not one that comes while it is written."""

import pytest

from tapestry_coordinator.renewals import Renewals


def test_a_change_that_comes_while_the_file_is_written_has_it_written_once_more() -> None:
    renewals, written = Renewals(), list[int]()
    renewals.note(1, at=0.0)

    def write(number: int) -> None:
        written.append(number)
        if len(written) == 1:
            renewals.note(number, at=0.0)  # in the same tick of the clock as the one before

    renewals.renew(write, before=5.0)
    assert written == [1]
    renewals.renew(write, before=5.0)
    assert written == [1, 1]
    renewals.renew(write, before=5.0)
    assert written == [1, 1]


def test_what_could_not_be_written_is_still_due_and_so_is_what_comes_after() -> None:
    renewals, written = Renewals(), list[int]()
    for number in (2, 1):
        renewals.note(number, at=0.0)

    def fail(number: int) -> None:
        raise OSError(f"disk full at {number}")

    with pytest.raises(OSError, match="at 1"):
        renewals.renew(fail, before=5.0)
    renewals.renew(written.append, before=5.0)
    assert written == [1, 2]


def test_the_first_of_several_changes_says_when_the_file_is_due() -> None:
    renewals, written = Renewals(), list[int]()
    for at in (3.0, 9.0):
        renewals.note(1, at=at)
    renewals.renew(written.append, before=2.9)
    assert written == []
    renewals.renew(written.append, before=3.0)
    assert written == [1]
