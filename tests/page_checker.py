"""Holds a page against what every page of ours is: well-formed, and in need of nothing else."""

from __future__ import annotations

import html.parser

HOSTILE = "<script>alert('x')</script>\"&"
_VOID = {"meta", "link", "input", "br", "hr", "img"}


class Checker(html.parser.HTMLParser):
    """Follows tags: each one is closed by its own, and what it refers to is in the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.anchors: set[str] = set()
        self.scripts = 0
        self.wanted: list[str] = []  # what would be fetched

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = dict(attrs)
        if "id" in about:
            assert about["id"] not in self.ids, about["id"]
            self.ids.add(about["id"] or "")
        self.scripts += tag == "script"
        for name in ("src", "href", "xlink:href", "action", "poster", "srcset"):
            value = about.get(name) or ""
            if value.startswith("#"):
                self.anchors.add(value[1:])
            elif value and value != "data:,":
                self.wanted.append(value)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(content: bytes) -> Checker:
    """Returns what a page consists of; it is well-formed."""
    checker = Checker()
    checker.feed(content.decode())
    checker.close()
    assert checker.open == []
    return checker
