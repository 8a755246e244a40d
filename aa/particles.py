"""The particles of an avatar in the geometry of its photo: the shared layout, finer ones where it is coarse, and a loose fringe."""

from dataclasses import dataclass, fields, replace

import cv2
import numpy as np
import torch
from scipy.spatial import cKDTree

from aa.align import solid_faces
from aa.body import REGIONS, Body, matrix_to_quat, quat_multiply, vertex_normals
from aa.facepaint import paint_lips, shade_mouth
from aa.gaussians import Gaussians, Layout, join_layouts
from aa.lids import LID_MM, blink_actions, blink_mm, lid_samples
from aa.lips import jaw_share, open_actions
from aa.ownership import parts_of_regions
from aa.paint import BELOW_HEAD, materials, paint, spread
from aa.scalp import paint_scalp
from aa.sides import SKIN, fill_at, smooth_sides, well_seen
from aa.teeth import on_teeth, paint_teeth, teeth_samples, tooth_tone, upper_jaw
from aa.view import View, in_the_way, inward_px, part_colours, project, visible
from aa.zbuffer import zbuffer

THIN = 0.15  # thickness of a surface particle over its radius
HIDDEN = 1.5  # widening of discs that the photo hides: they need not be sharp
SEAL, SEAL_PX = 1.35, 0.75  # widening of discs that leaves no gap from anywhere; no more than to so many px of radius
UNFOLD = 1.6  # greatest widening of the discs of lids and lips
LONGEST = 1.2  # radius over spacing
COVER_DETAIL = 0.48  # radius (standard deviation) over spacing: sharp, for the layout lies behind
FINE = 0.6  # spacing of detail on the head over that elsewhere
HEAD = ("face", "ear")
SUB = 3  # subdivisions of a pixel at which the grid of detail is laid
LIFT = 0.0008  # m by which detail particles lie above the layout's
BROAD = ("torso", "upperarm", "forearm", "leg", "foot", "neck", "face", "scalp")  # may be wide where hidden
UNROLLED_MM = 3.0  # what a blink moves further is painted, not refined
FOLD = 0.001  # m behind the surface in sight from where on a lid is folded away
STEEP = 0.35  # cosine between normal and ray below which a pixel grid would leave gaps
UNSURE = 0.7  # how firm particles near edges and seen at grazing angles are
BARELY = 0.15  # cosine to the camera from where on they are refined at all
INNER = {"teeth": 0.7, "tongue": 0.3, "mouth": 0.3}  # how firm they are where a photo shows them, which fits them badly
FADED = 0.01  # opacity of what the photo rules out
NO_DETAIL = ("eye", "mouth", "teeth", "tongue", "eye_cavity", "eyelid", "lips")


@dataclass(frozen=True)
class Particles:
    """N particles and what they hang on, see aa.canonical.Avatar."""

    corners: torch.Tensor  # (N, 3)
    bary: torch.Tensor  # (N, 3)
    loose: torch.Tensor  # (N,) bool
    means: torch.Tensor  # (N, 3) m
    quats: torch.Tensor  # (N, 4)
    scales: torch.Tensor  # (N, 3) m
    opacities: torch.Tensor  # (N,)
    colors: torch.Tensor  # (N, 3)
    seen: torch.Tensor  # (N,) bool, shown by the photo
    firm: torch.Tensor | None = None  # (N,) 0 to 1, keeps its first looks: lids and lips, folded in the photo, and edges
    aslant: torch.Tensor | None = None  # (N,) 0 to 1, how far its colour is not the photo's, see aa.sides

    def __post_init__(self):
        for name in ("firm", "aslant"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, torch.zeros_like(self.opacities))

    def __len__(self) -> int:
        return len(self.means)


def join(parts: list[Particles]) -> Particles:
    """All of them in one, in order."""
    return Particles(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Particles)))


def cover(body: Body, layout: Layout, view: View, person, vertices, settings, scale_px: float) -> Particles:
    """Particles for the mesh (V, 3) seen in the view: the layout's first."""
    from aa.fringe import fringe

    base = on_layout(body, extended(layout, lid_samples(body), teeth_samples(body)), view, person, vertices, scale_px)
    loose = fringe(body, view, vertices, person.eye_distance * scale_px)
    room = settings.most - len(base) - len(layout) // 10 - len(loose)
    wanted = wants_detail(body, layout, view, vertices, settings.detail_px)
    if settings.detail_px > 0:
        base = _covered(base, wanted, layout, view, vertices)
    parts = [base, backing(body, base, layout, vertices)]
    if settings.detail_px > 0 and room > 0:
        parts.append(detail(body, wanted, view, vertices, room, layout, base.colors.numpy()))
    return join([*parts, loose])


