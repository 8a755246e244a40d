"""Peak extra memory of a render, measured in a fresh process: `python -m aa.bench_memory` is that process.

numba, numpy and torch all allocate by themselves, so only the operating system sees everything. The child prepares the
inputs, renders a tiny picture (kernels, pools and libraries are loaded then), and notes its resident memory; "extra" is
how far the peak of the resident memory lies above that during one step. Freed memory goes back to the system at once
(glibc's threshold for that is fixed), so that one step leaves nothing for the next to reuse.
"""

import json
import os
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import torch

from aa.bench_scenes import PHASES, Size, build, make_steps, tiny

ROOT = Path(__file__).resolve().parents[1]


def peak_megabytes(sizes: list[Size], threads: int = 1) -> list[dict]:
    """Per size {phase: megabytes (10^6 bytes) or None where the system does not tell}, all from one fresh process."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "aa.bench_memory", json.dumps([astuple(size) for size in sizes]), str(threads)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the process that measures memory failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def cuda_megabytes(step) -> float:
    """Peak memory that a step takes from torch's CUDA allocator beyond what is held before it, in megabytes."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def _reset_peak() -> None:
    """Forget the peak so far; only Linux can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak() -> int | None:
    """Peak resident memory of this process in bytes; None on Windows, where nothing in Python tells."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, which alone comes here


def _measure(size: Size) -> dict:
    """{phase: megabytes} of one size in this process."""
    megabytes = {}
    for phase in PHASES:
        step = make_steps(build(size), size.pixels)[phase]
        _reset_peak()
        before = _peak()
        result = step()
        after = _peak()
        megabytes[phase] = None if after is None else (after - before) / 1e6
        del result, step
    return megabytes


if __name__ == "__main__":
    wanted = [Size(*values) for values in json.loads(sys.argv[1])]
    torch.set_num_threads(int(sys.argv[2]))
    for warm in make_steps(build(tiny(wanted[0])), 32).values():
        warm()
    print(json.dumps([_measure(size) for size in wanted]))
