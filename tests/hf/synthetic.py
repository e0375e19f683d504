"""Large models on disk made without holding one, and what a command takes to move them.

python tests/hf/synthetic.py make stdmoe_1b4b HF_DIR      an exported folder of a preset
python tests/hf/synthetic.py copy HF_DIR NEW_DIR          safetensors' own load_file and save_file
python tests/hf/synthetic.py run emo import HF_DIR …      runs it; prints seconds and peak memory

`run` prints ru_maxrss of the child: the most memory that was resident at one time, code and
libraries and mapped files included, the page cache of files that are read and written not. A child
starts with the peak of its parent, so the parent imports nothing.
"""

import resource
import subprocess
import sys
import time
from pathlib import Path


class PatternSource:
    """Leaves whose numbers are a hash of their leaf and index, all within ±0.02."""

    def __init__(self, config):
        from emo_jax.model.params import leaf_shapes

        self.shapes = leaf_shapes(config)

    def read(self, path, block):
        import zlib

        import numpy as np

        sizes = self.shapes[path]
        index = np.zeros((), np.uint32)
        for part, size in zip(block, sizes, strict=True):
            index = index[..., None] * np.uint32(size) + np.arange(
                part.start, part.stop, dtype=np.uint32
            )
        index += np.uint32(zlib.crc32(path.encode()))
        index *= np.uint32(2654435761)
        index ^= index >> np.uint32(15)
        index *= np.uint32(2246822519)
        out = index.astype(np.float32)
        out *= np.float32(0.04 / 2**32)
        out -= np.float32(0.02)
        return out


def make(config, output: Path, **options) -> Path:
    """An exported folder."""
    from emo_jax.hf.export import export_leaves

    return export_leaves(PatternSource(config), config, output, **options)


def copy(source: Path, target: Path) -> None:
    """What the safetensors package takes for the same bytes, one file after the other."""
    from safetensors.numpy import load_file, save_file

    target.mkdir()
    for file in sorted(source.glob("*.safetensors")):
        save_file(load_file(file), target / file.name)


def run(argv: list[str]) -> int:
    """Runs a command, and prints what it took."""
    start = time.perf_counter()
    code = subprocess.run(argv, check=False).returncode
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{' '.join(argv)}: {seconds:.1f} s, peak {peak:.0f} MiB resident")
    return code


def main(argv: list[str]) -> int:
    """See the module."""
    what, *rest = argv
    if what == "make":
        from emo_jax.config import from_config_dict, presets

        print(make(from_config_dict(getattr(presets, rest[0])()), Path(rest[1])))
    elif what == "copy":
        copy(Path(rest[0]), Path(rest[1]))
    else:
        return run(rest)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
