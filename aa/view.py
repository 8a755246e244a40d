"""The photo at render size beside the fitted mesh in it: whose each pixel is, and what the photo shows of a point."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from aa import gaussians
from aa.foreground import foreground
from aa.ownership import FOREARM, HAIR, JUMP, LEG, apart, whose
from aa.zbuffer import zbuffer

GRAZING = 0.2  # cosine between normal and view ray below which the photo's colour is not trusted


@dataclass(frozen=True)
class View:
    """The photo at render size and what the fitted mesh looks like in it."""

    image: np.ndarray  # (H, W, 3) float32 in [0, 1]
    front: np.ndarray  # (H, W, 3) the person's own colours, without background at the rim, continued beyond it
    mask: np.ndarray  # (H, W) float32, without background that shows between arm and body
    viewmat: torch.Tensor
    K: torch.Tensor
    depth: np.ndarray  # (H, W) m, inf where there is no surface
    tri: np.ndarray  # (H, W) index into the faces given to make_view, -1
    bary: np.ndarray  # (H, W, 3)
    claimed: np.ndarray  # (H, W) bool: the photo shows another part, before the one the mesh has there
    stray: np.ndarray  # (H, W) bool: the photo shows another part, behind the arm the mesh has there
    edge: np.ndarray  # (H, W) bool: close behind the outline of another part, mixed with its colour or in its shadow
    shown: np.ndarray  # (H, W) the part that the mesh shows there, -1 beside it
    owner: np.ndarray  # (H, W) the part of the person that the photo shows, -1 beside the person, see aa.ownership

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.mask.shape[1], self.mask.shape[0]


def make_view(image, mask, vertices, faces, viewmat, K, part) -> View:
    """View of image (H, W, 3) uint8 and mask (H, W) with a mesh; part (F,) of its faces, see aa.ownership."""
    h, w = mask.shape
    depth, tri, bary = zbuffer(vertices, faces, viewmat, K, w, h)
    image = image.astype(np.float32) / 255
    shown = np.where(tri >= 0, part[tri], -1)
    owner = whose(image, mask, shown, depth)
    mask = np.where((owner < 0) & (mask > 0.5), 0, mask).astype(np.float32)
    claimed, stray = _disputed(owner, shown, depth)
    front, edge = own_colours(image, mask), behind_edges(owner, depth)
    return View(image, front, mask, viewmat, K, depth, tri, bary, claimed, stray, edge, shown, owner)


def own_colours(image, mask) -> np.ndarray:
    """The person's colours (H, W, 3) without the background's share at soft edges, continued outwards."""
    alpha = cv2.GaussianBlur(cv2.erode(mask, np.ones((3, 3), np.uint8)), (0, 0), 0.7)  # masks are rather too wide than too narrow
    return extend(foreground(image, alpha), alpha > 0.6, 0)


def behind_edges(owner, depth) -> np.ndarray:
    """Pixels (H, W) bool close to another part that lies before them."""
    r = max(1, round(max(owner.shape) / 300))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * r + 1, 2 * r + 1))
    separate, out = np.pad(apart(), (0, 1)), np.zeros(owner.shape, bool)
    for k in range(FOREARM, LEG):
        near = np.where(owner == k, depth, np.inf)
        if np.isfinite(near).any():
            near = cv2.erode(np.where(np.isfinite(near), near, 1e3).astype(np.float32), disc)
            out |= (owner >= 0) & separate[k][owner] & (near < depth - JUMP)
    return out


def _disputed(owner, shown, depth):
    """Pixels (H, W) bool of the mesh part `shown` that another part owns: one before it, and one behind it (arms only)."""
    other = (owner >= 0) & (shown >= 0) & np.pad(apart(), (0, 1))[shown, owner]
    nearer = np.zeros_like(other)
    for k in np.unique(owner[other]):
        mine = other & (owner == k)
        source = (shown == k) & (owner == k)
        if k == HAIR or not source.any():
            nearer |= mine
            continue
        y, x = distance_transform_edt(~source, return_distances=False, return_indices=True)[:, mine]
        nearer[mine] = depth[y, x] < depth[mine]
    arm = (shown >= FOREARM) & (shown < LEG)
    return other & nearer, other & ~nearer & arm


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
    read = [cv2.remap(s, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for s in stack]
    read = np.stack(read).reshape(len(sigmas), -1, image.shape[2])[:, :n]
    level = np.interp(radius, sigmas, np.arange(len(sigmas)))
    low = np.minimum(level.astype(int), len(sigmas) - 2)
    f = (level - low)[:, None]
    i = np.arange(n)
    return (1 - f) * read[low, i] + f * read[low + 1, i]


def part_colours(view: View, pixels, radius, part) -> np.ndarray:
    """Colours (n, 3) at pixels (n, 2) as `sample` reads them, but only from what belongs to the part (n,) or moves with it."""
    out = sample(view.front, pixels, radius)
    separate = np.pad(apart(), (0, 1), constant_values=True)  # the last column is for -1, no owner
    for k in np.unique(part):
        mine = np.flatnonzero(part == k)
        own = cv2.erode((~separate[k][view.owner]).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0  # pixels at the edge are mixed
        if not own.any():
            continue
        y, x = np.nonzero(own)
        low, high = np.maximum([x.min() - 20, y.min() - 20], 0), np.array([x.max() + 20, y.max() + 20])
        box = np.s_[low[1] : high[1], low[0] : high[0]]
        inside = own[box].astype(np.float32)[..., None]
        near = (pixels[mine] - low).clip(0, np.array(inside.shape[1::-1]) - 0.5)
        both = sample(np.dstack([view.front[box] * inside, inside]), near, radius[mine])
        nearest = distance_transform_edt(inside[..., 0] < 0.5, return_distances=False, return_indices=True)
        beside = view.front[box][tuple(nearest[:, near[:, 1].astype(int), near[:, 0].astype(int)])]
        out[mine] = np.where(both[:, 3:] > 0.05, both[:, :3] / both[:, 3:].clip(0.05), beside)
    return out


def project(points, viewmat, K):
    """Pixels (n, 2) and depths (n,) as numpy."""
    pixels, depths = gaussians.project(points, viewmat, K)
    return pixels.numpy(), depths.numpy()


def in_the_way(view: View, x, y, part) -> np.ndarray:
    """Which points of parts (n,) at pixels x, y (n,) would hide what the photo shows: it looks past this hand or forearm."""
    arm = (part >= FOREARM) & (part < LEG) & (part % 2 == view.shown[y, x] % 2)
    return view.stray[y, x] & arm & (part != view.owner[y, x])


def inward_px(view: View, points) -> torch.Tensor:
    """Distance (n,) px of points (n, 3) from the person's outline, 0 beside it."""
    distance = cv2.distanceTransform(np.pad(view.mask > 0.5, 1, mode="edge").astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    pixels, _ = project(points, view.viewmat, view.K)
    x, y = (pixels[:, i].astype(int).clip(0, n - 1) for i, n in enumerate(view.size))
    return torch.from_numpy(distance[y, x])


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
    shown = (view.mask > 0.5) & ~view.claimed & ~view.stray & ~view.edge
    return inside & near & (facing > GRAZING) & shown[y, x], pixels, facing
