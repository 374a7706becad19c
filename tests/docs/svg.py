"""Boxes, lines and text as an SVG picture: what the pictures of docs/ are drawn with."""

from __future__ import annotations

from xml.etree import ElementTree

INK, FAINT, PAPER = "#1a1a1a", "#6b7280", "#ffffff"


class Drawing:
    """A picture `width` wide, in pixels at its own size. It grows downwards as things are drawn."""

    def __init__(self, width: int, title: str) -> None:
        self.width, self.height = width, 0
        self._root = ElementTree.Element(
            "svg", {"xmlns": "http://www.w3.org/2000/svg", "font-family": "monospace", "role": "img"}
        )
        ElementTree.SubElement(self._root, "title").text = title
        self._paper = self._element("rect", fill=PAPER)

    def box(
        self, x: float, y: float, width: float, height: float, *, fill: str = PAPER, dashed: bool = False
    ) -> None:
        """A rectangle with its corner at (x, y)."""
        more = {"stroke-dasharray": "4 3"} if dashed else {}
        self._element("rect", x=x, y=y, width=width, height=height, fill=fill, stroke=INK, **more)
        self._reach(y + height)

    def text(
        self, x: float, y: float, text: str, *, size: int = 12, anchor: str = "start", fill: str = INK
    ) -> None:
        """A line of text whose base is at y: from x on, around it ("middle"), or up to it ("end")."""
        element = self._element("text", x=x, y=y, **{"font-size": size, "text-anchor": anchor}, fill=fill)
        element.set("xml:space", "preserve")
        element.text = text
        self._reach(y + size / 2)

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through the points, with a head at the last, which it reaches downwards or to the right."""
        path = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
        self._element("polyline", points=path, fill="none", stroke=INK)
        (x0, y0), (x, y) = points[-2:]
        down = x == x0 and y > y0
        wings = ((x - 4, y - 7), (x + 4, y - 7)) if down else ((x - 7, y - 4), (x - 7, y + 4))
        head = " ".join(f"{_number(a)},{_number(b)}" for a, b in ((x, y), *wings))
        self._element("polygon", points=head, fill=INK)
        self._reach(y)

    def source(self) -> str:
        """The SVG file's text."""
        height = self.height + 12
        self._root.set("viewBox", f"0 0 {self.width} {height}")
        self._root.set("width", str(self.width))
        self._root.set("height", str(height))
        for name, value in (("width", self.width), ("height", height)):
            self._paper.set(name, str(value))
        ElementTree.indent(self._root)
        return ElementTree.tostring(self._root, encoding="unicode") + "\n"

    def _element(self, name: str, **attributes: object) -> ElementTree.Element:
        values = {key: _number(value) for key, value in attributes.items()}
        return ElementTree.SubElement(self._root, name, values)

    def _reach(self, y: float) -> None:
        self.height = max(self.height, round(y))


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
