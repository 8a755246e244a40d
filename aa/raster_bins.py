"""CPU kernels of the Gaussian rasteriser (numba): depth sort, exact culling, and the lists of Gaussians per tile.

The image is cut into rows of tiles, `TILE_W` x `TILE_H` pixels each. Gaussians are sorted by depth once and then only
distributed, so that every list is in depth order. Kernels release the GIL and are called on disjoint ranges.
"""

import math

import numpy as np

from aa.raster_project import ALPHA_MIN
from aa.raster_simd import TILE_W, jit, vload, vsqrt, vstore, where_gt

TILE_H = 24  # at most 32: a line of a tile is kept in 5 bits
MOST = 2**22  # Gaussians in one call: a place in a row of tiles is kept in 22 bits
LOG2E = math.log2(math.e)
MARGIN = 0.05  # pixels added around exact ellipse bounds: covers float32 rounding, costs nothing


@jit
def pack(c, first, last, size, means2d, conics, radii, opacities, colors, packed, boxes):
    """Lay Gaussians first..last of camera c out for compositing.

    packed (C, N, 9 + D'): centre, the conic times -log2(e), log2(opacity), half extents of the alpha = 1/255 ellipse, the
    factor by which alpha(y + 1) / alpha(y) changes per line, colours padded with zeros; boxes (C, N, 4): its first and
    last pixel line, first and last column of tiles. A Gaussian that reaches no pixel has a last line before its first.
    """
    width, height = size
    co, cc = min(c, opacities.shape[0] - 1), min(c, colors.shape[0] - 1)
    for n in range(first, last):
        box, g = boxes[c, n], packed[c, n]
        box[0], box[1] = 0, -1
        if radii[c, n, 0] == 0:
            continue
        mx, my, log_opacity = means2d[c, n, 0], means2d[c, n, 1], math.log2(float(opacities[co, n]))
        a, b, d = float(conics[c, n, 0]), float(conics[c, n, 1]), float(conics[c, n, 2])
        reach = max(2.0 * (log_opacity - math.log2(ALPHA_MIN)) / LOG2E, 0.0) / (a * d - b * b)
        half_x, half_y = math.sqrt(reach * d) + MARGIN, math.sqrt(reach * a) + MARGIN
        if mx + half_x < 0.5 or mx - half_x > width - 0.5:
            continue
        box[0], box[1] = math.ceil(max(my - half_y - 0.5, 0.0)), math.floor(min(my + half_y - 0.5, height - 1.0))
        box[2] = math.ceil(max(mx - half_x - 0.5, 0.0)) // TILE_W
        box[3] = math.floor(min(mx + half_x - 0.5, width - 1.0)) // TILE_W
        g[0], g[1], g[2], g[3], g[4] = mx, my, -0.5 * LOG2E * a, -LOG2E * b, -0.5 * LOG2E * d
        g[5], g[6], g[7], g[8] = log_opacity, half_x, half_y, math.exp(-d)
        for k in range(colors.shape[2]):
            g[9 + k] = colors[cc, n, k]
        for k in range(9 + colors.shape[2], len(g)):
            g[k] = 0.0


@jit
def _depth_order(keys, boxes):
    """Indices of the Gaussians that reach a pixel by increasing depth, stable (radix sort on the bits of positive floats)."""
    order = np.nonzero(boxes[:, 1] >= boxes[:, 0])[0]
    other = np.empty_like(order)
    for shift in range(0, keys.itemsize * 8, 11):
        start = np.zeros(2049, np.int64)
        for i in order:
            start[((keys[i] >> np.uint64(shift)) & np.uint64(2047)) + np.uint64(1)] += 1
        if start.max() == len(order):
            continue  # all share this digit
        start = np.cumsum(start)
        for i in order:
            digit = (keys[i] >> np.uint64(shift)) & np.uint64(2047)
            other[start[digit]] = i
            start[digit] += 1
        order, other = other, order
    return order


