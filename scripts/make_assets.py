#!/usr/bin/env python3
"""Draws assets/face.png, the picture the demo animates, and speaks assets/speech.wav with espeak-ng.

Not part of a build: the results are committed. Drawn here and spoken by a synthesiser, so nobody's face or voice is in the repository.

  make_assets.py [FOLDER]      # needs Pillow and espeak-ng
"""
import math
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

SIZE = 480
SCALE = 4  # drawn large, then shrunk: smooth edges

SKIN, SKIN_DARK, BLUSH = (247, 205, 172), (226, 168, 130), (240, 150, 128)
HAIR, HAIR_LIGHT = (86, 52, 38), (122, 78, 54)
LIP, LIP_DARK = (198, 84, 84), (120, 40, 48)
SHIRT, SHIRT_DARK = (46, 120, 138), (32, 92, 108)

SPEECH = "Hello, and welcome! I am a small cartoon, drawn by a few lines of code. Nice to meet you!"


def background() -> Image.Image:
    """A warm wall: two colours blended from the upper left, with a soft light behind the head."""
    small = Image.new("RGB", (SIZE, SIZE))
    px = small.load()
    for y in range(SIZE):
        for x in range(SIZE):
            t = (x + 2 * y) / (3 * SIZE)
            glow = math.exp(-(((x - 240) / 190) ** 2 + ((y - 215) / 200) ** 2))
            base = [a + (b - a) * t for a, b in zip((255, 214, 150), (236, 140, 116))]
            px[x, y] = tuple(min(255, int(c + 34 * glow)) for c in base)
    return small.resize((SIZE * SCALE, SIZE * SCALE), Image.BICUBIC)


class Pen:
    """Drawing in 480-pixel units on the large canvas."""

    def __init__(self, image: Image.Image):
        self.image, self.draw = image, ImageDraw.Draw(image)

    def ellipse(self, cx, cy, rx, ry, fill):
        self.draw.ellipse([v * SCALE for v in (cx - rx, cy - ry, cx + rx, cy + ry)], fill=fill)

    def polygon(self, points, fill):
        self.draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=fill)

    def stroke(self, points, width, fill):
        """A line with round ends through the points: a disc at every half pixel."""
        for (x0, y0), (x1, y1) in zip(points, points[1:]):
            steps = max(1, round(2 * math.hypot(x1 - x0, y1 - y0)))
            for i in range(steps + 1):
                self.ellipse(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps, width / 2, width / 2, fill)

    def soft(self, cx, cy, rx, ry, fill, blur, strength):
        """A blurred ellipse, for blush and shade."""
        mask = Image.new("L", self.image.size, 0)
        ImageDraw.Draw(mask).ellipse([v * SCALE for v in (cx - rx, cy - ry, cx + rx, cy + ry)], fill=strength)
        self.image.paste(Image.new("RGB", self.image.size, fill), mask=mask.filter(ImageFilter.GaussianBlur(blur * SCALE)))
        self.draw = ImageDraw.Draw(self.image)


def curve(x0, x1, f, n=60):
    return [(x0 + (x1 - x0) * i / n, f(-1 + 2 * i / n)) for i in range(n + 1)]


def rounded(points, n=24):
    """A closed Catmull-Rom curve through the points."""
    out = []
    for i in range(len(points)):
        a, b, c, d = (points[(i + k) % len(points)] for k in (-1, 0, 1, 2))
        for j in range(n):
            t = j / n
            out.append(tuple(0.5 * (2 * b[k] + (c[k] - a[k]) * t + (2 * a[k] - 5 * b[k] + 4 * c[k] - d[k]) * t * t
                                    + (3 * b[k] - a[k] - 3 * c[k] + d[k]) * t ** 3) for k in (0, 1)))
    return out


def body(p: Pen):
    p.polygon(curve(52, 428, lambda t: 402 + 78 * abs(t) ** 2.6) + [(428, 480), (52, 480)], SHIRT)
    p.polygon([(200, 340), (280, 340), (292, 412), (240, 442), (188, 412)], SKIN)
    p.soft(240, 372, 46, 26, SKIN_DARK, 8, 190)
    p.stroke([(186, 406), (210, 430), (240, 446), (270, 430), (294, 406)], 13, SHIRT_DARK)


