"""Backdrops of the studio: plain and simple, in display colours."""

import numpy as np

from aa.identities import Identity

# Colour at the centre and in the corners.
GRADIENTS = {
    "grey": ((0.80, 0.81, 0.82), (0.62, 0.64, 0.67)), "warm": ((0.86, 0.80, 0.74), (0.66, 0.57, 0.51)),
    "cool": ((0.72, 0.79, 0.84), (0.46, 0.55, 0.63)), "sand": ((0.84, 0.83, 0.76), (0.63, 0.64, 0.56)),
    "studio": ((0.50, 0.52, 0.55), (0.24, 0.26, 0.29)),
}  # fmt: skip
BACKDROPS = (*GRADIENTS, "room")


def make_backdrop(kind: str, width: int, height: int, seed: int = 0) -> np.ndarray:
    """A backdrop (H, W, 3) float32 in [0, 1]: a soft gradient by name, or a "room" far out of focus drawn by the seed."""
    if kind not in BACKDROPS:
        raise ValueError(f"backdrop must be one of {BACKDROPS}, got {kind!r}")
    y, x = np.mgrid[:height, :width].astype(np.float64)
    if kind == "room":
        return room(x / height, y / height, width / height, seed)
    r = np.hypot(x / width - 0.5, (y / height - 0.42) * 0.9) / 0.75
    t = np.clip(r, 0, 1)[..., None] ** 2
    return (np.array(GRADIENTS[kind][0]) * (1 - t) + np.array(GRADIENTS[kind][1]) * t).astype(np.float32)


def room(x: np.ndarray, y: np.ndarray, aspect: float, seed: int) -> np.ndarray:
    """A wall, a window and pieces of furniture as boxes with soft edges, at x, y (H, W) in picture heights."""
    rng = np.random.default_rng(seed + 90)
    soft = lambda d, blur: 1 / (1 + np.exp(-d / blur))  # noqa: E731
    picture = np.broadcast_to(np.array((0.77, 0.74, 0.70)) - 0.16 * y[..., None], (*y.shape, 3))
    side = 1 if rng.random() < 0.5 else -1
    boxes = [(0.5 + side * 0.36, 0.22, 0.15, 0.26, (0.93, 0.94, 0.93))]  # the window
    tints = ((0.62, 0.52, 0.42), (0.46, 0.52, 0.50), (0.58, 0.46, 0.40), (0.70, 0.64, 0.54))
    for _ in range(4):
        boxes.append(
            (rng.random(), 0.5 + 0.5 * rng.random(), 0.06 + 0.12 * rng.random(), 0.08 + 0.16 * rng.random(), tints[rng.integers(4)])
        )
    boxes.append((0.5, 1.08, 2.0, 0.16, (0.50, 0.42, 0.36)))  # the floor
    for cx, cy, half_x, half_y, colour in boxes:
        d = np.minimum(half_x - np.abs(x - cx * aspect), half_y - np.abs(y - cy))
        picture = picture + (0.75 * soft(d, 0.022))[..., None] * (np.array(colour) - picture)
    return picture.clip(0, 1).astype(np.float32)


def backdrop_of(identity: Identity, width: int, height: int) -> np.ndarray:
    """The backdrop that belongs to a person."""
    return make_backdrop(identity.backdrop, width, height, identity.seed)
