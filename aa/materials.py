# ruff: noqa: UP018 (in warp, float(0.0) makes a variable that a loop may change)
"""The studio's paint: what colour a place of skin, eyes, hair and cloth has, as functions for warp kernels.

Everything is painted on `canon`, the place a surface point has on the mean body in the rest pose: the paint follows every motion
and one set of numbers serves all people. Colours are linear RGB, lengths metres on the mean body.
"""

import warp as wp

wp.set_module_options({"enable_backward": False})


@wp.struct
class Look:
    """Colours (linear RGB) and numbers of one person's paint; lengths in metres on the mean body."""

    skin: wp.vec3
    lips: wp.vec3
    iris: wp.vec3
    brow: wp.vec3
    hair: wp.vec3
    tips: wp.vec3  # the lighter strands
    shirt: wp.vec3
    shirt2: wp.vec3
    trousers: wp.vec3
    shoe: wp.vec3
    pole: wp.vec3  # the hair flows along the meridians of this direction
    pole_u: wp.vec3
    pole_v: wp.vec3
    parallels: int  # 1: along the parallels instead
    curl: float
    beard: float
    freckles: float
    brow_shape: wp.vec3  # half width in m, height of the arch in m, rise of the tail in m
    makeup: float  # 0 .. 1
    coil: int  # 1: hair in tight coils that flow nowhere
    age: float
    pattern: int  # 0 plain, 1 stripes, 2 checks, 3 pinstripes, 4 dots
    placket: int  # 1: buttons down the front
    neck: wp.vec3  # radius of the neckline, then tip height and steepness of its V (0: none)
    trim: float  # 1: ribbed hems in the second colour
    seed: int


@wp.func
def mix3(a: wp.vec3, b: wp.vec3, t: float):
    return a + (b - a) * wp.clamp(t, 0.0, 1.0)


@wp.func
def blob(p: wp.vec3, c: wp.vec3, r: float):
    d = wp.length(p - c) / r
    return wp.exp(-d * d)


@wp.func
def grain(p: wp.vec3, k: float, seed: int):
    return wp.noise(wp.rand_init(seed), p * k)


@wp.func
def strand_place(p: wp.vec3, look: Look):
    """Hair coordinates: (across, along) the flow in metres-like units, on a head of about 10 cm radius."""
    d = wp.normalize(p - wp.vec3(0.0, -0.045, 0.9))
    w = wp.acos(wp.clamp(wp.dot(d, look.pole), -1.0, 1.0))
    u = wp.atan2(wp.dot(d, look.pole_v), wp.dot(d, look.pole_u))
    if look.parallels == 1:
        return wp.vec2(w, u)
    return wp.vec2(u * wp.max(wp.sin(w), 0.35), w)


@wp.func
def strand_noise(p: wp.vec3, look: Look, k: float):
    if look.coil == 1:
        return 0.7 * grain(p, k * 5.0, look.seed) + 0.5 * grain(p, k * 2.0, look.seed + 21)
    q = strand_place(p, look)
    wave = look.curl * wp.sin(q[1] * 24.0 + 2.0 * grain(p, 40.0, look.seed + 3))
    return wp.noise(wp.rand_init(look.seed), wp.vec3((q[0] + wave) * k, q[1] * 4.0, p[2] * 9.0))


@wp.func
def neck_cover(p: wp.vec3, look: Look):
    """Distance in metres inside the shirt's neckline on the mean body; as `aa.wardrobe.neck_cover`."""
    y = (p[1] + 0.02) / 1.12
    d = wp.max(wp.sqrt(p[0] * p[0] + y * y) - look.neck[0], 0.66 - p[2])
    if look.neck[0] <= 0.0:
        d = 0.758 + 0.34 * (p[1] + 0.02) - p[2]
    if look.neck[2] > 0.0:
        v = (look.neck[1] + look.neck[2] * wp.abs(p[0]) - p[2]) / wp.sqrt(1.0 + look.neck[2] * look.neck[2])
        d = wp.min(d, wp.max(v, (p[1] + 0.035) * 2.0))
    return d


