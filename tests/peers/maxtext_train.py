"""Tokens a second of a train step of `experiments/bench_cpu.py`'s shape in MaxText, on a CPU.

In an environment of its own (Python 3.12): pip install 'maxtext[tpu]'

python tests/peers/maxtext_train.py [STEPS] sparse_matmul=False capacity_factor=1.25
python tests/peers/maxtext_train.py [STEPS] sparse_matmul=True megablox=False  # dropless
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

steps, *options = sys.argv[1:] if sys.argv[1:2] and sys.argv[1].isdigit() else ["8", *sys.argv[1:]]
base = Path(find_spec("maxtext").submodule_search_locations[0]) / "configs/base.yml"
SETTINGS = """
run_name=cpu decoder_block=mixtral base_emb_dim=256 base_num_decoder_layers=4 head_dim=64
base_num_query_heads=4 base_num_kv_heads=4 base_mlp_dim=128 base_moe_mlp_dim=128 num_experts=32
num_experts_per_tok=4 vocab_size=8192 max_target_length=512 per_device_batch_size=16
attention=dot_product dtype=float32 opt_type=adamw enable_checkpointing=False
dataset_type=synthetic hardware=cpu skip_jax_distributed_system=True enable_tensorboard=False
enable_goodput_recording=False monitor_goodput=False remat_policy=minimal
"""
with tempfile.TemporaryDirectory() as output:
    command = [
        sys.executable,
        "-m",
        "maxtext.trainers.pre_train.train",
        str(base),
        *SETTINGS.split(),
    ]
    command += [f"steps={steps}", f"base_output_directory={output}", *options]
    env = dict(os.environ, JAX_PLATFORMS="cpu")
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
speeds = re.findall(r"completed step: (\d+).*?Tokens/s/device: ([\d.]+)", run.stdout + run.stderr)
# The first two are only dispatched, not waited for.
median = statistics.median(float(speed) for step, speed in speeds if int(step) >= 2)
print(f"MaxText {version('maxtext')} {' '.join(options)}: {median:,.0f} tokens/s")
