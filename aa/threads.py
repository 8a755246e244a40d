"""Threads for compiled kernels that release the GIL.

Of our own rather than numba's or OpenMP's: they may be used from several Python threads at once, survive a fork, and do
not spin while waiting.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=4)
def _pool(process, threads):
    """Thread pool of this process: a forked child has another process id and starts its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="aa")


def run_parallel(task, count, threads):
    """Call task(0) ... task(count - 1) on `threads` threads, this one included, each taking the next one left."""
    left = iter(range(count))

    def work():
        for k in left:
            task(k)

    helpers = min(threads, count) - 1
    futures = [_pool(os.getpid(), threads).submit(work) for _ in range(helpers)] if helpers > 0 else []
    work()
    for future in futures:
        future.result()