@wp.func
def brow_mask(p: wp.vec3, look: Look):
    ax = wp.abs(p[0])
    t = (ax - 0.0115) / 0.0415
    if t < -0.1 or t > 1.1 or p[1] > -0.10:
        return float(0.0)
    zc = 0.9188 + look.brow_shape[1] * wp.sin(wp.clamp(t, 0.0, 1.0) * 2.25) + look.brow_shape[2] * (t - 0.35)
    half = look.brow_shape[0] * (0.55 + 0.6 * wp.min(t * 3.0 + 0.45, 1.0) - 0.75 * wp.max(t - 0.35, 0.0))
    hair = wp.noise(wp.rand_init(look.seed + 5), wp.vec3(ax * 900.0 - (p[2] - zc) * 700.0 * (1.2 - t), p[2] * 60.0, p[0] * 5.0))
    d = wp.abs(p[2] - zc) / half + 0.35 * hair
    ends = wp.smoothstep(-0.08, 0.10, t) * wp.smoothstep(1.08, 0.9, t)
    return wp.smoothstep(1.15, 0.35, d) * ends * (0.8 + 0.2 * hair)


@wp.func
def crease(p: wp.vec3, look: Look):
    """Lines of the brow, beside the nose and under the eyes, 0 .. 1; deeper with age."""
    x = wp.abs(p[0])
    wave = p[2] + 0.0012 * grain(p, 70.0, look.seed + 23) - 1.1 * x * x
    lines = wp.smoothstep(0.45, 1.0, wp.sin(wave * 6.2832 / 0.0105)) * wp.smoothstep(0.936, 0.944, p[2])
    lines = lines * wp.smoothstep(0.972, 0.962, p[2]) * wp.smoothstep(0.044, 0.030, x)
    t = wp.clamp((x - 0.0185) * 0.44 + (0.871 - p[2]) * 0.90, 0.0, 0.031)
    dx = x - 0.0185 - 0.44 * t
    dz = p[2] - 0.871 + 0.90 * t
    fold = wp.exp(-(dx * dx + dz * dz) / (0.0024 * 0.0024)) * wp.smoothstep(0.033, 0.012, t)
    e = wp.length(wp.vec2(x - 0.0313, 1.5 * (p[2] - 0.9005))) - 0.0215
    bag = wp.exp(-e * e / (0.0018 * 0.0018)) * wp.smoothstep(0.896, 0.888, p[2])
    old = wp.smoothstep(0.25, 1.0, look.age)
    front = wp.smoothstep(-0.10, -0.12, p[1])
    return front * (lines * 0.55 * old + fold * (0.14 + 0.66 * old) + bag * (0.10 + 0.45 * old))


@wp.func
def made_up(c: wp.vec3, p: wp.vec3, look: Look):
    """Liner along the upper lid, shadow over it and blush on the cheek."""
    e = p - wp.vec3(wp.sign(p[0]) * 0.0313, -0.1315, 0.9017)
    over = wp.smoothstep(-0.002, 0.003, e[2])
    lid = wp.smoothstep(0.0205, 0.0165, wp.length(e)) * over * wp.smoothstep(-0.10, -0.12, p[1])
    line = wp.smoothstep(0.0170, 0.0155, wp.length(e)) * over
    c = mix3(c, wp.cw_mul(look.skin, wp.vec3(0.46, 0.32, 0.34)), 0.55 * look.makeup * lid)
    c = mix3(c, look.brow * 0.35, 0.75 * look.makeup * line)
    cheek = blob(wp.vec3(wp.abs(p[0]), p[1], p[2]), wp.vec3(0.050, -0.12, 0.872), 0.020)
    return mix3(c, wp.vec3(look.skin[0] * 1.05, look.skin[1] * 0.55, look.skin[2] * 0.58), 0.35 * look.makeup * cheek)


