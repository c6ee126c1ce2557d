"""The nearest valid spelling."""

from collections.abc import Iterable


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The one of `words` that `word` was most likely meant to be, or None."""
    from difflib import get_close_matches  # only an error needs it

    candidates = list(words)
    folded = {candidate.lower(): candidate for candidate in reversed(candidates)}
    swapped = [candidate for candidate in candidates if sorted(candidate.lower()) == sorted(word.lower())]
    if swapped:
        return swapped[0]
    close = get_close_matches(word.lower(), folded, n=3, cutoff=0.6)
    if close:
        return folded[next((match for match in close if match[0] == word[0].lower()), close[0])]
    return next((candidate for candidate in candidates if len(word) > 2 and candidate.startswith(word)), None)


def did_you_mean(word: str, words: Iterable[str], prefix: str = "") -> str:
    """`; did you mean 'optim.lr'?`, or nothing."""
    match = nearest(word, words)
    return f"; did you mean '{prefix}{match}'?" if match is not None else ""
