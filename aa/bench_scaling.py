"""How time and memory of the renderer grow: with Gaussians (up to 500k), with pixels, with frames in one call."""

import time
from dataclasses import replace
from statistics import median

import torch

from aa.bench_memory import peak_megabytes
from aa.bench_scenes import PHASES, Size, build, make_steps, tiny

BASE = Size(20_000, 512)
AXES = {
    "gaussians": (10_000, 20_000, 50_000, 100_000, 200_000, 500_000),  # the same ball: the same part of the picture is covered
    "pixels": (128, 256, 512, 1024, 2048),  # of a side; the camera keeps the same view
    "frames": (1, 2, 4, 8, 16, 32),  # in one call, each with positions of its own
}
LABELS = {
    "gaussians": "Gaussians (512 x 512)",
    "pixels": "pixels (20 000 Gaussians)",
    "frames": "frames (10 000 Gaussians, 256 x 256)",
}


def sizes_of(axis: str, values=None) -> list[Size]:
    """The scenes along an axis."""
    base = Size(10_000, 256) if axis == "frames" else BASE
    return [replace(base, **{axis: value}) for value in values or AXES[axis]]


def scaling(axes: dict | None = None, threads: int | None = None, repeats: int = 5, progress: bool = True) -> dict:
    """{"threads", "repeats", "curves": {axis: {"x", phase: {"ms", "fastest_ms", "memory_mb"}}}}.

    threads: torch's number by default. x counts Gaussians, pixels of the picture or frames. The sizes of an axis take
    turns within each repeat.
    """
    from tqdm.auto import tqdm

    axes = {axis: sizes_of(axis, values) for axis, values in (axes or AXES).items()}
    for warm in make_steps(build(tiny(BASE)), 32).values():
        warm()
    before, curves = torch.get_num_threads(), {}
    threads = threads or before
    torch.set_num_threads(threads)
    try:
        with tqdm(total=len(axes) * repeats + 1, desc="scaling", disable=not progress, leave=False) as bar:
            for axis, sizes in axes.items():
                bar.set_postfix_str(axis)
                curves[axis] = curve(axis, sizes, take_turns(sizes, repeats, bar.update))
            bar.set_postfix_str("memory")
            add_memory(curves, axes, threads)
            bar.update()
    finally:
        torch.set_num_threads(before)
    return {"threads": threads, "repeats": repeats, "curves": curves}


def take_turns(sizes: list[Size], repeats: int, advance=lambda: None) -> dict:
    """{phase: per size the seconds of each repeat}; every timed call comes after the same call untimed."""
    seconds = {phase: [[] for _ in sizes] for phase in PHASES}
    for _ in range(repeats):
        for i, size in enumerate(sizes):
            steps = make_steps(build(size), size.pixels)
            for phase in PHASES:
                steps[phase]()
                start = time.perf_counter()
                steps[phase]()
                seconds[phase][i].append(time.perf_counter() - start)
        advance()
    return seconds


def curve(axis: str, sizes: list[Size], seconds: dict) -> dict:
    """One axis of the result without the memory: medians and minima of the seconds."""
    found = {"x": [size.pixels**2 if axis == "pixels" else getattr(size, axis) for size in sizes]}
    for phase in PHASES:
        found[phase] = {
            "ms": [1e3 * median(samples) for samples in seconds[phase]],
            "fastest_ms": [1e3 * min(samples) for samples in seconds[phase]],
        }
    return found


def add_memory(curves: dict, axes: dict[str, list[Size]], threads: int) -> None:
    """Measure the memory of all scenes in one other process and enter it into the curves."""
    peaks = iter(peak_megabytes([size for sizes in axes.values() for size in sizes], threads))
    for axis, sizes in axes.items():
        own = [next(peaks) for _ in sizes]
        for phase in PHASES:
            curves[axis][phase]["memory_mb"] = [peak[phase] for peak in own]


def plot(result: dict):
    """Figure: time above, peak extra memory below, one column per axis; log-log, with a dotted guide of slope 1."""
    import matplotlib.pyplot as plt

    curves = result["curves"]
    figure, axes = plt.subplots(2, len(curves), figsize=(3.6 * len(curves), 6), squeeze=False, layout="constrained")
    shades = plt.colormaps["viridis"]([0.1, 0.6])
    for column, (axis, found) in zip(axes.T, curves.items()):
        for ax, key, label in zip(column, ("ms", "memory_mb"), ("median time (ms)", "peak extra memory (MB)")):
            for phase, shade, style in zip(PHASES, shades, ("o-", "s--")):
                if None not in found[phase][key]:
                    ax.plot(found["x"], found[phase][key], style, color=shade, ms=4, label=phase)
            last, ends = found[PHASES[1]][key][-1], (found["x"][0], found["x"][-1])
            if last:
                ax.plot(ends, (last * ends[0] / ends[1], last), "k:", lw=1, label="slope 1: linear")
            ax.set(xscale="log", yscale="log", xlabel=LABELS[axis], ylabel=label)
            ax.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    threads = result["threads"]
    figure.suptitle(f"Time and memory of the renderer, {threads} thread{'s' if threads > 1 else ''}")
    return figure


def text(result: dict) -> str:
    """The curves as lines of text."""
    lines = []
    for axis, found in result["curves"].items():
        for i, x in enumerate(found["x"]):
            cells = []
            for phase in PHASES:
                memory = found[phase]["memory_mb"][i]
                cells.append(f"{phase} {found[phase]['ms'][i]:9.1f} ms " + ("" if memory is None else f"{memory:8.1f} MB"))
            lines.append(f"{axis:10}{x:>9}  " + "  ".join(cells))
    return "\n".join(lines)
