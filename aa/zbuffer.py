"""A z-buffer of a triangle mesh: which triangle each pixel sees, where on it, and how deep (numba)."""

import numba
import numpy as np
import torch


@numba.njit(cache=True)
def _draw(pixels, inverse_depth, faces, depth, tri, bary):
    """Fill depth (H, W), tri (H, W), bary (H, W, 3) with the nearest triangle at each pixel centre."""
    height, width = depth.shape
    for f in range(len(faces)):
        a, b, c = faces[f]
        wa, wb, wc = inverse_depth[a], inverse_depth[b], inverse_depth[c]
        if wa <= 0 or wb <= 0 or wc <= 0:  # behind the camera
            continue
        ax, ay, bx, by, cx, cy = pixels[a, 0], pixels[a, 1], pixels[b, 0], pixels[b, 1], pixels[c, 0], pixels[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0:
            continue
        x0, x1 = max(0, int(np.floor(min(ax, bx, cx) - 0.5))), min(width - 1, int(np.ceil(max(ax, bx, cx) - 0.5)))
        y0, y1 = max(0, int(np.floor(min(ay, by, cy) - 0.5))), min(height - 1, int(np.ceil(max(ay, by, cy) - 0.5)))
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                px, py = x + 0.5, y + 0.5
                u = ((bx - px) * (cy - py) - (by - py) * (cx - px)) / area
                v = ((cx - px) * (ay - py) - (cy - py) * (ax - px)) / area
                w = 1.0 - u - v
                if u < 0 or v < 0 or w < 0:
                    continue
                inverse = u * wa + v * wb + w * wc  # linear over the image
                if inverse * depth[y, x] > 1.0:
                    depth[y, x] = 1.0 / inverse
                    tri[y, x] = f
                    bary[y, x, 0] = u * wa / inverse
                    bary[y, x, 1] = v * wb / inverse
                    bary[y, x, 2] = w * wc / inverse


def zbuffer(vertices, faces, viewmat, K, width: int, height: int):
    """Depth, triangle and place on it of the surface that each pixel sees.

    Args: vertices (V, 3) m; faces (F, 3) int; viewmat (4, 4) world to camera, OpenCV axes; K (3, 3) px, pixel centres at +0.5.
    Returns: numpy depth (H, W) m, inf where nothing is seen; tri (H, W) int64, -1 there; bary (H, W, 3), perspective-correct.
    """
    v, f, view, k = (np.asarray(torch.as_tensor(x).detach().cpu()) for x in (vertices, faces, viewmat, K))
    camera = v.astype(np.float64) @ view[:3, :3].T + view[:3, 3]
    z = camera[:, 2]
    front = z > 1e-4
    pixels = np.zeros((len(v), 2))
    pixels[front] = (camera[front] @ k.T.astype(np.float64))[:, :2] / z[front, None]
    inverse = np.where(front, 1 / np.where(front, z, 1.0), 0.0)
    depth, tri, bary = np.full((height, width), np.inf), np.full((height, width), -1), np.zeros((height, width, 3))
    _draw(pixels, inverse, np.ascontiguousarray(f, dtype=np.int64), depth, tri, bary)
    return depth, tri, bary