def hair_behind(p: Pen):
    p.ellipse(240, 196, 150, 152, HAIR)
    p.ellipse(118, 268, 40, 92, HAIR)
    p.ellipse(362, 268, 40, 92, HAIR)


def head(p: Pen):
    for side in (-1, 1):
        p.ellipse(240 + side * 118, 238, 21, 30, SKIN)
        p.ellipse(240 + side * 119, 240, 11, 18, SKIN_DARK)
    p.ellipse(240, 206, 118, 122, SKIN)
    p.polygon(curve(122, 358, lambda t: 206 + 158 * max(0.0, 1 - abs(t) ** 2.5) ** 0.62), SKIN)
    p.soft(240, 352, 62, 10, SKIN_DARK, 10, 120)
    for side in (-1, 1):
        p.soft(240 + side * 70, 278, 22, 15, BLUSH, 12, 150)


def fringe(p: Pen):
    p.polygon(rounded([(112, 226), (112, 168), (136, 112), (184, 76), (240, 64), (296, 76), (344, 112), (368, 168), (368, 226),
                       (354, 196), (330, 166), (286, 148), (232, 128), (214, 152), (176, 172), (142, 186)]), HAIR)
    for x0, y0, x1, y1, x2, y2 in ((150, 146, 182, 102, 232, 88), (262, 88, 306, 104, 334, 146), (196, 128, 222, 108, 256, 104)):
        pts = [((1 - t) ** 2 * x0 + 2 * t * (1 - t) * x1 + t * t * x2, (1 - t) ** 2 * y0 + 2 * t * (1 - t) * y1 + t * t * y2)
               for t in (i / 40 for i in range(41))]
        p.stroke(pts, 5, HAIR_LIGHT)


def eyes(p: Pen):
    for side in (-1, 1):
        cx = 240 + side * 52
        p.ellipse(cx, 232, 27, 25, (70, 44, 36))
        p.ellipse(cx, 235, 25, 23, (255, 255, 255))
        p.ellipse(cx - side * 2, 235, 15, 16, (64, 110, 96))
        p.ellipse(cx - side * 2, 235, 8, 9, (24, 26, 30))
        p.ellipse(cx - side * 2 + 5, 229, 4.5, 4.5, (255, 255, 255))
        p.ellipse(cx - side * 2 - 5, 241, 2.2, 2.2, (255, 255, 255))
        p.stroke(curve(cx - 28, cx + 28, lambda t: 214 + 14 * t * t), 5, (56, 34, 28))
        p.stroke(curve(cx - 27, cx + 27, lambda t, s=side: 187 + 7 * t * t + 1.5 * s * t), 7, HAIR)


def nose_and_mouth(p: Pen):
    p.stroke(curve(227, 253, lambda t: 277 - 6 * t * t), 4.5, SKIN_DARK)
    upper = curve(198, 282, lambda t: 303 + 7 * (1 - t * t) - 4 * math.exp(-((t / 0.2) ** 2)))
    lower = curve(282, 198, lambda t: 303 + 32 * max(0.0, 1 - t * t) ** 0.75)
    p.polygon(upper + lower, LIP_DARK)
    p.polygon(curve(206, 274, lambda t: 306 + 6 * (1 - t * t)) + curve(274, 206, lambda t: 307 + 12 * max(0.0, 1 - t * t) ** 0.7), (255, 252, 246))
    p.polygon(curve(219, 261, lambda t: 331 - 6 * (1 - t * t)) + curve(261, 219, lambda t: 331 + 3 * (1 - t * t)), (222, 112, 112))
    p.stroke(upper, 4.5, LIP)
    p.stroke(lower, 6, LIP)
    for side in (-1, 1):
        p.stroke([(240 + side * 43, 303), (240 + side * 48, 298)], 3.5, SKIN_DARK)


def face() -> Image.Image:
    pen = Pen(background())
    for part in (hair_behind, body, head, fringe, eyes, nose_and_mouth):
        part(pen)
    return pen.image.resize((SIZE, SIZE), Image.LANCZOS)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    face().save(folder / "face.png", optimize=True)
    subprocess.run(["espeak-ng", "-v", "en-gb", "-s", "165", "-p", "55", "-w", str(folder / "speech.wav"), SPEECH], check=True)
    for name in ("face.png", "speech.wav"):
        print(f"{folder / name}: {(folder / name).stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "assets")
