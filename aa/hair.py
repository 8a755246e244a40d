"""Hair of the studio's people: a cap of translucent shells over the scalp, hanging hair, a bun."""

import math

import torch

from aa.body import vertex_normals
from aa.identities import Identity
from aa.layers import Layers, add_grid, compact, grid_faces, ray_radius, smooth

HEAD_CENTRE = (0.0, -0.045, 0.905)
# Hairline of the mean head: height (m) by azimuth (degrees from the nose).
HAIRLINE = (
    (0, 0.986), (22, 0.985), (38, 0.976), (50, 0.958), (62, 0.930), (70, 0.885), (84, 0.874), (96, 0.880),
    (112, 0.856), (128, 0.838), (150, 0.822), (180, 0.814),
)  # fmt: skip
# Hair by style: thickness in metres on top and at the sides, levels of the translucent shells, lowest z of hanging hair.
STYLES = {
    "buzz": (0.0035, 0.003, 3, None), "short": (0.018, 0.009, 6, None), "side": (0.028, 0.011, 6, None),
    "swept": (0.026, 0.009, 6, None), "curly": (0.044, 0.032, 12, None), "bun": (0.012, 0.009, 4, None),
    "ponytail": (0.012, 0.009, 4, None), "bob": (0.028, 0.020, 6, 0.79), "fringe": (0.024, 0.018, 6, 0.77),
    "long": (0.027, 0.018, 6, 0.655),
}  # fmt: skip


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
    if identity.hair_style == "bald":
        return torch.full_like(z, -0.05)
    azimuth = torch.rad2deg(torch.atan2(x.abs(), -(y - HEAD_CENTRE[1])))
    line, step = hairline_at(azimuth), 7.0
    slope = (hairline_at(azimuth + step) - hairline_at(azimuth - step)) / (2 * math.radians(step) * 0.075)  # on a head of 75 mm
    if identity.sex == "female":
        line = line + 0.020 * ((azimuth > 60) & (azimuth < 90))  # no sideburns
        line = line - 0.005 * torch.exp(-(azimuth / 50).square())
        if identity.hair_style == "fringe":  # cut above the brows
            line = line - 0.040 * torch.sigmoid((52 - azimuth) / 4)
    else:
        line = line + 0.016 * identity.age * torch.exp(-((azimuth - 32) / 14).square())  # receding corners
    return (z - line) * 0.85 / (1 + slope.square()).sqrt()


def _thickness(base: torch.Tensor, m: torch.Tensor, identity: Identity) -> torch.Tensor:
    """Thickness (n,) m of the cap at points (n, 3) of the mean head, m (n,) m above the hairline."""
    top, side, _, _ = STYLES[identity.hair_style]
    rise = ((base[:, 2] - 0.93) / 0.07).clamp(0, 1)
    front = torch.exp(-((base - torch.tensor([0.0, -0.10, 0.99])) / 0.05).square().sum(1))
    grow = ((m + 0.004) / {"fringe": 0.010, "curly": 0.026}.get(identity.hair_style, 0.022)).clamp(0, 1)
    thick = (side + (top - side) * rise) * (0.15 + 0.85 * grow * (2 - grow)) * (1 + 0.25 * front)
    if identity.hair_style in ("bob", "long"):  # a parting
        part = torch.exp(-((base[:, 0] - 0.012) / 0.007).square()) * ((-0.035 - base[:, 1]) / 0.04).clamp(0, 1)
        thick = thick * (1 - 0.25 * part * rise)
    if identity.hair_style == "fringe":
        thick = torch.where((base[:, 1] < -0.09) & (base[:, 2] < 0.99), thick.clamp_max(0.013), thick)
    return thick


def hair_height(body, identity: Identity) -> torch.Tensor:
    """How far (V,) m the bulk of a studio person's hair stands off the mean head (0.8 of its thickness); 0 on bare skin."""
    if identity.hair_style == "bald":
        return torch.zeros(len(body.v_template))
    m = hair_distance(body.v_template, identity)
    return torch.where(m > 0, 0.8 * _thickness(body.v_template, m, identity), 0.0)


