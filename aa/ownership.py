"""Which part of the body each pixel of the photo shows.

The fitted mesh says it well inside each part and badly near the edges, where a few pixels of error put shirt on an arm or a hand on
the shirt. There the colours decide: a random walker (Grady, "Random walks for image segmentation", 2006; with priors, 2005) starts
at the pixel, crosses colour edges unwillingly, and the part whose sure ground it reaches first is the owner.
"""

import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.sparse import coo_matrix, diags
from scipy.sparse.linalg import splu

from aa.body import REGIONS, Body
from aa.gaussians import FACE_REGIONS

HEAD, TRUNK, UPPER_ARM, FOREARM, HAND, LEG, HAIR = 0, 1, 2, 4, 6, 8, 10  # of limbs the right one; the left one comes next
PARTS = 11
BACKGROUND = PARTS
JUMP = 0.02  # m of depth between one part and another behind it
EDGE = 0.03  # step of colour that a walker is loath to cross
ALIKE = 0.08  # difference of colour within one material
TONE = 0.07  # difference of chromaticity within a person's skin, lit from many sides
MOSTLY = 0.25  # share of skin up to which a part is dressed, that of cloth up to which it is bare
MAIN = 0.08  # share of a part's pixels from which a colour is one of its main ones
PRIOR = 0.02  # weight of a pixel's own colour and place against a neighbour's opinion
REACH = {HAIR: 12, TRUNK: 0.7}  # how far a part may reach beyond its mesh, in r, see `whose`; 2 for the others
STIFF_MM = 2.0  # what facial actions move further carries no hair
SURE = 0.6  # probability from which a pixel that no mesh covers counts as background


def apart() -> np.ndarray:
    """(11, 11) bool: pairs of parts whose colours do not mix, for one may lie before the other: each part of an arm and anything
    else, hair and the shoulder. Trunk, legs and head go over into each other."""
    out = np.zeros((PARTS, PARTS), bool)
    out[UPPER_ARM:LEG] = True
    out[HAIR, TRUNK:HAIR] = True
    out |= out.T
    np.fill_diagonal(out, False)
    return out


def chain(k: int) -> list[int]:
    """Parts that part k moves with: the limb it belongs to, or head, trunk and legs."""
    if UPPER_ARM <= k < LEG:
        return [UPPER_ARM + k % 2, FOREARM + k % 2, HAND + k % 2]
    return [HEAD, TRUNK, LEG, LEG + 1, HAIR]


NAMES = (("torso", "neck"), ("upperarm",), ("forearm",), ("hand", "nail"), ("leg", "foot"))  # regions of the parts from TRUNK on


def parts_of_vertices(body: Body, stiff: bool = True) -> np.ndarray:
    """Part (V,) of each vertex. If stiff, the head is one part, and -1 marks what the face moves and nothing should hang on."""
    part = np.full(len(body.v_template), -1)
    left = (body.v_template[:, 0] > 0).numpy().astype(int)
    for k, names in reversed(list(enumerate(NAMES))):
        ids = body.region_vertices(*names).numpy()
        part[ids] = TRUNK if k == 0 else 2 * k + left[ids]
    part[body.region_vertices("scalp").numpy()] = HEAD if stiff else HAIR
    part[body.region_vertices("ear", "face", *(() if stiff else FACE_REGIONS)).numpy()] = HEAD
    moved = body.action_dirs.norm(dim=-1).amax(0).numpy() * 1000 > STIFF_MM
    part[moved & (stiff | (part != HAIR))] = -1 if stiff else HEAD
    return part


def parts_of_regions(names, x) -> np.ndarray:
    """Part (n,) of particles by the name of their region (n,) and x (n,) on the mean body."""
    table = dict.fromkeys(REGIONS, HEAD) | {"scalp": HAIR}
    table |= {name: TRUNK if k == 0 else 2 * k for k, group in enumerate(NAMES) for name in group}
    part = np.array([table[name] for name in names])
    return part + ((part >= UPPER_ARM) & (part < HAIR) & (x > 0))


def whose(image, mask, part, depth) -> np.ndarray:
    """Owner (H, W) of each pixel: a part, or -1 where the photo shows what is behind the person.

    Args: image (H, W, 3) in [0, 1]; mask (H, W) of the person; part (H, W) that the mesh shows, -1 beside it; depth (H, W) m of it.
    """
    r = max(2, round(max(mask.shape) / 80))
    hair = _fallen_hair(image, mask, part)
    around = cv2.dilate(hair.astype(np.uint8), np.ones((r, r), np.uint8)) > 0
    unknown = (_doubtful(image, mask, part, depth, r) | around & (part >= TRUNK) & (part < FOREARM)) & ~hair
    seeds = np.where(mask < 0.05, BACKGROUND, np.where(unknown, -1, np.where(hair, HAIR, part)))
    owner = np.where(mask > 0.5, seeds, -1)
    if not unknown.any() or not (seeds >= 0).any():
        return np.where(owner == BACKGROUND, -1, owner)
    chance = _walk(cv2.GaussianBlur(image, (0, 0), 0.7), seeds, part, unknown, r)
    chance[np.isin(part[unknown], (HAND, HAND + 1)), HAIR] = 0  # no hair lies on hands
    gap = (part < 0) & _closed(part >= 0, 4 * r)  # only between arm and body does the mask err
    chance[~gap[unknown] | (chance[:, BACKGROUND] < SURE), BACKGROUND] = -1
    owner[unknown] = chance.argmax(1)
    lost = _islands(owner == HAIR, (part == HAIR) | (part == HEAD), r)[unknown]
    chance[lost, HAIR] = -1  # dark things that do not hang on the head
    owner[unknown] = chance.argmax(1)
    owner = _tidy(owner, unknown)
    return np.where((owner == BACKGROUND) | (mask <= 0.5), -1, owner)


