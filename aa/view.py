"""The photo at render size beside the fitted mesh in it: whose each pixel is, and what the photo shows of a point."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from aa import gaussians
from aa.foreground import foreground
from aa.ownership import (
    ALIKE,
    FOREARM,
    HAIR,
    HAND,
    HEAD,
    JUMP,
    LEG,
    MOSTLY,
    TRUNK,
    UPPER_ARM,
    apart,
    distance_to,
    is_skin,
    unlike,
    whose,
)
from aa.zbuffer import zbuffer

GRAZING = 0.2  # cosine between normal and view ray below which the photo's colour is not trusted
CONTACT = 32  # the shadow that one part casts on another reaches so many-th of the picture's longer side
SHADE = 0.75  # brightness over that of the same part farther off from which it counts as such
DEEP = 0.4  # the same over an arm's part at its brightest
LIKE_UPPER = 0.75  # the same of a sleeve's lower end over its upper one


@dataclass(frozen=True)
class View:
    """The photo at render size and what the fitted mesh looks like in it."""

    image: np.ndarray  # (H, W, 3) float32 in [0, 1]
    front: np.ndarray  # (H, W, 3) the person's own colours, without background at the rim, continued beyond it
    lit: np.ndarray  # (H, W, 3) the same without the shadows of parts on each other: for what the photo hides
    mask: np.ndarray  # (H, W) float32, without background that shows between arm and body
    viewmat: torch.Tensor
    K: torch.Tensor
    depth: np.ndarray  # (H, W) m, inf where there is no surface
    tri: np.ndarray  # (H, W) index into the faces given to make_view, -1
    bary: np.ndarray  # (H, W, 3)
    claimed: np.ndarray  # (H, W) bool: the photo shows another part, before the one the mesh has there
    stray: np.ndarray  # (H, W) bool: the photo shows another part, behind the arm the mesh has there
    edge: np.ndarray  # (H, W) bool: close behind the outline of another part, mixed with its colour
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
    front = own_colours(image, mask)
    lit = relit(front, owner, mask, image)
    edge = behind_edges(owner, depth)
    return View(image, front, lit, mask, viewmat, K, depth, tri, bary, claimed, stray, edge, shown, owner)


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


def relit(image, owner, mask, photo) -> np.ndarray:
    """The image (H, W, 3) in [0, 1] in which no part bears another's shadow or colour: as paint it would spread to hidden sides.

    What is false on a part is filled from around it on the same part; owner (H, W), mask (H, W); photo (H, W, 3) as it is.
    """
    image, separate = image.copy(), np.pad(apart(), (0, 1))
    reach = max(owner.shape) / CONTACT
    behind = photo[tuple(distance_transform_edt(mask > 0.02, return_distances=False, return_indices=True))]
    face = image[owner == HEAD]
    skin = np.zeros(owner.shape, bool)
    skin[owner >= 0] = is_skin(image[owner >= 0], face)
    bright = cv2.GaussianBlur(image, (0, 0), 1.0).mean(2)
    for k in range(TRUNK, HAND):
        mine = owner == k
        if not mine.any():
            continue
        rival = (owner >= 0) & (owner != HAIR) & separate[k][owner]
        near = mine & (distance_to(rival) < reach)
        dressed = skin[mine].mean() < MOSTLY
        if k == TRUNK:  # a bare neck is no shirt's measure
            cloth = mine & ~skin
            false = contact_shadow(bright, cloth, near)
            beside = mine & (distance_to(rival & (owner >= FOREARM)) < reach)
            if dressed and beside.any():
                false[beside] |= nearer_in_tone(image[beside], face, image[cloth])
        else:
            cloth, upper = mine, owner == UPPER_ARM + k % 2
            least = DEEP * np.quantile(bright[mine], 0.8)
            if k >= FOREARM and dressed and upper.any():
                least = LIKE_UPPER * np.median(bright[upper])
            false = contact_shadow(bright, mine, near) | mine & ~skin & (distance_to(rival) < 2 * reach) & (bright < least)
            false |= miscoloured(image, mine, skin, behind)
            false &= dressed  # what is dark beside a bare arm is the sleeve behind it: skin in its place would be worse
        false = mine & (cv2.dilate(false.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)
        own = cloth & ~false & (cv2.erode(mine.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)
        firm = cv2.morphologyEx(own.astype(np.uint8), cv2.MORPH_OPEN, np.ones((round(reach / 3),) * 2, np.uint8)) > 0
        own = firm if firm.any() else own  # what is left between shadows is a pattern's dots
        if false.any() and own.any():
            soft = (cv2.GaussianBlur(false.astype(np.float32), (0, 0), 1.5) * mine).clip(0, 1)
            soft = np.where(false, np.maximum(soft, 0.9), soft)[..., None]
            image += soft * (_plain(image, own, reach) - image)
    return image


def _continued(image, own, sigma: float) -> np.ndarray:
    """Image (H, W, 3) or (H, W) of means over the pixels `own` (H, W) around, or else those of the nearest ones."""
    inside = own.astype(np.float32)[..., None] if image.ndim == 3 else own.astype(np.float32)
    blur = lambda x: cv2.GaussianBlur(x, (0, 0), sigma).reshape(x.shape)  # noqa: E731
    mean = blur(image * inside) / blur(inside).clip(1e-6)
    return mean[tuple(distance_transform_edt(~own, return_distances=False, return_indices=True))]


def _plain(image, own, reach: float) -> np.ndarray:
    """The usual colours (H, W, 3) of the pixels `own` (H, W) around, without the cloth's pattern."""
    filled = (255 * extend(image, own, 0)).clip(0, 255).astype(np.uint8)
    filled = cv2.medianBlur(filled, 2 * round(0.7 * reach) + 1).astype(np.float32) / 255
    return _continued(filled, own, reach / 4)


