"""Dressing: an `Identity` becomes one deforming mesh of skin, teeth, lashes, shirt, trousers, shoes and hair."""

from dataclasses import dataclass, replace

import torch

from aa.body import REGIONS, Body
from aa.hair import add_hair, hair_distance
from aa.identities import Identity
from aa.layers import Layers, add_grid, compact, grid_faces, puff, ray_radius, subdivide

# What a triangle is made of; the shader knows them by number.
KINDS = ("skin", "eye", "mouth", "tongue", "teeth", "lash", "shirt", "trousers", "hair", "shell", "shoe", "nail")
# Necklines: radius of the hole (m), height of the V's tip, steepness of the V (0: none).
NECKLINES = {"crew": (0.088, 0.0, 0.0), "v": (0.088, 0.615, 1.6), "collar": (0.0, 0.690, 2.4)}


@dataclass(frozen=True)
class Figure:
    """A dressed person as one mesh. `body.pose(None, rotvecs, actions, translation)` moves it; its first `n_body` vertices are
    those of the bare body with the identity's betas."""

    identity: Identity
    body: Body  # betas baked in; M vertices, F triangles (drawn ones only)
    n_body: int
    canon: torch.Tensor  # (M, 3) the same mesh on the mean body
    mask: torch.Tensor  # (M, 4) occlusion (1 until lit), lips | hair level, cover of the shirt (m), hairline distance | arm
    kind: torch.Tensor  # (F,) index into shader.KINDS
    first_shell: int  # triangles from here on are translucent hair


def dress(body: Body, identity: Identity) -> Figure:
    """The identity's mesh: body without what clothes hide, shirt, trousers, collar, shoes, hair."""
    body = body.to("cpu")
    betas = torch.tensor(identity.betas, dtype=body.v_template.dtype)
    layers = Layers(body, betas)
    arm = arm_place(body)
    cover = shirt_cover(body.v_template, arm, identity)
    hairline = hair_distance(body.v_template, identity)
    add_skin(layers, cover, hairline)
    add_clothes(layers, identity, arm, cover)
    add_hair(layers, identity, hairline)
    shell = torch.cat(layers.kind_parts) == 9
    order = torch.cat([(~shell).nonzero()[:, 0], shell.nonzero()[:, 0]])
    faces = torch.cat(layers.face_parts)[order]
    mesh = replace(
        body, v_template=torch.cat(layers.rest_parts), shape_dirs=torch.zeros(0, layers.count, 3),
        joint_template=body.joints(betas),
        joint_dirs=body.joint_dirs[:0], action_dirs=torch.cat(layers.action_parts, 1), weights=torch.cat(layers.weight_parts),
        faces=faces, face_uv=torch.zeros(0, 3, 2), face_region=torch.zeros(len(faces), dtype=torch.long),
    )  # fmt: skip
    kind = torch.cat(layers.kind_parts)[order]
    return Figure(
        identity, mesh, len(body.v_template), torch.cat(layers.canon_parts), torch.cat(layers.mask_parts), kind, int((~shell).sum())
    )


def arm_place(body: Body) -> torch.Tensor:
    """(V,) place along the arm: 0 at the shoulder joint, 1 elbow, 2 wrist, up to 3 at the fingers; 0 on the rest."""
    v = body.v_template
    arms = [
        n
        for n in range(len(body.joint_names))
        if body.joint_names[n].startswith(("upperarm", "lowerarm", "wrist", "finger", "meta"))
    ]
    side = (body.weights[:, arms].sum(1) > 0.35).float()
    p = torch.cat([v[:, :1].abs(), v[:, 1:]], 1)
    a, e, w = (body.joint_template[body.joint(n)] for n in ("upperarm01.L", "lowerarm01.L", "wrist.L"))
    first = ((p - a) @ (e - a) / (e - a).square().sum()).clamp(0, 1)
    second = ((p - e) @ (w - e) / (w - e).square().sum()).clamp(0, 2)
    return side * (first + second * (first > 0.8))


def neck_cover(p: torch.Tensor, identity: Identity) -> torch.Tensor:
    """Signed distance (V,) in metres inside the neckline on the mean body: a round hole, with a V at the front by style."""
    x, y, z = p.unbind(-1)
    radius, tip, steep = NECKLINES[identity.neckline]
    d = torch.maximum((x.square() + ((y + 0.02) / 1.12).square()).sqrt() - radius, 0.66 - z)
    if radius <= 0:  # up the neck to the collar
        d = 0.758 + 0.34 * (y + 0.02) - z
    if steep > 0:
        d = torch.minimum(d, torch.maximum((tip + steep * x.abs() - z) / (1 + steep**2) ** 0.5, (y + 0.035) * 2))
    return d


def shirt_cover(p: torch.Tensor, arm: torch.Tensor, identity: Identity) -> torch.Tensor:
    """Signed distance (V,) in metres by which a place of the mean body lies inside the shirt (negative: bare)."""
    z = p[..., 2]
    d = torch.minimum(neck_cover(p, identity), (0.775 - z) * 2)
    d = torch.minimum(d, z - 0.075 + 10 * (arm > 0.3))
    return torch.minimum(d, (identity.sleeve - arm) * 0.28)


