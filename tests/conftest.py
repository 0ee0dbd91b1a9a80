"""One thread of arithmetic a process: the tests run side by side, and tiny models gain nothing.

For the same reason they run on the CPU, and on its numbers, unless CUDA_VISIBLE_DEVICES names GPUs.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
