"""The photo at render size beside the fitted mesh in it: whose each pixel is, and what the photo shows of a point."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from aa import gaussians
from aa.zbuffer import zbuffer

GRAZING = 0.2  # cosine between normal and view ray below which the photo's colour is not trusted
FOREARM, HAND = 4, 6  # part labels from here on, see aa.fringe.parts_of_vertices
JUMP = 0.05  # m of depth from one surface to another behind it


@dataclass(frozen=True)
class View:
    """The photo at render size and what the fitted mesh looks like in it."""

    image: np.ndarray  # (H, W, 3) float32 in [0, 1]
    front: np.ndarray  # (H, W, 3) the person's colours continued beyond the outline
    mask: np.ndarray  # (H, W) float32
    viewmat: torch.Tensor
    K: torch.Tensor
    depth: np.ndarray  # (H, W) m, inf where there is no surface
    tri: np.ndarray  # (H, W) index into the faces given to make_view, -1
    bary: np.ndarray  # (H, W, 3)
    claimed: np.ndarray  # (H, W) bool: beside the outline of something nearer, and of its colour: it belongs to that
    stray: np.ndarray  # (H, W) bool: inside such an outline but of the farther thing's colour

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.mask.shape[1], self.mask.shape[0]


def make_view(image, mask, vertices, faces, viewmat, K, part) -> View:
    """View of image (H, W, 3) uint8 and mask (H, W) with a mesh; part (F,) labels what moves as one piece."""
    h, w = mask.shape
    depth, tri, bary = zbuffer(vertices, faces, viewmat, K, w, h)
    image = image.astype(np.float32) / 255
    front = extend(image, mask > 0.9, round(max(h, w) / 400))
    label = np.where((tri >= 0) & (mask > 0.5), part[tri], -1)
    claimed, stray = split_edges(front, depth, label, max(2, round(max(h, w) / 80)))
    return View(image, front, mask, viewmat, K, depth, tri, bary, claimed, stray)


def split_edges(image, depth, label, r: int):
    """Where one part lies before another, let colours decide whose the pixels near its edge are (r px inside, 2 r beside).

    Returns (H, W) bool twice: pixels of the far part that show the near one, and the other way round.
    """
    disc = lambda r: cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * r + 1, 2 * r + 1))  # noqa: E731
    known = label >= 0
    close = cv2.erode(np.where(known, depth, 1e3).astype(np.float32), disc(2 * r))  # a hand may reach far beyond its mesh
    away = cv2.dilate(np.where(known, depth, -1e3).astype(np.float32), disc(r))
    far, near = known & (depth - close > JUMP), known & (away - depth > JUMP)
    colors = cv2.GaussianBlur(image, (0, 0), 1.0)
    clean = {}  # part -> the image as its nearest undisputed pixel has it
    for k in np.unique(label[far | near]):
        sure = (label == k) & ~far & ~near
        if sure.sum() > 20:
            y, x = distance_transform_edt(~sure, return_distances=False, return_indices=True)
            clean[k] = colors[y, x]
    claimed, stray = np.zeros_like(known), np.zeros_like(known)
    for band, other, out, ratio in ((far, near, claimed, 0.7), (near, far, stray, 0.45)):
        if not (band.any() and other.any()):
            continue
        y, x = np.nonzero(band)
        yy, xx = distance_transform_edt(~other, return_distances=False, return_indices=True)[:, y, x]
        mine, rival, here = label[y, x], label[yy, xx], colors[y, x]
        own, theirs = np.full(len(y), 0.0), np.full(len(y), 9.0)
        for k, image_k in clean.items():
            there = np.linalg.norm(here - image_k[y, x], axis=1)
            own, theirs = np.where(mine == k, there, own), np.where(rival == k, there, theirs)
        arm = rival >= FOREARM if out is claimed else mine >= HAND  # heads and shoulders only cast shadows
        out[y, x] = arm & (mine != rival) & (theirs < ratio * own) & (own > 0.15)
    tidy = lambda m: cv2.medianBlur(m.astype(np.uint8), 9) > 0  # noqa: E731
    return tidy(claimed), tidy(stray)


def extend(image, inside, erode: int = 1) -> np.ndarray:
    """Replace what lies outside the eroded mask `inside` (H, W) by the nearest colours inside, softened with distance."""
    core = cv2.erode(inside.astype(np.uint8), np.ones((2 * erode + 1,) * 2, np.uint8)) > 0 if erode else inside
    if not core.any():
        return image
    distance, (y, x) = distance_transform_edt(~core, return_indices=True)
    filled = image[y, x]
    soft = cv2.GaussianBlur(filled, (0, 0), 2.0)
    return np.where((distance > 1)[..., None], soft, filled)


def sample(image, pixels, radius) -> np.ndarray:
    """Colours (n, 3) at pixels (n, 2), averaged over a footprint of `radius` (n,) px (standard deviation)."""
    sigmas = [0.0, 0.7, 1.4, 2.8, 5.6]
    stack = [image if s == 0 else cv2.GaussianBlur(image, (0, 0), s) for s in sigmas]
    n = len(pixels)
    at = np.zeros((max(1, -(-n // 1024)), 1024, 2), np.float32)  # OpenCV takes no rows longer than 32767, and no empty table
    at.reshape(-1, 2)[:n] = pixels - 0.5
    read = [cv2.remap(s, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).reshape(-1, 3)[:n] for s in stack]
    read = np.stack(read)
    level = np.interp(radius, sigmas, np.arange(len(sigmas)))
    low = np.minimum(level.astype(int), len(sigmas) - 2)
    f = (level - low)[:, None]
    i = np.arange(n)
    return (1 - f) * read[low, i] + f * read[low + 1, i]


def project(points, viewmat, K):
    """Pixels (n, 2) and depths (n,) as numpy."""
    pixels, depths = gaussians.project(points, viewmat, K)
    return pixels.numpy(), depths.numpy()


def visible(view: View, points, normals):
    """Which points (n, 3) with outward normals (n, 3) the photo shows; their pixels (n, 2)."""
    pixels, z = project(points, view.viewmat, view.K)
    w, h = view.size
    at = np.floor(pixels).astype(int)
    inside = ((at >= 0) & (at < [w, h])).all(1)
    x, y = at[:, 0].clip(0, w - 1), at[:, 1].clip(0, h - 1)
    eye = -view.viewmat[:3, :3].T @ view.viewmat[:3, 3]
    ray = torch.nn.functional.normalize(eye - points, dim=1)
    facing = (ray * normals).sum(1).numpy()
    near = z - view.depth[y, x] < 0.004
    return inside & near & (facing > GRAZING) & (view.mask[y, x] > 0.5) & ~view.claimed[y, x] & ~view.stray[y, x], pixels, facing