@wp.func
def skin_paint(p: wp.vec3, m: wp.vec4, look: Look):
    """Albedo of skin: mottling, blush, freckles, eye sockets, stubble, lips, brows, hair roots."""
    ax = wp.vec3(wp.abs(p[0]), p[1], p[2])
    c = look.skin * (1.0 + 0.07 * grain(p, 55.0, look.seed + 1) + 0.05 * grain(p, 260.0, look.seed + 2))
    red = 0.34 * blob(ax, wp.vec3(0.046, -0.125, 0.862), 0.024) + 0.30 * blob(ax, wp.vec3(0.0, -0.175, 0.862), 0.015)
    red = red + 0.22 * wp.smoothstep(0.078, 0.084, ax[0]) * wp.smoothstep(0.84, 0.86, p[2])
    red = red + 0.14 * blob(ax, wp.vec3(0.0, -0.155, 0.79), 0.016) + 0.05 * grain(p, 90.0, look.seed + 4)
    if p[2] < 0.36 and ax[0] > 0.3:
        red = red + 0.14 + 0.1 * grain(p, 60.0, look.seed + 6)  # hands
    blush = wp.vec3(look.skin[0] * 1.04 + 0.012, look.skin[1] * 0.62, look.skin[2] * 0.60)
    c = mix3(c, blush, red)
    socket = blob(ax, wp.vec3(0.031, -0.15, 0.888), 0.013) + 0.55 * blob(ax, wp.vec3(0.033, -0.15, 0.909), 0.011)
    c = mix3(c, wp.cw_mul(look.skin, wp.vec3(0.66, 0.52, 0.54)), 0.36 * socket)
    c = mix3(c, wp.cw_mul(look.skin, wp.vec3(0.60, 0.44, 0.42)), 0.42 * crease(p, look))
    if look.makeup > 0.0:
        c = made_up(c, p, look)
    if look.freckles > 0.0:
        spots = wp.smoothstep(0.42, 0.62, grain(p, 430.0, look.seed + 7))
        where = blob(ax, wp.vec3(0.03, -0.145, 0.872), 0.034)
        c = mix3(c, wp.cw_mul(look.skin, wp.vec3(0.62, 0.42, 0.30)), look.freckles * spots * where)
    if look.beard > 0.0 and p[2] > 0.755 and p[2] < 0.885:
        line = 0.822 + (p[1] + 0.135) * 0.72  # from the mouth's corner up to the sideburn
        b = wp.smoothstep(0.006, -0.010, p[2] - line) * wp.smoothstep(-0.045, -0.075, p[1]) * wp.smoothstep(0.755, 0.785, p[2])
        b = wp.max(
            b, blob(wp.vec3(ax[0] * 0.5, 0.0, p[2]), wp.vec3(0.004, 0.0, 0.8445), 0.0085) * wp.smoothstep(-0.13, -0.145, p[1])
        )
        n = wp.noise(wp.rand_init(look.seed + 8), wp.vec3(p[0] * 1500.0, p[1] * 1500.0, p[2] * 420.0))
        c = mix3(c, wp.cw_mul(look.brow, wp.vec3(1.1, 1.1, 1.1)), look.beard * b * (0.72 + 0.5 * n) * (1.0 - m[1]))
    lip = wp.smoothstep(0.25, 0.75, m[1])
    fine = wp.noise(wp.rand_init(look.seed + 9), wp.vec3(p[0] * 900.0, 0.0, p[2] * 120.0))
    c = mix3(c, look.lips * (1.0 + 0.10 * fine), lip * 0.92)
    c = mix3(c, look.brow, 0.93 * brow_mask(p, look))
    root = wp.smoothstep(-0.004, 0.008, m[3] + 0.005 * strand_noise(p, look, 70.0))
    return mix3(c, look.hair * 0.8, root)


@wp.func
def eye_paint(p: wp.vec3, look: Look):
    side = wp.sign(p[0])
    e = wp.normalize(p - wp.vec3(side * 0.03127, -0.1315, 0.9017))
    a = wp.acos(wp.clamp(-e[1], -1.0, 1.0)) * 57.29578
    turn = wp.atan2(e[2], e[0])
    white = mix3(wp.vec3(0.78, 0.75, 0.72), wp.vec3(0.62, 0.36, 0.32), 0.55 * wp.smoothstep(30.0, 62.0, a))
    fibre = wp.noise(wp.rand_init(look.seed + 11), wp.vec3(turn * 9.0, a * 0.12, 0.0))
    iris = look.iris * (0.75 + 0.55 * fibre + 0.75 * wp.smoothstep(22.0, 12.0, a) + 0.35 * wp.smoothstep(0.2, -0.5, e[2] * 3.0))
    iris = mix3(iris, look.iris * 0.18, wp.smoothstep(22.0, 27.0, a))
    c = mix3(iris, white, wp.smoothstep(26.0, 28.5, a))
    c = mix3(wp.vec3(0.006, 0.005, 0.005), c, wp.smoothstep(10.5, 12.0, a))
    return c * (0.42 + 0.58 * wp.smoothstep(0.9095, 0.9025, p[2]))  # the upper lid's shade


