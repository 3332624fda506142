"""Draws people: every pixel follows from a few numbers, so the truth of each frame is known.

A person is a dictionary of tensors [N] or [N, 3]; a motion says how N frames move. All N pictures are drawn at once, whole or as windows.
Positions are parts of the picture: (0, 0) is the upper left corner, (1, 1) the lower right one. Colours are 0..1.
"""
import math

import numpy as np
import torch

MOTION = ("open", "wide", "blink", "dx", "dy", "smile", "night")  # 0..1, but dx and dy: parts of the picture
SKINS = np.array([(255, 219, 190), (246, 205, 170), (230, 180, 140), (200, 145, 105), (150, 100, 70), (105, 70, 50)]) / 255
HAIRS = np.array([(85, 52, 40), (30, 24, 22), (190, 140, 70), (150, 70, 35), (120, 120, 125), (230, 205, 150), (60, 40, 90)]) / 255
LIPS, GUMS, TONGUE, TEETH = (0.78, 0.33, 0.35), (0.28, 0.06, 0.1), (0.8, 0.4, 0.42), (0.97, 0.97, 0.95)
NIGHT = ((0.06, 0.08, 0.22), (0.22, 0.2, 0.45))
MOON = ((0.98, 0.95, 0.8), 0.87, 0.13, 0.055)  # colour, position and radius
EDGE = 1.5  # pixels over which an edge fades


# ------------------------------------------------------------------ people
def person(rng):
    """Returns one person as a dictionary of numbers and colours."""
    mix = lambda table: (lambda a, b, t: t * a + (1 - t) * b)(*table[rng.integers(len(table), size=2)], rng.uniform(0.5, 1))
    wall = rng.uniform(0.3, 1, 3)
    other = np.clip(wall + rng.normal(0, 0.15, 3), 0, 1) if rng.random() < 0.7 else rng.uniform(0.3, 1, 3)
    scale = rng.uniform(0.92, 1.12)
    return dict(
        skin=mix(SKINS), hair=np.clip(mix(HAIRS) + rng.normal(0, 0.03, 3), 0, 1), iris=rng.uniform(0.1, 0.6, 3),
        lips=np.clip(np.array(LIPS) + rng.normal(0, 0.05, 3), 0, 1), shirt=rng.uniform(0.05, 0.95, 3), wall=wall, wall2=other,
        frames=rng.uniform(0.05, 0.5, 3), glasses=float(rng.random() < 0.3), angle=rng.uniform(0, 2 * math.pi),
        x=0.5 + rng.uniform(-0.04, 0.04), y=0.5 + rng.uniform(-0.04, 0.03), scale=scale,
        rx=0.27 * scale * rng.uniform(0.94, 1.06), ry=0.305 * scale * rng.uniform(0.94, 1.06),
        long=rng.uniform(0, 1), line=rng.uniform(0.35, 0.6), part=rng.uniform(-0.5, 0.5),
        eye=rng.uniform(0.9, 1.15), apart=rng.uniform(0.43, 0.52), brow=rng.uniform(0.8, 1.3), nose=rng.uniform(0.8, 1.2),
        mouth=rng.uniform(0.9, 1.15), low=rng.uniform(0.5, 0.57), blush=rng.uniform(0, 0.3),
    )


def people(kind, numbers):
    """Returns the people of a split (0: training, 1: held out) with these numbers, as tensors with one row each."""
    rows = [person(np.random.default_rng((2026, kind, int(i)))) for i in numbers]
    return {k: torch.as_tensor(np.stack([np.asarray(r[k], np.float32) for r in rows])) for k in rows[0]}


def repeat(face, n):
    """Returns a face of one row as n rows."""
    return {k: v.expand(n, *v.shape[1:]) for k, v in face.items()}


def still(n=1, **values):
    """Returns the motion of n frames that do nothing, but for `values`."""
    m = {k: torch.zeros(n) for k in MOTION} | {"wide": torch.full((n,), 0.5), "smile": torch.full((n,), 0.4)}
    return m | {k: torch.full((n,), float(v)) for k, v in values.items()}


