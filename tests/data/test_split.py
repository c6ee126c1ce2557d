"""Which samples are held out."""

import random

import pytest

from app.data.split import split_by_name

NAMES = [f"{name}/{i:04}.jpg" for name in ("ant", "bee") for i in range(1000)]


def sides(names: list[str], fraction: float = 0.2) -> dict[str, str]:
    classes = sorted({name.split("/")[0] for name in names})
    train, val = split_by_name(names, [classes.index(name.split("/")[0]) for name in names], fraction)
    assert train == sorted(set(range(len(names))) - set(val))
    return {names[i]: "train" for i in train} | {names[i]: "val" for i in val}


def test_a_file_keeps_its_side_when_others_come_go_and_are_renamed() -> None:
    before = sides(NAMES)
    some = random.Random(0).sample(NAMES, 1500)
    changes = {
        "one more": sorted([*NAMES, "ant/0000-a.jpg"]),
        "a class more, before and after": sorted([*NAMES, "aaa/1.jpg", "aaa/2.jpg", "zzz/1.jpg"]),
        "fewer": some,
        "one class": NAMES[:1000],
        "others renamed": [name if i % 3 else f"{name}.jpg" for i, name in enumerate(NAMES)],
    }
    for change, names in changes.items():
        after = sides(names)
        assert all(after[name] == side for name, side in before.items() if name in after), change


def test_a_greater_part_holds_out_more_and_nothing_else() -> None:
    small, large = sides(NAMES, 0.1), sides(NAMES, 0.3)
    assert all(large[name] == "val" for name, side in small.items() if side == "val")


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 0.9])
def test_shares_are_approximate(fraction: float) -> None:
    held = sides(NAMES, fraction)
    for name in ("ant", "bee"):
        share = sum(held[file] == "val" for file in NAMES if file.startswith(name)) / 1000
        assert abs(share - fraction) < 0.04


@pytest.mark.parametrize("fraction", [0.001, 0.2, 0.999])
def test_a_class_of_two_has_one_on_either_side(fraction: float) -> None:
    for i in range(50):
        assert sorted(sides([f"a/{i}", f"a/{i + 1000}"], fraction).values()) == ["train", "val"]
        assert sides([f"a/{i}"], fraction) == {f"a/{i}": "train"}


def test_one_name_in_two_spellings_of_unicode() -> None:
    composed, decomposed = ([f"a/\u00e9{i}" for i in range(50)], [f"a/e\u0301{i}" for i in range(50)])
    assert list(sides(composed, 0.5).values()) == list(sides(decomposed, 0.5).values())
