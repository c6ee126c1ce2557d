from app.clock import due


def test_due_at_multiples_from_begin_on() -> None:
    assert [count for count in range(12) if due(count, 3)] == [0, 3, 6, 9]
    assert [count for count in range(12) if due(count, 2, begin=5)] == [6, 8, 10]


def test_never_due_when_off() -> None:
    assert not any(due(count, interval) for count in range(5) for interval in (-1, 0))
