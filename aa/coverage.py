"""Does a layout cover the body? Its discs drawn from 26 sides and held against the z-buffer of the mesh."""

from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np
import torch

from aa.body import HELPERS, REGIONS, Body
from aa.gaussians import Layout, intrinsics, look_at, project
from aa.zbuffer import zbuffer

FAR = 12.0  # m, as far as a camera must be for its view to be nearly parallel
BEHIND = 0.02  # m behind the surface of a pixel, from which on a particle there is another layer
RIM = 2  # px of outlines that are left out: half covered pixels are no holes


@dataclass(frozen=True)
class Coverage:
    """What one camera sees of a layout. Pictures are (H, W)."""

    inside: np.ndarray  # bool, the mesh without the rims of its outlines
    alpha: np.ndarray  # opacity of the layout
    leak: np.ndarray  # share of what is seen that belongs to hidden layers

    def holes(self, alpha: float = 0.8, leak: float = 0.25) -> np.ndarray:
        """Pixels (H, W) of the body that show what is behind it, or inside."""
        return self.inside & ((self.alpha < alpha) | (self.leak > leak))


def directions() -> torch.Tensor:
    """The 26 unit vectors (26, 3) towards a cube's faces, edges and corners."""
    every = torch.tensor([d for d in product((-1.0, 0.0, 1.0), repeat=3) if any(d)])
    return torch.nn.functional.normalize(every, dim=1)


def see(body: Body, layout: Layout, vertices, direction, size: int = 512, centre=None, extent: float | None = None) -> Coverage:
    """The body with vertices (V, 3) seen from `direction` (3,), which points towards the camera, in size x size px.

    centre (3,) and extent (m, the width of the picture) default to the whole body.
    """
    skin = body.faces[~torch.isin(body.face_region, torch.tensor([REGIONS.index(n) for n in HELPERS], device=body.device))]
    used = vertices[skin.unique()]
    low, high = used.amin(0), used.amax(0)
    centre = (low + high) / 2 if centre is None else centre
    extent = 1.04 * float((high - low).norm()) if extent is None else extent
    up = (0.0, 1.0, 0.0) if abs(float(direction[2])) > 0.99 else (0.0, 0.0, 1.0)
    view, K = look_at(centre + FAR * direction, centre, up), intrinsics(FAR * size / extent, size, size)
    depth, _, _ = zbuffer(vertices, skin, view, K, size, size)
    near, far = (f(depth.astype(np.float32), np.ones((2 * RIM + 1,) * 2, np.uint8)) for f in (cv2.erode, cv2.dilate))
    inside = far < near + BEHIND  # neither beside the silhouette nor at the edge of an arm in front of the trunk
    hidden = _hidden(layout, vertices, direction, view, K, depth)
    splats = layout.gaussians(vertices, hidden[:, None].float())
    image, alpha, _ = splats.render(view[None], K[None], size, size)
    alpha = alpha[0, ..., 0].numpy()
    return Coverage(inside, alpha, image[0, ..., 0].numpy() / np.maximum(alpha, 1e-6))


def _hidden(layout: Layout, vertices, direction, view, K, depth) -> torch.Tensor:
    """Which particles (N,) lie on a hidden layer: turned away, or well behind what their pixel and its neighbours show."""
    pixels, z = project(layout.place(vertices), view, K)
    farthest = cv2.dilate(depth.astype(np.float32), np.ones((5, 5), np.uint8))  # a particle at an outline is not behind it
    x, y = (np.floor(pixels[:, i].numpy()).astype(int).clip(0, len(depth) - 1) for i in (0, 1))
    behind = z.numpy() > farthest[y, x] + BEHIND
    away = (layout.frames(vertices)[..., 2] * direction).sum(1) < -0.2
    return torch.from_numpy(behind) | away