def add_hair(layers: Layers, identity: Identity, hairline: torch.Tensor):
    """A cap over the scalp: an opaque core and translucent shells with strands; hanging hair and bun by style."""
    if identity.full_beard > 0:
        add_beard(layers, identity.full_beard)
    if identity.hair_style == "bald":
        return
    _, _, shells, lowest = STYLES[identity.hair_style]
    body = layers.body
    scalp = body.faces[body.region_faces("scalp", "face")]
    used, local = compact(scalp[hairline[scalp].amax(1) > -0.012])
    m = hairline[used]
    m = torch.where(m < 0, 2.5 * m, m)  # few strands grow in front of the hairline
    base = body.v_template[used]
    thick = _thickness(base, m, identity)
    rest = smooth(layers.rest[used], local, 3)
    normal = vertex_normals(rest, local)
    core = 0.06 if identity.hair_style == "curly" else 0.30  # how far out the opaque part reaches
    for i in range(shells + 1):
        level = core + (1.05 - core) * i / shells
        place = rest + normal * (thick * level)[:, None]
        mask = torch.stack([torch.ones_like(m), torch.full_like(m, i / shells), m, m], 1)
        layers.add_on(used, base, place, mask, local, 8 if i == 0 and identity.hair_style != "buzz" else 9)
    if lowest is not None:
        add_hanging(layers, identity, lowest)
    if identity.hair_style == "bun":
        add_knot(layers, (0.0, 0.045, 1.008), (0.036, 0.032, 0.032))
    if identity.hair_style == "ponytail":
        add_knot(layers, (0.0, 0.055, 0.985), (0.022, 0.024, 0.020))
        add_knot(layers, (0.0, 0.088, 0.890), (0.034, 0.026, 0.105))


def add_beard(layers: Layers, length: float):
    """A grown beard: translucent shells over jaw, chin and upper lip, `length` metres thick."""
    body = layers.body
    p = body.v_template
    x, y, z = p.unbind(-1)
    line = 0.826 + (y + 0.135) * 0.72  # from the mouth's corner up to the sideburn
    d = torch.minimum(torch.minimum(line - z, z - 0.772), (-0.048 - y) * 0.8)
    lip = torch.maximum((z - 0.8455).abs() - 0.0075, x.abs() - 0.034)
    d = torch.maximum(d, torch.minimum(-lip, -0.125 - y))
    t = ((x.abs() - 0.029) * 0.35 + (0.846 - z) * 0.94).clamp(0, 0.028)  # down past the mouth's corners
    corner = 0.0085 - ((x.abs() - 0.029 - 0.35 * t).square() + (z - 0.846 + 0.94 * t).square()).sqrt()
    d = torch.maximum(d, torch.minimum(corner, -0.11 - y))
    lips = p[body.region_vertices("lips")]
    d = torch.minimum(d, torch.cdist(p, lips).amin(1) - 0.0025)
    faces = body.faces[body.region_faces("face", "neck", "scalp")]
    used, local = compact(faces[d[faces].amax(1) > -0.004])
    m, rest = d[used], layers.rest[used]
    thick = length * (0.15 + 0.85 * (m / 0.018).clamp(0, 1)) * torch.where(z[used] > 0.838, 0.55, 1.0)
    normal = vertex_normals(rest, local)
    for i in range(5):
        level = (i + 0.3) / 4.3
        mask = torch.stack([torch.ones_like(m), torch.full_like(m, 0.15 + 0.8 * level), m, m], 1)
        layers.add_on(used, p[used], rest + normal * (thick * level + 0.0004)[:, None], mask, local, 9)


