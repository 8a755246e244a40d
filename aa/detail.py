"""Particles on a pixel grid over what the photo shows, finer than the layout where that is coarse, and backings behind the skin."""

from dataclasses import fields, replace

import numpy as np
import torch
from scipy.spatial import cKDTree

from aa.align import solid_faces
from aa.bluenoise import grid
from aa.body import REGIONS, Body, matrix_to_quat, vertex_normals
from aa.gaussians import Layout
from aa.lids import LID_MM, blink_mm
from aa.ownership import parts_of_regions
from aa.paint import materials, spread
from aa.particles import Particles, join, metres_per_pixel, stretched, triangle_frames
from aa.sides import SKIN, fill_at, well_seen
from aa.view import View, part_colours, project, rays, towards, visible
from aa.zbuffer import zbuffer

THIN = 0.15  # thickness of a surface particle over its radius
SEAL = 1.35  # widening of discs that leaves no gap from anywhere
COVER_DETAIL = 0.48  # radius (standard deviation) over spacing: sharp, for the layout lies behind
FINE = 0.6  # spacing of detail on the head over that elsewhere
HEAD = ("face", "ear")
SUB = 3  # subdivisions of a pixel at which the grid of detail is laid
LIFT = 0.0008  # m by which detail particles lie above the layout's
STEEP = 0.35  # cosine between normal and ray below which a pixel grid would leave gaps
UNSURE = 0.7  # how firm particles near edges and seen at grazing angles are
BARELY = 0.15  # cosine to the camera from where on they are refined at all
NO_DETAIL = ("eye", "mouth", "teeth", "tongue", "eye_cavity", "eyelid", "lips")


def seen_unsure(view: View, points, normals, seen):
    """Which points (n, 3) the photo shows, now with those near edges and at grazing angles, and which (n,) of them are such."""
    pixels, z = project(points, view.viewmat, view.K)
    w, h = view.size
    x, y = (pixels[:, i].astype(int).clip(0, n - 1) for i, n in ((0, w), (1, h)))
    shown = (view.mask > 0.5) & ~view.claimed & ~view.stray
    near = shown[y, x] & (z - view.depth[y, x] < 0.004) & (towards(view, points, normals).numpy() > BARELY)
    return seen | near, near & ~seen


def wants_detail(body: Body, layout: Layout, view: View, vertices, spacing: float) -> torch.Tensor:
    """Spacing (F,) px of the detail on triangles of body.faces that have fewer particles than the photo has detail, else 0.

    On the head detail is finer, and wanted unless the layout is much finer still: an even grid over the layout leaves no gaps,
    and small opaque particles keep their colours when the view turns, where few would have to exaggerate them.
    """
    rest = body.v_template
    gap = layout.spacing[torch.as_tensor(cKDTree(layout.place(rest).numpy()).query(rest[body.faces].mean(1).numpy())[1])]
    gap = gap * stretched(body, body.faces, vertices) / metres_per_pixel(view, vertices[body.faces].mean(1))
    among = lambda names: torch.isin(body.face_region, torch.tensor([REGIONS.index(n) for n in names]))  # noqa: E731
    allowed = ~among(NO_DETAIL) & (blink_mm(body)[body.faces].amax((1, 2)) < LID_MM)
    fine = allowed & among(HEAD) & (gap > 0.5 * FINE * spacing)
    coarse = allowed & ~among(HEAD) & (gap > 1.4 * spacing)
    return FINE * spacing * fine + spacing * coarse


def covered(base: Particles, wanted, layout: Layout, view: View, vertices) -> Particles:
    """Layout particles under detail become a backing: deeper, without gaps and left alone by the refinement."""
    under = torch.zeros(len(base), dtype=torch.bool)
    normals = triangle_frames(layout.corners, vertices)[:, :, 2]
    under[: len(layout)] = (
        (wanted[layout.tri] > 0) & base.seen[: len(layout)] & (towards(view, layout.place(vertices), normals) > STEEP)
    )
    scales = base.scales.clone()
    scales[under, :2] *= SEAL
    sunk = 0.9 * layout.spacing[:, None] * normals * under[: len(layout), None]
    means = torch.cat([base.means[: len(layout)] - sunk, base.means[len(layout) :]])
    return replace(base, means=means, scales=scales, seen=base.seen & ~under)


def _grids(wanted, tri, view: View, room: int):
    """Places (n, 2) in the fine image `tri` and spacings (n,) px of hexagonal grids, widened until at most `room` remain."""
    clear = np.kron((view.mask > 0.6) & ~view.claimed & ~view.stray, np.ones((SUB, SUB), bool)) & (tri >= 0)
    there = np.where(clear, wanted.numpy()[tri], 0)
    levels = np.unique(wanted.numpy()[wanted.numpy() > 0])
    for widen in 1.05 ** np.arange(60):
        at = [(grid(there == s, SUB * s * widen), s * widen) for s in levels]
        if sum(len(p) for p, _ in at) <= room:
            break
    return np.concatenate([np.zeros((0, 2), int)] + [p for p, _ in at]), np.repeat([s for _, s in at], [len(p) for p, _ in at])


