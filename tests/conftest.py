"""Settings of all tests: no network, and the same examples in every run."""

import atexit
import os
import shutil
import tempfile

import torch
from hypothesis import HealthCheck, settings

collect_ignore = ["scripts"]  # programs that tests run; some import packages that are not installed everywhere

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read at import; whoever talks to a local server sets it to 0

os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="vog-trackio-")  # read at import; else the user's own projects
atexit.register(shutil.rmtree, os.environ["TRACKIO_DIR"], ignore_errors=True)

# The models are tiny: threads would only wait for one another, up to a hundred times longer where cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of programs that tests launch
torch.set_num_threads(1)

settings.register_profile(
    "vog_hf",
    deadline=None,  # shared machines
    derandomize=True,
    database=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("vog_hf")
