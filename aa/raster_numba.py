"""CPU kernels of the Gaussian rasteriser (numba): binning, compositing and its analytic gradient.

The image is cut into rows of tiles, `TILE_W` x `TILE_H` pixels each. One SIMD vector holds the `TILE_W` pixels of one
line of a tile, so that the compositing loops below read like scalar code for one pixel. A pixel composites its
Gaussians front to back (3D Gaussian splatting, Kerbl et al. 2023, eq. 2-3):

    alpha_i = min(0.999, opacity_i exp(-sigma_i)),   w_i = T_i alpha_i,   T_{i+1} = T_i (1 - alpha_i)

Gaussians with alpha < 1/255 are skipped and a pixel stops before T would fall to 1e-4 (the constants of gsplat 1.5.3).
Kernels release the GIL and are called on disjoint ranges by the threads of `raster_cpu.py`; every sum has a fixed
order, so results do not depend on the number of threads.
"""

import math

import numpy as np

from aa.raster_project import ALPHA_MIN
from aa.raster_simd import TILE_W, jit, vexp2, vfull, vload, vstore, vsum, vsums, where_gt

TILE_H = 16
ALPHA_MAX = 0.999  # of gsplat 1.5.3 (RasterizeToPixels3DGSFwd.cu), as is
T_STOP = 1e-4
LOG2E = math.log2(math.e)
MARGIN = 0.05  # pixels added around exact ellipse bounds: covers float32 rounding, costs nothing


# ---------------------------------------------------------------------------------------------------------- binning


@jit
def _depth_order(keys, radii):
    """Indices of the visible Gaussians by increasing depth, stable (radix sort on the bits of positive floats)."""
    order = np.nonzero(radii[:, 0])[0]
    other = np.empty_like(order)
    for shift in range(0, keys.itemsize * 8, 11):
        start = np.zeros(2049, np.int64)
        for i in order:
            start[((keys[i] >> np.uint64(shift)) & np.uint64(2047)) + np.uint64(1)] += 1
        start = np.cumsum(start)
        for i in order:
            digit = (keys[i] >> np.uint64(shift)) & np.uint64(2047)
            other[start[digit]] = i
            start[digit] += 1
        order, other = other, order
    return order


