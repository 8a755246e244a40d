"""Dressing: an `Identity` becomes one deforming mesh of skin, teeth, lashes, shirt, trousers, shoes and hair.

Every added vertex has a place on the mean body (for the paint), a rest position on the identity, skinning weights and facial
actions, so that `Body.pose` moves the whole figure.
"""

import math
from dataclasses import dataclass, replace

import torch
import warp as wp

from aa.body import REGIONS, Body
from aa.identities import Identity
from aa.shader import inward

# What a triangle is made of; the shader knows them by number.
KINDS = ("skin", "eye", "mouth", "tongue", "teeth", "lash", "shirt", "trousers", "hair", "shell", "shoe", "nail")
HEAD_CENTRE = (0.0, -0.045, 0.905)
# Hairline of the mean head: height (m) by azimuth (degrees from the nose).
HAIRLINE = (
    (0, 0.986), (22, 0.985), (38, 0.976), (50, 0.958), (62, 0.930), (70, 0.885), (84, 0.874), (96, 0.880),
    (112, 0.856), (128, 0.838), (150, 0.822), (180, 0.814),
)  # fmt: skip
# Necklines: radius of the hole (m), height of the V's tip, steepness of the V (0: none).
NECKLINES = {"crew": (0.088, 0.0, 0.0), "v": (0.088, 0.615, 1.6), "collar": (0.080, 0.665, 2.4)}
# Hair by style: thickness in metres on top and at the sides, levels of the translucent shells, lowest z of hanging hair.
STYLES = {
    "buzz": (0.0035, 0.003, 3, None), "short": (0.016, 0.008, 6, None), "side": (0.026, 0.009, 6, None),
    "swept": (0.024, 0.008, 6, None), "bun": (0.009, 0.007, 4, None), "bob": (0.020, 0.016, 6, 0.79), "long": (0.018, 0.014, 6, 0.655),
}  # fmt: skip


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


class Layers:
    """Collects vertices that ride on body vertices, for the mean body and the identity at once."""

    def __init__(self, body: Body, betas: torch.Tensor):
        self.body, self.rest = body, body.rest(betas)
        self.canon_parts, self.rest_parts, self.weight_parts, self.action_parts = [], [], [], []
        self.mask_parts, self.face_parts, self.kind_parts = [], [], []
        self.count = 0

    def add(self, canon, rest, weights, actions, mask, faces, kind):
        """Append vertices (n, 3) and triangles (m, 3) numbered from 0."""
        self.canon_parts.append(canon), self.rest_parts.append(rest), self.weight_parts.append(weights)
        self.action_parts.append(actions), self.mask_parts.append(mask)
        self.face_parts.append(faces + self.count)
        self.kind_parts.append(torch.full((len(faces),), kind) if isinstance(kind, int) else kind)
        self.count += len(canon)

    def add_on(self, vertices, canon, rest, mask, faces, kind):
        """Append a layer whose vertices move with the body vertices (n,) they were made from."""
        self.add(canon, rest, self.body.weights[vertices], self.body.action_dirs[:, vertices], mask, faces, kind)


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
        body, v_template=torch.cat(layers.rest_parts), shape_dirs=torch.zeros(0, layers.count, 3), joint_template=body.joints(betas),
        joint_dirs=body.joint_dirs[:0], action_dirs=torch.cat(layers.action_parts, 1), weights=torch.cat(layers.weight_parts),
        faces=faces, face_uv=torch.zeros(0, 3, 2), face_region=torch.zeros(len(faces), dtype=torch.long),
    )  # fmt: skip
    kind = torch.cat(layers.kind_parts)[order]
    return Figure(
        identity, mesh, len(body.v_template), torch.cat(layers.canon_parts), torch.cat(layers.mask_parts), kind, int((~shell).sum())
    )