def add_hanging(layers: Layers, identity: Identity, lowest: float):
    """Hair that falls from the scalp over the back and the sides, outside the neck and the shoulders."""
    columns, rows, first = 96, 36, 0.80
    azimuth = torch.linspace(first, 2 * torch.pi - first, columns)
    z = torch.linspace(0.968, lowest, rows)
    az, height = azimuth.repeat(rows), z.repeat_interleave(columns)
    faces = layers.body.faces[layers.body.region_faces("scalp", "face", "neck", "torso", "ear")]

    def radius(vertices, shift):
        centre = (0.0, -0.03 + float(shift[1]))
        r = ray_radius(vertices, faces, centre, az, height + shift[2]).view(rows, columns)
        r = r.clamp_max(0.118)  # what is further out is shoulder
        for i in range(rows - 2, -1, -1):  # widen above the ears, so that hair slopes over them
            if z[i + 1] > 0.85:
                r[i] = torch.maximum(r[i], r[i + 1] - 0.0028)
        for i in range(1, rows):  # hair hangs: it does not follow hollows inwards, nor the shoulders all the way out
            r[i] = torch.maximum(torch.minimum(r[i], r[i - 1] + 0.0055), r[i - 1] * (0.998 if z[i] > 0.78 else 0.99))
        pad = torch.cat([r[:, :1]] * 7 + [r] + [r[:, -1:]] * 7, 1)
        return pad.unfold(1, 7, 1).amax(-1).unfold(1, 9, 1).mean(-1)  # over the ears, then smooth

    ear = 1.50 if lowest < 0.7 and identity.seed % 2 else 0.95  # tucked behind the ear, or over it
    begin = 0.92 + (ear - 0.92) * ((0.965 - height) / 0.075).clamp(0, 1) ** 0.7
    begin = begin + 0.9 * ((0.815 - height) / 0.06).clamp(0, 1)  # behind the shoulders
    edge = (torch.minimum(az, 2 * torch.pi - az) - begin) * 0.1
    m = torch.minimum((height - lowest) * 0.25, edge * 0.8 + 0.002)
    strips = grid_faces(rows, columns)
    strips = strips[m[strips].amax(1) > -0.006]  # what is cut away must not darken what lies under it
    share = 0.75 * (((0.85 - height) / 0.17).clamp(0, 1)) ** 1.5
    for i, gap in enumerate((0.012, 0.016, 0.019, 0.022)):

        def make(vertices, shift, gap=gap):
            tuck = gap * (0.35 + 0.65 * ((0.968 - z) / 0.06).clamp(0, 1))[:, None]
            tuck = tuck + 0.016 * ((0.82 - z) / 0.05).clamp(0, 1)[:, None]  # over the shirt and its collar
            r = (radius(vertices, shift) + tuck).flatten()
            return torch.stack([r * az.sin() + shift[0], -0.03 + shift[1] - r * az.cos(), height + shift[2]], -1)

        mask = torch.stack([torch.ones_like(m), torch.full_like(m, 0.25 + 0.25 * i), m, m], 1)
        add_grid(layers, make, share, mask, strips, 8 if i == 0 else 9)


def add_knot(layers: Layers, centre, radii):
    """Hair tied into an ellipsoid: centre on the mean head, radii in m."""
    rows, columns = 12, 24
    theta, phi = (
        torch.linspace(0.02, 3.12, rows).repeat_interleave(columns),
        torch.arange(columns).repeat(rows) * (2 * torch.pi / columns),
    )
    unit = torch.stack([theta.sin() * phi.sin(), -theta.sin() * phi.cos(), theta.cos()], -1)
    for i in range(3):

        def make(vertices, shift, i=i):
            return torch.tensor(centre) + shift + unit * torch.tensor(radii) * (0.9 + 0.07 * i)

        mask = torch.tensor([1.0, 0.3 + 0.35 * i, 0.05, 0.05]).repeat(len(unit), 1)
        add_grid(layers, make, torch.zeros(len(unit)), mask, grid_faces(rows, columns, True), 8 if i == 0 else 9)