def wander(rng, n):
    """Returns n unrelated poses, for a codec that should know all that a face can do."""
    u = lambda lo, hi: torch.from_numpy(rng.uniform(lo, hi, n).astype(np.float32))
    some = lambda p: torch.from_numpy((rng.random(n) < p).astype(np.float32))
    return dict(open=u(0, 1) * some(0.75), wide=u(0, 1), blink=u(0, 1) * some(0.3), dx=u(-0.008, 0.008), dy=u(-0.004, 0.014),
                smile=u(0, 1), night=some(0.25))


# ------------------------------------------------------------------ drawing
class Canvas:
    """N pictures that are being drawn, and the coordinates of their pixels."""

    def __init__(self, x, y, soft):
        self.x, self.y, self.soft, self.image = x, y, soft, None

    def cover(self, distance):
        """Turns a signed distance (negative inside) into a coverage with a soft edge."""
        return (0.5 - distance / self.soft).clamp(0, 1)

    def put(self, coverage, colour):
        """Paints a colour [N, 3] or three numbers."""
        colour = torch.as_tensor(colour, dtype=torch.float32).reshape(-1, 3, 1, 1)
        self.image = self.image + coverage[:, None] * (colour - self.image)


def _ellipse(x, y, cx, cy, rx, ry):
    u, v = (x - cx) / rx, (y - cy) / ry
    r = (u * u + v * v).sqrt()
    slope = ((u / rx) ** 2 + (v / ry) ** 2).sqrt() / r.clamp(min=1e-6)
    return (r - 1) / slope.clamp(min=1e-6)


def _stroke(x, y, ax, ay, bx, by, width):
    vx, vy = bx - ax, by - ay
    t = (((x - ax) * vx + (y - ay) * vy) / (vx * vx + vy * vy)).clamp(0, 1)
    return ((x - ax - t * vx) ** 2 + (y - ay - t * vy) ** 2).sqrt() - width


def draw(face, motion, size, window=None):
    """Draws N frames [N, 3, height, width].

    `face` and `motion` have N rows; the whole picture has `size` pixels a side. `window` is (tops [N], lefts [N], side), in pixels.
    """
    f = {k: v.view(-1, 1, 1) if v.ndim == 1 else v for k, v in face.items()}
    m = {k: v.view(-1, 1, 1) for k, v in motion.items()}
    n, side = len(motion["open"]), size if window is None else window[2]
    tops, lefts = (torch.zeros(n), torch.zeros(n)) if window is None else window[:2]
    steps = torch.arange(side) + 0.5
    px, py = ((lefts.view(-1, 1, 1) + steps) / size).expand(n, side, side), ((tops.view(-1, 1, 1) + steps[:, None]) / size).expand(n, side, side)
    c = Canvas(px - m["dx"], py - m["dy"], EDGE / size)  # the head's own coordinates
    _wall(c, f, m, px, py)
    _body_and_head(c, f, m, px - 0.3 * m["dx"], py - 0.3 * m["dy"])
    for s in (-1, 1):
        _eye(c, f, m, s)
    _glasses(c, f)
    _mouth(c, f, m)
    return c.image.clamp(0, 1)


def _wall(c, f, m, px, py):
    along = (((px - 0.5) * torch.cos(f["angle"]) + (py - 0.5) * torch.sin(f["angle"]) + 0.7) / 1.4)[:, None]
    rows = lambda v: torch.as_tensor(v, dtype=torch.float32).reshape(-1, 3, 1, 1)
    day = rows(f["wall"]) + along * (rows(f["wall2"]) - rows(f["wall"]))
    night = rows(NIGHT[0]) + py[:, None] * (rows(NIGHT[1]) - rows(NIGHT[0]))
    colour, x, y, r = MOON
    night = night + c.cover(((px - x) ** 2 + (py - y) ** 2).sqrt() - r)[:, None] * (rows(colour) - night)
    c.image = day + m["night"][:, None] * (night - day)


