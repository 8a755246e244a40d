"""The studio's people: sampled bodies and the colours and styles of skin, hair and clothes.

Everybody shown is generated; no real person is depicted. `aa.wardrobe.dress` turns an `Identity` into a mesh. `PEOPLE` is the
studio's fixed cast, split into people to learn from and people held out; `sample_identity` draws anybody else.
"""

import functools
import math
from dataclasses import dataclass, replace

import torch

from aa.body import load_body, load_people
from aa.errors import InputError

PATTERNS = ("plain", "stripes", "checks", "pinstripes", "dots")
HAIR_STYLES = ("buzz", "short", "side", "swept", "curly", "bun", "bob", "long", "fringe", "ponytail", "bald")
NECKLINES = ("crew", "v", "collar")
# Albedo of ten skin tones from light to dark, sRGB, in the spirit of the Monk scale (own values, tuned to the studio's light).
TONES = (
    (0.89, 0.72, 0.63), (0.88, 0.70, 0.59), (0.86, 0.67, 0.55), (0.82, 0.63, 0.49), (0.76, 0.56, 0.42),
    (0.67, 0.47, 0.34), (0.56, 0.38, 0.27), (0.46, 0.30, 0.21), (0.37, 0.24, 0.17), (0.29, 0.19, 0.14),
)  # fmt: skip
HAIRS = {
    "black": (0.075, 0.062, 0.06), "espresso": (0.14, 0.09, 0.07), "brown": (0.25, 0.155, 0.10), "chestnut": (0.36, 0.20, 0.12),
    "copper": (0.42, 0.20, 0.10), "dark blond": (0.46, 0.34, 0.21), "blond": (0.58, 0.47, 0.33), "grey": (0.40, 0.39, 0.385),
}  # fmt: skip
IRISES = ((0.24, 0.13, 0.07), (0.33, 0.20, 0.10), (0.40, 0.31, 0.16), (0.30, 0.38, 0.24), (0.28, 0.40, 0.52), (0.40, 0.46, 0.50))
CLOTHS = (
    (0.16, 0.24, 0.38), (0.55, 0.18, 0.17), (0.88, 0.86, 0.82), (0.20, 0.38, 0.34), (0.76, 0.58, 0.26), (0.36, 0.26, 0.42),
    (0.30, 0.48, 0.62), (0.24, 0.25, 0.27), (0.80, 0.52, 0.46), (0.45, 0.50, 0.36), (0.62, 0.68, 0.74), (0.10, 0.36, 0.44),
)  # fmt: skip
# Lips of people who wear colour on them, from nude to berry; and what lips look like without.
LIPSTICKS = ((0.70, 0.30, 0.28), (0.72, 0.22, 0.26), (0.58, 0.14, 0.20), (0.76, 0.40, 0.36), (0.50, 0.16, 0.24))
BARE_LIPS = {"female": (0.66, 0.27, 0.27), "male": (0.62, 0.34, 0.32)}
TROUSERS = ((0.10, 0.11, 0.14), (0.15, 0.20, 0.32), (0.42, 0.36, 0.28), (0.25, 0.26, 0.27), (0.28, 0.22, 0.19))

FEATURES = (5, 326142)  # salts of the later draws, such that the six people of assets/portraits look as they did
# Standing heights in metres, middle and half range: adults of a mixed population (NCD-RisC, eLife 2016) with two standard
# deviations; and where the middle of the sampled bodies lies and how far they spread, which is far more than people do.
HEIGHTS = {"female": (1.645, 0.150, 1.75, 0.26), "male": (1.765, 0.165, 1.90, 0.26)}
# The cast: name -> (seed, split). The first six have portraits in assets/portraits.
PEOPLE = {
    "ada": (10, "train"), "bruno": (5, "train"), "chidi": (7, "train"), "dalia": (17, "train"),
    "emil": (12, "train"), "flora": (22, "train"), "gabor": (372, "train"), "hana": (460, "train"),
    "iris": (338, "train"), "jonas": (136, "train"), "kim": (360, "train"), "luca": (207, "train"),
    "mateo": (278, "train"), "nora": (491, "train"), "olga": (344, "train"), "pavel": (232, "train"),
    "quinn": (434, "train"), "rafael": (1, "train"),
    "samir": (447, "held-out"), "tala": (280, "held-out"), "uma": (28, "held-out"), "viktor": (311, "held-out"),
    "wanda": (174, "held-out"), "xaver": (469, "held-out"), "yara": (34, "held-out"), "zoltan": (362, "held-out"),
    "aiko": (92, "held-out"), "bela": (382, "held-out"), "carla": (473, "held-out"), "duncan": (324, "held-out"),
}  # fmt: skip


