"""Is it due? One function for every interval."""


def due(count: int, interval: int, begin: int = 0) -> bool:
    """True when `count` (epochs or iterations done, so 1 after the first) is a multiple of `interval` and >= `begin`.

    An `interval` below 1 is never due. `begin` does not shift the phase: interval 2 from 5 on is due at 6, 8, …
    """
    return interval > 0 and count >= begin and count % interval == 0
