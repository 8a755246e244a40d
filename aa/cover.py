"""The layout's particles on a photo's person: discs, colours, and how firmly each holds them; with detail, backing and fringe."""

from dataclasses import replace

import cv2
import numpy as np
import torch

from aa.align import solid_faces
from aa.body import REGIONS, Body, matrix_to_quat, vertex_normals
from aa.detail import SEAL, THIN, UNSURE, backing, covered, detail, seen_unsure, wants_detail
from aa.facepaint import paint_lips, shade_mouth
from aa.fringe import fringe
from aa.gaussians import Layout, join_layouts
from aa.lids import LID_MM, blink_actions, blink_mm, lid_samples
from aa.lips import jaw_share, open_actions
from aa.ownership import parts_of_regions
from aa.paint import BELOW_HEAD, paint
from aa.particles import Particles, join, metres_per_pixel, stretched, triangle_frames
from aa.scalp import paint_scalp
from aa.sides import SKIN, smooth_sides, well_seen
from aa.teeth import on_teeth, paint_teeth, teeth_samples, tooth_tone, upper_jaw
from aa.view import View, in_the_way, inward_px, project, towards

HIDDEN = 1.5  # widening of discs that the photo hides: they need not be sharp
SEAL_PX = 0.75  # px of radius beyond which discs are not widened to seal gaps
UNFOLD = 1.6  # greatest widening of the discs of lids and lips
LONGEST = 1.2  # radius over spacing
BROAD = ("torso", "upperarm", "forearm", "leg", "foot", "neck", "face", "scalp")  # may be wide where hidden
UNROLLED_MM = 3.0  # what a blink moves further is painted, not refined
FOLD = 0.001  # m behind the surface in sight from where on a lid is folded away
INNER = {"teeth": 0.7, "tongue": 0.3, "mouth": 0.3}  # how firm they are where a photo shows them, which fits them badly
FADED = 0.01  # opacity of what the photo rules out


def cover(body: Body, layout: Layout, view: View, person, vertices, settings, scale_px: float) -> Particles:
    """Particles for the mesh (V, 3) seen in the view: the layout's first."""
    base = on_layout(body, extended(layout, lid_samples(body), teeth_samples(body)), view, person, vertices, scale_px)
    loose = fringe(body, view, vertices, person.eye_distance * scale_px)
    room = settings.most - len(base) - len(layout) // 10 - len(loose)
    wanted = wants_detail(body, layout, view, vertices, settings.detail_px)
    if settings.detail_px > 0:
        base = covered(base, wanted, layout, view, vertices)
    parts = [base, backing(body, base, layout, vertices)]
    if settings.detail_px > 0 and room > 0:
        parts.append(detail(body, wanted, view, vertices, room, layout, base.colors.numpy()))
    return join([*parts, loose])


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
    shown, unsure = seen_unsure(view, means, normals, seen)
    hidden = torch.from_numpy(broad & ~shown & (blink < LID_MM))
    room = (inward_px(view, means) * pixel / (1.5 * radii.mean(1))).clamp(0.8, HIDDEN)  # nothing looks out beyond the outline
    wide = torch.where(hidden, room, (SEAL_PX * pixel / radii.mean(1)).clamp(1, SEAL))
    radii = torch.minimum(radii * wide[:, None], LONGEST * layout.spacing[:, None])  # slivers of triangles make needles
    scales = torch.cat([radii, THIN * radii[:, 1:]], 1)
    jaw = layout.place(jaw_share(body)[:, None])[:, 0].numpy()
    colors, rims = paint_lips(body, view, means, rest, layout.region.numpy(), jaw, colors, seen, person.eye_distance * scale_px)
    colors, in_mouth = _inner_mouth(body, view, layout, means, rest, colors)
    seen |= in_mouth
    facing = towards(view, means, normals).numpy()
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


def _discs(body: Body, layout: Layout, vertices):
    """Frames (n, 3, 3) and radii (n, 2) m of the layout's discs; lids and lips as large as a blink and an open mouth need them."""
    frames, radii = layout.discs(vertices)
    larger = stretched(body, layout.corners, vertices).median()
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
