"""The part of the head that a photo from the front hides: hair of the person's colour, strands, and a soft line to the neck."""

import numpy as np
from scipy.spatial import cKDTree

from aa.body import Body

LIKE = 0.6  # from skin (0) to hair (1), what of the visible scalp passes for hair
BALD = 0.1  # distance of colours below which hair and skin are the same
FAR = 0.05  # m from what the photo shows over which hair fades to its mean colour
SOFT = 0.03  # m of height over which hair gives way to the neck
STRAND = 0.012  # m between strands


def paint_scalp(body: Body, rest, names, facing, colors, seen) -> np.ndarray:
    """Colours (n, 3) anew: hidden scalp is hair, or skin if the visible scalp is.

    Args: rest (n, 3) places on the mean body; names (n,) regions; facing (n,) cosine to the camera; colors (n, 3); seen (n,).
    """
    scalp, skin = names == "scalp", (names == "face") & seen & (facing > 0.6)
    top = rest[scalp, 2].max()
    crown = scalp & seen & (facing > 0.35) & (rest[:, 2] > top - 0.08)
    if crown.sum() < 30 or skin.sum() < 30:
        return colors
    hair, face = np.median(colors[crown], 0), np.median(colors[skin], 0)
    span = hair - face
    if np.linalg.norm(span) < BALD:
        return colors
    like = (colors - face) @ span / (span @ span)
    donor = scalp & seen & (facing > 0.35) & (like > LIKE)
    want = scalp & (~seen | (facing < 0.35)) & (like < 1.5)
    fold = lambda p: p * [0, 1, 1] + np.abs(p) * [1, 0, 0]  # noqa: E731  both sides alike
    distance, near = cKDTree(fold(rest[donor])).query(fold(rest[want]), k=24)
    weight = 1 / (distance + 0.004) ** 2
    own = (colors[donor][near] * weight[..., None]).sum(1) / weight.sum(1, keepdims=True)
    close = np.exp(-distance[:, :1] / FAR)
    rough = np.clip(np.std(colors[donor].mean(1)) / colors[donor].mean(), 0.04, 0.15)
    filled = (hair + close * (own - hair)) * (1 + rough * (1 - close) * _strands(rest[want])[:, None])
    low = float(body.v_template[body.region_vertices("ear"), 2].min())
    above = np.clip((rest[want, 2] - low) / SOFT + 0.7 + 0.25 * _strands(rest[want], 2.0), 0, 1)[:, None]
    above = above**2 * (3 - 2 * above)
    neck = (names == "neck") & seen
    below = np.median(colors[neck], 0) if neck.sum() > 30 else 0.85 * face
    keep = np.clip((facing[want] - 0.15) / 0.2, 0, 1)[:, None] * seen[want, None]  # towards what the photo still tells
    out = colors.copy()
    out[want] = below + above * (filled - below)
    out[want] += keep * (colors[want] - out[want])
    return out


def _strands(rest, scale: float = 1.0) -> np.ndarray:
    """Smooth noise (n,) in about [-1, 1] that varies around the head and little along strands from the crown down."""
    around = np.arctan2(rest[:, 0], rest[:, 1] - np.median(rest[:, 1])) * 0.09 / (STRAND * scale)
    wave = 6 * np.sin(9 * rest[:, 2] / 0.2)
    return (np.sin(6.28 * around + wave) + np.sin(13.7 * around + 1.7 * wave + 2) + np.sin(23.1 * around - wave + 4)) / 3
