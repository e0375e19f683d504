"""The model of a config as pure functions of its parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from emo_jax.batch import Batch
from emo_jax.config import Config, seeds
from emo_jax.files.trees import unflatten
from emo_jax.model.attention import pick_backend as pick_attention
from emo_jax.model.embedding import mask_padded_vocab
from emo_jax.model.params import Params, abstract_params, model_leaves
from emo_jax.model.transformer import Transformer
from emo_jax.model.vocab_loss import vocab_loss
from emo_jax.moe.experts import pick_backend, pick_dispatch
from emo_jax.parallel import mesh as mesh_lib


class ModelFunctions:
    """The model of a config as pure functions of its parameters, a nested dict."""

    def __init__(self, config: Config, mesh: Mesh | None = None):
        self.config = config
        self.mesh = mesh
        abstract = nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(params=0), mesh))
        self._graphdef, _ = nnx.split(abstract)
        self.abstract_params: Params = abstract_params(config)
        self.logical_axes: Params = unflatten(
            {path: leaf.axes for path, leaf in model_leaves(config).items()}
        )

    def num_params(self) -> int:
        """Number of parameters, including padded vocabulary rows."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract_params))

    def choices(self) -> dict[str, str]:
        """The mesh, and what `auto` in the config resolves to on it, for the log."""
        config, mesh = self.config, self.mesh
        sizes = {} if mesh is None else {a: n for a, n in mesh.shape.items() if n > 1}
        found = {
            "mesh": " × ".join(f"{axis} {n}" for axis, n in sizes.items()) or "one device",
            "attention": pick_attention(config.model.attention_backend, mesh),
        }
        if config.moe is not None:
            found["experts"] = pick_backend(config.moe.backend, mesh)
            if "expert" in sizes:
                found["tokens to experts"] = pick_dispatch(config.moe.dispatch, mesh)
        return found

    def init(self, seed: int) -> Params:
        """Fresh float32 parameters (SPEC 1.3), a pure function of the seed."""
        model = Transformer(self.config, nnx.Rngs(params=seeds.key(seed)), self.mesh)
        return nnx.to_pure_dict(nnx.state(model))

    def bind(self, params: Params) -> Transformer:
        """The module with these parameters."""
        return nnx.merge(self._graphdef, params)

    def hidden(self, params: Params, batch: Batch, **kwargs) -> tuple[jax.Array, Any]:
        """See `Transformer.__call__`."""
        return self.bind(params)(batch, **kwargs)

    def logits(self, params: Params, batch: Batch, **kwargs) -> jax.Array:
        """Vocabulary logits (B,S,V) in float32, with padded ids at -inf. For tests."""
        hidden_BSD, _ = self.hidden(params, batch, **kwargs)
        return self.head(params, hidden_BSD)

    def head(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Maps hidden states (…,D) to float32 vocabulary logits (…,V), with padded ids at -inf."""
        kernel = params["lm_head"]["kernel"].astype(hidden.dtype)
        logits = jnp.einsum("...d,dv->...v", hidden, kernel, preferred_element_type=jnp.float32)
        return mask_padded_vocab(logits, self.config.model.vocab_size)

    def label_losses(
        self, params: Params, hidden_BSD: jax.Array, labels_BS: jax.Array, mask_BS: jax.Array
    ) -> jax.Array:
        """Cross-entropy of each label, (B,S) float32 nats; 0 where `mask_BS` is 0. No gradients.

        Logits exist for `train.loss_chunk` tokens of a window at once.
        """
        config = self.config
        _, found = vocab_loss(
            hidden_BSD,
            params["lm_head"]["kernel"],
            labels_BS,
            mask_BS,
            config.model.vocab_size,
            0.0,
            config.train.loss_chunk,
            self.mesh,
        )
        return found.ce_BS

    def param_shardings(self) -> Params:
        """A `NamedSharding` for every parameter."""
        mesh = self.mesh
        assert mesh is not None
        return jax.tree.map(
            lambda leaf, axes: mesh_lib.sharding(mesh, axes, leaf.shape),
            self.abstract_params,
            self.logical_axes,
        )