def add_skin(layers: Layers, cover: torch.Tensor, hairline: torch.Tensor):
    """The bare body without what the clothes hide."""
    body = layers.body
    names = {"mouth": 2, "eye": 1, "tongue": 3, "teeth": 4, "lash": 5, "nail": 11}
    kind = torch.tensor([names.get(n, 0) for n in REGIONS])[body.face_region]
    is_lip = (body.face_region == REGIONS.index("lips")).float()
    corner = body.faces.flatten()
    lips = torch.zeros(len(cover)).index_add_(0, corner, is_lip.repeat_interleave(3)) / torch.bincount(corner).clamp_min(1)
    hidden = (cover[body.faces].amin(1) > 0.022) | (body.v_template[:, 2][body.faces].amax(1) < 0.10) & (
        cover[body.faces].amax(1) > -1
    )
    hand = torch.isin(body.face_region, torch.tensor([REGIONS.index(n) for n in ("hand", "nail")]))
    foot = body.v_template[:, 2][body.faces].amax(1) < -0.6
    dressing = torch.isin(body.face_region, torch.tensor([REGIONS.index(n) for n in ("hair", "tights")]))
    low = body.v_template[:, 2][body.faces].amax(1) < 0.10
    keep = ~(dressing | (hidden & ~hand) | (low & ~hand) | foot)
    hairline = hairline.clone()
    hairline[body.region_vertices("ear", "neck")] = -0.02
    roots = torch.where(hairline < 0, 2.5 * hairline, hairline)  # few in front of the hairline
    mask = torch.stack([torch.ones_like(cover), lips, torch.where(hairline > -0.01, -0.1, cover), roots], 1)
    every = torch.arange(len(cover))
    layers.add_on(every, body.v_template, layers.rest, mask, body.faces[keep], kind[keep])


def add_layer(layers: Layers, faces, kind: int, rounds: int, offset, least, mask):
    """A puffed, once subdivided copy of body triangles; mask (V, 4) on the body's vertices; offset, least: m, (V,) or one."""
    body = layers.body
    used, local = compact(faces)
    pairs, fine = subdivide(local, len(used))
    pairs = used[pairs]
    both = lambda x: x[pairs].mean(1)  # noqa: E731
    offset, least = (both(x)[:, None] if torch.is_tensor(x) else x for x in (offset, least))
    canon, rest = (puff(both(x), fine, rounds, offset, least) for x in (body.v_template, layers.rest))
    mask = both(mask)
    if kind == 6:  # a level hem
        mask[:, 2] = torch.minimum(mask[:, 2], canon[:, 2] - 0.075 + 10 * (mask[:, 3] > 0.3))
    layers.add(canon, rest, both(body.weights), body.action_dirs[:, pairs].mean(2), mask, fine, kind)


def add_clothes(layers: Layers, identity: Identity, arm: torch.Tensor, cover: torch.Tensor):
    """Shirt and trousers from the body's tights, shoes from the feet."""
    body = layers.body
    z = body.v_template[:, 2]
    tights = body.faces[body.face_region == REGIONS.index("tights")]
    mask = torch.stack([torch.ones_like(arm), torch.zeros_like(arm), cover, arm], 1)

    sleeve = (identity.sleeve - arm) * 0.28
    mask[:, 2] = sleeve  # the shader cuts the neckline
    close = 0.4 + 0.6 * (sleeve / 0.06).clamp(0, 1)  # cuffs hug the arm
    add_layer(layers, tights[cover[tights].amax(1) > -0.01], 6, 10, 0.009 * close, 0.008 * close, mask)
    legs = (z[tights].amax(1) < 0.14) & (z[tights].amin(1) > -0.76) & (arm[tights].amax(1) == 0)
    add_layer(layers, tights[legs], 7, 4, 0.004, 0.002, mask)
    foot = torch.isin(body.face_region, torch.tensor([REGIONS.index(n) for n in ("foot", "nail")])) & (
        z[body.faces].amax(1) < -0.69
    )
    add_layer(layers, body.faces[foot], 10, 40, 0.010, 0.004, mask)
    if identity.neckline == "collar":
        add_collar(layers)


def add_collar(layers: Layers):
    """A turned-down shirt collar, open at the front."""
    columns, rows = 56, ((-0.022, 0.009), (0.014, 0.007), (0.018, 0.011), (0.004, 0.018), (-0.022, 0.027))
    azimuth = torch.linspace(0.20, 2 * torch.pi - 0.20, columns)
    faces = layers.body.faces[layers.body.region_faces("neck", "scalp")]
    front = torch.exp(-((torch.pi - (azimuth - torch.pi).abs()) / 0.5).square())

    def make(vertices, shift):
        y = torch.full_like(azimuth, -0.03)
        for _ in range(3):  # the neckline's plane where it meets the neck
            z = 0.762 + 0.34 * (y + 0.02)
            r = ray_radius(vertices, faces, (0.0, -0.02 + float(shift[1])), azimuth, z + shift[2])
            r = torch.cat([r[:1]] * 3 + [r] + [r[-1:]] * 3).unfold(0, 7, 1).mean(-1).clamp(0.05, 0.085)
            y = -0.02 - r * azimuth.cos()
        out = []
        for i, (up, off) in enumerate(rows):
            rise = up - (0.022 * front if i == 4 else 0.008 * front)
            d = torch.stack([azimuth.sin(), -azimuth.cos()], -1) * (r + off)[:, None]
            centre = torch.tensor([0.0, -0.02]) + shift[:2]
            out.append(torch.cat([d + centre, (z + rise + shift[2])[:, None]], 1))
        return torch.cat(out)

    n = columns * len(rows)
    mask = torch.tensor([1.0, 1.0, 0.05, 0.0]).repeat(n, 1)
    mask[-columns:, 2] = 0.013
    p = layers.body.v_template
    base = ((p[:, 2] - 0.745).abs() < 0.03) & (p[:, 0].square() + (p[:, 1] + 0.02).square() < 0.09**2)  # foot of the neck
    base[layers.body.region_vertices("tights")] = False
    add_grid(layers, make, torch.full((n,), 0.8), mask, grid_faces(len(rows), columns), 6, base)
