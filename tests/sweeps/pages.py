"""A report's page as its reader would find it, without a browser."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link"}


class Page(HTMLParser):
    """What a page holds: elements with their attributes, and text outside of scripts and styles."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(markup)
        assert self.open == [], "elements that are not closed"

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def of_class(self, word: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if word in (attributes.get("class") or "").split()]