def nearer_in_tone(colors, one, other) -> np.ndarray:
    """Which colours (n, 3) are nearer in chromaticity to the median of `one` (m, 3) than to that of `other` (k, 3)."""
    tone = lambda c: c / c.sum(-1, keepdims=True).clip(0.05)  # noqa: E731
    away = lambda few: np.linalg.norm(tone(colors) - tone(np.median(few, 0)), axis=1)  # noqa: E731
    return away(one) < away(other) if len(one) and len(other) else np.zeros(len(colors), bool)


def contact_shadow(bright, mine, near) -> np.ndarray:
    """Pixels (H, W) bool of a part `mine` that are `near` another part and much darker than it is farther off."""
    reach, clear = max(mine.shape) / CONTACT, mine & ~near
    if not (near & mine).any():
        return np.zeros_like(mine)
    usual = _continued(bright, clear, reach) if clear.sum() > 50 else np.quantile(bright[mine], 0.8)
    return near & mine & (bright < SHADE * usual)


def miscoloured(image, mine, skin, behind) -> np.ndarray:
    """Pixels (H, W) bool of an arm's part `mine` (H, W) that show something else: thin streaks of skin (H, W) on a sleeve, and the
    background, (H, W, 3) around the person."""
    size = round(max(mine.shape) / CONTACT) | 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    out = mine & skin
    out &= cv2.morphologyEx(out.astype(np.uint8), cv2.MORPH_OPEN, disc) == 0
    far = np.linalg.norm(image[mine] - behind[mine], axis=1)
    out[mine] |= (unlike(image[mine], image[mine]) > 1.5 * ALIKE) & (far < 1.5 * ALIKE)
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


def part_colours(view: View, image, pixels, radius, part) -> np.ndarray:
    """Colours (n, 3) of the image (H, W, 3) at pixels (n, 2) as `sample` reads them, but only from what belongs to the part (n,) or
    moves with it."""
    out = sample(image, pixels, radius)
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
        both = sample(np.dstack([image[box] * inside, inside]), near, radius[mine])
        nearest = distance_transform_edt(inside[..., 0] < 0.5, return_distances=False, return_indices=True)
        beside = image[box][tuple(nearest[:, near[:, 1].astype(int), near[:, 0].astype(int)])]
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
    facing = towards(view, points, normals).numpy()
    near = z - view.depth[y, x] < 0.004
    shown = (view.mask > 0.5) & ~view.claimed & ~view.stray & ~view.edge
    return inside & near & (facing > GRAZING) & shown[y, x], pixels, facing


def rays(view: View, points) -> torch.Tensor:
    """Unit vectors (n, 3) from points (n, 3) to the camera."""
    eye = -view.viewmat[:3, :3].T @ view.viewmat[:3, 3]
    return torch.nn.functional.normalize(eye - points, dim=1)


def towards(view: View, points, normals) -> torch.Tensor:
    """Cosine (n,) between normals (n, 3) and the rays from points (n, 3) to the camera."""
    return (rays(view, points) * normals).sum(1)
