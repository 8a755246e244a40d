"""Colours of the person alone at soft outlines, against known compositions."""

import cv2
import numpy as np

from aa.foreground import foreground
from aa.view import own_colours


def composition(shade):
    """A disc with colours `shade` (H, W, 3) over a bright green wall: image, alpha."""
    size = len(shade)
    y, x = np.mgrid[:size, :size]
    alpha = cv2.GaussianBlur((np.hypot(x - size / 2, y - size / 2) < size / 4).astype(np.float32), (0, 0), 3)
    wall = np.full_like(shade, (0.2, 0.9, 0.3))
    return alpha[..., None] * shade + (1 - alpha[..., None]) * wall, alpha


def test_mixed_pixels_get_their_own_colour():
    x = np.linspace(0, 1, 128, dtype=np.float32)
    shade = np.dstack([0.3 + 0.4 * np.tile(x, (128, 1)), np.full((128, 128), 0.2), np.full((128, 128), 0.2)]).astype(np.float32)
    image, alpha = composition(shade)
    F = foreground(image, alpha)
    rim = (alpha > 0.15) & (alpha < 0.85)
    assert np.abs(image - shade)[rim].mean() > 0.15
    assert np.abs(F - shade)[rim].mean() < 0.03
    assert np.abs(F - shade)[alpha > 0.99].max() < 0.02
    assert F.shape == image.shape
    assert F.dtype == np.float32


def test_no_wall_beyond_the_outline():
    """Particles at the rim read colours on both sides of the outline: none may be the wall's, even with a mask a pixel too wide."""
    shade = np.full((160, 160, 3), (0.4, 0.25, 0.2), np.float32)
    image, alpha = composition(shade)
    wide = cv2.dilate(alpha, np.ones((3, 3), np.uint8))
    front = own_colours(image.astype(np.float32), wide)
    near = cv2.dilate(alpha, np.ones((15, 15), np.uint8)) > 0.1
    assert np.abs(front - shade)[near].max() < 0.08
