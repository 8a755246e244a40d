# ruff: noqa: UP018, RUF046 (in warp, float(0.0) makes a variable that a loop may change)
"""The studio's light: a warp kernel that casts rays at a dressed figure and shades what they hit (CPU and CUDA)."""

import warp as wp

from aa.materials import Look, finish, fold_normal, light, mix3, neck_cover, strand_noise

wp.set_module_options({"enable_backward": False})


@wp.struct
class Surface:
    """The meshes of one frame; `mask` holds (occlusion, lips | hair level, cover of the shirt, hairline distance | arm)."""

    solid: wp.uint64
    shells: wp.uint64
    first_shell: int
    verts: wp.array(dtype=wp.vec3)
    normals: wp.array(dtype=wp.vec3)
    canon: wp.array(dtype=wp.vec3)
    mask: wp.array(dtype=wp.vec4)
    tri: wp.array(dtype=wp.vec3i)
    kind: wp.array(dtype=int)
    part: wp.array(dtype=int)  # index into aa.clips.LABELS
    head: wp.mat33
    gape: float  # how far the lips are parted, 0 .. 1


@wp.func
def corner3(a: wp.array(dtype=wp.vec3), t: wp.vec3i, u: float, v: float):
    return a[t[0]] * u + a[t[1]] * v + a[t[2]] * (1.0 - u - v)


@wp.func
def corner4(a: wp.array(dtype=wp.vec4), t: wp.vec3i, u: float, v: float):
    return a[t[0]] * u + a[t[1]] * v + a[t[2]] * (1.0 - u - v)


@wp.func
def holds(kind: int, p: wp.vec3, m: wp.vec4, look: Look):
    """Is there matter here, or does the ray pass on (neckline, hairline, gaps between strands and lashes)?"""
    if kind == 6:
        return m[2] > 0.0 and (m[1] > 0.5 or neck_cover(p, look) > 0.0)  # 1: the collar stands free
    if kind == 5:
        c = wp.vec3(wp.sign(p[0]) * 0.0313, -0.1315, 0.9017)
        up = wp.sign(p[2] - c[2])
        out = (wp.length(p - c) - 0.0150) / 0.0085
        a = wp.atan2(p[2] - c[2] + up * 0.010, wp.abs(p[0]) - 0.0313)
        return wp.sin(a * 110.0 + 9.0 * out) > 1.7 * out - 0.9 + 0.55 * (1.0 - up)
    if kind == 8:
        if m[3] > 0.006:  # noise lies within -1 .. 1: most places need none
            return True
        return m[3] + 0.004 * strand_noise(p, look, 60.0) > 0.001
    if kind == 9:
        if m[3] < -0.014:
            return False
        n = 0.6 * strand_noise(p, look, 85.0) + 0.5 * strand_noise(p, look, 38.0)
        edge = m[3] + 0.010 * strand_noise(p, look, 45.0)
        return n * 0.5 + 0.5 > 0.22 + 0.45 * m[1] and edge > -0.003 + 0.004 * m[1]
    return True


@wp.func
def cast(mesh: wp.uint64, first: int, s: Surface, look: Look, o: wp.vec3, d: wp.vec3, far: float):
    """First matter along a ray: (distance or -1, triangle, u, v)."""
    start = float(0.0)
    for _ in range(16):
        q = wp.mesh_query_ray(mesh, o + d * start, d, far - start)
        if not q.result:
            return wp.vec4(-1.0, 0.0, 0.0, 0.0)
        f = q.face + first
        k = s.kind[f]
        t = s.tri[f]
        p = corner3(s.canon, t, q.u, q.v)
        if holds(k, p, corner4(s.mask, t, q.u, q.v), look):
            return wp.vec4(start + q.t, float(f), q.u, q.v)
        start = start + q.t + 4.0e-6  # no more: the next layer may be close behind
    return wp.vec4(-1.0, 0.0, 0.0, 0.0)


@wp.func
def strand_light(t: wp.vec3, n: wp.vec3, v: wp.vec3, l: wp.vec3, albedo: wp.vec3, shift: float):
    """Kajiya-Kay hair: diffuse by the sine to the strand, a white and a coloured highlight along it."""
    x = wp.dot(t, l)
    d = wp.sqrt(wp.max(1.0 - x * x, 0.0)) * wp.clamp(wp.dot(n, l) * 0.75 + 0.30, 0.0, 1.0)
    h = wp.normalize(l + v)
    a = wp.dot(wp.normalize(t + n * (0.08 + shift)), h)
    b = wp.dot(wp.normalize(t - n * (0.12 - shift)), h)
    front = wp.smoothstep(-0.1, 0.35, wp.dot(n, l))
    s1 = 0.055 * wp.pow(wp.max(1.0 - a * a, 0.0), 55.0) * front
    s2 = 0.9 * wp.pow(wp.max(1.0 - b * b, 0.0), 14.0) * front
    return albedo * (d + s2) + wp.vec3(s1, s1, s1)


