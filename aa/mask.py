"""The soft silhouette of one person: coarse network probabilities sharpened along the picture's own edges."""

import cv2
import numpy as np

LIMBS = ((11, 13), (13, 15), (12, 14), (14, 16), (11, 12), (23, 25), (25, 27), (24, 26), (26, 28))  # pose landmark pairs
FINGERS = tuple((a, a + 1) if a % 4 else (0, a + 1) for a in range(20))  # hand landmark pairs along each finger


def person_mask(image, coarse, pose2d, visibility, hands, rivals=(), alpha=None) -> np.ndarray:
    """Refine a coarse person probability.

    Args: image (H, W, 3) uint8; coarse (H, W) in [0, 1]; pose2d (33, 2) px and visibility (33,); hands: (21, 2) px arrays;
        rivals: pose2d of other people in the photo, whose pixels are removed; alpha (H, W) transparency of the file or None.
    Returns: (H, W) float32 in [0, 1].
    """
    if alpha is not None and (alpha < 0.5).mean() > 0.05:  # cut out already: better than any estimate
        return _keep_person(alpha * _closer(alpha.shape, pose2d, rivals))
    sure = _skeleton(coarse.shape, pose2d, visibility, hands)
    closer = _closer(coarse.shape, pose2d, rivals)
    coarse = np.maximum(coarse, 0.95 * sure) * closer
    band = max(3, round(max(coarse.shape) / 90))
    cut = _colour_cut(image, coarse, sure, band)
    blurred = cv2.blur(coarse, (band // 2 + 1,) * 2)  # colour decides only near the coarse edge, else it follows cables and shadows
    trust = np.clip(5 * blurred * (1 - blurred), 0, 0.75)
    soft = guided_filter(image, coarse + trust * (cut - coarse), radius=max(2, band // 3), eps=1e-4)
    soft = np.clip((soft - 0.5) * 1.6 + 0.5, 0, 1)  # the mean of two soft steps is wider than an edge in a photo
    return _keep_person(soft * closer)


def guided_filter(image, p, radius: int, eps: float) -> np.ndarray:
    """He, Sun and Tang, "Guided image filtering" (2010), colour guide: p (H, W) follows the edges of image (H, W, 3) uint8.

    radius in px; eps is the variance (of colours in [0, 1]) below which a window counts as flat. Returns (H, W) float32.
    """
    guide = image.astype(np.float32) / 255
    p = p.astype(np.float32)
    box = lambda x: cv2.blur(x, (2 * radius + 1, 2 * radius + 1), borderType=cv2.BORDER_REFLECT)  # noqa: E731
    mean, mean_p = box(guide), box(p)
    cov_p = box(guide * p[..., None]) - mean * mean_p[..., None]
    pairs = box(np.einsum("hwi,hwj->hwij", guide, guide).reshape(*p.shape, 9)[..., [0, 1, 2]])
    rest = box(np.stack([guide[..., 1] ** 2, guide[..., 1] * guide[..., 2], guide[..., 2] ** 2], -1))
    r, g, b = np.moveaxis(mean, -1, 0)
    rr, rg, rb = np.moveaxis(pairs, -1, 0)
    gg, gb, bb = np.moveaxis(rest, -1, 0)
    rr, gg, bb = rr - r * r + eps, gg - g * g + eps, bb - b * b + eps
    rg, rb, gb = rg - r * g, rb - r * b, gb - g * b
    # inverse of the symmetric 3 x 3 covariance by cofactors
    c00, c01, c02 = gg * bb - gb * gb, rb * gb - rg * bb, rg * gb - rb * gg
    c11, c12, c22 = rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg
    det = rr * c00 + rg * c01 + rb * c02
    x, y, z = np.moveaxis(cov_p, -1, 0)
    a = np.stack([c00 * x + c01 * y + c02 * z, c01 * x + c11 * y + c12 * z, c02 * x + c12 * y + c22 * z], -1) / det[..., None]
    offset = mean_p - (a * mean).sum(-1)
    return (box(a) * guide).sum(-1) + box(offset)


def _skeleton(shape, pose2d, visibility, hands) -> np.ndarray:
    """1 on thin lines along visible limbs and fingers, which are surely person, else 0. (H, W) float32."""
    canvas = np.zeros(shape, np.uint8)
    size = np.linalg.norm(pose2d[11] - pose2d[12]) + 1e-6
    for a, b in LIMBS:
        if min(visibility[a], visibility[b]) > 0.7:
            _line(canvas, pose2d[a], pose2d[b], 0.06 * size)
    for hand in hands:
        width = 0.12 * np.linalg.norm(hand[9] - hand[0])
        for a, b in FINGERS:
            _line(canvas, hand[a], hand[b], width)
        cv2.fillConvexPoly(canvas, hand[[0, 5, 9, 13, 17]].round().astype(np.int32), 1)
    return canvas.astype(np.float32)


def _line(canvas, start, end, width):
    cv2.line(canvas, tuple(int(v) for v in start), tuple(int(v) for v in end), 1, max(1, round(width)))


def _colour_cut(image, coarse, sure, band: int) -> np.ndarray:
    """GrabCut (Rother et al. 2004) inside the uncertain band only, at no more than 640 px. (H, W) float32 in {0, 1} smoothed."""
    shrink = min(1.0, 640 / max(coarse.shape))
    size = (round(coarse.shape[1] * shrink), round(coarse.shape[0] * shrink))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    p, s = cv2.resize(coarse, size, interpolation=cv2.INTER_AREA), cv2.resize(sure, size, interpolation=cv2.INTER_NEAREST)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * max(1, round(band * shrink)) + 1,) * 2)
    labels = np.where(p > 0.5, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[cv2.erode((p > 0.9).astype(np.uint8), kernel) > 0] = cv2.GC_FGD
    labels[cv2.dilate((p > 0.1).astype(np.uint8), kernel) == 0] = cv2.GC_BGD
    labels[s > 0] = cv2.GC_FGD
    if not ((labels == cv2.GC_FGD).any() and (labels == cv2.GC_BGD).any()):
        return (coarse > 0.5).astype(np.float32)
    cv2.setRNGSeed(0)
    cv2.grabCut(small, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), 3, cv2.GC_INIT_WITH_MASK)
    cut = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.float32)
    return cv2.resize(cut, coarse.shape[::-1], interpolation=cv2.INTER_LINEAR)


def _closer(shape, pose2d, rivals) -> np.ndarray:
    """1 where the person's skeleton is nearer than every rival's, relative to their sizes, else 0. (H, W) float32."""
    if not len(rivals):
        return np.ones(shape, np.float32)
    mine = _distance(shape, pose2d)
    others = np.min([_distance(shape, rival) for rival in rivals], 0)
    return (mine <= others).astype(np.float32)


def _distance(shape, pose2d) -> np.ndarray:
    """Distance of each pixel to head, trunk and limbs, in px. (H, W) float32."""
    canvas = np.ones(shape, np.uint8)
    line = lambda a, b: cv2.line(canvas, tuple(a.astype(int).tolist()), tuple(b.astype(int).tolist()), 0, 2)  # noqa: E731
    for a, b in LIMBS:
        line(pose2d[a], pose2d[b])
    trunk = np.int32([pose2d[i].round().tolist() for i in (11, 12, 24, 23)])
    cv2.fillPoly(canvas, [trunk], 0)
    line(pose2d[0], pose2d[[11, 12]].mean(0))
    cv2.circle(canvas, tuple(pose2d[0].astype(int).tolist()), max(1, int(np.linalg.norm(pose2d[7] - pose2d[8]) / 2)), 0, -1)
    return cv2.distanceTransform(canvas, cv2.DIST_L2, 5)


def _keep_person(mask) -> np.ndarray:
    """Drop islands of less than 1% of the largest region and fill pinholes (below 0.1% of it). (H, W) float32."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((mask > 0.3).astype(np.uint8))
    if count < 2:
        return mask.astype(np.float32)
    areas = stats[1:, cv2.CC_STAT_AREA]
    mask = np.where(np.isin(labels, 1 + np.flatnonzero(areas < 0.01 * areas.max())), 0, mask)
    count, labels, stats, _ = cv2.connectedComponentsWithStats((mask < 0.98).astype(np.uint8))
    holes = 1 + np.flatnonzero(stats[1:, cv2.CC_STAT_AREA] < 0.001 * areas.max())
    return np.where(np.isin(labels, holes), 1, mask).astype(np.float32)
