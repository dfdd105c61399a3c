"""Program: a scoring of 50 blocks in a folder that holds the snapshots, slow enough to be interrupted from outside."""

import signal
import sys
import time
from pathlib import Path

from kill_scoring import LONG, score

from vog_hf.scoring.replay import Replay

PAUSE = 0.03  # seconds a block, on top of the few milliseconds that it takes


def slowed(work):
    """The same after a pause."""

    def pause_and_work(*arguments):
        time.sleep(PAUSE)
        return work(*arguments)

    return pause_and_work


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is behind "&" with Ctrl-C ignored
    Replay.score = slowed(Replay.score)
    score(LONG, Path(sys.argv[1]) / "scores", Path(sys.argv[1]) / "snapshots")