@wp.func
def tone(c: float):
    """Soft shoulder, then the sRGB curve."""
    x = wp.max(c, 0.0)
    x = x * (1.0 + 0.10 * x) / (1.0 + 0.42 * x)
    if x < 0.0031308:
        return 12.92 * x
    return 1.055 * wp.pow(wp.min(x, 1.0), 0.4166667) - 0.055


@wp.func
def hair_colour(p: wp.vec3, n: wp.vec3, v: wp.vec3, m: wp.vec4, key: wp.vec3, shade_key: float, s: Surface, look: Look):
    d = wp.normalize(p - wp.vec3(0.0, -0.045, 0.9))
    t = wp.normalize(look.pole - d * wp.dot(d, look.pole))
    if look.parallels == 1:
        t = wp.normalize(wp.cross(look.pole, d))
    t = wp.normalize(mix3(wp.vec3(0.0, 0.0, 1.0), t, wp.smoothstep(0.80, 0.93, p[2])))
    fine = strand_noise(p, look, 120.0)
    lock = strand_noise(p, look, 26.0)
    t = wp.normalize(s.head * t + n * (0.10 * fine))
    albedo = mix3(look.hair, look.tips, 0.45 + 0.5 * fine + 0.35 * lock)
    albedo = albedo * (0.42 + 0.58 * m[1] + 0.25 * lock) * (0.70 + 0.30 * m[0])
    c = strand_light(t, n, v, key, albedo, 0.10 * lock) * (2.5 * shade_key)
    c = c + strand_light(t, n, v, wp.normalize(wp.vec3(0.75, -0.6, 0.25)), albedo, 0.10 * lock) * 0.6
    c = c + strand_light(t, n, v, wp.normalize(wp.vec3(0.55, 0.7, 0.55)), albedo, 0.10 * lock) * 1.5
    return c + albedo * (0.35 + 0.25 * n[2])


@wp.func
def shadow(x: wp.vec3, n: wp.vec3, key: wp.vec3, lift: float, s: Surface, look: Look):
    """1 where the key light reaches, 0 where something stands before it."""
    if wp.dot(n, key) > -0.1:
        block = cast(s.solid, 0, s, look, x + n * lift + key * 0.002, key, 0.7)
        if block[0] >= 0.0:
            return 0.0
    return 1.0


@wp.func
def covered(k: int, p: wp.vec3, m: wp.vec4, look: Look):
    """Is this skin that pokes through the shirt and wears its colour?"""
    return k == 0 and m[2] > 0.010 and neck_cover(p, look) > 0.010 and p[2] < 0.775


@wp.func
def colour_at(hit: wp.vec4, o: wp.vec3, d: wp.vec3, jitter: wp.vec3, s: Surface, look: Look):
    """Linear colour of a hit: key light with a shadow ray, fill, two rim lights, sky; `jitter` moves the key on its lamp."""
    f = int(hit[1])
    k = s.kind[f]
    t = s.tri[f]
    p = corner3(s.canon, t, hit[2], hit[3])
    m = corner4(s.mask, t, hit[2], hit[3])
    n = wp.normalize(corner3(s.normals, t, hit[2], hit[3]))
    v = -d
    if wp.dot(n, v) < 0.0 and (k == 6 or k == 8 or k == 9):
        n = wp.normalize(n - v * (1.02 * wp.dot(n, v)))  # rounded rims of thin sheets
    if covered(k, p, m, look):
        k = 6
    x = o + d * hit[0]
    key = wp.normalize(wp.vec3(-0.55, -0.80, 0.85) + jitter)
    if k == 8 or k == 9:
        return hair_colour(p, n, v, m, key, 0.25 + 0.75 * shadow(x, n, key, 0.012, s, look), s, look)
    r = finish(k, p, m, s.gape, look)
    lit = shadow(x, n, key, 0.0025, s, look)
    if k >= 2 and k <= 4:
        lit = lit * wp.min(1.0, 0.35 + r.ao)
    b = fold_normal(n, k, p, m, look)
    rim = r.wrap * 0.3
    c = light(b, v, key, r.albedo, r.wrap, r.gloss, r.power) * (1.55 * (0.16 + 0.84 * lit) * (0.55 + 0.45 * r.ao))
    c = c + light(b, v, wp.normalize(wp.vec3(0.80, -0.62, 0.20)), r.albedo, r.wrap, r.gloss * 0.7, r.power) * (0.36 * r.ao)
    c = c + light(b, v, wp.normalize(wp.vec3(0.72, 0.62, 0.42)), r.albedo, rim, r.gloss, r.power) * (1.25 * r.ao)
    c = c + light(b, v, wp.normalize(wp.vec3(-0.85, 0.55, 0.25)), r.albedo, rim, r.gloss, r.power) * (0.45 * r.ao)
    sky = mix3(wp.vec3(0.40, 0.36, 0.34), wp.vec3(0.56, 0.59, 0.64), 0.5 + 0.5 * b[2])
    occluded = wp.vec3(r.ao, r.ao, r.ao)
    if k == 0:  # light that leaves a crease of skin is red
        occluded = wp.vec3(wp.pow(r.ao, 0.75), r.ao, wp.pow(r.ao, 1.1))
    return c + wp.cw_mul(wp.cw_mul(r.albedo, sky), occluded) * 0.60


