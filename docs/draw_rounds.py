"""Draws docs/rounds.svg: four devices whose tokens travel to their experts in two rounds.

python docs/draw_rounds.py
"""

from pathlib import Path
from xml.sax.saxutils import escape

# Rows of each device for the experts of each device; all have as many.
WANTED = ((9, 3, 8, 4), (13, 5, 2, 4), (5, 6, 7, 6), (8, 6, 5, 5))
EACH = 8  # rows of a round between two devices
ROUNDS = 2
# Read on white and on black alike.
TEXT, LINE = "#7d8590", "#7d8590"
COLOURS = ("#12a594", "#e5484d", "#8e4ec6", "#f76b15")
ROW, HEIGHT, PITCH, TOP = 7, 20, 46, 64
LEFT, GAP = 84, 40


def text(x: float, y: float, content: str, anchor: str = "start", size: int = 11) -> str:
    """A line of text."""
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" fill="{TEXT}"'
        f' font-family="sans-serif">{escape(content)}</text>'
    )


def bar(x: float, y: float, rows: int, colour: str, opacity: float = 1.0) -> str:
    """Some rows side by side."""
    return "".join(
        f'<rect x="{x + i * ROW}" y="{y}" width="{ROW - 1}" height="{HEIGHT}" rx="1"'
        f' fill="{colour}" opacity="{opacity}"/>'
        for i in range(rows)
    )


def frame(x: float, y: float, rows: int) -> str:
    """Room for some rows."""
    return (
        f'<rect x="{x - 1.5}" y="{y - 2.5}" width="{rows * ROW + 2}" height="{HEIGHT + 5}" rx="2"'
        f' fill="none" stroke="{LINE}" stroke-width="0.8"/>'
    )


def main() -> None:
    """Writes the picture beside this file."""
    devices = len(WANTED)
    total = sum(WANTED[0])
    assert all(sum(row) == total for row in WANTED)
    buffer = devices * EACH * ROW + (devices - 1) * 5
    rounds_at = [LEFT + total * ROW + GAP + r * (buffer + GAP) for r in range(ROUNDS)]
    out = [
        text(LEFT, TOP - 36, "picks of a device's tokens,", size=12),
        text(LEFT, TOP - 20, "by the device that has their expert", size=12),
    ]
    for r, x in enumerate(rounds_at):
        out.append(text(x, TOP - 36, f"round {r + 1}: what each device receives,", size=12))
        out.append(text(x, TOP - 20, "at most as much from one as from another", size=12))
    for d, wanted in enumerate(WANTED):
        y, x = TOP + d * PITCH, LEFT
        label = y + HEIGHT / 2 + 4
        out.append(f'<rect x="6" y="{y + 4}" width="12" height="12" rx="2" fill="{COLOURS[d]}"/>')
        out.append(text(24, label, f"device {d}"))
        for p, rows in enumerate(wanted):
            for r in range(ROUNDS):
                part = max(0, min(EACH, rows - r * EACH))
                out.append(bar(x, y, part, COLOURS[p], 1.0 if r == 0 else 0.45))
                x += part * ROW
        for r, left in enumerate(rounds_at):
            for sender in range(devices):
                start = left + sender * (EACH * ROW + 5)
                part = max(0, min(EACH, WANTED[sender][d] - r * EACH))
                out.append(frame(start, y, EACH))
                out.append(bar(start, y, part, COLOURS[d], 1.0 if r == 0 else 0.45))
                if d == devices - 1:
                    middle = start + EACH * ROW / 2
                    out.append(text(middle, y + HEIGHT + 18, f"from {sender}", "middle", 10))
    width = rounds_at[-1] + buffer + 8
    height = TOP + devices * PITCH + 34
    last = TOP + devices * PITCH + 24
    out.append(
        text(
            LEFT,
            last,
            "After each round the experts compute, and what they return goes back the same way and"
            " is added to its token.",
            size=12,
        )
    )
    svg = "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            "<title>How tokens travel to experts on other devices, in rounds</title>",
            *out,
            "</svg>\n",
        ]
    )
    (Path(__file__).parent / "rounds.svg").write_text(svg)


if __name__ == "__main__":
    main()