def _closed(where, r: int) -> np.ndarray:
    """`where` (H, W) with gaps narrower than 2 r px filled."""
    away = lambda m: cv2.distanceTransform(m.astype(np.uint8), cv2.DIST_L2, 5)  # noqa: E731
    grown = away(~np.pad(where, 2 * r)) <= r
    return (away(grown) > r)[2 * r : -2 * r, 2 * r : -2 * r]


def _islands(where, shore, r: int) -> np.ndarray:
    """Pieces of `where` (H, W) that hang together with no pixel of `shore`, or only by bridges narrower than r px."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (r | 1, r | 1))
    solid = cv2.morphologyEx((where | shore).astype(np.uint8), cv2.MORPH_OPEN, disc)
    _, pieces = cv2.connectedComponents(solid | shore.astype(np.uint8))
    joined = (pieces > 0) & np.isin(pieces, np.unique(pieces[shore]))
    if not joined.any() or not (loose := (pieces > 0) & ~joined).any():
        return np.zeros_like(where)
    return where & (distance_to(loose) < distance_to(joined))


def _doubtful(image, mask, part, depth, r: int) -> np.ndarray:
    """Pixels (H, W) of the person to ask about: where no mesh is, and near the edges between parts that move apart."""
    disc = lambda r: cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * r + 1, 2 * r + 1))  # noqa: E731
    grown = lambda m, r: cv2.dilate(m.astype(np.uint8), disc(r)) > 0  # noqa: E731
    person = mask >= 0.05
    doubt = np.zeros_like(person)
    flat = np.where(part >= 0, depth, 0).astype(np.float32)
    separate = apart()
    for a in range(2, LEG):
        mine, rival = part == a, (part >= 0) & np.append(separate[a], False)[part]
        if not mine.any() or not rival.any():
            continue
        nearest = cv2.erode(np.where(mine, flat, 1e3), disc(2 * r))  # an arm may reach far beyond its mesh
        doubt |= rival & (flat - nearest > JUMP) & (nearest < 900)
        behind = cv2.dilate(np.where(rival, flat, -1e3), disc(r))
        doubt |= mine & (behind - flat > JUMP)
    bare = person & (part < 0)
    inner = bare & grown((part >= 2) & (part < LEG), 3 * r)
    doubt |= person & grown(inner, max(2, r // 3))
    return person & (doubt | bare | _no_hand(image, part, 3 * r))


def _no_hand(image, part, reach: int) -> np.ndarray:
    """Pixels (H, W) whose colour speaks against the mesh there: on a hand what is not skin, where most of the hand is, and within
    `reach` px of a hand skin on cloth."""
    out = np.zeros(part.shape, bool)
    near = cv2.dilate(np.isin(part, (HAND, HAND + 1)).astype(np.uint8), np.ones((2 * reach + 1,) * 2, np.uint8)) > 0
    for k in range(TRUNK, FOREARM):
        mine = part == k
        if (mine & near).any():
            skin = is_skin(image[mine], image[part == HEAD])
            if skin.mean() < MOSTLY:
                out[mine] = skin
    out &= near
    for k in (HAND, HAND + 1):
        mine = part == k
        if not mine.any():
            continue
        skin = is_skin(image[mine], image[part == HEAD])
        if skin.mean() > 0.5:
            out[mine] = ~skin
    return cv2.morphologyEx(out.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0


def is_skin(colors, face) -> np.ndarray:
    """Which colours (n, 3) are those of the face (m, 3), nearly whatever their brightness."""
    if len(face) < 50:
        return np.zeros(len(colors), bool)
    tone = lambda c: np.c_[c / c.sum(1, keepdims=True).clip(0.05), 0.15 * c.mean(1)]  # noqa: E731
    return np.linalg.norm(tone(colors) - np.median(tone(face), 0), axis=1) < TONE


def _walk(image, seeds, part, unknown, r: int) -> np.ndarray:
    """Probability (n, 11) of each owner for the unknown pixels."""
    h, w = unknown.shape
    index = np.full((h, w), -1)
    n = int(unknown.sum())
    index[unknown] = np.arange(n)
    rows, columns, values, right = [], [], [], np.zeros((n, PARTS + 1))
    total = np.zeros(n)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        a = (slice(0, h - dy), slice(max(0, -dx), w - max(0, dx)))
        b = (slice(dy, h), slice(max(0, dx), w - max(0, -dx)))
        step = ((image[a] - image[b]) ** 2).sum(-1)
        weight = (np.exp(-step / (2 * EDGE**2)) + 1e-3) / (1.0 if dy * dx == 0 else np.sqrt(2))
        for here, there in ((a, b), (b, a)):
            i, j, label = index[here], index[there], seeds[there]
            both = (i >= 0) & (j >= 0)
            rows.append(i[both])
            columns.append(j[both])
            values.append(-weight[both])
            edge = (i >= 0) & (label >= 0)
            np.add.at(right, (i[edge], label[edge]), weight[edge])
            np.add.at(total, i[both | edge], weight[both | edge])
    prior = PRIOR * _likely(image, seeds, part, unknown, r)
    matrix = coo_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(n, n))
    matrix = (matrix + diags(total + prior.sum(1) + 1e-6)).tocsc()
    solver = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    used = (right + prior).any(0)
    out = np.zeros_like(right)
    out[:, used] = solver.solve(right[:, used] + prior[:, used])
    return out


def _likely(image, seeds, part, unknown, r: int) -> np.ndarray:
    """How well each owner (n, 11) suits the unknown pixels: by its colours on sure ground near by, and by distance to its mesh."""
    near = cv2.dilate(unknown.astype(np.uint8), np.ones((8 * r + 1,) * 2, np.uint8)) > 0
    here = image[unknown]
    out = np.zeros((len(here), PARTS + 1))
    for k in range(PARTS + 1):
        sure = image[near & (seeds == k)]
        if len(sure) < 20:
            continue
        difference = np.linalg.norm(here[:, None] - palette(sure), axis=2).min(1)
        away = distance_to((seeds if k == BACKGROUND else part) == k)[unknown]
        out[:, k] = np.exp(-((difference / ALIKE) ** 2) / 2 - away / (REACH.get(k, 2) * r))
    return out


def distance_to(where) -> np.ndarray:
    """Distance (H, W) px to the nearest pixel of `where`."""
    return distance_transform_edt(~where) if where.any() else np.full(where.shape, 1e6)


def _fallen_hair(image, mask, part) -> np.ndarray:
    """Pixels (H, W) of trunk and upper arms that show hair: of its colours rather than the skin's, and joined to it."""
    scalp, skin = (part == HAIR) & (mask > 0.95), (part == HEAD) & (mask > 0.95)
    nothing = np.zeros_like(scalp)
    if min(scalp.sum(), skin.sum()) < 50:
        return nothing
    soft = cv2.GaussianBlur(image, (0, 0), 1.5)
    hair, face = palette(soft[scalp], 5), palette(soft[skin], 2)
    far = lambda palette: np.linalg.norm(soft[:, :, None] - palette, axis=3).min(2)  # noqa: E731
    to_hair = far(hair)
    face = face[np.linalg.norm(face[:, None] - hair, axis=2).min(1).argmax()][None]  # the other one is hair before the face
    like = (mask > 0.5) & (to_hair < ALIKE) & (to_hair < 0.7 * far(face))
    on_body = (part >= TRUNK) & (part < FOREARM)
    like &= on_body | (part < TRUNK) | (part == HAIR)
    near = max(3, round(max(mask.shape) / 100)) | 1  # an ear or a hairpin does not cut a lock off
    core = cv2.morphologyEx(like.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    _, islands = cv2.connectedComponents(cv2.dilate(core, np.ones((near, near), np.uint8)))
    joined = like & np.isin(islands, np.setdiff1d(np.unique(islands[scalp]), 0))
    found = joined & on_body
    return found if found.sum() < (joined & ~on_body).sum() else nothing  # else the clothes are as dark as the hair


def unlike(colors, known) -> np.ndarray:
    """Distance (n,) of colours (n, 3) from the main ones of many known (m, 3)."""
    few = palette(known)
    share = np.bincount(np.linalg.norm(known[:, None] - few, axis=2).argmin(1), minlength=len(few)) / len(known)
    return np.linalg.norm(colors[:, None] - few[share >= min(MAIN, share.max())], axis=2).min(1)


def palette(colors, k: int = 6) -> np.ndarray:
    """A few colours (k, 3) that stand for many (n, 3), by k-means."""
    some = np.float32(colors[:: max(1, len(colors) // 4000)])
    cv2.setRNGSeed(0)
    stop = (cv2.TERM_CRITERIA_MAX_ITER + cv2.TERM_CRITERIA_EPS, 12, 1e-3)
    return cv2.kmeans(some, min(k, len(some)), None, stop, 1, cv2.KMEANS_PP_CENTERS)[2]


def _tidy(owner, unknown) -> np.ndarray:
    """Specks of a few pixels go to what is around them."""
    smooth = cv2.medianBlur((owner + 1).astype(np.uint8), 5).astype(int) - 1
    return np.where(unknown & (smooth >= 0), smooth, owner)