@wp.func
def first(s: Surface, look: Look, o: wp.vec3, d: wp.vec3, layers: int):
    """First matter (layers 1), strand of hair (2) or either (3) along a ray: (distance or -1, triangle, u, v)."""
    hit = wp.vec4(-1.0, 0.0, 0.0, 0.0)
    far = float(100.0)
    if layers != 2:
        hit = cast(s.solid, 0, s, look, o, d, far)
        if hit[0] >= 0.0:
            far = hit[0]
    if layers >= 2 and s.first_shell < s.kind.shape[0]:
        strand = cast(s.shells, s.first_shell, s, look, o, d, far)
        if strand[0] >= 0.0:
            hit = strand
    return hit


@wp.func
def part_at(hit: wp.vec4, s: Surface, look: Look):
    """Label of a hit; skin that pokes through the shirt counts as cloth, as it is painted so."""
    f = int(hit[1])
    if covered(s.kind[f], corner3(s.canon, s.tri[f], hit[2], hit[3]), corner4(s.mask, s.tri[f], hit[2], hit[3]), look):
        return 5  # aa.clips.LABELS: clothes
    return s.part[f]


@wp.kernel
def shade(
    start: int, s: Surface, look: Look, cam: wp.vec3, axes: wp.mat33, f: wp.vec2, c: wp.vec2, tiles: wp.array(dtype=wp.vec2i),
    columns: int, samples: int, soft: float, rgb: wp.array2d(dtype=wp.vec3), alpha: wp.array2d(dtype=float),
    part: wp.array2d(dtype=wp.uint8), depth: wp.array2d(dtype=float),
):  # fmt: skip
    """One thread a pixel of the tiles (number, layers) from `start` on: samples x samples rays. rgb holds the backdrop, then the
    display colour in [0, 1]; alpha the coverage; part and depth belong to the ray nearest the pixel's centre that hits."""
    i = wp.tid()
    tile = tiles[start + i / 64]  # 8 x 8 pixels
    y = (tile[0] / columns) * 8 + (i % 64) / 8
    x = (tile[0] % columns) * 8 + i % 8
    if y >= rgb.shape[0] or x >= rgb.shape[1]:
        return
    total = wp.vec3(0.0, 0.0, 0.0)
    cover = float(0.0)
    nearest = float(10.0)
    label = int(0)
    away = float(0.0)
    back = rgb[y, x]
    for a in range(samples):
        for b in range(samples):
            sx = (float(b) + 0.5) / float(samples)
            sy = (float(a) + 0.5) / float(samples)
            ray = wp.vec3((float(x) + sx - c[0]) / f[0], (float(y) + sy - c[1]) / f[1], 1.0)
            d = wp.normalize(axes * ray)
            hit = first(s, look, cam, d, tile[1])
            if hit[0] >= 0.0:
                spin = 0.06711056 * float(x) + 0.00583715 * float(y)  # interleaved gradient noise (Jimenez 2014)
                spin = 52.9829189 * (spin - wp.floor(spin))
                turn = 2.39996 * float(a * samples + b) + 6.2832 * (spin - wp.floor(spin))  # sunflower points on a round lamp
                r = soft * wp.sqrt((float(a * samples + b) + 0.5) / float(samples * samples))
                if samples == 1:
                    r = 0.0
                lamp = wp.vec3(r * wp.cos(turn), 0.0, r * wp.sin(turn))
                e = colour_at(hit, cam, d, lamp, s, look)
                total = total + wp.vec3(tone(e[0]), tone(e[1]), tone(e[2]))
                cover = cover + 1.0
                off = (sx - 0.5) * (sx - 0.5) + (sy - 0.5) * (sy - 0.5)
                if off < nearest - 1.0e-6:
                    nearest = off
                    label = part_at(hit, s, look)
                    away = hit[0] / wp.length(ray)
            else:
                total = total + back
    n = float(samples * samples)
    rgb[y, x] = total / n
    alpha[y, x] = cover / n
    if cover >= 0.5 * n:
        part[y, x] = wp.uint8(label)
        depth[y, x] = away