def metres_per_pixel(view: View, points) -> torch.Tensor:
    """Size (n,) of a pixel at the depth of points (n, 3)."""
    z = points @ view.viewmat[2, :3] + view.viewmat[2, 3]
    return z / view.K[0, 0]


def triangle_frames(corners, vertices) -> torch.Tensor:
    """Frames (n, 3, 3), columns (along an edge, across, normal)."""
    a, b, c = vertices[corners].unbind(1)
    t = torch.nn.functional.normalize(b - a, dim=-1)
    n = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=-1)
    return torch.stack([t, torch.linalg.cross(n, t), n], -1)


def carry(means, quats, where, before, after):
    """Means (N, 3), quats (N, 4) and turns (N, 3, 3) of particles on a mesh (V, 3) in another shape of it.

    where: (corners (N, 3), bary (N, 3), loose (N,)); with their triangle, or shifted if loose.
    """
    corners, bary, loose = where
    read = lambda v: (v[corners] * bary[..., None]).sum(1)  # noqa: E731
    turn = triangle_frames(corners, after) @ triangle_frames(corners, before).mT
    turn[loose] = torch.eye(3, device=turn.device)
    arm = (turn @ (means - read(before))[..., None])[..., 0]
    return read(after) + arm, quat_multiply(matrix_to_quat(turn), quats), turn


def moved(cloud: Particles, before, after) -> Particles:
    """Particles on a mesh (V, 3) carried to another shape of it."""
    means, quats, _ = carry(cloud.means, cloud.quats, (cloud.corners, cloud.bary, cloud.loose), before, after)
    return replace(cloud, means=means, quats=quats)


def to_vertices(g: Gaussians, corners, bary, loose, before, after) -> Gaussians:
    """Gaussians on a mesh (V, 3) carried to another shape of it."""
    means, quats, _ = carry(g.means, g.quats, (corners, bary, loose), before, after)
    return replace(g, means=means, quats=quats)


def _stretched(body: Body, corners, vertices) -> torch.Tensor:
    """Square root of the area (n,) of triangles over that on the mean body, within bounds."""
    area = lambda v: torch.linalg.cross(v[:, 1] - v[:, 0], v[:, 2] - v[:, 0]).norm(dim=1)  # noqa: E731
    return (area(vertices[corners]) / area(body.v_template[corners]).clamp_min(1e-12)).sqrt().clamp(0.6, 2.0)


def on_layout(body: Body, layout: Layout, view: View, person, vertices, scale_px: float) -> Particles:
    """The layout's particles with their colours."""
    faces = solid_faces(body)[0]
    means = layout.place(vertices)
    normals = torch.nn.functional.normalize(layout.place(vertex_normals(vertices, faces)), dim=1)
    frames, radii = _discs(body, layout, vertices)
    pixel = metres_per_pixel(view, means)
    radius_px = (radii.mean(1) / pixel).numpy()
    rest = layout.place(body.v_template).numpy()
    shut = layout.place(body.rest(actions=blink_actions(body))).numpy()
    blink = 1000 * np.linalg.norm(shut - rest, axis=1)
    colors, seen = paint(
        body, view, person, vertices, means, normals, 0.7 * radius_px, rest, shut, layout.region.numpy(), scale_px
    )  # fmt: skip
    broad = torch.isin(layout.region, torch.tensor([REGIONS.index(n) for n in BROAD])).numpy()
    shown, unsure = _seen_unsure(view, means, normals, seen)
    hidden = torch.from_numpy(broad & ~shown & (blink < LID_MM))
    room = (inward_px(view, means) * pixel / (1.5 * radii.mean(1))).clamp(0.8, HIDDEN)  # nothing looks out beyond the outline
    wide = torch.where(hidden, room, (SEAL_PX * pixel / radii.mean(1)).clamp(1, SEAL))
    radii = torch.minimum(radii * wide[:, None], LONGEST * layout.spacing[:, None])  # slivers of triangles make needles
    scales = torch.cat([radii, THIN * radii[:, 1:]], 1)
    jaw = layout.place(jaw_share(body)[:, None])[:, 0].numpy()
    colors, rims = paint_lips(body, view, means, rest, layout.region.numpy(), jaw, colors, seen, person.eye_distance * scale_px)
    colors, in_mouth = _inner_mouth(body, view, layout, means, rest, colors)
    seen |= in_mouth
    facing = _towards(view, means, normals).numpy()
    names = np.array(REGIONS)[layout.region.numpy()]
    colors = paint_scalp(body, rest, names, facing, colors, seen)
    folded = rims | (blink > LID_MM) & np.isin(names, ("face", "eyelid"))
    sure = well_seen(body, view, means, rest, normals, seen)
    colors = smooth_sides(rest, names, folded, colors, sure)
    seen = seen | unsure
    firm = np.where(folded, 1.0, np.where(np.isin(names, tuple(INNER)), np.vectorize(INNER.get)(names, 0.0), UNSURE * unsure))
    grazing = np.isin(names, BELOW_HEAD) * np.clip((0.5 - facing) / 0.3, 0, 1)  # few pixels would have to exaggerate them
    aslant = np.isin(names, SKIN) * ~folded * (1 - sure)
    firm = np.maximum(firm, aslant)
    firm = torch.from_numpy(np.maximum(firm, grazing).astype(np.float32))
    n = len(means)
    stray = _stray(view, means, parts_of_regions(np.array(REGIONS)[layout.region], rest[:, 0]))
    opacity = torch.where(stray, FADED, 0.97)
    seen &= ~stray.numpy() & ((blink < LID_MM) | (depth_behind(view, means) < FOLD) & (blink < UNROLLED_MM))
    return Particles(
        layout.corners, layout.bary, torch.zeros(n, dtype=torch.bool), means, matrix_to_quat(frames),
        scales, opacity, torch.from_numpy(colors).float(), torch.from_numpy(seen), firm, torch.from_numpy(aslant).float(),
    )  # fmt: skip


