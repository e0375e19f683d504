"""lm-evaluation-harness: `python drive_lm_eval.py CASE RESULT`. Its command, with its hf model.

Two tasks of our own: the log-likelihood of each text, and its continuation.
"""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from case import NEW_TOKENS, Case, arguments, write_result

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: {kind}
doc_to_text: "{text}"
doc_to_target: "{target}"
metric_list:
  - metric: {metric}
{more}"""
UNTIL = f"""\
generation_kwargs:
  until: []
  max_gen_toks: {NEW_TOKENS}
  do_sample: false
"""


def write_tasks(folder: Path, case: Case) -> None:
    lines = [{"text": text, "target": more} for text, more in _pairs(case)]
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    rolling = dict(text="", target="{{text}}", kind="loglikelihood_rolling", more="")
    until = dict(text="{{text}}", target="{{target}}", kind="generate_until", more=UNTIL)
    for name, metric, fields in (
        ("emo_rolling", "bits_per_byte", rolling),
        ("emo_until", "exact_match", until),
    ):
        task = TASK.format(name=name, file=json.dumps(str(file)), metric=metric, **fields)
        (folder / f"{name}.yaml").write_text(task, encoding="utf-8")


def _pairs(case: Case) -> list[tuple[str, str]]:
    return list(zip(case.texts, case.continuations, strict=True))


def responses(folder: Path, task: str) -> list:
    """The model's response to each text, in order."""
    (file,) = folder.glob(f"out/**/samples_{task}_*.jsonl")
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [line["resps"][0][0] for line in sorted(lines, key=lambda line: line["doc_id"])]


def main() -> None:
    case, result = arguments()
    write_tasks(result, case)
    command = [
        *(sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu"),
        *("--model_args", f"pretrained={case.model},dtype=float32", "--batch_size", "4"),
        *("--tasks", "emo_rolling,emo_until", "--include_path", str(result)),
        *("--output_path", str(result / "out"), "--log_samples"),
    ]
    subprocess.run(command, check=True)
    until = responses(result, "emo_until")
    same = sum(a == b for a, b in zip(until, case.continuations, strict=True))
    scores = [one[0] if isinstance(one, list) else one for one in responses(result, "emo_rolling")]
    write_result(
        result,
        version=version("lm_eval"),
        scores=[float(score) for score in scores],
        held={"texts of `generate_until`": {"equal": f"{same} of {len(until)}"}},
    )


if __name__ == "__main__":
    main()