def _body_and_head(c, f, m, bx, by):
    x, y, cx, cy, rx, ry, k = c.x, c.y, f["x"], f["y"], f["rx"], f["ry"], f["scale"]
    shade = f["skin"] * torch.tensor([0.88, 0.8, 0.76])
    length = 0.15 + 0.9 * f["long"]
    c.put(c.cover(_ellipse(x, y, cx, cy - 0.1 * ry + 0.3 * ry * length, rx * 1.26, ry * (1.02 + 0.3 * length))), f["hair"])
    c.put(c.cover(_ellipse(bx, by, cx, cy + ry * 1.1 + 0.35 * k, 0.46 * k, 0.35 * k)), f["shirt"])
    c.put(c.cover(_ellipse(bx, by, cx, cy + ry * 1.0, rx * 0.48, ry * 0.34)), shade)
    for s in (-1, 1):
        c.put(c.cover(_ellipse(x, y, cx + s * rx * 1.02, cy + 0.02, 0.038 * k, 0.06 * k)), shade)
    c.put(c.cover(_ellipse(x, y, cx, cy, rx, ry)), f["skin"])
    for s in (-1, 1):
        r = ((x - cx - s * rx * 0.6) ** 2 + (y - cy - ry * 0.3) ** 2) / (0.3 * rx) ** 2
        c.put((f["blush"] + 0.15 * m["smile"]) * torch.exp(-1.5 * r), (0.95, 0.45, 0.4))
    cap = _ellipse(x, y, cx, cy - 0.12 * ry, rx * 1.14, ry * 1.08)
    fringe = (y - (cy - ry * (1 - f["line"]) + 0.66 * ry * ((x - cx - f["part"] * rx * 0.6) / rx) ** 2)) / 1.4
    c.put(c.cover(torch.maximum(cap, fringe)), f["hair"])
    c.put(c.cover(_ellipse(x, y, cx, cy + 0.24 * ry, 0.028 * k * f["nose"], 0.015 * k)), shade)


def _eye(c, f, m, side):
    x, y, k = c.x, c.y, f["scale"]
    r = 0.056 * k * f["eye"]
    cx, cy = f["x"] + side * f["apart"] * f["rx"], f["y"] - 0.06 * f["ry"]
    lid = cy - r * 1.1 + 2.2 * r * m["blink"]  # the upper lid falls over the eye
    opening = c.cover(_ellipse(x, y, cx, cy, r * 1.1, r))
    seen = opening * c.cover(lid - y)
    c.put(opening, f["skin"] * 0.9)
    c.put(seen, (0.98, 0.98, 0.98))
    disc = lambda dx, dy, size: torch.minimum(seen, c.cover(((x - cx - dx * r) ** 2 + (y - cy - dy * r) ** 2).sqrt() - size * r))
    c.put(disc(0, 0, 0.62), f["iris"])
    c.put(disc(0, 0, 0.32), (0.05, 0.04, 0.05))
    c.put(disc(0.28, -0.28, 0.18), (1.0, 1.0, 1.0))
    dark = f["hair"] * 0.5
    c.put(torch.minimum(c.cover((y - lid).abs() - 0.007 * k), c.cover(_ellipse(x, y, cx, cy, r * 1.2, r * 1.15))), dark)
    tilt = 0.1 * side - 0.12 * side * (m["smile"] - 0.4)
    top = cy - r * 1.6 - 0.012 * m["open"]
    c.put(c.cover(_stroke(x, y, cx - r * 1.1, top - r * tilt, cx + r * 1.1, top + r * tilt, 0.010 * k * f["brow"])), dark)


def _glasses(c, f):
    k, r, cy = f["scale"], 0.095 * f["scale"], f["y"] - 0.05 * f["ry"]
    for s in (-1, 1):
        ring = _ellipse(c.x, c.y, f["x"] + s * f["apart"] * f["rx"], cy, r, r * 0.85).abs() - 0.007 * k
        c.put(c.cover(ring) * f["glasses"], f["frames"])
    half = f["apart"] * f["rx"] - r
    c.put(c.cover(_stroke(c.x, c.y, f["x"] - half, cy, f["x"] + half, cy, 0.006 * k)) * f["glasses"], f["frames"])


