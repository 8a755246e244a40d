"""The picture behind a person: the photo with the person painted out."""

import cv2
import numpy as np


def clean_plate(picture, mask) -> np.ndarray:
    """The photo (H, W, 3) uint8 with the person painted out: what is around flows in, softly."""
    h, w = mask.shape
    r = max(2, round(max(h, w) / 70))
    wide = cv2.dilate((mask > 0.2).astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * r + 1, 2 * r + 1)))
    small = (max(8, w * 160 // max(h, w)), max(8, h * 160 // max(h, w)))
    hole = (cv2.resize(wide.astype(np.float32), small, interpolation=cv2.INTER_AREA) > 0).astype(np.uint8)
    if hole.all():
        return np.full_like(picture, np.median(picture.reshape(-1, 3), 0))
    filled = cv2.inpaint(cv2.resize(picture, small, interpolation=cv2.INTER_AREA), hole, 5, cv2.INPAINT_TELEA)
    soft = cv2.GaussianBlur(filled, (0, 0), 4)
    filled = np.where(hole[..., None] > 0, soft, filled)
    filled = cv2.GaussianBlur(cv2.resize(filled, (w, h), interpolation=cv2.INTER_CUBIC), (0, 0), 2)
    blend = cv2.GaussianBlur(wide.astype(np.float32), (0, 0), r / 2)[..., None]
    blend = np.maximum(blend, (mask > 0.02)[..., None])
    return (picture * (1 - blend) + filled * blend + 0.5).clip(0, 255).astype(np.uint8)
