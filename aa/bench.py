"""`python -m aa bench`: how fast the renderer is, against the readable reference and against the arithmetic of the CPU.

Every number of a table comes from one run, and methods take turns within each repeat, so that a noisy machine hits all of
them. Before each timed call the same call runs untimed, so that nothing compiles, starts or spins down on the clock; of
the slow PyTorch reference only the first call, on a tiny picture.
"""

import time
from statistics import median

import torch

from aa.bench_limit import calibrate, count_work, kernel_clock, limit_seconds
from aa.bench_memory import cuda_megabytes, peak_megabytes
from aa.bench_scenes import PHASES, Size, build, make_steps, tiny
from aa.errors import InputError
from aa.raster import _gsplat, rasterize, rasterize_torch
from aa.threads import cores

REFERENCE_REPEATS = 3  # the reference takes seconds where the kernels take milliseconds
REFERENCE_PAIRS = 20_000_000  # scenes with more blended pairs are compared with the reference only on request
COLUMNS = {
    "threads": "threads", "time": "ms (fastest)", "frames_per_second": "frames/s", "ns_per_pair": "ns per blended pair",
    "memory_mb": "peak extra MB", "ratio": "times the reference", "limit_ratio": "compositing / limit",
}  # fmt: skip


def machine() -> dict:
    """The machine in general terms: cores, widest vector instructions, versions of what decides the speed."""
    import platform

    import llvmlite.binding as llvm
    import numba

    features = llvm.get_host_cpu_features()
    vectors = next(
        (label for flag, label in (("avx512f", "AVX-512"), ("avx2", "AVX2"), ("neon", "NEON")) if features.get(flag)), ""
    )
    return {
        "cores": cores(),
        "cpu": f"{platform.machine()} {vectors}".strip(),
        "torch": torch.__version__,
        "numba": numba.__version__,
    }


def default_threads() -> list[int]:
    """1, 2 and as many as there are cores."""
    return sorted({1, min(2, cores()), cores()})


def timed(step, device: str, settle: bool = True) -> float:
    """Seconds of one call; with `settle` after the same call untimed."""
    if settle:
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def methods(inputs, size: Size, work: dict, device: str, everything: bool) -> dict:
    """{"aa": steps, and "reference": steps to compare with}: plain PyTorch on the CPU, gsplat called directly on CUDA."""
    found = {"aa": make_steps(inputs, size.pixels)}
    if device == "cuda":
        gsplat = _gsplat()
        if gsplat is not None:
            found["reference"] = make_steps(
                inputs, size.pixels, lambda *x: gsplat(*x, near_plane=0.01, far_plane=1e10, packed=False)
            )
    elif everything or work["pairs"] <= REFERENCE_PAIRS:
        found["reference"] = make_steps(inputs, size.pixels, rasterize_torch)
    return found


