"""A small or filling disk for the processes that the tests start; inert without its variables."""

import errno
import os
import shutil
from collections import namedtuple

if free := os.environ.get("TAQDIT_TEST_FREE_BYTES"):
    usage = namedtuple("usage", "total used free")
    shutil.disk_usage = lambda path: usage(10**12, 0, int(free))

if name := os.environ.get("TAQDIT_TEST_FULL_AT"):
    replace = os.replace

    def refusing(source, target, **arguments):
        if os.fspath(target).endswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(target))
        return replace(source, target, **arguments)

    os.replace = refusing
