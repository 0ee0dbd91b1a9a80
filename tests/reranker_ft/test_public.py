"""The names that the package promises."""

import subprocess
import sys

import pytest

import reranker_ft


def test_public_names_are_sorted_and_there():
    assert reranker_ft.__all__ == sorted(reranker_ft.__all__)
    for name in reranker_ft.__all__:
        assert getattr(reranker_ft, name).__name__ in (name, "Reranker")
        assert getattr(reranker_ft, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = reranker_ft.nothing


def test_importing_the_package_does_not_import_torch():
    code = "import sys, reranker_ft; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
