"""How Open-Sora 1.2 prepares a prompt for its text encoder: cleaning, quality scores.

The model was trained on captions cleaned by these rules, so a prompt must go through the same ones, in the same order.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from urllib.parse import unquote_plus

CLEANING_LIBRARIES = ("bs4", "ftfy")
"""What `clean` imports."""

_DOMAINS = "com|co|ru|net|org|edu|gov|it"

_IMAGE_SUFFIXES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"

_DASHES = (
    "-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40"
    "\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"
)

_PUNCTUATION = "#®•©™&@·º½¾¿¡§~)(][}{|\\/*"

Rule = tuple[re.Pattern[str], str]


def _rules(*pairs: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


_LINKS = _rules(
    *(
        (rf"\b((?:{start}:(?:\/{{1,3}}|[a-zA-Z0-9%])|[a-zA-Z0-9.\-]+[.](?:{_DOMAINS})[\w/-]*\b\/?(?!@)))", "")
        for start in ("https?", "www")
    )
)

_IDEOGRAPHS = "[\u4e00-\u9fff]+"
_CHARACTERS = _rules(
    (r"@[\w\d]+\b", ""),  # nicknames
    *((f"[{first}-{last}]+", "") for first, last in (
        ("\u31c0", "\u31ef"),  # CJK strokes, extensions and symbols
        ("\u31f0", "\u31ff"),
        ("\u3200", "\u32ff"),
        ("\u3300", "\u33ff"),
        ("\u3400", "\u4dbf"),
        ("\u4dc0", "\u4dff"),
    )),
    (_IDEOGRAPHS, ""),
    (f"[{_DASHES}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),  # article ids
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"[\S]+\.(?:{_IMAGE_SUFFIXES})", ""),
    (r"[\"\']{2,}", '"'),
    (r"[\.]{2,}", " "),
    (f"[{re.escape(_PUNCTUATION)}]+", " "),
    (r"\s+\.\s+", " "),
)  # fmt: skip

_JOINERS = re.compile(r"[-_]")

_MOST_JOINERS = 3

_WORDS = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_IMAGE_SUFFIXES})(\simage[s]?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # j2d1a2a
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # 1920x1080, with a Latin or a Cyrillic x
    (r"\b\s+\:\s+", ": "),
    (r"(\D[,\./])\b", r"\1 "),
    (r"\s+", " "),
)

_ENDS = _rules(
    (r"^[\"\']([\w\W]+)[\"\']$", r"\1"),
    (r"^[\'\_,\-\:;]", ""),
    (r"[\'\_,\-\:\-\+]$", ""),
    (r"^\.\S+$", ""),
)


def clean(text: str, *, keep_ideographs: bool = False) -> str:
    """Returns a caption cleaned as the training captions were: twice, since the first time may uncover more to clean.

    `keep_ideographs`: leaves Chinese characters (U+4E00 to U+9FFF) in, as Open-Sora-Plan 1.2's own program does; without
    them nothing is left of a Chinese prompt.
    """
    characters = tuple(rule for rule in _CHARACTERS if not (keep_ideographs and rule[0].pattern == _IDEOGRAPHS))
    return _clean_once(_clean_once(text, characters), characters)


def _clean_once(text: str, characters: Iterable[Rule]) -> str:
    try:
        import ftfy
        from bs4 import BeautifulSoup
    except ImportError as error:
        library = "beautifulsoup4" if error.name == "bs4" else error.name
        raise ImportError(f"cleaning prompts needs {library}; pip install 'pab-pipeline[models]'") from error
    text = unquote_plus(text).strip().lower().replace("<person>", "person")
    text = _apply(_LINKS, text)
    text = BeautifulSoup(text, features="html.parser").text
    text = _apply(characters, text)
    if len(_JOINERS.findall(text)) > _MOST_JOINERS:
        text = _JOINERS.sub(" ", text)
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    text = _apply(_WORDS, text)
    # Not stripped before: a blank at an end shields the mark beside it, in the published cleaning too.
    return _apply(_ENDS, text).strip()


def _apply(rules: Iterable[Rule], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text
