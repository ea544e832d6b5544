"""`taqdit` under a clock that is up to a day wrong, otherwise at each look (arguments: a seed for
it, then the command line)."""

import datetime
import random
import sys
import time

DAY = 86_400.0
dice = random.Random(int(sys.argv[1]))
real_time, real_localtime, real_gmtime = time.time, time.localtime, time.gmtime
looks = 0


def wrong():
    global looks
    looks += 1
    return real_time() + dice.uniform(-DAY, DAY)


class Wrong(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(wrong(), tz)

    @classmethod
    def today(cls):
        return cls.now()


time.time = wrong
time.time_ns = lambda: int(wrong() * 1e9)
time.localtime = lambda seconds=None: real_localtime(wrong() if seconds is None else seconds)
time.gmtime = lambda seconds=None: real_gmtime(wrong() if seconds is None else seconds)
datetime.datetime = Wrong

from taqdit.cli.verbs import main  # noqa: E402

sys.argv = ["taqdit", *sys.argv[2:]]
try:
    main()
finally:
    print(f"looks at the clock: {looks}")