def vertex_normals(vertices: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    """Unit normals (V, 3), area-weighted means over the triangles around each vertex."""
    a, b, c = vertices[faces].unbind(1)
    n = torch.linalg.cross(b - a, c - a)
    out = torch.zeros_like(vertices).index_add_(0, faces.flatten(), n.repeat_interleave(3, 0))
    return torch.nn.functional.normalize(out, dim=-1)


def smooth(vertices: torch.Tensor, faces: torch.Tensor, rounds: int) -> torch.Tensor:
    """Laplacian smoothing of (V, 3); vertices on open borders stay."""
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    pair, times = torch.unique(edges.sort(1).values, dim=0, return_counts=True)
    border = torch.unique(pair[times == 1])
    both = torch.cat([pair, pair.flip(1)])
    degree = torch.bincount(both[:, 0], minlength=len(vertices)).clamp_min(1)[:, None]
    x = vertices.clone()
    for _ in range(rounds):
        y = torch.zeros_like(x).index_add_(0, both[:, 0], x[both[:, 1]]) / degree
        y[border] = vertices[border]
        x = 0.5 * x + 0.5 * y
    return x


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
    if steep > 0:
        d = torch.minimum(d, torch.maximum((tip + steep * x.abs() - z) / (1 + steep**2) ** 0.5, (y + 0.035) * 2))
    return d


def shirt_cover(p: torch.Tensor, arm: torch.Tensor, identity: Identity) -> torch.Tensor:
    """Signed distance (V,) in metres by which a place of the mean body lies inside the shirt (negative: bare)."""
    z = p[..., 2]
    d = torch.minimum(neck_cover(p, identity), (0.775 - z) * 2)
    d = torch.minimum(d, z - 0.075 + 10 * (arm > 0.3))
    return torch.minimum(d, (identity.sleeve - arm) * 0.28)


def hairline_at(azimuth: torch.Tensor) -> torch.Tensor:
    """Height (m) of the mean head's hairline at azimuths in degrees."""
    at, height = torch.tensor(HAIRLINE).T.contiguous()
    azimuth = azimuth.clamp(0, 180)
    right = torch.bucketize(azimuth, at).clamp(1, len(at) - 1)
    t = (azimuth - at[right - 1]) / (at[right] - at[right - 1])
    return height[right - 1] + t * (height[right] - height[right - 1])


def hair_distance(p: torch.Tensor, identity: Identity) -> torch.Tensor:
    """Signed distance (V,) in metres above the hairline of the mean head (negative: bare skin)."""
    x, y, z = p.unbind(-1)
    azimuth = torch.rad2deg(torch.atan2(x.abs(), -(y - HEAD_CENTRE[1])))
    line, step = hairline_at(azimuth), 7.0
    slope = (hairline_at(azimuth + step) - hairline_at(azimuth - step)) / (2 * math.radians(step) * 0.075)  # on a head of 75 mm
    if identity.sex == "female":
        line = line + 0.020 * ((azimuth > 60) & (azimuth < 90))  # no sideburns
    else:
        line = line + 0.016 * identity.age * torch.exp(-((azimuth - 32) / 14).square())  # receding corners
    return (z - line) * 0.85 / (1 + slope.square()).sqrt()


def compact(faces: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Vertices used (n,) and the triangles renumbered to them."""
    used, index = torch.unique(faces, return_inverse=True)
    return used, index


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
    mask = torch.stack([torch.ones_like(cover), lips, torch.where(hairline > -0.01, -0.1, cover), hairline], 1)
    every = torch.arange(len(cover))
    layers.add_on(every, body.v_template, layers.rest, mask, body.faces[keep], kind[keep])


def subdivide(faces: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each triangle into four: new vertices as pairs (n, 2) of old ones to average (the first `count` are the old), triangles."""
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).sort(1).values
    pairs, index = torch.unique(edges, dim=0, return_inverse=True)
    ab, bc, ca = (index + count).view(3, -1)
    a, b, c = faces.T
    fine = torch.stack([torch.stack(t, 1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))], 1).reshape(-1, 3)
    return torch.cat([torch.arange(count)[:, None].expand(-1, 2), pairs]), fine


def puff(x: torch.Tensor, faces: torch.Tensor, rounds: int, offset, least) -> torch.Tensor:
    """A layer at least `least` metres and about `offset` metres outside (V, 3), smoother than what it covers."""
    normal = vertex_normals(x, faces)
    out = smooth(x, faces, rounds) + normal * offset
    return out + normal * (least - ((out - x) * normal).sum(1, keepdim=True)).clamp_min(0)


def add_layer(layers: Layers, faces, kind: int, rounds: int, offset, least, mask):
    """A puffed, once subdivided copy of body triangles; mask (V, 4) on the body's vertices; offset and least (m) numbers or (V,)."""
    body = layers.body
    used, local = compact(faces)
    pairs, fine = subdivide(local, len(used))
    pairs = used[pairs]
    both = lambda x: x[pairs].mean(1)  # noqa: E731
    offset, least = (both(x)[:, None] if torch.is_tensor(x) else x for x in (offset, least))
    canon, rest = (puff(both(x), fine, rounds, offset, least) for x in (body.v_template, layers.rest))
    layers.add(canon, rest, both(body.weights), body.action_dirs[:, pairs].mean(2), both(mask), fine, kind)


