"""`aa` comes before torch: it tells waiting OpenMP threads to sleep, without which two busy cores slow the tests tenfold."""

import aa  # noqa: F401
