"""Program: one scoring of 50 blocks in a folder that holds the snapshots, to be interrupted from outside."""

import sys
from pathlib import Path

from kill_scoring import LONG, score

if __name__ == "__main__":
    score(LONG, Path(sys.argv[1]) / "scores", Path(sys.argv[1]) / "snapshots")
