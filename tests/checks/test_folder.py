"""`emo verify HF_DIR --against WORKDIR`: an export is what its run has; what differs is named."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import runs
from hf_folders import SAVED_BY, fuse, say
from safetensors.numpy import load_file, save_file

from emo_jax.checkpoint.checkpointer import Checkpointer
from emo_jax.checks.folder import NAMED, compare_folder
from emo_jax.config import to_dict
from emo_jax.hf import export_model
from emo_jax.run.workdir import TOKENIZER_FOLDER, claim_workdir
from emo_jax.saved.transfer import export
from emo_jax.tokenizer.load import load_tokenizer, train_bpe

TEXTS = ["the court finds for the plaintiff in the matter of the bread"] * 4


@pytest.fixture
def made(make_model, tmp_path):
    """A workdir with a tokenizer and two checkpoints, and the export of the second."""

    def make(fits="qwen2_moe", **shape):
        params, config = make_model(shared=2, vocab=320, fits=fits, **shape)
        workdir = tmp_path / "run"
        claim_workdir(workdir, config)
        train_bpe(TEXTS, 300).save(workdir / TOKENIZER_FOLDER)
        with Checkpointer(workdir, config.checkpoint) as checkpointer:
            for step in (2, 3):
                extra = {"config": to_dict(config), "windows": 4 * step}
                params["final_norm"]["scale"] = params["final_norm"]["scale"] + np.float32(1)
                checkpointer.save(step, {"params": params, "step": np.int32(step)}, extra)
                checkpointer.wait()
        folder, _ = export(workdir, tmp_path / "hf", layout=fits)
        return folder, workdir

    return make


def differences(folder, workdir):
    return compare_folder(folder, str(workdir)).differences


@pytest.mark.parametrize("fits", ["qwen2_moe", "emo", "llama"])
def test_an_export_is_what_the_run_has(made, fits):
    folder, workdir = made(fits)
    found = compare_folder(folder, str(workdir))
    assert (found.differences, found.count, found.step) == ([], 0, 3)
    assert found.tensors == len(load_file(folder / "model.safetensors"))
    assert differences(folder, folder) == []
    at_two = differences(folder, f"{workdir}@2")
    assert at_two == ["model.norm.weight: 32 of 32 numbers differ, by up to 1"]


@pytest.mark.parametrize("version", SAVED_BY)
def test_what_others_made_of_it_may_be_the_same(made, make_older, version):
    folder, workdir = made()
    say(fuse(folder), **SAVED_BY[version])
    assert differences(folder, workdir) == []
    file = folder / "model.safetensors"
    save_file({n: v.astype(ml_dtypes.bfloat16) for n, v in load_file(file).items()}, file)
    assert differences(folder, workdir) == []
    make_older(folder)
    assert differences(folder, workdir) == []


def change(folder, name, value):
    file = folder / "model.safetensors"
    held = load_file(file)
    held[name] = held[name].copy()
    held[name].flat[5] = value
    save_file(held, file)
    return held


def test_every_tensor_is_compared(made):
    folder, workdir = made("llama")
    kept = (folder / "model.safetensors").read_bytes()
    for name in load_file(folder / "model.safetensors"):
        change(folder, name, np.nan)
        (line,) = differences(folder, workdir)
        assert line.startswith(f"{name}: 1 of ") and "numbers differ" in line
        (folder / "model.safetensors").write_bytes(kept)


def test_one_bit_of_one_number(made):
    folder, workdir = made()
    name = "model.layers.1.mlp.shared_expert.down_proj.weight"
    held = load_file(folder / "model.safetensors")[name]
    change(folder, name, np.nextafter(held.flat[5], np.float32(np.inf)))
    (line,) = differences(folder, workdir)
    assert line.startswith(f"{name}: 1 of 1024 numbers differ, by up to ")
    change(folder, name, held.flat[5])
    assert differences(folder, workdir) == []


def test_names_shapes_and_what_is_constant(made):
    folder, workdir = made()
    held = change(folder, "model.layers.0.mlp.shared_expert_gate.weight", 0.5)
    del held["model.layers.0.self_attn.q_proj.bias"]
    held["model.layers.0.extra"] = np.zeros(3, np.float32)
    held["model.norm.weight"] = held["model.norm.weight"][:-1]
    held["lm_head.weight"] = held["lm_head.weight"].astype(np.float64)
    save_file(held, folder / "model.safetensors")
    assert differences(folder, workdir) == [
        "model.layers.0.self_attn.q_proj.bias: missing",
        "model.layers.0.extra: the run has no such tensor",
        "model.layers.0.mlp.shared_expert_gate.weight: 1 of 32 numbers differ, by up to 0.5",
        "model.norm.weight: has shape (31,), the run's has (32,)",
        "lm_head.weight: is F64, the run's is F32",
    ]


def test_fields(made):
    folder, workdir = made()
    said = json.loads((folder / "config.json").read_text())
    said["emo_jax"]["moe"]["pool"]["eval_size"] = 4
    say(
        folder,
        emo_jax=said["emo_jax"],
        rope_parameters={"rope_theta": 500.0},
        rope_theta=None,
        num_experts_per_tok=2,
        eos_token_id=7,
    )
    ids = load_tokenizer(workdir / TOKENIZER_FOLDER)
    said = {"eos_token_id": [7], "pad_token_id": ids.pad_id}
    (folder / "generation_config.json").write_text(json.dumps(said))
    assert differences(folder, workdir) == [
        "config.json: num_experts_per_tok = 2, the run's is 3",
        "config.json: rope_theta = 500.0, the run's is 30000.0",
        "config.json: emo_jax: moe.pool.eval_size: 0 -> 4",
        f"config.json: eos_token_id = 7, the run's is {ids.eos_id}",
        f"generation_config.json: eos_token_id = [7], the run's is {ids.eos_id}",
    ]


def test_a_model_of_another_kind(made, make_model, tmp_path):
    folder, _ = made()
    params, config = make_model(dense=True)
    other = export_model(params, config, tmp_path / "dense")
    (line,) = differences(folder, other)
    assert line.startswith("config.json: layout 'qwen2_moe' is for mixtures of experts")


def test_the_tokenizer(made):
    folder, workdir = made()
    other = train_bpe(["quite another text of other pieces"] * 4, 300)
    other.save(folder)
    found = differences(folder, workdir)
    assert any("another tokenizer than the run's" in line for line in found)
    assert any("'The court finds for the plaintiff.' has the ids [" in line for line in found)
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json: missing" in differences(folder, workdir)


def test_a_beginning_that_the_run_did_not_have(made):
    folder, workdir = made()
    path = folder / "tokenizer_config.json"
    assert json.loads(path.read_text()).get("add_bos_token") is not True
    fields = json.loads((folder / "tokenizer.json").read_text())
    token = {"id": "<eos>", "ids": [0], "tokens": ["<eos>"]}
    token["id"] = token["tokens"][0] = fields["added_tokens"][0]["content"]
    token["ids"] = [fields["added_tokens"][0]["id"]]
    first = {"SpecialToken": {"id": token["id"], "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    fields["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, text],
        "special_tokens": {token["id"]: token},
    }
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"add_bos_token": True}))
    (line,) = differences(folder, workdir)
    assert line == (
        f"tokenizer.json: documents begin with id {token['ids'][0]}, those of the run with None"
    )


def test_the_command(made, tmp_path, capsys):
    folder, workdir = made()
    report = tmp_path / "report.json"
    assert runs.emo_here("verify", folder, "--against", workdir) == 0
    assert f"{folder}: as {workdir} at step 3: 79 tensors" in capsys.readouterr().out
    at_two = ("verify", folder, "--against", f"{workdir}@2", "--json", report)
    assert runs.emo_here(*at_two) == 1
    said = capsys.readouterr()
    assert said.out == f"{folder}: model.norm.weight: 32 of 32 numbers differ, by up to 1\n"
    assert said.err == f"emo: {folder}: 1 differences from {workdir}@2 at step 2\n"
    assert json.loads(report.read_text())["count"] == 1
    assert runs.emo_here("verify", folder) == 2
    assert f"emo verify {folder} --against WORKDIR" in capsys.readouterr().err
    assert runs.emo_here("verify", "--against", workdir) == 2
    assert "give the folder too" in capsys.readouterr().err
    assert runs.emo_here("verify", folder, "--against", tmp_path / "none") == 2
    assert "no such folder" in capsys.readouterr().err


def test_of_many_differences_the_first_are_named(made, make_model, tmp_path):
    """Another seed of the same shape, say: every matrix differs."""
    folder, _ = made()
    params, config = make_model(shared=2, vocab=320)
    doubled = jax.tree.map(lambda leaf: leaf * np.float32(2), params)
    found = compare_folder(folder, str(export_model(doubled, config, tmp_path / "other")))
    assert found.count == found.tensors - 2 * 4  # biases and gates are what they must be
    assert len(found.differences) == NAMED + 1
    assert found.differences[-1] == f"… and {found.count - NAMED} more tensors"
