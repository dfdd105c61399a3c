"""A page of HTML as a tree, read by the standard library's parser; a tag that is not closed in order is an error."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


@dataclass
class Element:
    """An element with what is in it: elements and texts."""

    tag: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    content: list["Element | str"] = field(default_factory=list)

    @property
    def text(self):
        return "".join(part if isinstance(part, str) else part.text for part in self.content)

    @property
    def classes(self):
        return (self.attributes.get("class") or "").split()

    def walk(self):
        yield self
        for part in self.content:
            if isinstance(part, Element):
                yield from part.walk()

    def find_all(self, tag=None, class_name=None, **attributes):
        """Every element inside that has this tag, class and these attributes, in the order of the page."""
        return [
            element
            for element in self.walk()
            if (tag is None or element.tag == tag)
            and (class_name is None or class_name in element.classes)
            and all(element.attributes.get(name) == value for name, value in attributes.items())
        ]

    def find(self, tag=None, class_name=None, **attributes):
        found = self.find_all(tag, class_name, **attributes)
        assert found, f"no {tag} .{class_name} {attributes}"
        return found[0]


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.root = Element("document")
        self.open = [self.root]

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {attrs}"
        element = Element(tag, dict(attrs))
        self.open[-1].content.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].content.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}> at {self.getpos()}"
        self.open.pop()

    def handle_data(self, data):
        self.open[-1].content.append(data)


def read_page(path):
    """The tree of a file."""
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == [reader.root], f"not closed: {reader.open[-1].tag}"
    return reader.root


def table_of(element):
    """A table's texts: headings, and lines."""
    headings = [cell.text for cell in element.find("thead").find_all("th")]
    rows = element.find("tbody").find_all("tr")
    return headings, [[cell.text for cell in row.content if isinstance(cell, Element)] for row in rows]
