"""The nearest valid spelling."""

from collections.abc import Collection, Iterable


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The one of `words` that `word` was most likely meant to be, or None."""
    from difflib import get_close_matches  # only an error needs it

    candidates = list(words)
    folded = {candidate.lower(): candidate for candidate in reversed(candidates)}
    swapped = [candidate for candidate in candidates if sorted(candidate.lower()) == sorted(word.lower())]
    if swapped:
        return swapped[0]
    close = get_close_matches(word.lower(), folded, n=1, cutoff=0.6)
    if close:
        return folded[close[0]]
    return next((candidate for candidate in candidates if len(word) > 2 and candidate.startswith(word)), None)


def did_you_mean(word: str, words: Iterable[str], prefix: str = "") -> str:
    """`; did you mean 'optim.lr'?`, or nothing."""
    match = nearest(word, words)
    return f"; did you mean '{prefix}{match}'?" if match is not None else ""


def unknown_key(prefix: str, name: str, known: Collection[str], elsewhere: str | None = None) -> str:
    """The message for a key `prefix + name` that is none of `known`; `elsewhere` is a full key it may have meant."""
    hint = did_you_mean(name, known, prefix)
    if not hint and elsewhere is not None:
        hint = f"; did you mean '{elsewhere}'?"
    return f"unknown key '{prefix}{name}'{hint} (keys: {', '.join(sorted(known)) or 'none'})"