@wp.func
def cloth_paint(k: int, p: wp.vec3, m: wp.vec4, look: Look):
    if k == 7:
        thread = wp.sin(p[0] * 2600.0 + p[2] * 2600.0)
        return look.trousers * (1.0 + 0.05 * thread + 0.16 * grain(p, 300.0, look.seed + 12))
    arm = m[3]
    h = p[2]
    w = p[0]
    if arm > 0.25:
        h = 0.62 - 0.29 * arm
        w = 0.72 * wp.abs(p[0]) + 0.70 * p[2]  # across the arm
    c = look.shirt
    if look.pattern == 1:
        c = mix3(look.shirt, look.shirt2, wp.smoothstep(-0.12, 0.12, wp.sin(h * 6.2832 / 0.034) - 0.15))
    if look.pattern == 2:
        a = wp.smoothstep(-0.2, 0.2, wp.sin(h * 6.2832 / 0.042))
        b = wp.smoothstep(-0.2, 0.2, wp.sin(w * 6.2832 / 0.042))
        c = mix3(look.shirt, look.shirt2, 0.45 * (a + b))
    if look.pattern == 3:
        c = mix3(look.shirt, look.shirt2, 0.8 * wp.smoothstep(0.94, 0.985, wp.sin(w * 6.2832 / 0.016)))
    if look.pattern == 4:
        a = wp.sin(h * 6.2832 / 0.036) * wp.sin(w * 6.2832 / 0.036)
        c = mix3(look.shirt, look.shirt2, wp.smoothstep(0.78, 0.86, a))
    edge = m[2]
    if m[1] < 0.5:
        edge = wp.min(m[2], neck_cover(p, look))
    if look.trim > 0.0 and edge < 0.014:
        c = mix3(look.shirt, look.shirt2, look.trim)
    if wp.abs(edge - 0.014) < 0.0011:
        c = c * 0.55
    if look.placket == 1 and p[1] < -0.03 and wp.abs(p[0]) < 0.02 and arm < 0.2:
        if wp.abs(wp.abs(p[0]) - 0.0155) < 0.0009:
            c = c * 0.55
        z = p[2] - wp.floor(p[2] / 0.075) * 0.075 - 0.0375
        r = wp.sqrt(p[0] * p[0] + z * z)
        if r < 0.0062:
            c = mix3(wp.vec3(0.75, 0.72, 0.68), wp.vec3(0.12, 0.11, 0.10), wp.smoothstep(0.0050, 0.0058, r))
            if wp.abs(wp.abs(p[0]) - 0.0016) < 0.0007 and wp.abs(z) < 0.0016:
                c = wp.vec3(0.15, 0.14, 0.13)
    weave = wp.sin(w * 3300.0) * wp.sin(h * 3300.0)
    return c * (1.0 + 0.02 * weave + 0.08 * grain(p, 220.0, look.seed + 13))


@wp.struct
class Finish:
    """A material at a place."""

    albedo: wp.vec3
    wrap: wp.vec3  # how far light of each colour bleeds past the terminator
    gloss: float
    power: float  # of the highlight
    ao: float  # how open to the sky


@wp.func
def skin_finish(r: Finish, k: int, p: wp.vec3, m: wp.vec4, look: Look):
    """Skin (k 0), oilier on the nose, the brow and the lips, and nails (k 11)."""
    lip = wp.smoothstep(0.3, 0.8, m[1])
    side = wp.vec3(wp.abs(p[0]), p[1], p[2])
    shine = blob(side, wp.vec3(0.0, -0.165, 0.885), 0.03) + blob(p, wp.vec3(0.0, -0.15, 0.955), 0.035)
    r.albedo = skin_paint(p, m, look)
    r.ao = 0.26 + 0.74 * m[0]  # skin lets light through: no hollow is black
    r.wrap = wp.vec3(0.38, 0.20, 0.14)
    r.gloss = 0.75 + 0.35 * shine + 0.7 * lip
    r.power = 16.0 + 26.0 * lip + 8.0 * shine
    if k == 11:
        r.albedo = mix3(r.albedo, wp.vec3(0.75, 0.50, 0.45), 0.4)
        r.gloss = 2.0
        r.power = 50.0
    return r