def detail(body: Body, wanted, view: View, vertices, room: int, layout: Layout, fill) -> Particles:
    """Particles on a pixel grid over visible surface, as dense as `wanted` (F,) px says, at most `room` of them.

    fill (M, 3): colours of the layout's particles, to which skin at grazing angles gives way.
    """
    faces, which = solid_faces(body)
    rest = body.v_template
    w, h = view.size
    _, fine, weights = zbuffer(vertices, faces, view.viewmat, torch.diag(torch.tensor([SUB, SUB, 1.0])) @ view.K, SUB * w, SUB * h)
    at, spacing = _grids(wanted[which], fine, view, room)
    flat = towards(view, vertices[faces].mean(1), triangle_frames(faces, vertices)[:, :, 2]) > STEEP - 0.05
    at, spacing = (x[flat.numpy()[fine[at[:, 1], at[:, 0]]]] for x in (at, spacing))
    tri = torch.from_numpy(fine[at[:, 1], at[:, 0]])
    bary = torch.from_numpy(weights[at[:, 1], at[:, 0]]).float()
    corners = faces[tri]
    read = lambda v: (v[corners] * bary[..., None]).sum(1)  # noqa: E731
    means = read(vertices)
    normals = torch.nn.functional.normalize(read(vertex_normals(vertices, faces)), dim=1)
    radius = COVER_DETAIL * torch.from_numpy(spacing).float() * metres_per_pixel(view, means)
    ray = rays(view, means)
    cosine = (ray * normals).sum(1).clamp_min(0.3)
    along = torch.nn.functional.normalize(ray - (ray * normals).sum(1, keepdim=True) * normals + 1e-6, dim=1)
    frames = torch.stack([along, torch.linalg.cross(normals, along), normals], -1)
    scales = torch.stack([radius / cosine, radius, THIN * radius], 1)
    names = body.face_region[which][tri].numpy()
    parts = parts_of_regions(np.array(REGIONS)[names], read(rest)[:, 0].numpy())
    colors = part_colours(view, view.front, (at + 0.5) / SUB, 0.5 * spacing, parts)
    seen, _, _ = visible(view, means, normals)
    place = read(rest).numpy()
    colors = spread(colors, seen, place, materials(body, names, place))
    named = np.array(REGIONS)[names]
    below = fill_at(place, layout.place(rest).numpy(), np.array(REGIONS)[layout.region], fill[: len(layout)])
    sure = np.where(np.isin(named, SKIN), well_seen(body, view, means, place, normals, seen), 1.0)
    colors = below + sure[:, None] * (colors - below)
    seen, unsure = seen_unsure(view, means, normals, seen)
    n = len(at)
    return Particles(
        corners, bary, torch.zeros(n, dtype=torch.bool), means + LIFT * normals, matrix_to_quat(frames), scales,
        torch.full((n,), 0.9), torch.from_numpy(colors).float().clamp(0, 1), torch.from_numpy(seen),
        torch.from_numpy(np.maximum(UNSURE * unsure, 1 - sure).astype(np.float32)), torch.from_numpy(1 - sure).float(),
    )  # fmt: skip


def backing(body: Body, base: Particles, layout: Layout, vertices) -> Particles:
    """Skin colour inside the head, so that no gap between particles shows the dark of the mouth: just below the skin around
    the lips, big and deep elsewhere. A backing must be deep for its size, else its discs cut through slanted skin."""
    rest = layout.place(body.v_template).numpy()
    skin = torch.isin(layout.region, torch.tensor([REGIONS.index(n) for n in ("face", "scalp")])).numpy()
    reach = lambda name: cKDTree(body.v_template[body.region_vertices(name)].numpy()).query(rest)[0]  # noqa: E731
    mouth, eye = reach("lips") < 0.03, reach("eye") < 0.015
    parts = []
    for which, step, depth in ((skin & mouth, 2, 0.0025), (skin & ~mouth & ~eye, 8, 0.012)):
        index = torch.from_numpy(np.flatnonzero(which)[::step])
        inward = triangle_frames(layout.corners[index], vertices)[:, :, 2] * depth
        size = base.scales[index].clone()
        size[:, :2] = 0.75 * layout.spacing[index, None] * step**0.5
        some = {f.name: getattr(base, f.name)[index] for f in fields(Particles)}
        hidden = torch.zeros(len(index), dtype=torch.bool)
        parts.append(Particles(**{**some, "means": some["means"] - inward, "scales": size, "seen": hidden}))
    return join(parts)
