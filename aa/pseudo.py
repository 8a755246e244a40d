"""Pseudo views: what the photo says about other cameras and other expressions, exactly.

The mesh's z-buffer in the new view tells for each pixel which point of the surface it shows. Where the photo shows that point too,
its colour there is the pixel's true colour (but for gloss). Refined against one photo alone, particles learn colours, sizes and
places that only add up from its camera, in its order of depth; against pseudo views as well, they have to be right by themselves.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from aa.align import solid_faces
from aa.body import Body, vertex_normals
from aa.lids import LID_MM, blink_mm
from aa.particles import Particles, carry
from aa.raster import rasterize
from aa.sides import near_edges
from aa.view import View, project, sample, visible
from aa.zbuffer import zbuffer

TURNS = ((-32, 0), (32, 0), (-16, 10), (16, -10), (16, 10), (-16, -10))  # degrees left and up of the photo's camera
EXPRESSIONS = (
    {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0},
    {"jawOpen": 0.4, "eyeBlinkLeft": 0.5, "eyeBlinkRight": 0.5},
    {"mouthSmileLeft": 0.7, "mouthSmileRight": 0.7, "browInnerUp": 0.5},
)
STEEP = 0.35  # cosine between normal and ray below which a point is not trusted to the photo
HIDDEN = 0.5  # weight of pixels whose point the photo hides: they keep the first guess
UNROLLED = 1.0  # the same where the face moved: lids and lips that unroll
LARGEST = 320  # px


@dataclass(frozen=True)
class Shot:
    """A picture that the particles have to meet."""

    means: torch.Tensor  # (N, 3) m
    quats: torch.Tensor  # (N, 4)
    turn: torch.Tensor  # (N, 3, 3) of the surface against the photo's geometry
    viewmat: torch.Tensor
    K: torch.Tensor
    target: torch.Tensor  # (H, W, 3)
    weight: torch.Tensor  # (H, W, 1)
    cover: torch.Tensor  # (H, W, 1) alpha that is wanted
    behind: torch.Tensor  # (H, W, 3)


def pseudo_views(body: Body, cloud: Particles, view: View, vertices, rotations) -> list[Shot]:
    """Shots of the head from other sides and with other expressions; vertices (V, 3), rotations (V, 3, 3) as in the photo."""
    head = vertices[body.region_vertices("face", "ear", "scalp")]
    shots = [_shot(body, cloud, view, vertices, vertices, *_window(head, view, turn)) for turn in TURNS]
    for names in EXPRESSIONS:
        actions = torch.zeros(len(body.action_names))
        for name, value in names.items():
            actions[body.action(name)] = value
        moved = vertices + (rotations @ (body.rest(actions=actions) - body.v_template)[..., None])[..., 0]
        shots.append(_shot(body, cloud, view, vertices, moved, *_window(head, view, (0, 0)), UNROLLED))
    return shots


def _window(head, view: View, degrees):
    """Camera turned about the head's middle, and K, width and height of a window around the head at the photo's scale."""
    yaw, pitch = np.radians(degrees)
    about_y = torch.tensor([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    about_x = torch.tensor([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    turn = (about_x @ about_y).float()  # of the camera's axes
    middle = view.viewmat[:3, :3] @ head.mean(0) + view.viewmat[:3, 3]
    viewmat = view.viewmat.clone()
    viewmat[:3, :3] = turn @ view.viewmat[:3, :3]
    viewmat[:3, 3] = turn @ (view.viewmat[:3, 3] - middle) + middle
    pixels, _ = project(head, viewmat, view.K)
    low, high = pixels.min(0) - 4, pixels.max(0) + 4
    scale = min(1.0, LARGEST / float((high - low).max()))
    w, h = (max(8, int(np.ceil(x * scale))) for x in high - low)
    K = view.K.clone()
    K[:2, 2] -= torch.as_tensor(low, dtype=K.dtype)
    return viewmat, torch.diag(torch.tensor([scale, scale, 1.0])) @ K, w, h


def _shot(body: Body, cloud: Particles, view: View, vertices, moved, viewmat, K, w: int, h: int, hidden=HIDDEN) -> Shot:
    """What camera (viewmat, K) sees of the mesh `moved` (V, 3), in the colours that the photo shows of it at `vertices` (V, 3)."""
    faces, _ = solid_faces(body)
    _, tri, bary = zbuffer(moved, faces, viewmat, K, w, h)
    y, x = np.nonzero(tri >= 0)
    corners, share = faces[torch.from_numpy(tri[y, x])], torch.from_numpy(bary[y, x]).float()
    read = lambda v: (v[corners] * share[..., None]).sum(1)  # noqa: E731
    normals = torch.nn.functional.normalize(read(vertex_normals(vertices, faces)), dim=1)
    known, pixels, facing = visible(view, read(vertices), normals)
    known &= (
        (facing > STEEP)
        & (read(blink_mm(body))[:, 0].numpy() < LID_MM)
        & ~near_edges(view)[tuple(np.clip(pixels[:, ::-1].astype(int), 0, np.array(view.mask.shape) - 1).T)]
    )
    means, quats, turn = carry(cloud.means, cloud.quats, (cloud.corners, cloud.bary, cloud.loose), vertices, moved)
    gray, first, alpha = torch.full((h, w, 3), 0.5), *_render(cloud, means, quats, viewmat, K, w, h)
    _, loose = _render(replace(cloud, opacities=cloud.opacities * cloud.loose), means, quats, viewmat, K, w, h)
    target, weight = (first + (1 - alpha) * gray).numpy(), np.zeros((h, w, 1), np.float32)
    target[y[known], x[known]] = sample(view.front, pixels[known], np.zeros(known.sum()))
    weight[y, x, 0] = np.where(known, 1.0, hidden)
    inside = cv2.erode((tri >= 0).astype(np.uint8), np.ones((3, 3), np.uint8))[..., None]
    weight *= inside * (loose.numpy() < 0.05)
    return Shot(
        means, quats, turn, viewmat, K, torch.from_numpy(target), torch.from_numpy(weight), torch.ones(h, w, 1), gray
    )  # fmt: skip


def _render(cloud: Particles, means, quats, viewmat, K, w: int, h: int):
    """Picture (H, W, 3) over black, and alpha (H, W, 1)."""
    image, alpha, _ = rasterize(means, quats, cloud.scales, cloud.opacities, cloud.colors, viewmat[None], K[None], w, h)
    return image[0], alpha[0]
