"""CTranslate2: `python drive_ctranslate2.py CASE RESULT`. Converts, then runs in float32.

If a model begins texts without a token, the converted config.json has a null, which CTranslate2
does not load: it is set to the end-of-document token, which is not used when there is a prompt.
"""

import json
from pathlib import Path

import ctranslate2
import numpy as np
from case import NEW_TOKENS, arguments, write_result
from ctranslate2.converters import TransformersConverter
from transformers import AutoTokenizer


def main() -> None:
    case, result = arguments()
    folder = TransformersConverter(case.model).convert(str(result / "converted"), force=True)
    file = Path(folder) / "config.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    fields["bos_token"] = fields["bos_token"] or fields["eos_token"]
    file.write_text(json.dumps(fields), encoding="utf-8")
    model = ctranslate2.Generator(folder, device="cpu", compute_type="float32")
    tokenizer = AutoTokenizer.from_pretrained(case.model)
    logits = [np.array(model.forward_batch([ids], return_log_probs=False))[0] for ids in case.ids]
    made = model.generate_batch(
        [tokenizer.convert_ids_to_tokens(ids) for ids in case.ids],
        max_length=NEW_TOKENS,
        sampling_topk=1,
        include_prompt_in_result=False,
    )
    write_result(
        result,
        version=ctranslate2.__version__,
        logits=logits,
        ids=[tokenizer(text)["input_ids"] for text in case.texts],
        greedy=[case.up_to_eos(one.sequences_ids[0]) for one in made],
    )


if __name__ == "__main__":
    main()
