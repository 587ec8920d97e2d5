"""A page as its elements and its text, read by another parser than the one that wrote it."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "input", "hr"}


@dataclass
class Page(HTMLParser):
    """Elements with their attributes, and the text outside of styles and scripts."""

    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    text: str = ""

    @classmethod
    def of(cls, source: str) -> Page:
        page = cls()
        HTMLParser.__init__(page)
        page._inside = []
        page.feed(source)
        page.close()
        assert page._inside == [], f"not closed: {page._inside}"
        return page

    def tags(self, name: str) -> list[dict[str, str]]:
        """Attributes of all elements of a name."""
        return [attributes for tag, attributes in self.elements if tag == name]

    def ids(self) -> list[str]:
        """Identifiers in order."""
        return [attributes["id"] for _, attributes in self.elements if "id" in attributes]

    @property
    def policy(self) -> str:
        """Its content security policy."""
        (found,) = [a["content"] for a in self.tags("meta") if a.get("http-equiv") == "Content-Security-Policy"]
        return found

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self._inside.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag):
        assert self._inside[-1:] == [tag], (tag, self._inside[-3:], self.getpos())
        self._inside.pop()

    def handle_data(self, data):
        if not {"style", "script"} & set(self._inside):
            self.text += data
