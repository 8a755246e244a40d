"""CPU kernels of the Gaussian rasteriser (numba): compositing and its analytic gradient.

One SIMD vector holds the `TILE_W` pixels of one line of a tile, so that the loops below read like scalar code for one
pixel. A pixel composites its Gaussians front to back (3D Gaussian splatting, Kerbl et al. 2023, eq. 2-3):

    alpha_i = min(0.999, opacity_i exp(-sigma_i)),   w_i = T_i alpha_i,   T_{i+1} = T_i (1 - alpha_i)

Gaussians with alpha < 1/255 are skipped and a pixel stops before T would fall to 1e-4 (the constants of gsplat 1.5.3).
Down a column of pixels log(alpha) is a parabola, so alpha follows from the line above by two multiplications:
alpha(y + 1) = alpha(y) r(y), r(y + 1) = r(y) exp(-conic_yy).

Kernels release the GIL and are called on disjoint ranges by the threads of `raster_cpu.py`; every sum has a fixed
order, so results do not depend on the number of threads.
"""

import numpy as np

from aa.raster_bins import TILE_H
from aa.raster_project import ALPHA_MAX, ALPHA_MIN, T_STOP
from aa.raster_simd import TILE_W, jit, vany, vexp2, vfull, vload, vstore, vsum, vsums, where_gt

FAINT = -60.0  # log2(alpha) below which a line of the tile is not derived from the one above: float32 would underflow


@jit
def _live_lines(buffer, stride, low, high):
    """Shrink the range of lines low..high - 1 of a tile to those with a pixel that has not stopped (state > 0)."""
    while low < high and not vany(vload(buffer, TILE_W + low * stride)):
        low += 1
    while high > low and not vany(vload(buffer, TILE_W + (high - 1) * stride)):
        high -= 1
    return low, high


