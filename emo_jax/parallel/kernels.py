"""What the kernels of libraries need before they can be called."""

from emo_jax.errors import UsageError
from emo_jax.parallel import private


def load_tokamax(extra: str, instead: str):
    """The module tokamax, which is imported by those only who use it.

    Args:
      extra: of pip, that brings it: `tpu` or `gpu`.
      instead: the setting that does without.
    """
    try:
        import tokamax
    except ImportError as error:
        raise UsageError(
            f"the kernels of tokamax are not installed: run `pip install emo-jax[{extra}]`, or set "
            f"{instead}"
        ) from error
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # else tokamax 0.0.12 reads our command line as its own
    return tokamax


def register_tpu_info() -> None:
    """Tells TPU kernels that the chip is a v5e where the device is a CPU; they ask for it.

    That is when they are interpreted, or compiled ahead of time for one chip; on a mesh of TPUs the
    answer is the mesh's. They only want to know how registers are shaped, the same from v5 to v6.
    """
    from jax.experimental.pallas import tpu as pltpu

    private.tpu_info_registry().setdefault(
        "cpu", lambda: pltpu.get_tpu_info_for_chip(pltpu.ChipVersion.TPU_V5E, 1)
    )