@wp.kernel
def occlusion(
    start: int, mesh: wp.uint64, verts: wp.array(dtype=wp.vec3), normals: wp.array(dtype=wp.vec3), rays: wp.array(dtype=wp.vec3),
    out: wp.array(dtype=float),
):  # fmt: skip
    """Share of short rays (20 cm, cosine-weighted) that leave a vertex freely; near blockers count more."""
    i = start + wp.tid()
    n = normals[i]
    open_ = float(0.0)
    for k in range(rays.shape[0]):
        d = wp.normalize(n + rays[k] * 0.97)
        q = wp.mesh_query_ray(mesh, verts[i] + n * 0.0012, d, 0.2)
        if q.result:
            open_ = open_ + 0.8 * wp.smoothstep(0.0, 0.2, q.t)
        else:
            open_ = open_ + 1.0
    out[i] = open_ / float(rays.shape[0])


@wp.kernel
def first_hit(
    start: int, s: Surface, look: Look, cam: wp.vec3, rays: wp.array(dtype=wp.vec3), out: wp.array(dtype=wp.vec4)
):  # fmt: skip
    """First matter from the camera along unit directions: (distance or -1, triangle, u, v)."""
    i = start + wp.tid()
    out[i] = first(s, look, cam, rays[i], 3)


@wp.kernel
def see(
    start: int, s: Surface, look: Look, R: wp.mat33, t: wp.vec3, f: wp.vec2, c: wp.vec2, size: wp.vec2,
    corner: wp.array(dtype=wp.vec3i), bary: wp.array(dtype=wp.vec3), cover: wp.array(dtype=float),
    pixel: wp.array(dtype=wp.vec2), seen: wp.array(dtype=int),
):  # fmt: skip
    """Where particles on triangles are in the picture of a size in px, and whether the ray towards each meets it, or what covers
    it, first; outside the picture nothing is seen."""
    i = start + wp.tid()
    k = corner[i]
    p = s.verts[k[0]] * bary[i][0] + s.verts[k[1]] * bary[i][1] + s.verts[k[2]] * bary[i][2]
    q = R * p + t
    x = wp.vec2(q[0] / q[2] * f[0] + c[0], q[1] / q[2] * f[1] + c[1])
    pixel[i] = x
    seen[i] = 0
    if q[2] > 0.0 and x[0] >= 0.0 and x[1] >= 0.0 and x[0] < size[0] and x[1] < size[1]:
        cam = wp.transpose(R) * (-t)
        away = wp.length(p - cam)
        hit = first(s, look, cam, (p - cam) / away, 3)
        if hit[0] >= 0.0 and wp.abs(hit[0] - away) < 0.004 + 2.0 * cover[i]:
            seen[i] = 1


@wp.kernel
def inward(
    mesh: wp.uint64, axis: wp.array(dtype=wp.vec3), out_dir: wp.array(dtype=wp.vec3), reach: float, out: wp.array(dtype=float)
):
    """Outermost distance of a mesh from points on an axis, along outward directions; 0 where there is nothing."""
    i = wp.tid()
    q = wp.mesh_query_ray(mesh, axis[i] + out_dir[i] * reach, -out_dir[i], reach)
    out[i] = 0.0
    if q.result:
        out[i] = reach - q.t


@wp.kernel
def dressed(
    start: int, s: Surface, look: Look, points: wp.array(dtype=wp.vec3), normals: wp.array(dtype=wp.vec3), reach: float,
    out: wp.array(dtype=float),
):  # fmt: skip
    """How far above each skin point its clothes or hair lie, in metres; 0 where it is bare."""
    i = start + wp.tid()
    o = points[i] + normals[i] * reach
    d = -normals[i]
    hit = cast(s.solid, 0, s, look, o, d, reach)
    far = float(reach)
    if hit[0] >= 0.0:
        far = hit[0]
    if s.first_shell < s.kind.shape[0]:
        strand = cast(s.shells, s.first_shell, s, look, o, d, far)
        if strand[0] >= 0.0:
            hit = strand
    out[i] = 0.0
    if hit[0] >= 0.0:
        k = s.kind[int(hit[1])]
        if k >= 6 and k <= 10:
            out[i] = reach - hit[0]