def add_clothes(layers: Layers, identity: Identity, arm: torch.Tensor, cover: torch.Tensor):
    """Shirt and trousers from the body's tights, shoes from the feet."""
    body = layers.body
    z = body.v_template[:, 2]
    tights = body.faces[body.face_region == REGIONS.index("tights")]
    mask = torch.stack([torch.ones_like(arm), torch.zeros_like(arm), cover, arm], 1)

    sleeve = (identity.sleeve - arm) * 0.28
    mask[:, 2] = torch.minimum(sleeve, z - 0.075 + 10 * (arm > 0.3))  # the shader cuts the neckline
    close = 0.4 + 0.6 * (sleeve / 0.06).clamp(0, 1)  # cuffs hug the arm
    add_layer(layers, tights[cover[tights].amax(1) > -0.01], 6, 10, 0.009 * close, 0.008 * close, mask)
    legs = (z[tights].amax(1) < 0.14) & (arm[tights].amax(1) == 0)
    add_layer(layers, tights[legs], 7, 4, 0.004, 0.002, mask)
    foot = torch.isin(body.face_region, torch.tensor([REGIONS.index(n) for n in ("foot", "nail")])) & (
        z[body.faces].amax(1) < -0.69
    )
    add_layer(layers, body.faces[foot], 10, 40, 0.010, 0.004, mask)
    if identity.neckline == "collar":
        add_collar(layers)


def ray_radius(vertices, faces, centre, azimuth, z) -> torch.Tensor:
    """Distance (n,) from the vertical axis through `centre` outwards to the furthest triangle, at azimuths (rad, 0 = -y) and z."""
    d = torch.stack([azimuth.sin(), -azimuth.cos(), torch.zeros_like(z)], -1)
    o = torch.stack([torch.full_like(z, centre[0]), torch.full_like(z, centre[1]), z], -1)
    array = lambda x, kind: wp.array(x.contiguous().numpy(), dtype=kind, device="cpu")  # noqa: E731
    mesh = wp.Mesh(array(vertices, wp.vec3), array(faces.int().flatten(), int))
    out = wp.zeros(len(z), dtype=float, device="cpu")
    wp.launch(inward, len(z), [mesh.id, array(o, wp.vec3), array(d, wp.vec3), 0.4, out], device="cpu")
    return torch.from_numpy(out.numpy())


def grid_faces(rows: int, columns: int, wrap: bool = False) -> torch.Tensor:
    """Triangles of a grid of vertices in row-major order, outside on the side that the rows' downward order shows."""
    n = columns if wrap else columns - 1
    r, c = torch.meshgrid(torch.arange(rows - 1), torch.arange(n), indexing="ij")
    a, b = r * columns + c, r * columns + (c + 1) % columns
    quad = torch.stack([a, a + columns, b, b, a + columns, b + columns], -1)
    return quad.reshape(-1, 3)


def blend_weights(body: Body, share: torch.Tensor) -> torch.Tensor:
    """(n, J) weights between the head (share 0) and the upper spine (share 1)."""
    w = torch.zeros(len(share), len(body.joint_names))
    w[:, body.joint("head")], w[:, body.joint("spine01")] = 1 - share, share
    return w


def add_grid(layers: Layers, make, share, mask, faces, kind: int):
    """Append a sheet that no facial action moves; `make(vertices, shift)` places it on a given body."""
    body = layers.body
    shift = (layers.rest - body.v_template)[body.region_vertices("scalp")].mean(0)
    places = [make(body.v_template, torch.zeros(3)), make(layers.rest, shift)]
    actions = torch.zeros(len(body.action_names), len(mask), 3)
    layers.add(*places, blend_weights(body, share), actions, mask, faces, kind)


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
    mask = torch.tensor([1.0, 0.0, 0.05, 0.0]).repeat(n, 1)
    mask[-columns:, 2] = 0.013
    add_grid(layers, make, torch.full((n,), 0.8), mask, grid_faces(len(rows), columns), 6)


