"""`emo branch`: one run per domain from a dense model, each to be trained on its own.

    btx       dense branches (Branch-Train-MiX, arXiv 2403.07816)
    flexolmo  two experts, both the model's feed-forward: the first one and all else stay as they
              are, the second one and its column of the router are trained (FlexOlmo, 2507.07024)

A branch is a workdir with its parameters as step 0, as `emo import` makes one, and an experiment
file beside it: these two and the store are all that its machine needs.
"""

import dataclasses
import hashlib
import os
import pprint
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from emo_jax.config import Config, MeshConfig, MoeConfig, PoolConfig, portable, to_dict
from emo_jax.config.digest import config_digest
from emo_jax.config.names import BRANCH_METHODS
from emo_jax.data.store import TokenStore
from emo_jax.data.stream import TRAIN
from emo_jax.errors import UsageError
from emo_jax.evals.by_domain import check_source
from emo_jax.files.atomic import refuse_existing, write_atomic
from emo_jax.files.json_files import NotReadableError, dumps
from emo_jax.files.names import plain_name
from emo_jax.files.progress import Progress
from emo_jax.files.remote import is_remote
from emo_jax.hf.tensors import LeafSource
from emo_jax.modules.dense_experts import DenseExperts
from emo_jax.modules.domain_rows import Embedder
from emo_jax.run.workdir import INIT_FILE, TOKENIZER_FOLDER
from emo_jax.saved.load import OpenedModel, open_model
from emo_jax.saved.selection_file import slabs
from emo_jax.saved.transfer import import_leaves

# All that is not the last expert and its column of the router.
FROZEN = ("embeddings", "attention", "norms", "old_experts")
MOST_EXAMPLES = 1000  # documents that a row of the router is made from (FlexOlmo, appendix A.2)


class Branch(NamedTuple):
    """A run that `branch` prepared."""

    domain: str
    experiment: Path  # the file to give as --config
    workdir: Path


def branch(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    domains: Sequence[str],
    output: str | os.PathLike[str],
    *,
    method: str = "btx",
    steps: int = 0,
    examples: int = MOST_EXAMPLES,
    expert_bias: float = 0.0,
    quiet: bool = True,
) -> list[Branch]:
    """Prepares a run for each domain: a workdir `output/DOMAIN` and `output/DOMAIN.py`.

    The recipe is the model's own; a run may change any of it, as after `emo import`.

    Args:
      model: a dense model: `WORKDIR`, `WORKDIR@STEP` or a Hugging Face folder.
      data: a token store of the model's tokenizer.
      domains: names of domains of the store.
      output: folder for the branches; those that it holds stay.
      method: "btx" or "flexolmo".
      steps: of each run; 0: as many as the model's own had.
      examples: for flexolmo: documents of each domain, at most, that its column of the router is
        made from, and of the model's own data for the first one.
      expert_bias: for flexolmo: `moe.expert_bias`.
      quiet: show no progress.

    Returns:
      The branches, in the order of `domains`.

    Raises:
      UsageError: the model has experts; no such model, store or domain; a domain has too few
        documents for a window, or its name is no file name; or a branch already exists.
    """
    output = Path(output)
    if method not in BRANCH_METHODS:
        raise UsageError(f"--method {method}: must be one of {', '.join(BRANCH_METHODS)}")
    if not domains or len(set(domains)) < len(domains):
        raise UsageError(f"--domains {','.join(domains)}: must be different names of domains")
    opened, store = open_model(os.fspath(model)), TokenStore.open(data)
    if opened.config.moe is not None:
        raise UsageError(f"{model}: {opened.name} has experts already; give a dense model")
    check_source(store.path, store, opened.config, opened.tokenizer)
    parts = {domain: _documents(store, domain, opened.config) for domain in domains}
    planned = [_planned(output, domain) for domain in domains]
    location = store.path if is_remote(store.path) else os.path.abspath(store.path)
    make = _btx if method == "btx" else _flexolmo
    base = make(opened.config, steps, expert_bias)
    configs = {}
    for domain in domains:
        own = dataclasses.replace(base.data, store=location, domains=(domain,))
        configs[domain] = dataclasses.replace(base, name=f"{base.name}_{domain}", data=own)
    with Progress("branch", enabled=not quiet) as shown:
        shown.show(f"reading {model}")
        record = _record(opened, method)
        sources: dict[str, LeafSource] = dict.fromkeys(domains, opened.source)
        if method == "flexolmo":
            own_store = store.only(opened.config.data.domains) if _knows(store, opened) else store
            embedder = Embedder(str(model), examples)
            shown.show("embedding the documents of the model's own data")
            public_LD = embedder.of_store(own_store)
            for domain, part in parts.items():
                shown.show(f"embedding the documents of {domain}")
                router_LDE = np.stack([public_LD, embedder.of_store(part)], axis=-1)
                two = [opened.source, opened.source]
                sources[domain] = DenseExperts(two, configs[domain], router_LDE)
        output.mkdir(parents=True, exist_ok=True)
        for one in planned:
            shown.show(f"writing {one.workdir}")
            _write(one, configs[one.domain], sources[one.domain], store, record, str(model))
    return planned