def measure(size: Size, threads: list[int], repeats: int, device="cpu", everything=False, advance=lambda: None) -> list[dict]:
    """Rows (one per phase and number of threads) of one size; `advance` is called once per repeat. Memory comes later."""
    inputs = build(size, device)
    work = count_work(inputs, rasterize, size.pixels, size.pixels)
    steps = methods(inputs, size, work, device, everything)
    samples = {(phase, count): {"aa": [], "reference": [], "ratio": [], "rate": []} for count in threads for phase in PHASES}
    every = -(-repeats // REFERENCE_REPEATS) if device == "cpu" else 1
    before = torch.get_num_threads()
    try:
        for repeat in range(repeats):
            for (phase, count), sample in samples.items():
                torch.set_num_threads(count)
                if "reference" in steps and repeat % every == 0:
                    sample["reference"].append(timed(steps["reference"][phase], device, settle=device == "cuda"))
                with kernel_clock() as clock:
                    sample["aa"].append(timed(steps["aa"][phase], device))
                if device == "cpu":
                    rate = calibrate(count)
                    sample["rate"].append(rate)
                    if work["groups"]:  # the untimed call is on the clock of the kernels too: twice the work
                        sample["ratio"].append(sum(clock) / (2 * limit_seconds(work, phase, rate["mix"])))
            advance()
    finally:
        torch.set_num_threads(before)
    rows = [row(size, phase, count, work, sample) for (phase, count), sample in samples.items()]
    if device == "cuda":
        for one in rows:
            one["memory_mb"] = cuda_megabytes(steps["aa"][one["phase"]])
    return rows


def row(size: Size, phase: str, threads: int, work: dict, sample: dict) -> dict:
    """One row of the report from the samples in seconds."""
    seconds, reference = median(sample["aa"]), sample["reference"]
    rates = {name: median(rate[name] for rate in sample["rate"]) for name in ("mix", "fma")} if sample["rate"] else None
    return {
        "scene": size.name, "gaussians": size.gaussians, "pixels": size.pixels, "phase": phase, "threads": threads,
        "ms": 1e3 * seconds, "fastest_ms": 1e3 * min(sample["aa"]), "frames_per_second": 1 / seconds,
        **work, "ns_per_pair": 1e9 * seconds / work["pairs"] if work["pairs"] else None, "memory_mb": None,
        "reference_ms": 1e3 * median(reference) if reference else None,
        "ratio": median(reference) / seconds if reference else None,
        "vector_rates": rates,
        "limit_ms": 1e3 * limit_seconds(work, phase, rates["mix"]) / threads if rates else None,
        "limit_ratio": median(sample["ratio"]) if sample["ratio"] else None,
        "limit_ratio_fma": median(sample["ratio"]) * rates["fma"] / rates["mix"] if sample["ratio"] else None,
    }  # fmt: skip


def run(sizes, threads=None, repeats: int = 10, device: str = "cpu", everything: bool = False, progress: bool = True) -> dict:
    """The whole report: {"machine", "device", "repeats", "rows"}. InputError for settings that make no sense."""
    from tqdm.auto import tqdm

    threads = check(threads, repeats, device)
    with tqdm(total=len(sizes) * repeats + (device == "cpu"), desc="bench", unit="step", disable=not progress, leave=False) as bar:
        for render in (rasterize, rasterize_torch):
            for warm in make_steps(build(tiny(sizes[0]), device), 32, render).values():
                warm()
        rows = []
        for size in sizes:
            bar.set_postfix_str(size.name)
            rows += measure(size, threads, repeats, device, everything, bar.update)
        if device == "cpu":
            bar.set_postfix_str("memory")
            peaks = {size.name: peak for size, peak in zip(sizes, peak_megabytes(sizes, max(threads)))}
            for one in rows:
                one["memory_mb"] = peaks[one["scene"]][one["phase"]]
            bar.update()
    return {"machine": machine(), "device": device, "repeats": repeats, "rows": rows}


def check(threads, repeats: int, device: str) -> list[int]:
    """The numbers of threads to use, sorted; InputError if a setting makes no sense."""
    threads = sorted(set(threads or default_threads())) if device == "cpu" else [1]
    if threads[0] < 1:
        raise InputError(f"--threads {threads[0]} makes no sense: give numbers from 1 on.")
    if repeats < 1:
        raise InputError(f"--repeats {repeats} makes no sense: give 1 or more.")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA device here; leave the option out to time the CPU.")
    return threads


# ------------------------------------------------------------------------------------------------------------- table


def cell(name: str, one: dict) -> str:
    """A value of a row as text; a dash where it was not measured."""
    if name == "threads":
        return str(one["threads"])
    if name == "time":
        return f"{number(one['ms'])} ({number(one['fastest_ms'])})"
    return "–" if one[name] is None else number(one[name])


def number(value: float) -> str:
    """Three digits that matter, no more."""
    return f"{value:.0f}" if abs(value) >= 99.5 else f"{value:.1f}" if abs(value) >= 9.95 else f"{value:.2f}"


def table(report: dict, markdown: bool = False) -> str:
    """The report as text: a line per scene and number of threads, cells "forward / forward+backward"."""
    titles = ["Gaussians, picture", *COLUMNS.values()]
    lines = []
    for first, both in zip(report["rows"][0::2], report["rows"][1::2]):
        who = "avatar, " if first["scene"].startswith("avatar") else ""
        name = f"{who}{first['gaussians']:,}, {first['pixels']} x {first['pixels']}"
        pairs = ((cell(column, first), cell(column, both)) for column in COLUMNS)
        lines.append([name, *(a if column == "threads" else f"{a} / {b}" for column, (a, b) in zip(COLUMNS, pairs))])
    if markdown:
        return "\n".join("| " + " | ".join(line) + " |" for line in [titles, ["---"] + ["---:"] * len(COLUMNS), *lines])
    widths = [max(map(len, column)) for column in zip(titles, *lines)]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths)) for line in [titles, *lines])


def footer(report: dict) -> str:
    """One line about the machine and the rates that the limit rests on."""
    about = report["machine"]
    text = f"{about['cores']} cores, {about['cpu']}; torch {about['torch']}, numba {about['numba']}; medians of {report['repeats']}"
    rates = next((one["vector_rates"] for one in report["rows"] if one["vector_rates"]), None)
    if rates is None:
        return f"{torch.cuda.get_device_name()}; {text}"
    mix, fma = (rates[name] / 1e9 for name in ("mix", "fma"))
    return f"{text}; {mix:.1f} G vector instructions a second and thread ({fma:.1f} G of multiply-adds alone)"