@jit
def sort_into_rows(c, height, keys, boxes, slots):
    """Sort camera c by depth and list, per row of tiles, the Gaussians that reach it, front to back.

    slots (C, N + 1) says where the gradient sums of each Gaussian start: one per row of tiles it touches. Returns
    row_starts (rows + 1,) into row_items, and the inverse of that list: the sums of Gaussian n for its k-th row of
    tiles belong to row_items[places[slots[c, n] + k]].
    """
    row_starts, slot = np.zeros(-(-height // TILE_H) + 1, np.int64), 0
    for n in range(boxes.shape[1]):
        slots[c, n] = slot
        if boxes[c, n, 1] >= boxes[c, n, 0]:
            for row in range(boxes[c, n, 0] // TILE_H, boxes[c, n, 1] // TILE_H + 1):
                row_starts[row + 1] += 1
                slot += 1
    slots[c, boxes.shape[1]] = slot
    row_starts = np.cumsum(row_starts)
    fill, row_items, places = row_starts.copy(), np.empty(slot, np.int64), np.empty(slot, np.int64)
    for n in _depth_order(keys[c], boxes[c]):
        top = boxes[c, n, 0] // TILE_H
        for row in range(top, boxes[c, n, 1] // TILE_H + 1):
            row_items[fill[row]] = n
            places[slots[c, n] + row - top] = fill[row]
            fill[row] += 1
    return row_starts, row_items, places


@jit
def _crossings(g, x0, ramp, tops, bottoms):
    """Fill tops and bottoms (8,): where the ellipse of Gaussian g enters and leaves the columns of tiles x0 .. x0 + 7.

    The ellipse a u^2 + 2 b u v + d v^2 <= k has v = -b/d u +- sqrt(k/d - (a/d - (b/d)^2) u^2) and its extreme v at
    u = -+ b/a half_y. Within a column u is as near to that as the column allows.
    """
    a, b, d = -float(g[2]), -0.5 * g[3], -float(g[4])
    shear, spread, peak = b / d, (g[5] - math.log2(ALPHA_MIN)) / d, -b / a * g[7]
    narrowing = a / d - shear * shear
    left = vload(ramp, 0) + (x0 * TILE_W + 0.5 - g[0])
    right = left + (TILE_W - 1.0)
    u = where_gt(left, -peak, left, where_gt(right, -peak, -peak, right))
    inside = spread - narrowing * u * u
    vstore(tops, 0, g[1] - 0.5 - MARGIN - shear * u - vsqrt(where_gt(inside, 0.0, inside, 0.0)))
    u = where_gt(left, peak, left, where_gt(right, peak, peak, right))
    inside = spread - narrowing * u * u
    vstore(bottoms, 0, g[1] - 0.5 + MARGIN - shear * u + vsqrt(where_gt(inside, 0.0, inside, 0.0)))


@jit
def bin_rows(first, last, size, packed, boxes, row_starts, row_items):
    """Gaussians of every tile in the rows of tiles first..last (counted over all cameras), front to back.

    Returns starts (rows * columns + 1,) into items; items (uint32): place in the row << 10 | first line << 5 | last line,
    lines counted from the top of the tile; and near, the rows of packed in the order of row_items: a row of tiles then
    works on a few contiguous kilobytes. An ellipse is listed only in tiles that it really touches.
    """
    width, height = size
    columns, rows, offset = -(-width // TILE_W), -(-height // TILE_H), row_starts[first]
    near, room, most = np.empty((row_starts[last] - offset, packed.shape[2]), packed.dtype), 0, 0
    for row in range(first, last):
        before = room
        for j in range(row_starts[row], row_starts[row + 1]):
            box = boxes[row // rows, row_items[j]]
            room += box[3] - box[2] + 1
        most = max(most, room - before)
    starts, items = np.zeros((last - first) * columns + 1, np.int64), np.empty(room, np.uint32)
    found, columns_found = np.empty(most, np.uint32), np.empty(most, np.int32)  # of one row, Gaussian by Gaussian
    ramp, tops, bottoms = np.arange(0.0, TILE_W * TILE_W, TILE_W), np.empty(TILE_W), np.empty(TILE_W)
    fill = np.empty(columns, np.int64)
    for row in range(first, last):
        c, y0, tile, count = row // rows, (row % rows) * TILE_H, (row - first) * columns, 0
        fill[:] = 0
        for j in range(row_starts[row], row_starts[row + 1]):
            n, place = row_items[j], j - row_starts[row]
            g, box = near[j - offset], boxes[c, n]
            for k in range(len(g)):
                g[k] = packed[c, n, k]
            for x0 in range(box[2], box[3] + 1, TILE_W):
                _crossings(g, x0, ramp, tops, bottoms)
                for x in range(x0, min(x0 + TILE_W, box[3] + 1)):
                    low = math.ceil(max(tops[x - x0] - y0, 0.0))
                    high = math.floor(min(max(bottoms[x - x0] - y0, -1.0), min(TILE_H, height - y0) - 1.0))
                    if low <= high:
                        found[count], columns_found[count] = (place << 10) | (low << 5) | high, x
                        fill[x] += 1
                        count += 1
        for x in range(columns):
            starts[tile + x + 1] = starts[tile + x] + fill[x]
            fill[x] = starts[tile + x]
        for k in range(count):
            x = columns_found[k]
            items[fill[x]] = found[k]
            fill[x] += 1
    return starts, items, near
