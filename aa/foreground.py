"""The colours of the person alone in pixels that show person and background at once.

A pixel at a soft outline is I = alpha F + (1 - alpha) B. Germer, Uelwer, Conrad and Harmeling, "Fast multi-level foreground
estimation" (2020): both F and B should also be smooth, most of all where alpha changes; solved from coarse to fine.
"""

import cv2
import numpy as np

SMOOTH, EDGE = 1e-5, 1.0  # weight of smoothness everywhere, and per unit of alpha's step (as in the paper)
SMALL, MANY, FEW = 32, 10, 2  # px up to which a level gets many rounds, and the rounds


def foreground(image, alpha) -> np.ndarray:
    """F (H, W, 3) float32 of image (H, W, 3) in [0, 1] with alpha (H, W) in [0, 1]; where alpha is 0, what is smooth."""
    h, w = alpha.shape
    image, alpha = np.float32(image), np.float32(alpha)
    total = np.maximum(alpha.sum(), 1e-6), np.maximum((1 - alpha).sum(), 1e-6)
    F = np.broadcast_to((image * alpha[..., None]).sum((0, 1)) / total[0], (1, 1, 3)).astype(np.float32)
    B = np.broadcast_to((image * (1 - alpha)[..., None]).sum((0, 1)) / total[1], (1, 1, 3)).astype(np.float32)
    levels = int(np.ceil(np.log2(max(h, w))))
    for level in range(levels + 1):
        size = (max(1, round(w ** (level / levels))), max(1, round(h ** (level / levels))))
        I, a = (cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in (image, alpha))
        F, B = (cv2.resize(x, size, interpolation=cv2.INTER_NEAREST) for x in (F, B))
        F, B = _relax(I, a, F, B, MANY if max(size) <= SMALL else FEW)
    return F.clip(0, 1)


def _relax(I, a, F, B, rounds: int):
    """Rounds of solving each pixel's own 2 x 2 system with its four neighbours held."""
    pad = cv2.copyMakeBorder(a, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    h, w = a.shape
    around = [(slice(1 + dy, 1 + dy + h), slice(1 + dx, 1 + dx + w)) for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0))]
    weights = [(SMOOTH + EDGE * np.abs(a - pad[s]))[..., None] for s in around]
    total, a = sum(weights), a[..., None]
    m00, m01, m11 = a * a + total, a * (1 - a), (1 - a) ** 2 + total
    det = m00 * m11 - m01 * m01
    for _ in range(rounds):
        near_F, near_B = (cv2.copyMakeBorder(x, 1, 1, 1, 1, cv2.BORDER_REPLICATE) for x in (F, B))
        r0 = a * I + sum(k * near_F[s] for k, s in zip(weights, around, strict=True))
        r1 = (1 - a) * I + sum(k * near_B[s] for k, s in zip(weights, around, strict=True))
        F, B = (m11 * r0 - m01 * r1) / det, (m00 * r1 - m01 * r0) / det
        F, B = F.clip(0, 1), B.clip(0, 1)
    return F, B