@jit
def composite(first, last, size, row_starts, starts, items, near, background, image, alpha):
    """Render the rows of tiles first..last: image (C, H, W, D) over background (1 or C, D), and alpha (C, H, W)."""
    width, height = size
    columns, rows, depth = -(-width // TILE_W), -(-height // TILE_H), near.shape[1] - 9
    # per line: state (the transmittance T, or -T once the pixel has stopped), D' colours; before them the pixel numbers
    stride = TILE_W * (1 + depth)
    buffer = np.empty(TILE_W + TILE_H * stride, near.dtype)
    buffer[:TILE_W] = np.arange(TILE_W)
    flat = image.reshape(-1), alpha.reshape(-1)
    for tile in range((last - first) * columns):
        row = first + tile // columns
        c, x0, y0, base = row // rows, (tile % columns) * TILE_W, (row % rows) * TILE_H, row_starts[row] - row_starts[first]
        low, high = 0, min(TILE_H, height - y0)
        for at in range(TILE_W, TILE_W + high * stride, stride):
            vstore(buffer, at, 1.0)
            for to in range(at + TILE_W, at + stride, TILE_W):
                vstore(buffer, to, 0.0)
        for e in range(starts[tile], starts[tile + 1]):
            if (e - starts[tile]) % 8 == 7:
                low, high = _live_lines(buffer, stride, low, high)
                if low == high:
                    break
            item = np.int64(items[e])
            at_near = base + (item >> 10)
            g = near[at_near]
            y, end = max((item >> 5) & 31, low), min((item & 31) + 1, high)
            dx = vload(buffer, 0) + (x0 + 0.5 - g[0])
            constant, linear, square = dx * dx * g[2] + g[5], dx * g[3], vfull(buffer, g[4])
            dy = vfull(buffer, y0 + y + 0.5 - g[1])
            c0, c1, c2 = vfull(buffer, g[9]), vfull(buffer, g[10]), vfull(buffer, g[11])
            bend, at = vfull(buffer, g[8]), TILE_W + y * stride
            while y < end:
                power, slope = constant + dy * (linear + square * dy), linear + square * (dy + dy + 1.0)
                raw, ratio = vexp2(power), vexp2(slope)
                until = y + 1 if vany(FAINT - power) else end
                dy += float(until - y)
                while y < until:
                    a = where_gt(ALPHA_MIN, raw, 0.0, where_gt(raw, ALPHA_MAX, ALPHA_MAX, raw))
                    raw = raw * ratio
                    ratio = ratio * bend
                    state = vload(buffer, at)
                    live, stopped = where_gt(state, 0.0, state, 0.0), where_gt(state, 0.0, 0.0 - state, state)
                    weight = live * a
                    rest = live - weight
                    vstore(buffer, at, where_gt(rest, T_STOP, rest, stopped))
                    weight = where_gt(rest, T_STOP, weight, 0.0)
                    vstore(buffer, at + TILE_W, vload(buffer, at + TILE_W) + weight * c0)
                    vstore(buffer, at + 2 * TILE_W, vload(buffer, at + 2 * TILE_W) + weight * c1)
                    vstore(buffer, at + 3 * TILE_W, vload(buffer, at + 3 * TILE_W) + weight * c2)
                    for k in range(3, depth):
                        to = at + (1 + k) * TILE_W
                        vstore(buffer, to, vload(buffer, to) + weight * g[9 + k])
                    at += stride
                    y += 1
        pixels = (c * height + y0) * width + x0, min(TILE_H, height - y0), min(TILE_W, width - x0)
        _write_tile(buffer, stride, pixels, size, background[min(c, background.shape[0] - 1)], *flat)


@jit
def _write_tile(buffer, stride, pixels, size, background, image, alpha):
    """Copy a tile from the buffer to image and alpha (both flat), over background (D,).

    pixels: the number of its first pixel, and how many lines and columns of it are on the picture.
    """
    depth = len(background)
    for y in range(pixels[1]):
        pixel, at = pixels[0] + y * size[0], TILE_W + y * stride
        to = pixel * depth
        for x in range(pixels[2]):
            rest = abs(buffer[at + x])
            alpha[pixel + x] = 1 - rest
            for k in range(depth):
                image[to + k] = buffer[at + x + (1 + k) * TILE_W] + rest * background[k]
            to += depth


@jit
def _load_gradients(buffer, stride, pixels, size, depth, image, alpha, v_image, v_alpha):
    """Fill the lines of a tile for `composite_grad`; pixels beyond the borders count as stopped. See `_write_tile`."""
    for at in range(TILE_W, TILE_W + TILE_H * stride, TILE_W):
        vstore(buffer, at, 0.0)
    for y in range(pixels[1]):
        pixel, at = pixels[0] + y * size[0], TILE_W + y * stride
        to = pixel * depth
        for x in range(pixels[2]):
            suffix = -v_alpha[pixel + x] * (1 - alpha[pixel + x])
            for k in range(depth):
                v = v_image[to + k]
                buffer[at + x + (2 + k) * TILE_W] = v
                suffix += v * image[to + k]
            to += depth
            buffer[at + x] = 1.0
            buffer[at + x + TILE_W] = suffix


@jit
def composite_grad(
    first, last, size, row_starts, starts, items, near, image, alpha, v_image, v_alpha, sums
):  # fmt: skip
    """Gradient of `composite` for the rows of tiles first..last, in sums (flat; len(near) times 6 + D').

    Front to back again: with q_i = c_i . dL/dC and suffix S_i = sum_{j > i} w_j q_j + T_end (background term - dL/dA),
    dL/dalpha_i = T_i q_i - S_i / (1 - alpha_i). Summed over pixels are g = alpha dL/dalpha times 1, dx, dy, dx^2,
    dx dy, dy^2, then w_i dL/dC per channel.
    """
    columns, rows, depth = -(-size[0] // TILE_W), -(-size[1] // TILE_H), near.shape[1] - 9
    # per line: live transmittance, suffix, D' channels of dL/dC; behind them the colour sums of one Gaussian
    stride = TILE_W * (2 + depth)
    tail = TILE_W + TILE_H * stride
    buffer = np.zeros(tail + depth * TILE_W, near.dtype)
    buffer[:TILE_W] = np.arange(TILE_W)
    zero, flat = vfull(buffer, 0.0), (image.reshape(-1), alpha.reshape(-1), v_image.reshape(-1), v_alpha.reshape(-1))
    for tile in range((last - first) * columns):
        if starts[tile] == starts[tile + 1]:
            continue
        row = first + tile // columns
        c, x0, y0, base = row // rows, (tile % columns) * TILE_W, (row % rows) * TILE_H, row_starts[row] - row_starts[first]
        low, high = 0, min(TILE_H, size[1] - y0)
        pixels = (c * size[1] + y0) * size[0] + x0, high, min(TILE_W, size[0] - x0)
        _load_gradients(buffer, stride, pixels, size, image.shape[3], *flat)
        for e in range(starts[tile], starts[tile + 1]):
            if (e - starts[tile]) % 8 == 7:
                low, high = _live_lines(buffer, stride, low, high)
                if low == high:
                    break
            item = np.int64(items[e])
            at_near = base + (item >> 10)
            g = near[at_near]
            y, end = max((item >> 5) & 31, low), min((item & 31) + 1, high)
            if y >= end:
                continue
            dx = vload(buffer, 0) + (x0 + 0.5 - g[0])
            constant, linear, square = dx * dx * g[2] + g[5], dx * g[3], vfull(buffer, g[4])
            dy = vfull(buffer, y0 + y + 0.5 - g[1])
            c0, c1, c2 = vfull(buffer, g[9]), vfull(buffer, g[10]), vfull(buffer, g[11])
            s, sy, syy, s0, s1, s2 = zero, zero, zero, zero, zero, zero
            for k in range(3, depth):
                vstore(buffer, tail + k * TILE_W, 0.0)
            bend, at = vfull(buffer, g[8]), TILE_W + y * stride
            while y < end:
                power, slope = constant + dy * (linear + square * dy), linear + square * (dy + dy + 1.0)
                raw, ratio = vexp2(power), vexp2(slope)
                until = y + 1 if vany(FAINT - power) else end
                while y < until:
                    a = where_gt(ALPHA_MIN, raw, 0.0, where_gt(raw, ALPHA_MAX, ALPHA_MAX, raw))
                    live = vload(buffer, at)
                    rest = live - live * a
                    vstore(buffer, at, where_gt(rest, T_STOP, rest, 0.0))
                    a = where_gt(rest, T_STOP, a, 0.0)
                    weight = live * a
                    v0, v1, v2 = vload(buffer, at + 2 * TILE_W), vload(buffer, at + 3 * TILE_W), vload(buffer, at + 4 * TILE_W)
                    q = v0 * c0 + v1 * c1 + v2 * c2
                    s0 += weight * v0
                    s1 += weight * v1
                    s2 += weight * v2
                    for k in range(3, depth):
                        v = vload(buffer, at + (2 + k) * TILE_W)
                        q += v * g[9 + k]
                        to = tail + k * TILE_W
                        vstore(buffer, to, vload(buffer, to) + weight * v)
                    gain = weight * q
                    suffix = vload(buffer, at + TILE_W) - gain
                    vstore(buffer, at + TILE_W, suffix)
                    v_log = where_gt(raw, ALPHA_MAX, 0.0, gain - suffix * (a / (1.0 - a)))
                    s += v_log
                    v_log = v_log * dy
                    sy += v_log
                    syy += v_log * dy
                    raw = raw * ratio
                    ratio = ratio * bend
                    dy += 1.0
                    at += stride
                    y += 1
            to = at_near * (6 + depth)
            sx = s * dx
            vstore(sums, to, vload(sums, to) + vsums(s, sx, sy, sx * dx, sy * dx, syy, s0, s1))
            sums[to + 8] += vsum(s2)
            for k in range(3, depth):
                sums[to + 6 + k] += vsum(vload(buffer, tail + k * TILE_W))


@jit
def gather(c, first, last, slots, places, sums, conics, opacities, v_means2d, v_conics, v_opacities, v_colors):
    """Turn sums into gradients (C, N, ...) of the 2D centres, conics, opacities and colours of Gaussians first..last."""
    depth, width = v_colors.shape[2], 6 + max(v_colors.shape[2], 3)
    total = np.empty(width, sums.dtype)
    for n in range(first, last):
        if slots[c, n] == slots[c, n + 1]:
            continue
        head = vfull(total, 0.0)
        total[:] = 0.0
        for slot in range(slots[c, n], slots[c, n + 1]):
            at = places[slot] * width
            head += vload(sums, at)
            for k in range(8, width):
                total[k] += sums[at + k]
        vstore(total, 0, head)
        a, b, d = conics[c, n, 0], conics[c, n, 1], conics[c, n, 2]
        v_means2d[c, n, 0] = a * total[1] + b * total[2]
        v_means2d[c, n, 1] = b * total[1] + d * total[2]
        v_conics[c, n, 0], v_conics[c, n, 1], v_conics[c, n, 2] = -0.5 * total[3], -total[4], -0.5 * total[5]
        v_opacities[c, n] = total[0] / opacities[min(c, opacities.shape[0] - 1), n]
        for k in range(depth):
            v_colors[c, n, k] = total[6 + k]
