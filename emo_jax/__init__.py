"""emo_jax: pretrain modular mixture-of-experts language models in JAX.

The command `emo` calls the functions below; docs/python.md shows how to use them. Each is imported
on first use, so `import emo_jax` does not load JAX.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emo_jax.analysis.activations import Activations
    from emo_jax.analysis.record import activations
    from emo_jax.api.models import Evaluation, Model, evaluate, evaluate_suite, load
    from emo_jax.api.tasks import evaluate_tasks
    from emo_jax.checks.verify import verify
    from emo_jax.config.fields import Config
    from emo_jax.config.file import load_config
    from emo_jax.data.loader import dataset
    from emo_jax.data.store import TokenStore
    from emo_jax.errors import EmoError
    from emo_jax.evals.suite import Suite
    from emo_jax.generation.texts import Text
    from emo_jax.modules.branch import Branch, branch
    from emo_jax.modules.compose import compose
    from emo_jax.modules.finetune import finetune
    from emo_jax.modules.mix import Mixed, mix
    from emo_jax.modules.select import Selected, select
    from emo_jax.preparation.prepare import prepare
    from emo_jax.saved.transfer import export, import_
    from emo_jax.tasks.table import TaskResults
    from emo_jax.training.train import train

__version__ = "0.1.0"
__all__ = [
    "Activations",
    "Branch",
    "Config",
    "EmoError",
    "Evaluation",
    "Mixed",
    "Model",
    "Selected",
    "Suite",
    "TaskResults",
    "Text",
    "TokenStore",
    "activations",
    "branch",
    "compose",
    "dataset",
    "evaluate",
    "evaluate_suite",
    "evaluate_tasks",
    "export",
    "finetune",
    "import_",
    "load",
    "load_config",
    "mix",
    "prepare",
    "select",
    "train",
    "verify",
]

_MODULES = {
    "Activations": "analysis.activations",
    "Branch": "modules.branch",
    "Config": "config.fields",
    "EmoError": "errors",
    "Evaluation": "api.models",
    "Mixed": "modules.mix",
    "Model": "api.models",
    "Selected": "modules.select",
    "Suite": "evals.suite",
    "TaskResults": "tasks.table",
    "Text": "generation.texts",
    "TokenStore": "data.store",
    "activations": "analysis.record",
    "branch": "modules.branch",
    "compose": "modules.compose",
    "dataset": "data.loader",
    "evaluate": "api.models",
    "evaluate_suite": "api.models",
    "evaluate_tasks": "api.tasks",
    "export": "saved.transfer",
    "finetune": "modules.finetune",
    "import_": "saved.transfer",
    "load": "api.models",
    "load_config": "config.file",
    "mix": "modules.mix",
    "prepare": "preparation.prepare",
    "select": "modules.select",
    "train": "training.train",
    "verify": "checks.verify",
}


def __getattr__(name: str) -> Any:
    """Imports a public name or a submodule on first access."""
    if name in _MODULES:
        found = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    elif not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
        found = importlib.import_module(f"{__name__}.{name}")  # emo_jax.errors, emo_jax.config, …
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
