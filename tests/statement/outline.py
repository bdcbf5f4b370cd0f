"""The elements of a page, and rules that every page keeps."""

from html.parser import HTMLParser


class Outline(HTMLParser):
    """Every element and attribute of a page, and whether each element that opens also closes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def outline(page: str) -> Outline:
    """Take a page apart; it must be balanced."""
    parser = Outline()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def assert_inert(page: str) -> None:
    """It runs no script and fetches nothing."""
    found = outline(page)
    assert not {"script", "link", "img", "iframe", "object", "form", "base", "embed"} & set(found.tags)
    assert not any(name.startswith("on") or name in ("src", "srcset") for name, _ in found.attributes)
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page