def _documents(store: TokenStore, domain: str, config: Config) -> TokenStore:
    part = store.only([domain])
    if (tokens := part.count(TRAIN)) < config.data.seq_len:
        raise UsageError(
            f"{store.path}: domain {domain!r} has {tokens} tokens to train on, less than one window"
            f" of {config.data.seq_len}; leave it out of --domains, or prepare more documents"
        )
    return part


def _planned(output: Path, domain: str) -> Branch:
    try:
        if "/" in plain_name(domain):
            raise NotReadableError("it has a /")
    except NotReadableError:
        raise UsageError(
            f"--domains {domain!r}: is no file name; prepare the store with another name for it"
        ) from None
    planned = Branch(domain, output / f"{domain}.py", output / domain)
    refuse_existing(planned.workdir)
    if planned.experiment.exists():
        raise UsageError(f"{planned.experiment}: is there already; give another --output")
    return planned


def _knows(store: TokenStore, opened: OpenedModel) -> bool:
    """Whether the model was trained on some domains only, and the store has them."""
    trained = opened.config.data.domains
    return bool(trained) and set(trained) <= set(store.domains)


def _btx(config: Config, steps: int, expert_bias: float) -> Config:
    """The config of a dense branch, but for its data: the model's own (BTX, section 4.1)."""
    if expert_bias:
        raise UsageError("--expert-bias: is of --method flexolmo")
    found = dataclasses.replace(portable(config), mesh=MeshConfig())
    optimizer = dataclasses.replace(found.optimizer, frozen=())
    return _of_steps(dataclasses.replace(found, optimizer=optimizer), steps)


def _flexolmo(config: Config, steps: int, expert_bias: float) -> Config:
    """The config of a branch with two experts, but for its data.

    The load-balancing loss of two experts that both see every token is constant. Weight decay would
    move what is frozen in the reference; it is 0 there (scripts of allenai/FlexOlmo).
    """
    found = _btx(config, steps, 0.0)
    moe = MoeConfig(
        num_experts=2,
        top_k=2,
        num_shared_experts=0,
        expert_dim=config.model.mlp_dim,
        load_balance_weight=0.0,
        expert_bias=expert_bias,
        pool=PoolConfig(forced_experts=1),
    )
    return dataclasses.replace(
        found,
        model=dataclasses.replace(found.model, mlp_dim=0),
        moe=moe,
        optimizer=dataclasses.replace(found.optimizer, frozen=FROZEN, weight_decay=0.0),
    )


def _of_steps(config: Config, steps: int) -> Config:
    if not steps:
        return config
    # Warm-up and decay keep their shares of the run.
    share, optimizer = steps / config.train.steps, config.optimizer
    optimizer = dataclasses.replace(
        optimizer,
        warmup_steps=int(optimizer.warmup_steps * min(share, 1.0)),
        decay_steps=max(1, int(optimizer.decay_steps * share)) if optimizer.decay_steps else 0,
    )
    train = dataclasses.replace(config.train, steps=steps)
    return dataclasses.replace(config, train=train, optimizer=optimizer)


def params_digest(source: LeafSource) -> str:
    """SHA-256 of all parameters, as float32."""
    digest = hashlib.sha256()
    for path, shape in sorted(source.shapes.items()):
        digest.update(f"{path} {shape}\n".encode())
        for block in slabs(path, shape):
            digest.update(np.ascontiguousarray(source.read(path, block), "<f4").tobytes())
    return digest.hexdigest()


def _record(opened: OpenedModel, method: str) -> dict[str, Any]:
    """What the branches began from, as `init.json` has it, and what is theirs alone."""
    return {
        "workdir": str(opened.folder.absolute()),
        "name": opened.name,
        "step": opened.step or 0,
        "mode": "weights",
        "config_sha256": config_digest(opened.config),
        "params": params_digest(opened.source),
        "method": method,
    }


def _write(
    one: Branch,
    config: Config,
    source: LeafSource,
    store: TokenStore,
    record: dict[str, Any],
    model: str,
) -> None:
    def fill(unfinished: Path) -> None:
        store.tokenizer().save(unfinished / TOKENIZER_FOLDER)
        write_atomic(epath.Path(unfinished / INIT_FILE), dumps(record) + "\n")

    import_leaves(source, config, one.workdir, fill, fills=(INIT_FILE,))
    write_atomic(epath.Path(one.experiment), _experiment(one, config, model))


def _experiment(one: Branch, config: Config, model: str) -> str:
    fields = pprint.pformat(to_dict(config), sort_dicts=False, width=96)
    return f'''"""A branch of {model} on the documents of {one.domain}, made by emo branch.

    emo train --config {one.experiment} --workdir {one.workdir}

On another machine, copy this file and the workdir, and give --config.data.store=STORE. All but the
shape of the model may be changed.
"""

from ml_collections import ConfigDict

CONFIG = {fields}


def get_config(arg: str = "") -> ConfigDict:
    return ConfigDict(CONFIG, convert_dict=True)
'''