def add_hair(layers: Layers, identity: Identity, hairline: torch.Tensor):
    """A cap over the scalp: an opaque core and translucent shells with strands; hanging hair and bun by style."""
    top, side, shells, lowest = STYLES[identity.hair_style]
    body = layers.body
    scalp = body.faces[body.region_faces("scalp", "face")]
    used, local = compact(scalp[hairline[scalp].amax(1) > -0.012])
    m = hairline[used]
    base = body.v_template[used]
    rise = ((base[:, 2] - 0.93) / 0.07).clamp(0, 1)
    front = torch.exp(-((base - torch.tensor([0.0, -0.10, 0.99])) / 0.05).square().sum(1))
    grow = ((m + 0.004) / 0.030).clamp(0, 1)
    thick = (side + (top - side) * rise) * (0.12 + 0.88 * grow * (2 - grow)) * (1 + 0.25 * front)
    rest = smooth(layers.rest[used], local, 3)
    normal = vertex_normals(rest, local)
    for i in range(shells + 1):
        level = 0.30 + 0.75 * i / shells
        place = rest + normal * (thick * level)[:, None]
        mask = torch.stack([torch.ones_like(m), torch.full_like(m, (level - 0.3) / 0.75), m, m], 1)
        layers.add_on(used, base, place, mask, local, 8 if i == 0 and identity.hair_style != "buzz" else 9)
    if lowest is not None:
        add_hanging(layers, identity, lowest)
    if identity.hair_style == "bun":
        add_bun(layers)


def add_hanging(layers: Layers, identity: Identity, lowest: float):
    """Hair that falls from the scalp over the back and the sides, outside the neck and the shoulders."""
    columns, rows, first = 80, 36, 1.40 if lowest > 0.75 else 1.50
    azimuth = torch.linspace(first, 2 * torch.pi - first, columns)
    z = torch.linspace(0.968, lowest, rows)
    az, height = azimuth.repeat(rows), z.repeat_interleave(columns)
    faces = layers.body.faces[layers.body.region_faces("scalp", "neck", "torso", "upperarm", "ear")]

    def radius(vertices, shift):
        centre = (0.0, -0.03 + float(shift[1]))
        r = ray_radius(vertices, faces, centre, az, height + shift[2]).view(rows, columns)
        for i in range(1, rows):  # hair hangs: it does not follow hollows inwards, nor the shoulders all the way out
            r[i] = torch.maximum(torch.minimum(r[i], r[i - 1] * 1.05 + 0.002), r[i - 1] * (0.998 if z[i] > 0.78 else 0.99))
        pad = torch.cat([r[:, :1]] * 4 + [r] + [r[:, -1:]] * 4, 1)
        return pad.unfold(1, 9, 1).mean(-1)

    edge = (torch.minimum(az, 2 * torch.pi - az) - first) * 0.1
    m = torch.minimum((height - lowest) * 0.25, edge * 0.8 + 0.002)
    share = 0.75 * (((0.85 - height) / 0.17).clamp(0, 1)) ** 1.5
    for i, gap in enumerate((0.012, 0.016, 0.019, 0.022)):

        def make(vertices, shift, gap=gap):
            tuck = gap * (0.35 + 0.65 * ((0.968 - z) / 0.06).clamp(0, 1))[:, None]
            r = (radius(vertices, shift) + tuck).flatten()
            return torch.stack([r * az.sin() + shift[0], -0.03 + shift[1] - r * az.cos(), height + shift[2]], -1)

        mask = torch.stack([torch.ones_like(m), torch.full_like(m, 0.25 + 0.25 * i), m, m], 1)
        add_grid(layers, make, share, mask, grid_faces(rows, columns), 8 if i == 0 else 9)


def add_bun(layers: Layers):
    """A knot at the back of the crown."""
    rows, columns = 12, 24
    theta, phi = (
        torch.linspace(0.02, 3.12, rows).repeat_interleave(columns),
        torch.arange(columns).repeat(rows) * (2 * torch.pi / columns),
    )
    unit = torch.stack([theta.sin() * phi.sin(), -theta.sin() * phi.cos(), theta.cos()], -1)
    for i in range(3):

        def make(vertices, shift, i=i):
            return torch.tensor([0.0, 0.045, 1.008]) + shift + unit * torch.tensor([0.036, 0.032, 0.032]) * (0.9 + 0.07 * i)

        mask = torch.tensor([1.0, 0.3 + 0.35 * i, 0.05, 0.05]).repeat(len(unit), 1)
        add_grid(layers, make, torch.zeros(len(unit)), mask, grid_faces(rows, columns, True), 8 if i == 0 else 9)
