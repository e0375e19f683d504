"""`emo verify` passes on the shipped cases, and fails when it should."""

import json
import shutil

import jax
import numpy as np
import pytest

from emo_jax.checks import numerics as verify
from emo_jax.cli import app
from emo_jax.errors import EXIT_FAILED, EXIT_USAGE

ONE_STEP = {
    "logits_inference": 1e-5,
    "logits_train": 1e-5,
    "ce_loss": 1e-5,
    "lm_z_loss": 1e-5,
    "router_aux_loss": 1e-5,
    "loss": 1e-5,
    "grads": 1e-4,
    "after_one_adamw_step": 1e-6,
    "step_end_to_end": 1e-3,
    "expert_counts": 0.0,
    "export_import": 0.0,
}


def test_one_step_case():
    quantities = verify.verify_case(verify.SHIPPED_CASES / "step_emo")
    assert {name: q.limit for name, q in quantities.items()} == ONE_STEP
    assert [name for name, q in quantities.items() if not q.ok] == []


def test_command_and_json(tmp_path, capsys):
    case = verify.SHIPPED_CASES / "run_emo"
    target = tmp_path / "verify.json"
    assert app._run(["verify", str(case), "--json", str(target)], debug=False) == 0
    results = json.loads(target.read_text())
    assert {"ce_loss", "grad_norm", "learning_rate"} <= set(results)
    for result in results.values():
        assert result["ok"] is True and result["error"] <= result["limit"]
    assert results["ce_loss"]["limit"] == 1e-4
    assert "ok" in capsys.readouterr().out


def test_a_wrong_number_fails(tmp_path, capsys):
    """One number of the reference is changed: exit code 1, and the line says which."""
    case = tmp_path / "case"
    shutil.copytree(verify.SHIPPED_CASES / "run_emo", case)
    with np.load(case / "run.npz") as arrays:
        ref = dict(arrays)
    ref["ce_loss"][7] *= 1.001
    np.savez(case / "run.npz", **ref)
    assert app._run(["verify", str(case)], debug=False) == EXIT_FAILED
    out = capsys.readouterr()
    assert [line.split()[0] for line in out.out.splitlines() if "FAIL" in line] == ["ce_loss"]
    assert out.err.startswith("emo: 1 quantities")


@pytest.mark.parametrize("make", [None, "empty"])
def test_not_a_case(tmp_path, make, capsys):
    case = tmp_path / "case"
    if make:
        case.mkdir()
    assert app._run(["verify", str(case)], debug=False) == EXIT_USAGE
    assert str(case) in capsys.readouterr().err


def test_relative_error():
    assert verify.relative_error([1.0, 2.0], [1.0, 2.0]) == 0.0
    np.testing.assert_allclose(verify.relative_error([1.1], [1.0]), 0.1)
    assert verify.relative_error([0.0], [0.0]) == 0.0
    assert verify.relative_error([1e-30], [0.0]) == float("inf")
    assert verify.relative_error([np.nan], [1.0]) == float("inf")
    assert verify.worst_tensor({"a": [1.0]}, {"b": [1.0]}) == float("inf")


def test_cases_run_at_the_highest_precision(monkeypatch):
    seen = []
    monkeypatch.setattr(
        verify, "_one_step", lambda case: seen.append(jax.config.jax_default_matmul_precision) or {}
    )
    with jax.default_matmul_precision("default"):
        verify.verify_case(verify.SHIPPED_CASES / "step_emo")
    assert seen == ["highest"]
