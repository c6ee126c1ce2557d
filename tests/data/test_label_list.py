"""Labels of list files: names or numbers, and no sizes taken from them."""

import pytest

from app.data.label_list import Row, number_labels
from app.errors import DataError


def numbered(labels: list[str]) -> dict[str, int]:
    return number_labels([Row(f"{i}.jpg", label, f"list.txt:{i + 1}") for i, label in enumerate(labels)])


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["1", "0", "2", "0"], ["0", "1", "2"]),
        (["2", "1", "3"], ["1", "2", "3"]),
        ([str(i) for i in range(12)], [str(i) for i in range(12)]),
        (["0", "2"], ["0", "2"]),
        (["5", "6"], ["5", "6"]),
        (["20261126", "20261125"], ["20261125", "20261126"]),
        (["9" * 5000, "1"], ["1", "9" * 5000]),
        (["00", "01"], ["00", "01"]),
        (["0", "1", "cat"], ["0", "1", "cat"]),
        (["2026-11-26", "2026-11-25"], ["2026-11-25", "2026-11-26"]),
        (["\u0661", "\u0660"], ["\u0660", "\u0661"]),
    ],
)
def test_labels_are_names_unless_they_count_up_from_0_or_1(labels: list[str], classes: list[str]) -> None:
    assert list(numbered(labels)) == classes
    assert list(numbered(labels).values()) == list(range(len(classes)))


def test_what_is_no_class_is_said_at_once() -> None:
    with pytest.raises(DataError) as caught:
        numbered([str(20260000 + i) for i in range(3000)])
    assert str(caught.value) == (
        "list.txt:1: 3,000 different labels on 3,000 lines, such as '20260000': that is no class; expected lines of "
        "`path label`"
    )
    assert len(numbered([f"id {i // 3}" for i in range(6000)])) == 2000, "three of each may be classes"
    with pytest.raises(DataError, match=r"list.txt:2: label -1 is negative"):
        numbered(["0", "-1", "1"])
