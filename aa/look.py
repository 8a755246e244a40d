"""From an `Identity` to the numbers of the studio's paint."""

import torch
import warp as wp

from aa.identities import PATTERNS, Identity
from aa.materials import Look
from aa.wardrobe import NECKLINES

# Direction from the head's centre of the point from which the hair flows, by style.
POLES = {
    "side": (0.35, -0.75, 0.55), "swept": (0.0, -0.9, 0.45), "bun": (0.0, 0.62, 0.78), "ponytail": (0.0, 0.70, 0.72),
    "bob": (0.12, -0.30, 0.94), "long": (0.12, -0.30, 0.94), "fringe": (0.0, 0.05, 1.0),
}  # fmt: skip


def linear(colour) -> wp.vec3:
    """sRGB in [0, 1] to linear RGB."""
    return wp.vec3(*[c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour])


def look_of(identity: Identity) -> Look:
    """The shader's numbers for an identity."""
    pole = torch.nn.functional.normalize(torch.tensor(POLES.get(identity.hair_style, (0.0, 0.35, 0.94))), dim=0)
    u = torch.nn.functional.normalize(torch.linalg.cross(pole, torch.tensor([1.0, 0.0, 0.0])), dim=0)
    look = Look()
    for name in ("skin", "lips", "iris", "brow", "hair", "shirt", "shirt2", "trousers"):
        setattr(look, name, linear(getattr(identity, name)))
    pale = sum(identity.hair) / 3
    look.tips = linear([min(1.0, (0.85 * c + 0.15 * pale) * 1.35 + 0.05) for c in identity.hair])
    look.shoe = linear(identity.shoes)
    look.pole, look.pole_u = wp.vec3(*pole.tolist()), wp.vec3(*u.tolist())
    look.pole_v = wp.vec3(*torch.linalg.cross(pole, u).tolist())
    look.parallels = 0
    look.curl, look.beard, look.freckles, look.age = identity.curl, identity.beard, identity.freckles, identity.age
    thick, arch, tilt = identity.brow_shape
    look.brow_shape = wp.vec3((0.0048 if identity.sex == "male" else 0.0039) * thick, 0.0062 * arch, 0.0022 * tilt)
    look.makeup, look.coil = identity.makeup, int(identity.hair_style == "curly")
    look.pattern = PATTERNS.index(identity.pattern)
    look.placket = int(identity.neckline == "collar")
    look.neck = wp.vec3(*NECKLINES[identity.neckline])
    look.trim = 0.6 if identity.neckline == "crew" and identity.seed % 2 else 0.0
    look.seed = identity.seed
    return look
