"""Localisation in float64, one image, one pixel and one threshold at a time, written from the papers."""

import math
from itertools import pairwise

import numpy as np


def enlarged(heatmap, height, width):
    """Bilinear, a cell's value at its centre, constant beyond the outermost centres."""
    out = np.zeros((height, width))
    rows, columns = heatmap.shape
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * rows / height - 0.5, 0), rows - 1)
            u = min(max((x + 0.5) * columns / width - 0.5, 0), columns - 1)
            top, left = int(v), int(u)
            below, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            upper = heatmap[top, left] * (1 - (u - left)) + heatmap[top, right] * (u - left)
            lower = heatmap[below, left] * (1 - (u - left)) + heatmap[below, right] * (u - left)
            out[y, x] = upper * (1 - (v - top)) + lower * (v - top)
    return out


def pointing_game(heatmap, mask, radius):
    """(hit, chance); the maximum of a cell may lie between pixels, which then share it."""
    values = enlarged(heatmap, *mask.shape)
    meets = np.array([[_meets(mask, y, x, radius) for x in range(mask.shape[1])] for y in range(mask.shape[0])])
    return meets[values > values.max() - 1e-9].mean(), meets.mean()


def _meets(mask, y, x, radius):
    return any(math.hypot(v - y, u - x) < radius for v, u in zip(*np.nonzero(mask), strict=True))


def energy(heatmap, mask, fine=60):
    """Both drawn on a raster so fine that the sides of cells and of pixels fall between its points."""
    rows, columns = heatmap.shape
    inside = total = 0.0
    for y in range(fine):
        for x in range(fine):
            mass = max(heatmap[y * rows // fine, x * columns // fine], 0.0)
            total += mass
            inside += mass * mask[y * mask.shape[0] // fine, x * mask.shape[1] // fine]
    return inside / total if total else 0.0


def highest(heatmap, mask, count):
    """Pixels in order of value; those as high as the last one that is taken are taken in part."""
    values = enlarged(heatmap, *mask.shape)
    last = sorted(values.flat, reverse=True)[count - 1]
    above, level = values > last + 1e-9, abs(values - last) <= 1e-9
    return (mask[above].sum() + (count - above.sum()) * mask[level].mean()) / count


def relevance_rank(heatmap, mask):
    return highest(heatmap, mask, int(mask.sum()))


ROUND = [(v, u) for v in (-1, 0, 1) for u in (-1, 0, 1)]
CROSS = [(-1, 0), (1, 0), (0, -1), (0, 1)]


def regions(binary, neighbours=ROUND):
    """Regions of True that touch by sides or corners, or by sides only, each as a set of (y, x)."""
    left, found = {(int(y), int(x)) for y, x in zip(*np.nonzero(binary), strict=True)}, []
    while left:
        waiting, region = [left.pop()], set()
        while waiting:
            y, x = waiting.pop()
            region.add((y, x))
            near = {(y + v, x + u) for v, u in neighbours} & left
            left -= near
            waiting.extend(near)
        found.append(region)
    return found


def holes(binary):
    """What is cut off from the outside, each with the pixels around it, as contours of holes have them."""
    framed = np.pad(~binary, 1, constant_values=True)
    cut_off = [region for region in regions(framed, CROSS) if (0, 0) not in region]
    return [{(y - 1 + v, x - 1 + u) for y, x in region for v, u in CROSS} for region in cut_off]


def box(region):
    rows, columns = [y for y, _ in region], [x for _, x in region]
    return min(columns), min(rows), max(columns) + 1, max(rows) + 1


def outlined_area(region):
    """What the polygon through the centres of a region's outermost pixels encloses, its holes included."""
    x0, y0, x1, y1 = box(region)
    outside, waiting = set(), [(y0 - 1, x0 - 1)]
    while waiting:
        y, x = waiting.pop()
        if (y, x) in outside or (y, x) in region or not (y0 - 1 <= y <= y1 and x0 - 1 <= x <= x1):
            continue
        outside.add((y, x))
        waiting.extend([(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)])
    corners = [
        sum((y + v, x + u) not in outside for v in (0, 1) for u in (0, 1))
        for y in range(y0 - 1, y1)
        for x in range(x0 - 1, x1)
    ]
    return sum({4: 1.0, 3: 0.5}.get(count, 0.0) for count in corners)


def overlap(one, other):
    pixels = [{(y, x) for x in range(b[0], b[2]) for y in range(b[1], b[3])} for b in (one, other)]
    union = pixels[0] | pixels[1]
    return len(pixels[0] & pixels[1]) / len(union) if union else 0.0


def box_sweep(score, boxes, every_contour, interval=0.001):
    """{level: best overlaps} for the official thresholds, on 8 bits as the official code has them.

    Of the largest contour there is one overlap for each region that shares the largest area.
    """
    image = (score * 255).astype(np.uint8)
    found = {}
    for level in {int(threshold * image.max()) for threshold in np.arange(0, 1, interval)}:
        parts = regions(image > level)
        if every_contour:
            parts += holes(image > level)
        best = [max(overlap(box(part), one) for one in boxes) for part in parts]
        areas = [outlined_area(part) for part in parts]
        largest = [value for value, area in zip(best, areas, strict=True) if area == max(areas)]
        found[level] = [max(best)] if every_contour else largest
    return found


def pixel_precision(scores, masks, ignored):
    """Area under precision over recall, at every threshold of a thousandth."""
    rows = [
        (math.floor(float(score) * 1000 + 1e-9), bool(inside))
        for image, mask, left_out in zip(scores, masks, ignored, strict=True)
        for score, inside, skip in zip(image.flat, mask.flat, left_out.flat, strict=True)
        if not skip
    ]
    positives = sum(inside for _, inside in rows)
    points = [(0.0, 1.0)]
    for threshold in range(1000, -1, -1):
        taken = [inside for score, inside in rows if score >= threshold]
        if taken:
            points.append((sum(taken) / positives, sum(taken) / len(taken)))
    return sum((after - before) * precision for (before, _), (after, precision) in pairwise(points))


def max_box_acc(chosen, scored, deltas):
    """Shares of the scored images whose box is found, at the levels that find most boxes of the chosen ones.

    Both are lists of overlaps by level, one list an image.
    """
    shares = []
    for delta in deltas:
        found = [sum(overlaps[level] >= delta for overlaps in chosen) for level in range(len(chosen[0]))]
        best = found.index(max(found))
        shares.append(sum(overlaps[best] >= delta for overlaps in scored) / len(scored))
    return sum(shares) / len(shares)


def localisation_score(heatmap, cell):
    """L of a cell of a 2 x 2 grid, of a map with even sides."""
    height, width = heatmap.shape
    inside = total = 0.0
    for y in range(height):
        for x in range(width):
            mass = max(float(heatmap[y, x]), 0.0)
            total += mass
            inside += mass if (2 * y // height) * 2 + 2 * x // width == cell else 0.0
    return inside / total if total else 0.0


def border_mass(heatmap, fine=60):
    """On a raster of 60 x 60, whose tenth is 6 points."""
    rows, columns = heatmap.shape
    border = total = 0.0
    for y in range(fine):
        for x in range(fine):
            mass = max(float(heatmap[y * rows // fine, x * columns // fine]), 0.0)
            total += mass
            border += mass * (min(y, x) < fine // 10 or max(y, x) >= fine - fine // 10)
    return border / total
