"""Text that would run in a browser if a page did not escape it, put wherever a user's words may stand."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Collection
from typing import Any

HOSTILE = 'javascript:alert("1")//\'><script>alert(2)</script><img src=x onerror=alert(3)>&amp;{{ 7 * 7 }}'


def poisoned(value: Any, *, keep: Collection[str] = (), names: Collection[str] = ()) -> Any:
    """Returns JSON values whose every string is hostile, but for those under the keys of `keep`.

    `names`: keys of objects whose own keys become hostile too.
    """

    def inside(name: str, inner: Any) -> Any:
        if name in keep:
            return inner
        found = poisoned(inner, keep=keep, names=names)
        return {f"{i} {HOSTILE}": each for i, each in enumerate(found.values())} if name in names else found

    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, list | tuple):
        return [poisoned(each, keep=keep, names=names) for each in value]
    if isinstance(value, dict):
        return {name: inside(name, inner) for name, inner in value.items()}
    return value


def tree(page: str) -> ET.Element:
    """The page as XML, which it must be."""
    return ET.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def assert_harmless(page: str, *, shown: int, script: str | None = None) -> None:
    """Hostile text is told word for word, at least `shown` times, and none of it is a tag, an event or a link.

    `script`: the only program that the page may load.
    """
    root = tree(page)
    for element in root.iter():
        assert element.tag not in ("iframe", "object", "embed", "base", "link")
        assert element.tag != "script" or (element.attrib == {"src": script, "defer": "defer"} and not element.text)
        for name, text in element.attrib.items():
            assert not name.lower().startswith("on")
            assert name not in ("href", "src") or ":" not in text or text.startswith("data:image/png;base64,")
    assert not [image for image in root.iter("img") if not image.get("src", "").startswith("data:")]
    assert sum(text.count(HOSTILE) for text in root.itertext()) >= shown
    assert page.count("<script") == (script is not None)