@dataclass(frozen=True)
class Identity:
    """One generated person. Colours are sRGB albedo in [0, 1]."""

    betas: tuple[float, ...]  # (S,) shape coefficients
    sex: str  # "female" | "male"
    age: float  # 0 young adult .. 1 old; `years` says it in years
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
    neckline: str  # one of NECKLINES
    sleeve: float  # where it ends: 0 shoulder, 1 elbow, 2 wrist
    trousers: tuple[float, float, float]
    shoes: tuple[float, float, float]
    seed: int
    height: float = 1.70  # m, standing
    brow_shape: tuple[float, float, float] = (1.0, 1.0, 0.0)  # thickness, arch (1: usual), tilt (+: tails up)
    makeup: float = 0.0  # 0 none .. 1: eyeliner, shadow, blush
    full_beard: float = 0.0  # length of a grown beard in metres, 0: stubble at most
    backdrop: str = "grey"  # one of aa.backdrops.BACKDROPS

    @property
    def years(self) -> float:
        """Age in years, on the body model's scale (25 years at 2/3, 90 at 1)."""
        value = 0.58 + 0.30 * self.age
        return 25 + (value - 2 / 3) * (195 if value > 2 / 3 else 60)


def people(split: str | None = None) -> dict[str, Identity]:
    """The cast: name -> person, of one split ("train" or "held-out") or all. InputError for another split."""
    splits = sorted({s for _, s in PEOPLE.values()}, reverse=True)
    if split is not None and split not in splits:
        raise InputError(f"There is no split {split!r} of the studio's people; use one of {splits} or None for everybody.")
    return {name: sample_identity(seed) for name, (seed, s) in PEOPLE.items() if split in (None, s)}


def person(name: str) -> Identity:
    """One of the cast by name; InputError lists the names."""
    if name not in PEOPLE:
        raise InputError(f"Nobody in the studio is called {name!r}; choose one of {', '.join(PEOPLE)}.")
    return sample_identity(PEOPLE[name][0])


def sample_identity(seed: int) -> Identity:
    """A varied adult; the same seed gives the same person. The body is one of the 600 sampled adults of the body model, its
    height brought into the range of real adults."""
    g = torch.Generator().manual_seed(int(seed) * 7919 + 17)
    u = lambda: torch.rand((), generator=g).item()  # noqa: E731
    pick = lambda options: options[min(int(u() * len(options)), len(options) - 1)]  # noqa: E731
    betas, phenotypes = load_people()
    chosen = int(torch.randint(len(betas), (), generator=g))
    kind = {k: float(v[chosen]) for k, v in phenotypes.items()}
    sex = "female" if kind["gender"] > 0.5 else "male"
    age = (kind["age"] - 0.58) / 0.30
    share = kind["african"] / (kind["african"] + kind["asian"] + kind["caucasian"])
    tone = min(max(0.45 * share + 0.75 * u() - 0.08, 0.0), 0.999) * (len(TONES) - 1)
    skin = mix(TONES[int(tone)], TONES[int(tone) + 1], tone % 1)
    dark = tone / (len(TONES) - 1)
    names = ["black", "espresso", "brown", "black"] if dark > 0.45 else list(HAIRS)[:7]
    hair = HAIRS["grey" if age > 0.78 and u() < 0.6 else pick(names)]
    styles = ("bun", "bob", "long", "side", "long") if sex == "female" else ("short", "side", "swept", "buzz", "short")
    iris = IRISES[min(int(u() * 2), 1)] if dark > 0.5 else pick(IRISES)
    shirt, shirt2 = pick(CLOTHS), pick(CLOTHS)
    if math.dist(shirt, shirt2) < 0.25:  # a pattern needs contrast
        shirt2 = tuple(0.35 * c + 0.65 * (0.92 if sum(shirt) < 1.5 else 0.12) for c in shirt)
    style, curl = pick(styles), pick((0.0, 0.0, 0.012, 0.03))
    stubble = pick((0.0, 0.0, 0.35, 0.8)) if sex == "male" else 0.0
    freckles = max(0.0, u() - 0.5) * (dark < 0.4)
    pattern, neckline, sleeve = (pick(PATTERNS), pick(NECKLINES), pick((0.72, 1.45, 1.93, 1.93)))
    trousers, shoes = (pick(TROUSERS), pick(((0.09, 0.08, 0.08), (0.30, 0.19, 0.12), (0.75, 0.74, 0.72))))
    shaped, height = adult_height(betas[chosen], sex)
    shape = tuple(round(b, 4) for b in shaped.tolist())  # least squares differ in the last bit from process to process
    plain = Identity(
        shape, sex, age, skin, skin, iris, hair, hair, style, curl, stubble, freckles, shirt, shirt2, pattern,
        neckline, sleeve, trousers, shoes, int(seed), height,
    )  # fmt: skip
    return features(plain, dark)