@jit
def pack(c, size, keys, means2d, conics, radii, opacities, colors, packed, order, lines, slots):
    """Sort camera c by depth and lay its Gaussians out for compositing.

    packed (C, N, 8 + D'): centre, the conic times -log2(e), log2(opacity), half extents of the alpha = 1/255 ellipse,
    colours padded with zeros; order (C, N) original index; lines (C, N, 2) first and last pixel line; slots (C, N + 1)
    where the gradient sums of each Gaussian start: one per row of tiles it touches. Returns the number of Gaussians
    laid out; per row of tiles those that reach it, row_starts (rows + 1,) into row_items; and the inverse of that list:
    the sums of Gaussian i for its k-th row of tiles belong to row_items[places[slots[c, i] + k]].
    """
    width, height = size
    count, slot = 0, 0
    co, cc = min(c, opacities.shape[0] - 1), min(c, colors.shape[0] - 1)
    row_starts = np.zeros(-(-height // TILE_H) + 1, np.int64)
    for n in _depth_order(keys[c], radii[c]):
        mx, my, log_opacity = means2d[c, n, 0], means2d[c, n, 1], math.log2(float(opacities[co, n]))
        a, b, d = float(conics[c, n, 0]), float(conics[c, n, 1]), float(conics[c, n, 2])
        reach = max(2.0 * (log_opacity - math.log2(ALPHA_MIN)) / LOG2E, 0.0) / (a * d - b * b)
        half_x, half_y = math.sqrt(reach * d) + MARGIN, math.sqrt(reach * a) + MARGIN
        top, bottom = math.ceil(max(my - half_y - 0.5, 0.0)), math.floor(min(my + half_y - 0.5, height - 1.0))
        if top > bottom or mx + half_x < 0.5 or mx - half_x > width - 0.5:
            continue
        g = packed[c, count]
        g[0], g[1], g[2], g[3], g[4] = mx, my, -0.5 * LOG2E * a, -LOG2E * b, -0.5 * LOG2E * d
        g[5], g[6], g[7] = log_opacity, half_x, half_y
        for k in range(colors.shape[2]):
            g[8 + k] = colors[cc, n, k]
        g[8 + colors.shape[2] :] = 0.0
        order[c, count], lines[c, count, 0], lines[c, count, 1], slots[c, count] = n, top, bottom, slot
        for row in range(top // TILE_H, bottom // TILE_H + 1):
            row_starts[row + 1] += 1
            slot += 1
        count += 1
    slots[c, count] = slot
    row_starts = np.cumsum(row_starts)
    fill, row_items, places = row_starts.copy(), np.empty(slot, np.int64), np.empty(slot, np.int64)
    slot = 0
    for i in range(count):
        for row in range(lines[c, i, 0] // TILE_H, lines[c, i, 1] // TILE_H + 1):
            row_items[fill[row]] = i
            places[slot] = fill[row]
            fill[row] += 1
            slot += 1
    return count, row_starts, row_items, places


@jit
def _span(shear, spread, narrowing, peak, low, high):
    """Range of u over the part of an ellipse with v in [low, high], where v = peak at the largest u.

    The ellipse a u^2 + 2 b u v + d v^2 <= k has u = -b/a v +- sqrt(k/a - (d/a - (b/a)^2) v^2), here with
    shear = b/a, spread = k/a, narrowing = d/a - (b/a)^2.
    """
    t = min(max(-peak, low), high)
    start = -shear * t - math.sqrt(max(spread - narrowing * t * t, 0.0)) - MARGIN
    t = min(max(peak, low), high)
    return start, -shear * t + math.sqrt(max(spread - narrowing * t * t, 0.0)) + MARGIN


@jit
def bin_rows(first, last, size, packed, lines, row_starts, row_items):
    """Gaussians of every tile in the rows of tiles first..last (counted over all cameras), front to back.

    Returns starts (rows * columns + 1,) into items; items: (index into near) << 16 | first line << 8 | end line, lines
    counted from the top of the tile; and near, the rows of packed in the order of row_items: a row of tiles then works
    on a few contiguous kilobytes. An ellipse is listed only in tiles that it really touches.
    """
    width, height = size
    columns, rows = -(-width // TILE_W), -(-height // TILE_H)
    starts = np.zeros((last - first) * columns + 1, np.int64)
    offset = row_starts[first]
    touched = np.empty((row_starts[last] - offset, 2), np.int32)  # first and last column of tiles
    near = np.empty((row_starts[last] - offset, packed.shape[2]), packed.dtype)
    for row in range(first, last):
        c, y0 = row // rows, (row % rows) * TILE_H
        for j in range(row_starts[row], row_starts[row + 1]):
            g, line = near[j - offset], lines[c, row_items[j]]
            g[:] = packed[c, row_items[j]]
            mx, my, a, b, d = float(g[0]), float(g[1]), -float(g[2]), -0.5 * g[3], -float(g[4])
            low, high = max(line[0], y0) + 0.5 - my, min(line[1], y0 + TILE_H - 1) + 0.5 - my
            spread = (g[5] - math.log2(ALPHA_MIN)) / a
            left, right = _span(b / a, spread, d / a - (b / a) ** 2, -b / d * g[6], low, high)
            x0 = math.ceil(max(mx + left - 0.5, 0.0)) // TILE_W
            x1 = math.floor(min(mx + right - 0.5, width - 1.0)) // TILE_W
            touched[j - offset, 0], touched[j - offset, 1] = x0, x1
            for x in range(x0, x1 + 1):
                starts[(row - first) * columns + x + 1] += 1
    starts = np.cumsum(starts)
    fill = starts.copy()
    items = np.empty(starts[-1], np.int64)
    for row in range(first, last):
        y0 = (row % rows) * TILE_H
        for i in range(row_starts[row] - offset, row_starts[row + 1] - offset):
            g = near[i]
            mx, my, a, b, d = float(g[0]), g[1] - 0.5 - y0, -float(g[2]), -0.5 * g[3], -float(g[4])
            shear, spread, peak = b / d, (g[5] - math.log2(ALPHA_MIN)) / d, -b / a * g[7]
            narrowing = a / d - shear * shear
            for x in range(touched[i, 0], touched[i, 1] + 1):
                left = x * TILE_W + 0.5 - mx
                top, bottom = _span(shear, spread, narrowing, peak, left, left + (TILE_W - 1))
                low = math.ceil(max(my + top, 0.0))
                high = math.floor(min(max(my + bottom, -1.0), TILE_H - 1.0)) + 1
                tile = (row - first) * columns + x
                items[fill[tile]] = (i << 16) | (min(low, high) << 8) | high
                fill[tile] += 1
    return starts, items, near


# ------------------------------------------------------------------------------------------------------ compositing


@jit
def _live_lines(buffer, stride, low, high):
    """Shrink the range of lines low..high - 1 of a tile to those with a pixel that has not stopped."""
    while low < high and vsum(vload(buffer, TILE_W + low * stride)) <= 0.0:
        low += 1
    while high > low and vsum(vload(buffer, TILE_W + (high - 1) * stride)) <= 0.0:
        high -= 1
    return low, high


@jit
def composite(first, last, size, starts, items, near, background, image, alpha):
    """Render the rows of tiles first..last: image (C, H, W, D) over background (1 or C, D), and alpha (C, H, W)."""
    width, height = size
    columns, rows, depth = -(-width // TILE_W), -(-height // TILE_H), near.shape[1] - 8
    # per line: live transmittance (0 once stopped), final transmittance, D' colours; before them the pixel numbers
    stride = TILE_W * (2 + depth)
    buffer = np.empty(TILE_W + TILE_H * stride, near.dtype)
    buffer[:TILE_W] = np.arange(TILE_W)
    for tile in range((last - first) * columns):
        row = first + tile // columns
        c, x0, y0 = row // rows, (tile % columns) * TILE_W, (row % rows) * TILE_H
        low, high = 0, min(TILE_H, height - y0)
        for at in range(TILE_W, TILE_W + high * stride, stride):
            vstore(buffer, at, 1.0)
            vstore(buffer, at + TILE_W, 1.0)
            for to in range(at + 2 * TILE_W, at + stride, TILE_W):
                vstore(buffer, to, 0.0)
        for e in range(starts[tile], starts[tile + 1]):
            if (e - starts[tile]) % 8 == 7:
                low, high = _live_lines(buffer, stride, low, high)
                if low == high:
                    break
            item = items[e]
            g = near[item >> 16]
            y, end = max((item >> 8) & 255, low), min(item & 255, high)
            dx = vload(buffer, 0) + (x0 + 0.5 - g[0])
            constant, linear, square = dx * dx * g[2] + g[5], dx * g[3], vfull(buffer, g[4])
            dy = vfull(buffer, y0 + y + 0.5 - g[1])
            c0, c1, c2, c3 = vfull(buffer, g[8]), vfull(buffer, g[9]), vfull(buffer, g[10]), vfull(buffer, g[11])
            for at in range(TILE_W + y * stride, TILE_W + end * stride, stride):
                a = vexp2(constant + dy * (linear + square * dy))
                a = where_gt(ALPHA_MIN, a, 0.0, where_gt(a, ALPHA_MAX, ALPHA_MAX, a))
                live = vload(buffer, at)
                weight = live * a
                rest = live - weight
                vstore(buffer, at, where_gt(rest, T_STOP, rest, 0.0))
                vstore(buffer, at + TILE_W, where_gt(rest, T_STOP, rest, vload(buffer, at + TILE_W)))
                weight = where_gt(rest, T_STOP, weight, 0.0)
                vstore(buffer, at + 2 * TILE_W, vload(buffer, at + 2 * TILE_W) + weight * c0)
                vstore(buffer, at + 3 * TILE_W, vload(buffer, at + 3 * TILE_W) + weight * c1)
                vstore(buffer, at + 4 * TILE_W, vload(buffer, at + 4 * TILE_W) + weight * c2)
                vstore(buffer, at + 5 * TILE_W, vload(buffer, at + 5 * TILE_W) + weight * c3)
                for k in range(4, depth):
                    to = at + (2 + k) * TILE_W
                    vstore(buffer, to, vload(buffer, to) + weight * g[8 + k])
                dy += 1.0
        behind = background[min(c, background.shape[0] - 1)]
        for y in range(min(TILE_H, height - y0)):
            at = TILE_W + y * stride + TILE_W
            line, line_alpha = image[c, y0 + y, x0 : x0 + TILE_W], alpha[c, y0 + y, x0 : x0 + TILE_W]
            for x in range(len(line)):
                rest = buffer[at + x]
                line_alpha[x] = 1 - rest
                for k in range(line.shape[1]):
                    line[x, k] = buffer[at + x + (1 + k) * TILE_W] + rest * behind[k]


@jit
def _load_gradients(buffer, stride, image, alpha, v_image, v_alpha):
    """Fill the lines of a tile for `composite_grad`; pixels beyond the borders count as stopped.

    The other arguments are cut out for the tile: image and v_image (h, w, D), alpha and v_alpha (h, w).
    """
    buffer[TILE_W : TILE_W + TILE_H * stride] = 0.0
    for y in range(alpha.shape[0]):
        line, line_alpha, v_line, v_line_alpha = image[y], alpha[y], v_image[y], v_alpha[y]
        for x in range(len(line)):
            at = TILE_W + y * stride + x
            suffix = -v_line_alpha[x] * (1 - line_alpha[x])
            for k in range(line.shape[1]):
                v = v_line[x, k]
                buffer[at + (2 + k) * TILE_W] = v
                suffix += v * line[x, k]
            buffer[at] = 1.0
            buffer[at + TILE_W] = suffix


@jit
def composite_grad(
    first, last, size, starts, items, near, image, alpha, v_image, v_alpha, sums
):  # fmt: skip
    """Gradient of `composite` for the rows of tiles first..last, in sums (flat; len(near) times 8 + 8 ceil(D' / 8)).

    Front to back again: with q_i = c_i . dL/dC and suffix S_i = sum_{j > i} w_j q_j + T_end (background term - dL/dA),
    dL/dalpha_i = T_i q_i - S_i / (1 - alpha_i). Summed over pixels are g = alpha dL/dalpha times 1, dx, dy, dx^2,
    dx dy, dy^2 (two lanes unused), then w_i dL/dC per channel.
    """
    columns, rows, depth = -(-size[0] // TILE_W), -(-size[1] // TILE_H), near.shape[1] - 8
    # per line: live transmittance, suffix, D' channels of dL/dC; behind them the colour sums of one Gaussian
    stride = TILE_W * (2 + depth)
    tail = TILE_W + TILE_H * stride
    blocks = -(-depth // 8)
    buffer = np.zeros(tail + blocks * 8 * TILE_W, near.dtype)
    buffer[:TILE_W] = np.arange(TILE_W)
    zero = vfull(buffer, 0.0)
    for tile in range((last - first) * columns):
        if starts[tile] == starts[tile + 1]:
            continue
        row = first + tile // columns
        c, x0, y0 = row // rows, (tile % columns) * TILE_W, (row % rows) * TILE_H
        low, high = 0, min(TILE_H, size[1] - y0)
        xs, ys = slice(x0, x0 + TILE_W), slice(y0, y0 + TILE_H)
        _load_gradients(buffer, stride, image[c, ys, xs], alpha[c, ys, xs], v_image[c, ys, xs], v_alpha[c, ys, xs])
        for e in range(starts[tile], starts[tile + 1]):
            if (e - starts[tile]) % 8 == 7:
                low, high = _live_lines(buffer, stride, low, high)
                if low == high:
                    break
            item = items[e]
            g = near[item >> 16]
            y, end = max((item >> 8) & 255, low), min(item & 255, high)
            if y >= end:
                continue
            dx = vload(buffer, 0) + (x0 + 0.5 - g[0])
            constant, linear, square = dx * dx * g[2] + g[5], dx * g[3], vfull(buffer, g[4])
            dy = vfull(buffer, y0 + y + 0.5 - g[1])
            c0, c1, c2, c3 = vfull(buffer, g[8]), vfull(buffer, g[9]), vfull(buffer, g[10]), vfull(buffer, g[11])
            s, sy, syy, s0, s1, s2, s3 = zero, zero, zero, zero, zero, zero, zero
            for to in range(tail + 4 * TILE_W, tail + depth * TILE_W, TILE_W):
                vstore(buffer, to, 0.0)
            for at in range(TILE_W + y * stride, TILE_W + end * stride, stride):
                raw = vexp2(constant + dy * (linear + square * dy))
                a = where_gt(ALPHA_MIN, raw, 0.0, where_gt(raw, ALPHA_MAX, ALPHA_MAX, raw))
                live = vload(buffer, at)
                rest = live - live * a
                vstore(buffer, at, where_gt(rest, T_STOP, rest, 0.0))
                a = where_gt(rest, T_STOP, a, 0.0)
                weight = live * a
                v0, v1 = vload(buffer, at + 2 * TILE_W), vload(buffer, at + 3 * TILE_W)
                v2, v3 = vload(buffer, at + 4 * TILE_W), vload(buffer, at + 5 * TILE_W)
                q = (v0 * c0 + v1 * c1) + (v2 * c2 + v3 * c3)
                s0 += weight * v0
                s1 += weight * v1
                s2 += weight * v2
                s3 += weight * v3
                for k in range(4, depth):
                    v = vload(buffer, at + (2 + k) * TILE_W)
                    q += v * g[8 + k]
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
                dy += 1.0
            to = (item >> 16) * 8 * (1 + blocks)
            sx = s * dx
            vstore(sums, to, vload(sums, to) + vsums(s, sx, sy, sx * dx, sy * dx, syy, zero, zero))
            for b in range(blocks):
                at = tail + b * 8 * TILE_W
                if b > 0:
                    s0, s1 = vload(buffer, at), vload(buffer, at + TILE_W)
                    s2, s3 = vload(buffer, at + 2 * TILE_W), vload(buffer, at + 3 * TILE_W)
                s4, s5 = vload(buffer, at + 4 * TILE_W), vload(buffer, at + 5 * TILE_W)
                s6, s7 = vload(buffer, at + 6 * TILE_W), vload(buffer, at + 7 * TILE_W)
                to += 8
                vstore(sums, to, vload(sums, to) + vsums(s0, s1, s2, s3, s4, s5, s6, s7))


@jit
def gather(c, first, last, order, slots, places, sums, conics, opacities, v_means2d, v_conics, v_opacities, v_colors):
    """Turn the sums of places first..last of camera c into gradients (C, N, ...) of 2D centres, conics, opacities and colours."""
    depth = v_colors.shape[2]
    width = 8 * (1 + -(-depth // 8))
    total = np.empty(width)
    for i in range(first, last):
        n = order[c, i]
        total[:] = 0.0
        for slot in range(slots[c, i], slots[c, i + 1]):
            for k in range(width):
                total[k] += sums[places[slot] * width + k]
        a, b, d = conics[c, n, 0], conics[c, n, 1], conics[c, n, 2]
        v_means2d[c, n, 0] = a * total[1] + b * total[2]
        v_means2d[c, n, 1] = b * total[1] + d * total[2]
        v_conics[c, n, 0], v_conics[c, n, 1], v_conics[c, n, 2] = -0.5 * total[3], -total[4], -0.5 * total[5]
        v_opacities[c, n] = total[0] / opacities[min(c, opacities.shape[0] - 1), n]
        for k in range(depth):
            v_colors[c, n, k] = total[8 + k]
