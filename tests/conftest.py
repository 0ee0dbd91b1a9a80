"""One thread of arithmetic a process: the tests run side by side, and tiny models gain nothing."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
