"""Is it due, and how often will it be? For every interval."""


def due(count: int, interval: int, begin: int = 0) -> bool:
    """True when `count` (epochs or iterations done, so 1 after the first) is a multiple of `interval` and >= `begin`.

    An `interval` below 1 is never due. `begin` does not shift the phase: interval 2 from 5 on is due at 6, 8, …
    """
    return interval > 0 and count >= begin and count % interval == 0


def times_left(count: int, length: int, interval: int, begin: int = 0) -> int:
    """How often `due` holds in count + 1 … length, where the last one counts in any case."""
    if count >= length:
        return 0
    first = max(begin, count + 1)
    multiples = max(length // interval - (first - 1) // interval, 0)
    return multiples + (not due(length, interval, begin))
