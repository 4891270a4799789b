"""Which pictures are kept from training, to validate on."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def held_out(captions: Sequence[str], every: int, pattern: str | None) -> NDArray[np.bool_]:
    """True where a picture goes to validation.

    Without a pattern that is every `every`-th picture. With one, captions that match it are grouped
    by what is left without the match; of every `every`-th group, by name, one member is held out,
    cycling through the matches by name: combinations that training never shows, of words that it
    does. Raises ValueError where nothing would be held out, and when a held-out word does not occur
    in training.
    """
    if every < 0 or every == 1:
        raise ValueError(f"--hold-out-every is {every}; set 2 or more, or 0 for no validation set")
    if every == 0:
        return np.zeros(len(captions), bool)
    if pattern is None:
        _refuse_too_few("pictures", len(captions), every)
        return np.arange(len(captions)) % every == every - 1
    wanted = _one_of_every_group(captions, every, pattern)
    _refuse_unseen_words(wanted, set(captions) - wanted)
    return np.array([caption in wanted for caption in captions])


def _one_of_every_group(captions: Sequence[str], every: int, pattern: str) -> set[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"--hold-out {pattern!r} is no regular expression: {error}") from None
    groups: dict[str, dict[str, str]] = {}  # what is left -> match -> caption
    for caption in captions:
        match = expression.search(caption)
        if match and match.group():
            left = " ".join((caption[: match.start()] + caption[match.end() :]).split())
            groups.setdefault(left, {})[match.group()] = caption
    if not groups:
        raise ValueError(f"--hold-out {pattern!r} matches none of {len(captions)} captions")
    _refuse_too_few("groups of --hold-out", len(groups), every)
    matches = sorted({match for members in groups.values() for match in members})
    wanted = set()
    for turn, left in enumerate(sorted(groups)[every - 1 :: every]):
        cycle = [matches[(turn + step) % len(matches)] for step in range(len(matches))]
        wanted.add(next(groups[left][match] for match in cycle if match in groups[left]))
    return wanted


def _refuse_too_few(what: str, count: int, every: int) -> None:
    if count < every:
        fewer = f"2 to {count}, or " if count > 2 else "2, or " if count == 2 else ""
        raise ValueError(
            f"--hold-out-every is {every}, the number of {what} only {count}: none would be held "
            f"out, and a training looks for val shards; set {fewer}0 for no validation set"
        )


def _refuse_unseen_words(held: set[str], shown: set[str]) -> None:
    known = {word for caption in shown for word in _words(caption)}
    for caption in sorted(held):
        for word in _words(caption):
            if word not in known:
                raise ValueError(
                    f"the word {word!r} of the held-out caption {caption!r} would not occur in "
                    "training; change --hold-out or --hold-out-every"
                )


def _words(caption: str) -> list[str]:
    return re.findall(r"\w+", caption.lower())