def features(base: Identity, dark: float) -> Identity:
    """What makes faces differ beyond their shape: complexion, brows, irises, lips, hair cut, beard, make-up; and the backdrop.
    dark: 0 .. 1, the place in TONES."""
    r = torch.rand(16, generator=torch.Generator().manual_seed(base.seed * 104729 + FEATURES[0])).tolist()
    beard, length, behind = torch.rand(3, generator=torch.Generator().manual_seed(base.seed * 7907 + FEATURES[1])).tolist()
    female = base.sex == "female"
    warm = (r[0] - 0.5) * 0.07  # rosy to olive
    skin = tuple(min(1.0, c * f) for c, f in zip(base.skin, (1.0, 1.0 + 0.6 * warm, 1.0 - warm)))
    makeup = max(0.0, r[1] - 0.3) / 0.7 if female else 0.0
    lips = mix(skin, BARE_LIPS[base.sex], (0.45 if female else 0.38) + 0.25 * r[2] - 0.18 * dark)
    if makeup > 0.35:
        lips = mix(lips, LIPSTICKS[int(r[3] * len(LIPSTICKS))], 0.35 + 0.45 * makeup)
    near = IRISES[:2] if dark > 0.5 else IRISES
    iris = mix(base.iris, near[int(r[4] * len(near))], 0.45 * r[5])
    brow = mix(base.hair, (0.08, 0.06, 0.05), 0.30 + 0.45 * r[6])
    shape = ((0.70 if female else 0.85) + 0.6 * r[7], 0.5 + 1.0 * r[8], 2 * r[9] - 1)
    style, curl = base.hair_style, base.curl
    if female:
        if r[10] < 0.42:
            style = {"long": "ponytail", "bob": "fringe", "side": "curly", "bun": "fringe"}[style]
    elif r[10] < 0.42:
        style = {"short": "curly", "buzz": "bald", "swept": "bald" if base.age > 0.35 else "swept"}.get(style, style)
    if style == "curly":
        curl = 0.03
    grown = 0.004 + 0.008 * length if not female and beard < 0.40 else 0.0
    return replace(
        base, skin=skin, lips=lips, iris=iris, brow=brow, hair_style=style, curl=curl, brow_shape=shape, makeup=makeup,
        beard=max(base.beard, 0.6 * (grown > 0)), full_beard=grown,
        backdrop=("grey", "grey", "warm", "cool", "sand", "room", "studio")[int(behind * 7)],
    )  # fmt: skip


@functools.lru_cache(maxsize=1)
def height_map() -> tuple[torch.Tensor, torch.Tensor, float]:
    """How standing height follows from betas, and the change of betas per metre of height that leaves sex, age, weight, build and
    ancestry alone (least squares over the sampled adults): w (S,), step (S,), height of the mean body in m."""
    body, (betas, kinds) = load_body(), load_people()
    skin = body.region_vertices("torso", "neck", "leg", "foot", "face", "scalp")
    z = body.v_template[skin, 2]
    low, high = skin[z.argmin()], skin[z.argmax()]
    w = body.shape_dirs[:, high, 2] - body.shape_dirs[:, low, 2]
    traits = torch.stack(list(kinds.values()), 1)
    slope = torch.linalg.lstsq(traits - traits.mean(0), betas).solution[list(kinds).index("height")]
    return (w, slope / (w @ slope), float(body.v_template[high, 2] - body.v_template[low, 2]))


def adult_height(betas: torch.Tensor, sex: str) -> tuple[torch.Tensor, float]:
    """The same person (S,) with a plausible height, and that height in metres: the sampled heights (1.2 to 2.4 m) are squeezed,
    order kept, into the range of real adults."""
    w, step, middle = height_map()
    centre, reach, sampled, spread = HEIGHTS[sex]
    old = middle + float(w @ betas)
    new = centre + reach * math.tanh((old - sampled) / spread)
    return betas + (new - old) * step, new


def mix(a, b, t: float) -> tuple[float, float, float]:
    """Colour a moved towards b by t."""
    return tuple(x + (y - x) * t for x, y in zip(a, b))
