"""What is used of libraries without being published is there, or is missed in one line."""

import pytest

from emo_jax.errors import EmoError
from emo_jax.parallel import private


def test_all_of_it_is_in_the_installed_versions():
    for name in ("SlurmCluster", "K8sCluster", "GkeTpuCluster", "GceTpuCluster"):
        assert callable(private.cluster(name).get_process_count)
    assert hasattr(private.cluster("GceTpuCluster"), "_get_worker_list_in_slice")
    assert callable(private.tpu_vm_metadata())
    assert isinstance(private.tpu_info_registry(), dict)
    implementations, mask = private.tokamax_attention()
    assert callable(mask) and "xla" in implementations
    assert callable(private.tokamax_tpu_matmul("gmm"))
    assert callable(private.tokamax_tpu_matmul("tgmm"))


def test_what_a_version_has_no_more_is_named():
    with pytest.raises(EmoError, match=r"jax \d.* has no jax\._src\.clusters\.None, .* tried with"):
        private.cluster("None")
    with pytest.raises(EmoError, match=r"tokamax \d.* has no tokamax\._src\."):
        private.tokamax_tpu_matmul("no_such_product")
