"""Hugging Face folders: four layouts, export and import.

`qwen2_moe`, `mixtral` and, for dense models, `llama` load in transformers without remote code;
`emo` uses the tensor names of the checkpoints released with the EMO paper (SPEC 9.1).
"""

from emo_jax.hf.export import export_leaves, export_model
from emo_jax.hf.importing import import_model, import_tensors, open_folder
from emo_jax.hf.layouts import LAYOUTS, layout_for, layout_named

__all__ = [
    "LAYOUTS",
    "export_leaves",
    "export_model",
    "import_model",
    "import_tensors",
    "layout_for",
    "layout_named",
    "open_folder",
]