@wp.func
def finish(k: int, p: wp.vec3, m: wp.vec4, gape: float, look: Look):
    """What matter of kind `k` looks like at a place; the mouth is dark inside and its teeth show as the lips part."""
    r = Finish()
    r.albedo = wp.vec3(0.02, 0.015, 0.015)
    r.wrap = wp.vec3(0.12, 0.12, 0.12)
    r.gloss = 0.35
    r.power = 8.0
    r.ao = m[0]
    if k == 0 or k == 11:
        return skin_finish(r, k, p, m, look)
    if k == 1:
        r.albedo = eye_paint(p, look)
        r.gloss = 6.0
        r.power = 260.0
        r.ao = 0.35 + 0.65 * m[0]
    if k == 2:
        r.albedo = wp.vec3(0.20, 0.035, 0.03)
        r.ao = 0.10 * wp.smoothstep(-0.10, -0.15, p[1]) + 0.25 * m[0]
        r.gloss = 0.6
    if k == 3:
        r.albedo = wp.vec3(0.42, 0.12, 0.11) * (1.0 + 0.15 * grain(p, 600.0, 3))
        r.ao = (0.15 + 0.55 * wp.smoothstep(-0.10, -0.145, p[1])) * (0.2 + 0.8 * gape)
        r.gloss = 1.2
        r.power = 30.0
    if k == 4:
        gap = wp.abs(wp.sin(wp.atan2(p[0], -(p[1] + 0.105)) * 10.5))
        r.albedo = wp.vec3(0.72, 0.68, 0.58) * (0.55 + 0.45 * wp.smoothstep(0.0, 0.22, gap))
        r.ao = (0.30 + 0.65 * wp.smoothstep(-0.115, -0.142, p[1])) * (0.06 + 0.94 * gape)
        r.gloss = 2.0
        r.power = 60.0
    if k == 5:
        r.albedo = look.brow * 0.25
        r.gloss = 0.0
    if k == 6 or k == 7:
        r.albedo = cloth_paint(k, p, m, look)
        r.gloss = 0.30
        r.wrap = wp.vec3(0.18, 0.18, 0.18)
    if k == 10:
        r.albedo = look.shoe
        r.gloss = 1.2
        r.power = 40.0
    return r


@wp.func
def fold_normal(n: wp.vec3, k: int, p: wp.vec3, m: wp.vec4, look: Look):
    """Creases of cloth and pores of skin, as a bump on the normal."""
    if k == 6 or k == 7:
        near = 0.30 + 0.9 * wp.exp(-wp.pow((m[3] - 1.0) / 0.22, 2.0)) + 0.5 * wp.exp(-wp.pow((p[2] - 0.17) / 0.09, 2.0))
        q = wp.vec3(p[0] * 16.0 + p[2] * 9.0, p[1] * 16.0, p[2] * 30.0 - wp.abs(p[0]) * 22.0)
        b = wp.curlnoise(wp.rand_init(look.seed + 14), q)
        return wp.normalize(n + b * (0.20 * near))
    if k == 0 or k == 11:
        b = wp.curlnoise(wp.rand_init(look.seed + 15), p * 520.0)
        lip = wp.smoothstep(0.3, 0.8, m[1])
        return wp.normalize(n + b * (0.018 + 0.03 * look.age + 0.02 * lip))
    return n


@wp.func
def light(n: wp.vec3, v: wp.vec3, l: wp.vec3, albedo: wp.vec3, wrap: wp.vec3, gloss: float, power: float):
    """Wrapped diffuse (skin lets red light bleed past the terminator) and a Blinn highlight with Fresnel."""
    x = wp.dot(n, l)
    d = wp.vec3(
        wp.max((x + wrap[0]) / (1.0 + wrap[0]), 0.0),
        wp.max((x + wrap[1]) / (1.0 + wrap[1]), 0.0),
        wp.max((x + wrap[2]) / (1.0 + wrap[2]), 0.0),
    )
    h = wp.normalize(l + v)
    fresnel = 0.035 + 0.965 * wp.pow(1.0 - wp.max(wp.dot(h, v), 0.0), 5.0)
    spec = gloss * fresnel * (power + 8.0) * 0.04 * wp.pow(wp.max(wp.dot(n, h), 0.0), power) * wp.smoothstep(-0.05, 0.2, x)
    return wp.cw_mul(albedo, d) + wp.vec3(spec, spec, spec)