def extended(layout: Layout, *more: Layout) -> Layout:
    """The layout's samples followed by `more`."""
    return replace(join_layouts(layout, *more), name=layout.name)


def _seen_unsure(view: View, points, normals, seen):
    """Which points (n, 3) the photo shows, now with those near edges and at grazing angles, and which (n,) of them are such."""
    pixels, z = project(points, view.viewmat, view.K)
    w, h = view.size
    x, y = (pixels[:, i].astype(int).clip(0, n - 1) for i, n in ((0, w), (1, h)))
    shown = (view.mask > 0.5) & ~view.claimed & ~view.stray
    near = shown[y, x] & (z - view.depth[y, x] < 0.004) & (_towards(view, points, normals).numpy() > BARELY)
    return seen | near, near & ~seen


def _discs(body: Body, layout: Layout, vertices):
    """Frames (n, 3, 3) and radii (n, 2) m of the layout's discs; lids and lips as large as a blink and an open mouth need them."""
    frames, radii = layout.discs(vertices)
    larger = _stretched(body, layout.corners, vertices).median()
    lid = layout.place(blink_mm(body))[:, 0] > LID_MM
    for mine, actions in ((lid, blink_actions(body)), (layout.region == REGIONS.index("lips"), open_actions(body))):
        spread = body.rest(actions=actions)
        there, radii_there = layout.discs(spread)
        turn = triangle_frames(layout.corners, vertices) @ triangle_frames(layout.corners, spread).mT
        frames = torch.where(mine[:, None, None], turn @ there, frames)
        radii = torch.where(mine[:, None], (larger * radii_there).minimum(UNFOLD * radii), radii)
    return frames, radii


def _inner_mouth(body: Body, view: View, layout: Layout, means, rest, colors):
    """Teeth painted in the photo's tone; and which particles (n,) of the inner mouth an open mouth shows in the photo."""
    region = layout.region.numpy()
    teeth, names = on_teeth(body, region), ("teeth", "tongue", "mouth")
    which = solid_faces(body)[1]
    there = np.where((view.tri >= 0) & (view.mask > 0.5), body.face_region[which].numpy()[view.tri], -1)
    skin = region == REGIONS.index("face")
    bright = float(np.median(colors[skin].mean(1))) / 0.6
    tone = tooth_tone(view, there == REGIONS.index("teeth"), bright)
    painted = paint_teeth(body, rest[teeth], upper_jaw(body, layout.corners)[teeth], tone)
    colors = colors.copy()
    colors[teeth] = shade_mouth(body, rest[teeth], np.full(teeth.sum(), "teeth"), painted)
    inner = np.isin(region, [REGIONS.index(n) for n in names])
    return colors, inner & (np.abs(depth_behind(view, means)) < FOLD)


def depth_behind(view: View, points) -> np.ndarray:
    """How far (n,) m points (n, 3) lie behind the surface that the photo shows at their pixels."""
    pixels, z = project(points, view.viewmat, view.K)
    x, y = (pixels[:, i].astype(int).clip(0, n - 1) for i, n in enumerate(view.size))
    return z - view.depth[y, x]


def _stray(view: View, points, part) -> torch.Tensor:
    """Which points (n, 3) of parts (n,) the photo rules out: they project beside the person (the visual hull), or where the photo
    shows what is behind that part."""
    pixels, z = project(points, view.viewmat, view.K)
    w, h = view.size
    at = np.floor(pixels).astype(int)
    x, y = (at[:, i].clip(0, n - 1) for i, n in ((0, w), (1, h)))
    inside = (at[:, 0] == x) & (at[:, 1] == y) & (z > 0)
    beside = cv2.dilate(view.mask, np.ones((3, 3), np.uint8))[y, x] < 0.3
    return torch.from_numpy(inside & (beside | in_the_way(view, x, y, part)))


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


