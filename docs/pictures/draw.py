"""Draws the pictures of docs/operators.md: `python docs/pictures/draw.py` writes the SVG files beside this one.

Each stands on a white card of its own, so that it reads the same on a light and on a dark page.
"""

from __future__ import annotations

from pathlib import Path

QUERY, SEEN, UNSEEN, PREFIX, INK = "#e07a1f", "#2a6f97", "#e3e7ea", "#5b9a5b", "#22303a"


def card(width: int, height: int, title: str, *shapes: str) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
            ' role="img" font-family="sans-serif" font-size="13">',
            f"<title>{title}</title>",
            f'<rect x="1" y="1" width="{width - 2}" height="{height - 2}" rx="10" fill="#fff" stroke="#c9d1d6"/>',
            *shapes,
            "</svg>\n",
        ]
    )


def box(x: float, y: float, width: float, height: float, color: str, label: str = "", ink: str = "#fff") -> str:
    rectangle = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="3" fill="{color}"/>'
    return rectangle + (text(x + width / 2, y + height / 2 + 4.5, label, ink) if label else "")


def text(x: float, y: float, words: str, color: str = INK, anchor: str = "middle", size: int = 13) -> str:
    return f'<text x="{x}" y="{y}" fill="{color}" text-anchor="{anchor}" font-size="{size}">{words}</text>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """A line whose head points along x if it is level, else down."""
    head = (
        f"M{x2} {y2} l-7 -4 v8 z" if y1 == y2 else f"M{x2} {y2} l-4 -7 h8 z"  # level; downwards
    )
    return f'<path d="M{x1} {y1} L{x2} {y2}" stroke="{INK}"/><path d="{head}" fill="{INK}"/>'


def axes() -> str:
    """A patch and what it attends to, for each axis, in three moments of 3 x 3 patches and a CLS token."""
    side, step, query = 18, 20, (1, 1, 1)
    sees = {
        "time": lambda t, row, column: (row, column) == query[1:],
        "space": lambda t, row, column: t == query[0],
        "joint": lambda t, row, column: True,
    }
    captions = {
        "time": "its own place, all moments",
        "space": "its own moment, all places",
        "joint": "everything",
    }
    shapes = []
    for panel, (axis, visible) in enumerate(sees.items()):
        left = 24 + 262 * panel
        shapes += [
            text(left + 110, 28, f'axis="{axis}"', size=15),
            text(left + 110, 172, captions[axis]),
            box(left + 88, 42, 44, side, PREFIX, "CLS"),
        ]
        for t in range(3):
            for row in range(3):
                for column in range(3):
                    place = t, row, column
                    color = QUERY if place == query else SEEN if visible(*place) else UNSEEN
                    shapes.append(box(left + 78 * t + step * column, 74 + step * row, side, side, color))
            shapes.append(text(left + 78 * t + 29, 150, f"t = {t}", size=11))
    legend = [(QUERY, "the query patch"), (SEEN, "patches it attends to"), (PREFIX, "prefix: seen by all, sees all")]
    for number, (color, words) in enumerate(legend):
        shapes += [
            box(100 + 210 * number, 190, 14, 14, color),
            text(120 + 210 * number, 202, words, anchor="start", size=12),
        ]
    return card(808, 222, "Which tokens a patch attends to along each axis", *shapes)


def absorbed() -> str:
    """Crossmodal attention in its direct and in its absorbed form; what is as long as the video is drawn tall."""
    tall, small = 112, 26

    def row(top: int, heading: str) -> list[str]:
        return [
            text(20, top, heading, anchor="start", size=15),
            box(20, top + 16, 84, tall, SEEN, "tokens"),
            text(62, top + 16 + tall + 16, "N × C", size=11),
        ]

    direct = [
        *row(30, "direct: every token is projected twice"),
        *(arrow(104, y, 196, y) for y in (74, 130)),
        text(150, 66, "W_k"),
        text(150, 122, "W_v"),
        box(196, 46, 84, 52, SEEN, "keys"),
        box(196, 106, 84, 52, SEEN, "values"),
        text(238, 174, "2 × N × C, written and read again", size=11),
        arrow(280, 72, 396, 72),
        box(396, 59, 84, small, QUERY, "scores"),
        text(338, 64, "q ·"),
        arrow(438, 85, 438, 119),
        text(446, 106, "softmax", anchor="start", size=11),
        arrow(280, 132, 396, 132),
        box(396, 119, 84, small, QUERY, "mean"),
        arrow(480, 132, 584, 132),
        box(584, 119, 84, small, QUERY, "result"),
    ]
    absorbing = [
        *row(224, "absorbed: the query takes W_k, the mean takes W_v"),
        box(196, 240, 84, small, QUERY, "q"),
        arrow(280, 253, 396, 253),
        text(338, 245, "W_kᵀ"),
        box(396, 240, 84, small, QUERY, "u"),
        text(490, 257, "H × C: a row a head", anchor="start", size=11),
        arrow(438, 266, 438, 300),
        arrow(104, 319, 328, 319),
        text(216, 311, "read once, normalized on the way"),
        box(328, 300, 220, 38, QUERY, "softmax(u · y), mean of y = z"),
        arrow(548, 319, 620, 319),
        text(582, 311, "W_v"),
        box(620, 306, 84, small, QUERY, "result"),
        text(438, 354, "z: H × C", size=11),
    ]
    return card(728, 384, "Crossmodal attention, direct and absorbed", *direct, *absorbing)


PICTURES = {"axes.svg": axes, "absorbed.svg": absorbed}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (Path(__file__).parent / name).write_text(draw(), encoding="utf-8")
