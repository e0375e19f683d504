"""What stock transformers writes of some folders that it loads.

python tests/peers/transformers_save.py REQUEST

REQUEST is [{"folder": …, "output": …, "dtype": "float32", "options": {…}}, …]; the options
are those of `save_pretrained`. Prints its version.
"""

import json
import sys
from pathlib import Path

import torch
import transformers

for asked in json.loads(Path(sys.argv[1]).read_text()):
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        asked["folder"], dtype=getattr(torch, asked["dtype"]), output_loading_info=True
    )
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    model.save_pretrained(asked["output"], **asked["options"])
print(transformers.__version__)
