from app.core.clock import due, times_left


def test_due_at_multiples_from_begin_on() -> None:
    assert [count for count in range(12) if due(count, 3)] == [0, 3, 6, 9]
    assert [count for count in range(12) if due(count, 2, begin=5)] == [6, 8, 10]


def test_never_due_when_off() -> None:
    assert not any(due(count, interval) for count in range(5) for interval in (-1, 0))


def test_times_left_counts_what_will_be_due_and_the_end() -> None:
    for interval in (1, 2, 3, 7, 20):
        for begin in (0, 1, 4, 5, 30):
            for length in (1, 6, 12):
                for count in range(length + 1):
                    rest = range(count + 1, length + 1)
                    expected = sum(due(each, interval, begin) or each == length for each in rest)
                    assert times_left(count, length, interval, begin) == expected