def mouth_of(face):
    """Returns centre x, centre y and half width of the mouth at rest, as parts of the picture."""
    return face["x"], face["y"] + face["low"] * face["ry"], 0.1 * face["scale"] * face["mouth"]


def _mouth(c, f, m):
    """Lips around an opening with teeth and tongue. Both edges of the opening are parabolas; smiling lifts the corners."""
    k, (cx, cy, half) = f["scale"], mouth_of(f)
    w = half * (0.72 + 0.42 * m["wide"] + 0.14 * m["smile"])
    u = (c.x - cx) / w
    y = c.y - cy + (m["smile"] - 0.35) * 0.045 * k * (u * u - 0.4)
    bow = (1 - u * u).clamp(min=0)
    up, down = 0.022 * k * m["open"] * bow, 0.072 * k * m["open"] * bow
    slope = (1 + (2 * 0.072 * k * m["open"] * u.clamp(-1, 1) / w) ** 2).sqrt()
    lip = 0.016 * k * (0.45 + 0.55 * bow)
    ends = (u.abs() - 1) * w
    c.put(c.cover(torch.maximum(torch.maximum(y - down, -up - y) / slope - lip, ends - 0.01 * k)), f["lips"])
    inside = c.cover(torch.maximum(torch.maximum(y - down, -up - y) / slope, ends)) * (m["open"] / 0.06).clamp(0, 1)
    c.put(inside, GUMS)
    c.put(torch.minimum(inside, c.cover(_ellipse(c.x - cx, y, 0 * w, 0.078 * k * m["open"] + 0.004, w * 0.6, 0.034 * k * m["open"] + 0.006))), TONGUE)
    c.put(torch.minimum(inside, c.cover(y + up - (0.045 * k * m["open"]).clamp(max=0.02 * k))) * ((m["open"] - 0.1) / 0.15).clamp(0, 1), TEETH)


def attention(face, size, window=None):
    """Returns how much each pixel [N, 1, height, width] matters: more around the mouth and the eyes."""
    n, side = len(face["x"]), size if window is None else window[2]
    tops, lefts = (torch.zeros(n), torch.zeros(n)) if window is None else window[:2]
    steps = torch.arange(side) + 0.5
    x, y = (lefts.view(-1, 1, 1) + steps) / size, (tops.view(-1, 1, 1) + steps[:, None]) / size
    f = {k: v.view(-1, 1, 1) for k, v in face.items() if v.ndim == 1}
    blob = lambda cx, cy, w, h: torch.exp(-((((x - cx) / w) ** 4) + (((y - cy) / h) ** 4)))
    cx, cy, half = mouth_of(f)
    weight = 1 + 3 * blob(cx, cy + 0.025, 1.3 * half, 0.08 * f["scale"])
    for s in (-1, 1):
        weight = weight + 1.5 * blob(cx + s * f["apart"] * f["rx"], f["y"] - 0.06 * f["ry"], 0.09, 0.08)
    return weight[:, None]


def openness(frames, face):
    """Reads the opening of the mouth from pixels [N, 3, S, S] of one person: the height of what is no skin in a narrow column, a part of the picture."""
    size, (cx, cy, half) = frames.shape[-1], (float(v) for v in mouth_of(face))
    column = frames[:, :, int((cy - 0.07) * size):int((cy + 0.15) * size), int((cx - 0.2 * half) * size):int((cx + 0.2 * half) * size) + 1]
    distance = (column - face["skin"].view(1, 3, 1, 1)).norm(dim=1)
    return ((distance - 0.12) / 0.2).clamp(0, 1).mean(2).sum(1) / size


if __name__ == "__main__":
    from PIL import Image

    rng = np.random.default_rng(1)
    sheet = draw(people(0, range(24)), wander(rng, 24), 256).view(4, 6, 3, 256, 256).permute(0, 3, 1, 4, 2).reshape(1024, 1536, 3)
    Image.fromarray((sheet * 255).round().byte().numpy()).save("faces.png")
