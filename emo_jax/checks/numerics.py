"""`emo verify`: compares this machine's numerics with golden values of the PyTorch reference.

A case is a folder: `config.json` and `model.safetensors` in the released layout, and either
`case.npz` with `grads.safetensors` and `after_one_adamw_step.safetensors` (one step), or `run.npz`
(twenty). Matmuls run at the highest precision. The error of a quantity is ‖ours − ref‖ / ‖ref‖;
where ‖ref‖ is 0, ours must be exactly 0.
"""

import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors import SafetensorError
from safetensors.numpy import load_file

from emo_jax.batch import Batch, from_documents
from emo_jax.config import Config, OptimizerConfig, TrainConfig, moe_of
from emo_jax.errors import DataError, UsageError
from emo_jax.files.trees import flatten
from emo_jax.hf.export import export_model
from emo_jax.hf.importing import import_model, import_tensors
from emo_jax.hf.layouts import layout_named
from emo_jax.hf.sources import TreeSource
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import Params
from emo_jax.moe.pools import Pools
from emo_jax.training.optimizer import learning_rate, make_optimizer
from emo_jax.training.step import loss_and_grads

SHIPPED_CASES = Path(__file__).parent / "cases"


class Quantity(NamedTuple):
    """An error and its limit."""

    error: float
    limit: float

    @property
    def ok(self) -> bool:
        """Whether the error is within the limit; False for NaN."""
        return self.error <= self.limit


def relative_error(ours: Any, ref: Any) -> float:
    """Returns ‖ours − ref‖ / ‖ref‖ in float64; 0 or inf if ‖ref‖ is 0; inf for NaN."""
    ours, ref = np.asarray(ours, np.float64), np.asarray(ref, np.float64)
    if ours.shape != ref.shape:
        return float("inf")
    norm = np.linalg.norm(ref)
    error = np.linalg.norm(ours - ref)
    if norm == 0:
        return 0.0 if error == 0 else float("inf")
    relative = float(error / norm)
    return relative if np.isfinite(relative) else float("inf")


def worst_tensor(ours: Mapping[str, Any], ref: Mapping[str, Any]) -> float:
    """Returns the largest relative error of any tensor; infinite if the names differ."""
    if set(ours) != set(ref):
        return float("inf")
    return max(relative_error(ours[name], ref[name]) for name in ref)


def verify_cases(
    case_dir: Path | None, *, show: Callable[[str], Any]
) -> tuple[dict[str, dict[str, Any]], int]:
    """Runs one case, or all that are shipped with the package.

    Returns:
      {"quantity": {"error", "limit", "ok"}}, and how many are not ok. With several cases the
      quantities are named `case/quantity`.

    Raises:
      UsageError: `case_dir` is not a case.
    """
    cases = [case_dir] if case_dir else sorted(p for p in SHIPPED_CASES.iterdir() if p.is_dir())
    results, failed = {}, 0
    for case in cases:
        show(f"{case.name}: {jax.default_backend()}, jax {jax.__version__}")
        for name, quantity in verify_case(case).items():
            verdict = "ok" if quantity.ok else "FAIL"
            show(f"  {name:<24} {quantity.error:9.2e}   limit {quantity.limit:7.0e}   {verdict}")
            full = name if case_dir else f"{case.name}/{name}"
            results[full] = {
                "error": min(quantity.error, sys.float_info.max),  # JSON has no infinity
                "limit": quantity.limit,
                "ok": quantity.ok,
            }
            failed += not quantity.ok
    return results, failed


def verify_case(case: Path) -> dict[str, Quantity]:
    """Computes every quantity of a case."""
    if not case.is_dir():
        raise UsageError(f"{case}: no such folder; give a case with case.npz or run.npz")
    with jax.default_matmul_precision("highest"):
        if (case / "case.npz").exists():
            return _one_step(case)
        if (case / "run.npz").exists():
            return _twenty_steps(case)
    if (case / "config.json").exists():
        raise UsageError(
            f"{case}: not a case (neither case.npz nor run.npz); to hold a Hugging Face folder"
            f" against its run, say which: emo verify {case} --against WORKDIR"
        )
    raise UsageError(f"{case}: not a case; it has neither case.npz nor run.npz")


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                return dict(arrays)
        return load_file(path)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read: {error}; copy the case again") from error


def _hf_tensors(tree: Params, config: Config) -> dict[str, np.ndarray]:
    """Returns a parameter-shaped tree under the released names."""
    source = TreeSource(flatten(jax.device_get(tree)))
    return {tensor.name: tensor.read(source) for tensor in layout_named("emo").tensors(config)}


def _with_schedule(config: Config, *, peak: float, warmup: int, steps: int, micro: int) -> Config:
    """Applies the case's recipe: everything that is not in the files is the default, SPEC 4."""
    return dataclasses.replace(
        config,
        optimizer=OptimizerConfig(peak_lr=peak, warmup_steps=warmup),
        train=TrainConfig(steps=steps, batch_size=micro, micro_batches=micro),
    )


def _pools(config: Config, sizes: np.ndarray, rows: int, seq_len: int) -> Pools:
    """Makes pools of sizes (L,B,S) from a scalar, (B,G) or (L,B,G)."""
    moe, layers = moe_of(config), config.model.stacked_layers
    sizes = np.asarray(sizes, np.int32)
    shape = (layers, rows, sizes.shape[-1] if sizes.ndim else 1)
    full = np.broadcast_to(sizes, shape)
    pad = seq_len - full.shape[-1]
    size_LBS = np.pad(full, ((0, 0), (0, 0), (0, max(pad, 0))), mode="edge")
    return Pools(jnp.asarray(size_LBS), forced_experts=moe.pool.forced_experts)


