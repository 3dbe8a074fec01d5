"""A Llama with random weights, of any size: `python -m tests.llama FOLDER WIDTH LAYERS DTYPE`.

It answers nonsense, but loads, computes and takes memory as a trained one does.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def made(folder: Path, *, width: int, layers: int, dtype: str) -> Path:
    """Make one in `folder`, in a process that takes its memory along when it ends; the folder."""
    command = [sys.executable, "-m", "tests.llama", str(folder), str(width), str(layers), dtype]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def make(folder: Path, *, width: int, layers: int, dtype: str) -> None:
    """Make one here, on a GPU if there is one."""
    import torch

    from tests import tiny

    torch.set_default_dtype(getattr(torch, dtype))
    heads = width // 64
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        tiny.llama(
            folder,
            hidden_size=width,
            intermediate_size=width * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            initializer_range=0.02,
        )


if __name__ == "__main__":
    make(Path(sys.argv[1]), width=int(sys.argv[2]), layers=int(sys.argv[3]), dtype=sys.argv[4])
