"""The studio's people: sampled bodies and the colours and styles of skin, hair and clothes.

Everybody shown is generated; no real person is depicted. `aa.wardrobe.dress` turns an `Identity` into a mesh.
"""

import math
from dataclasses import dataclass

import torch

from aa.body import load_people

PATTERNS = ("plain", "stripes", "checks", "pinstripes", "dots")
HAIR_STYLES = ("buzz", "short", "side", "swept", "bun", "bob", "long")
# Albedo of ten skin tones from light to dark, sRGB, in the spirit of the Monk scale (own values, tuned to the studio's light).
TONES = (
    (0.93, 0.78, 0.70), (0.91, 0.74, 0.64), (0.88, 0.70, 0.58), (0.83, 0.64, 0.50), (0.76, 0.56, 0.42),
    (0.67, 0.47, 0.34), (0.56, 0.38, 0.27), (0.46, 0.30, 0.21), (0.37, 0.24, 0.17), (0.29, 0.19, 0.14),
)  # fmt: skip
HAIRS = {
    "black": (0.075, 0.062, 0.06), "espresso": (0.14, 0.09, 0.07), "brown": (0.25, 0.155, 0.10), "chestnut": (0.36, 0.20, 0.12),
    "copper": (0.42, 0.20, 0.10), "dark blond": (0.46, 0.34, 0.21), "blond": (0.66, 0.51, 0.32), "grey": (0.40, 0.39, 0.385),
}  # fmt: skip
IRISES = ((0.24, 0.13, 0.07), (0.33, 0.20, 0.10), (0.40, 0.31, 0.16), (0.30, 0.38, 0.24), (0.28, 0.40, 0.52), (0.40, 0.46, 0.50))
CLOTHS = (
    (0.16, 0.24, 0.38), (0.55, 0.18, 0.17), (0.88, 0.86, 0.82), (0.20, 0.38, 0.34), (0.76, 0.58, 0.26), (0.36, 0.26, 0.42),
    (0.30, 0.48, 0.62), (0.24, 0.25, 0.27), (0.80, 0.52, 0.46), (0.45, 0.50, 0.36), (0.62, 0.68, 0.74), (0.10, 0.36, 0.44),
)  # fmt: skip
TROUSERS = ((0.10, 0.11, 0.14), (0.15, 0.20, 0.32), (0.42, 0.36, 0.28), (0.25, 0.26, 0.27), (0.28, 0.22, 0.19))


@dataclass(frozen=True)
class Identity:
    """One generated person. Colours are sRGB albedo in [0, 1]."""

    betas: tuple[float, ...]  # (S,) shape coefficients
    sex: str  # "female" | "male"
    age: float  # 0 young adult .. 1 old
    skin: tuple[float, float, float]
    lips: tuple[float, float, float]
    iris: tuple[float, float, float]
    brow: tuple[float, float, float]
    hair: tuple[float, float, float]
    hair_style: str  # one of HAIR_STYLES
    curl: float  # 0 straight .. 0.05
    beard: float  # 0 .. 1
    freckles: float  # 0 .. 1
    shirt: tuple[float, float, float]
    shirt2: tuple[float, float, float]
    pattern: str  # one of PATTERNS
    neckline: str  # "crew" | "v" | "collar"
    sleeve: float  # where it ends: 0 shoulder, 1 elbow, 2 wrist
    trousers: tuple[float, float, float]
    shoes: tuple[float, float, float]
    seed: int


def sample_identity(seed: int) -> Identity:
    """A varied adult; the same seed gives the same person. The body is one of the 600 sampled adults of the body model."""
    g = torch.Generator().manual_seed(int(seed) * 7919 + 17)
    u = lambda: torch.rand((), generator=g).item()  # noqa: E731
    pick = lambda options: options[min(int(u() * len(options)), len(options) - 1)]  # noqa: E731
    betas, phenotypes = load_people()
    person = int(torch.randint(len(betas), (), generator=g))
    kind = {k: float(v[person]) for k, v in phenotypes.items()}
    sex = "female" if kind["gender"] > 0.5 else "male"
    age = (kind["age"] - 0.58) / 0.30
    share = kind["african"] / (kind["african"] + kind["asian"] + kind["caucasian"])
    tone = min(max(0.45 * share + 0.75 * u() - 0.08, 0.0), 0.999) * (len(TONES) - 1)
    skin = mix(TONES[int(tone)], TONES[int(tone) + 1], tone % 1)
    dark = tone / (len(TONES) - 1)
    names = ["black", "espresso", "brown", "black"] if dark > 0.45 else list(HAIRS)[:7]
    hair = HAIRS["grey" if age > 0.78 and u() < 0.6 else pick(names)]
    styles = ("bun", "bob", "long", "side", "long") if sex == "female" else ("short", "side", "swept", "buzz", "short")
    lips = mix(skin, (0.66, 0.25, 0.26) if sex == "female" else (0.62, 0.34, 0.32), 0.62 - 0.22 * dark)
    iris = IRISES[min(int(u() * 2), 1)] if dark > 0.5 else pick(IRISES)
    shirt, shirt2 = pick(CLOTHS), pick(CLOTHS)
    if math.dist(shirt, shirt2) < 0.25:  # a pattern needs contrast
        shirt2 = tuple(0.35 * c + 0.65 * (0.92 if sum(shirt) < 1.5 else 0.12) for c in shirt)
    return Identity(
        tuple(betas[person].tolist()), sex, age, skin, lips, iris, mix(hair, (0.08, 0.06, 0.05), 0.55), hair, pick(styles),
        pick((0.0, 0.0, 0.012, 0.03)), pick((0.0, 0.0, 0.35, 0.8)) if sex == "male" else 0.0, max(0.0, u() - 0.5) * (dark < 0.4),
        shirt, shirt2, pick(PATTERNS), pick(("crew", "v", "collar")), pick((0.72, 1.45, 1.93, 1.93)), pick(TROUSERS),
        pick(((0.09, 0.08, 0.08), (0.30, 0.19, 0.12), (0.75, 0.74, 0.72))), int(seed),
    )  # fmt: skip


def mix(a, b, t: float) -> tuple[float, float, float]:
    """Colour a moved towards b by t."""
    return tuple(x + (y - x) * t for x, y in zip(a, b))
