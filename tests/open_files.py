"""A process that may hold few files open, as on a Mac."""

import os
import resource
from contextlib import contextmanager


@contextmanager
def few_open_files(more=20):
    """So many more than now may be open at a time, unless somebody raises the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)  # of the numbers that are free
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
