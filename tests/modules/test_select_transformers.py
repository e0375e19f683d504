"""What `emo select` writes, in transformers itself: the loss is ours.

Needs torch and transformers (CI installs them before `-m system`).
"""

import numpy as np
import pytest
from runs import emo_here

from emo_jax.data.store import TokenStore
from emo_jax.evals.heldout import evaluate, make_eval_step
from emo_jax.model.functions import ModelFunctions
from emo_jax.saved.load import load_model
from emo_jax.saved.selection_file import read_selection
from emo_jax.selection.examples import pack

pytestmark = pytest.mark.system


@pytest.mark.parametrize("keep", [6, 3])
def test_a_selected_model_gives_our_loss_in_transformers(finished_run, store, tmp_path, keep):
    import torch
    from transformers import AutoModelForCausalLM

    folder, data = tmp_path / "law", f"{store}:law"
    assert emo_here("select", finished_run, "--data", data, "--keep", keep, "--output", folder) == 0
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[what]
    assert model.config.num_experts == keep - 1  # routed

    parent = load_model(str(finished_run))
    S = parent.config.data.seq_len
    documents = [d.tokens[:S] for d in TokenStore.open(store).documents("test", 0, 6)]
    ce_sum, labels = 0.0, 0
    for ids in documents:  # one at a time, as a user would
        with torch.no_grad():
            logits = model(torch.tensor(ids[None], dtype=torch.long)).logits[0, :-1]
        following = torch.tensor(ids[1:], dtype=torch.long)
        ce_sum += torch.nn.functional.cross_entropy(logits, following, reduction="sum").item()
        labels += len(following)

    keep_LMR = np.zeros((parent.config.model.num_layers, 1, 7), bool)
    for layer, kept in enumerate(read_selection(folder).kept):
        keep_LMR[layer, 0, list(kept)] = True
    batches = pack(documents, S, 4, pad_id=0)
    for whole, mask_LMR in ((parent, keep_LMR), (load_model(str(folder)), None)):
        step = make_eval_step(whole.config, ModelFunctions(whole.config), 1, router_probs=False)
        ours = evaluate(step, whole.params, batches, keep_LMR=mask_LMR)
        assert ours.labels_M[0] == labels
        np.testing.assert_allclose(ce_sum / labels, ours.loss, rtol=1e-5)