def _one_step(case: Path) -> dict[str, Quantity]:
    params, config = import_model(case)
    ref = _load(case / "case.npz")
    ref_grads = _load(case / "grads.safetensors")
    ref_after = _load(case / "after_one_adamw_step.safetensors")
    config = _with_schedule(config, peak=float(ref["learning_rate"]), warmup=1, steps=1, micro=1)
    V = config.model.vocab_size
    model, optimizer = ModelFunctions(config), make_optimizer(config)
    batch = jax.tree.map(jnp.asarray, from_documents(ref["input_ids"], ref["segment_ids"]))
    window = jnp.zeros_like(batch.segment_ids)  # inference: the window is one document
    B, S = batch.tokens.shape
    pools = _pools(config, ref["pool_size"], B, S)

    def logits(batch: Batch, pools: Pools | None) -> np.ndarray:
        run = jax.jit(lambda p: model.logits(p, batch, pools=pools)[..., :V])
        return np.asarray(run(params))

    def after(grads: Params) -> dict[str, np.ndarray]:
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return _hf_tensors(optax.apply_updates(params, updates), config)

    grads, metrics = jax.jit(lambda p: loss_and_grads(p, batch, pools, config=config, model=model))(
        params
    )
    inference = batch._replace(segment_ids=window, pool_ids=window)
    out = {
        "logits_inference": (logits(inference, None), ref["logits_inference"]),
        "logits_train": (logits(batch, pools), ref["logits_train"]),
    }
    for name in ("ce_loss", "lm_z_loss", "router_aux_loss", "loss"):
        out[name] = (metrics[name], ref[name])
    quantities = {name: Quantity(relative_error(*pair), 1e-5) for name, pair in out.items()}
    golden_grads = import_tensors(case / "grads.safetensors", config)
    counts_equal = np.array_equal(np.asarray(metrics["expert_counts"]), ref["expert_counts"])
    return quantities | {
        "grads": Quantity(worst_tensor(_hf_tensors(grads, config), ref_grads), 1e-4),
        "after_one_adamw_step": Quantity(worst_tensor(after(golden_grads), ref_after), 1e-6),
        "step_end_to_end": Quantity(worst_tensor(after(grads), ref_after), 1e-3),
        "expert_counts": Quantity(0.0 if counts_equal else float("inf"), 0.0),
        "export_import": Quantity(_export_import(case, params, config), 0.0),
    }


def _twenty_steps(case: Path) -> dict[str, Quantity]:
    params, config = import_model(case)
    ref = _load(case / "run.npz")
    steps, micro, B, S = ref["input_ids"].shape
    config = _with_schedule(
        config,
        peak=float(ref["peak_learning_rate"]),
        warmup=int(ref["warmup_steps"]),
        steps=steps,
        micro=micro,
    )
    model, optimizer = ModelFunctions(config), make_optimizer(config)
    schedule = learning_rate(config.optimizer, steps)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params: Params, opt_state: Any, batch: Batch, pools: Pools) -> tuple:
        grads, metrics = loss_and_grads(params, batch, pools, config=config, model=model)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, metrics, optax.tree.norm(grads)

    # Micro-batch j of our step is rows j, j+m, …: (m,B,…) becomes (B·m,…) in that order.
    interleave = lambda a: np.moveaxis(a, 0, 1).reshape(B * micro, *a.shape[2:])  # noqa: E731
    ours: dict[str, list[float]] = {"ce_loss": [], "grad_norm": [], "learning_rate": []}
    for i in range(steps):
        batch = from_documents(interleave(ref["input_ids"][i]), interleave(ref["segment_ids"][i]))
        sizes_mLBG = ref["pool_sizes"][i]
        sizes = np.stack([interleave(sizes_mLBG[:, layer]) for layer in range(sizes_mLBG.shape[1])])
        pools = _pools(config, sizes, B * micro, S)
        params, opt_state, metrics, norm = step(params, opt_state, batch, pools)
        ours["ce_loss"].append(float(metrics["ce_loss"]))
        ours["grad_norm"].append(float(norm))
        ours["learning_rate"].append(float(schedule(jnp.asarray(i))))
    quantities = {}
    for name, values in ours.items():
        errors = [relative_error(a, b) for a, b in zip(values, ref[name], strict=True)]
        quantities[name] = Quantity(max(errors), 1e-4)
    original, _ = import_model(case)
    quantities["export_import"] = Quantity(_export_import(case, original, config), 0.0)
    return quantities


def _export_import(case: Path, params: Params, config: Config) -> float:
    """Returns 0 if exporting reproduces the case's own tensors, names and bits; else infinity."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "out"
        export_model(params, config, folder, layout="emo")
        again, _ = import_model(folder)
        ours, ref = load_file(folder / "model.safetensors"), load_file(case / "model.safetensors")
    same = set(ours) == set(ref) and all(np.array_equal(ours[n], ref[n]) for n in ref)
    back = jax.tree.all(jax.tree.map(np.array_equal, again, jax.device_get(params)))
    return 0.0 if same and back else float("inf")
