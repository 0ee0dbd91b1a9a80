"""Memory that stays with the process is not mapped anew."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import numpy as np
from reranker_ft.model.fast.kept_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        np.ones(8_000_000)  # 64 MB: 15,625 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
keep_freed_memory()
np.ones(8_000_000)
print(first, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_not_mapped_again():
    command = [sys.executable, "-c", SCRIPT]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    by_default, kept = map(int, found.split())
    assert kept < by_default / 10