def grid(where: np.ndarray, spacing: float) -> np.ndarray:
    """Pixels (n, 2) as (x, y) integers on a hexagonal grid of `spacing` px inside `where` (H, W)."""
    h, w = where.shape
    rows = np.arange(spacing / 2, h, spacing * 0.866)
    points = [np.stack([x := np.arange(spacing / 2 * (1 + k % 2), w, spacing), np.full(len(x), y)], 1) for k, y in enumerate(rows)]
    at = np.concatenate(points).astype(int)
    return at[where[at[:, 1], at[:, 0]]]


def wants_detail(body: Body, layout: Layout, view: View, vertices, spacing: float) -> torch.Tensor:
    """Spacing (F,) px of the detail on triangles of body.faces that have fewer particles than the photo has detail, else 0.

    On the head detail is finer, and wanted unless the layout is much finer still: an even grid over the layout leaves no gaps,
    and small opaque particles keep their colours when the view turns, where few would have to exaggerate them.
    """
    rest = body.v_template
    gap = layout.spacing[torch.as_tensor(cKDTree(layout.place(rest).numpy()).query(rest[body.faces].mean(1).numpy())[1])]
    gap = gap * _stretched(body, body.faces, vertices) / metres_per_pixel(view, vertices[body.faces].mean(1))
    among = lambda names: torch.isin(body.face_region, torch.tensor([REGIONS.index(n) for n in names]))  # noqa: E731
    allowed = ~among(NO_DETAIL) & (blink_mm(body)[body.faces].amax((1, 2)) < LID_MM)
    fine = allowed & among(HEAD) & (gap > 0.5 * FINE * spacing)
    coarse = allowed & ~among(HEAD) & (gap > 1.4 * spacing)
    return FINE * spacing * fine + spacing * coarse


def _covered(base: Particles, wanted, layout: Layout, view: View, vertices) -> Particles:
    """Layout particles under detail become a backing: deeper, without gaps and left alone by the refinement."""
    under = torch.zeros(len(base), dtype=torch.bool)
    normals = triangle_frames(layout.corners, vertices)[:, :, 2]
    under[: len(layout)] = (
        (wanted[layout.tri] > 0) & base.seen[: len(layout)] & (_towards(view, layout.place(vertices), normals) > STEEP)
    )
    scales = base.scales.clone()
    scales[under, :2] *= SEAL
    sunk = 0.9 * layout.spacing[:, None] * normals * under[: len(layout), None]
    means = torch.cat([base.means[: len(layout)] - sunk, base.means[len(layout) :]])
    return replace(base, means=means, scales=scales, seen=base.seen & ~under)


def _towards(view: View, points, normals) -> torch.Tensor:
    """Cosine (n,) between normals (n, 3) and the rays from points (n, 3) to the camera."""
    eye = -view.viewmat[:3, :3].T @ view.viewmat[:3, 3]
    return (torch.nn.functional.normalize(eye - points, dim=1) * normals).sum(1)


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
    flat = _towards(view, vertices[faces].mean(1), triangle_frames(faces, vertices)[:, :, 2]) > STEEP - 0.05
    at, spacing = (x[flat.numpy()[fine[at[:, 1], at[:, 0]]]] for x in (at, spacing))
    tri = torch.from_numpy(fine[at[:, 1], at[:, 0]])
    bary = torch.from_numpy(weights[at[:, 1], at[:, 0]]).float()
    corners = faces[tri]
    read = lambda v: (v[corners] * bary[..., None]).sum(1)  # noqa: E731
    means = read(vertices)
    normals = torch.nn.functional.normalize(read(vertex_normals(vertices, faces)), dim=1)
    radius = COVER_DETAIL * torch.from_numpy(spacing).float() * metres_per_pixel(view, means)
    eye = -view.viewmat[:3, :3].T @ view.viewmat[:3, 3]
    ray = torch.nn.functional.normalize(eye - means, dim=1)
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
    seen, unsure = _seen_unsure(view, means, normals, seen)
    n = len(at)
    return Particles(
        corners, bary, torch.zeros(n, dtype=torch.bool), means + LIFT * normals, matrix_to_quat(frames), scales,
        torch.full((n,), 0.9), torch.from_numpy(colors).float().clamp(0, 1), torch.from_numpy(seen),
        torch.from_numpy(np.maximum(UNSURE * unsure, 1 - sure).astype(np.float32)), torch.from_numpy(1 - sure).float(),
    )  # fmt: skip
