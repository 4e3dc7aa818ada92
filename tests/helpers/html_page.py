"""A page as a test sees it: its text, links, loaded resources and tables."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

#: Attributes that make a browser fetch something; ``a href`` only offers it.
LOADING = {"src", "srcset", "poster", "data", "background", "action"}
VOID = {"meta", "link", "img", "br", "input", "wbr", "hr"}
INVISIBLE = {"script", "style", "title"}
#: Elements that do not separate the words around them.
INLINE = {"a", "code", "em", "span", "strong", "wbr"}


class Page(HTMLParser):
    """Parses a file; fails on tags that do not close in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.links: list[str] = []
        self.resources: list[str] = []
        self._pieces: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self._open, f"{path}: {self._open} never closed"

    @property
    def text(self) -> str:
        """All visible text, white space collapsed (no-break spaces included)."""
        return " ".join("".join(self._pieces).split())

    def elements(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        if tag not in INLINE:
            self._pieces.append(" ")
        if tag not in VOID:
            self._open.append(tag)
        if tag == "a":
            self.links.append(attributes["href"])
        elif tag == "link":
            self.resources.append(attributes["href"])
        self.resources += [attributes[name] for name in LOADING & attributes.keys()]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"{self.path}: </{tag}> closes nothing"
        last = self._open.pop()
        assert last == tag, f"{self.path}: </{tag}> closes <{last}>"
        if tag not in INLINE:
            self._pieces.append(" ")

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in INVISIBLE:
            self._pieces.append(data)
