"""`aa` comes before torch: it tells waiting OpenMP threads to sleep, without which two busy cores slow the tests tenfold.

What the tests fit and speak is cached in a folder of their own, which goes when they are done.
"""

import os
import shutil
import tempfile

import aa  # noqa: F401


def pytest_configure(config):
    config.aa_cache = tempfile.mkdtemp(prefix="aa-tests-")
    os.environ["AA_CACHE"] = config.aa_cache


def pytest_unconfigure(config):
    shutil.rmtree(config.aa_cache, ignore_errors=True)
