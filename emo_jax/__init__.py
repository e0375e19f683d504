"""emo_jax: pretrain modular mixture-of-experts language models in JAX.

The functions here are what the command `emo` calls; docs/python.md shows them. Each is imported
when it is first used: `import emo_jax` loads no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emo_jax.analysis.record import activations
    from emo_jax.api import Evaluation, Model, evaluate, load
    from emo_jax.checks.verify import verify
    from emo_jax.config.file import load_config
    from emo_jax.data.loader import dataset
    from emo_jax.data.prepare import prepare
    from emo_jax.data.store import TokenStore
    from emo_jax.modules.compose import compose
    from emo_jax.modules.finetune import finetune
    from emo_jax.modules.select import select
    from emo_jax.saved.transfer import export, import_
    from emo_jax.training.train import train

__version__ = "0.1.0"
__all__ = [
    "Evaluation",
    "Model",
    "TokenStore",
    "activations",
    "compose",
    "dataset",
    "evaluate",
    "export",
    "finetune",
    "import_",
    "load",
    "load_config",
    "prepare",
    "select",
    "train",
    "verify",
]

_MODULES = {
    "Evaluation": "api",
    "Model": "api",
    "TokenStore": "data.store",
    "activations": "analysis.record",
    "compose": "modules.compose",
    "dataset": "data.loader",
    "evaluate": "api",
    "export": "saved.transfer",
    "finetune": "modules.finetune",
    "import_": "saved.transfer",
    "load": "api",
    "load_config": "config.file",
    "prepare": "data.prepare",
    "select": "modules.select",
    "train": "training.train",
    "verify": "checks.verify",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
