"""The words that the demo model knows. No torch here: a manifest is checked by them."""

import re
from collections.abc import Iterable
from functools import cache

from pab.conditioning.loops import split_scenes
from pab.families.demo import captions

SPECIAL = ("<pad>", "<unk>", "<start>")
MAX_WORDS = 31
"""How many words of a prompt the text encoder reads; what is longer is cut."""
_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")
_FUNCTION_WORDS = (
    "a an the one of in on over against with front background backdrop that which is and it its from to for "
    "video clip animation showing shape object goes going across upon before still motionless"
)


def split_words(prompt: str) -> list[str]:
    """Splits a prompt into lower-case words; punctuation is dropped, hyphens inside words stay."""
    return _WORD.findall(prompt.lower())


def build_vocabulary() -> tuple[str, ...]:
    """Returns the special tokens, then every word that a demo caption can hold, in a fixed order."""
    phrases: list[str] = [_FUNCTION_WORDS]
    for words in (captions.SHAPE_WORDS, captions.COLOUR_WORDS, captions.BACKGROUND_WORDS, captions.SIZE_WORDS):
        phrases.extend(word for synonyms in words.values() for word in synonyms)
    for words in (captions.SPEED_WORDS, captions.DIRECTION_WORDS):
        phrases.extend(word for synonyms in words.values() for word in synonyms)
    for verbs in captions.MOVING_VERBS.values():
        phrases.extend(verb for forms in verbs for verb in forms)
    phrases.extend(phrase for forms in captions.STILL_PHRASES for phrase in forms)
    return (*SPECIAL, *sorted({word for phrase in phrases for word in split_words(phrase)}))


@cache
def _known() -> frozenset[str]:
    return frozenset(build_vocabulary())


def unknown_words(prompt: str) -> tuple[str, ...]:
    """Returns the words of a prompt that the published demo model does not know, each once."""
    return _without(split_words(prompt), _known())


def count_words(prompt: str) -> int:
    """Returns how many words of a prompt the published demo model knows. The others hold a place only while there is room."""
    return sum(word in _known() for word in split_words(prompt))


def count_words_of_loops(prompt: str) -> int:
    """Returns what `count_words` does; of a prompt that has a text for each loop, the most in one of them."""
    texts, _ = split_scenes(prompt)
    return max(map(count_words, texts), default=0)


def _without(words: Iterable[str], known: frozenset[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for word in words if word not in known))
