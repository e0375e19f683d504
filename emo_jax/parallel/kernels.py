"""Setup that library kernels need before they can be called."""

from emo_jax.errors import UsageError
from emo_jax.parallel import private


def load_tokamax(extra: str, instead: str):
    """Returns the module `tokamax`, importing it only when it is used.

    Args:
      extra: the pip extra that installs it: `tpu` or `gpu`.
      instead: the setting that avoids it; for the message.
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
        flags.FLAGS.mark_as_parsed()  # otherwise tokamax 0.0.12 parses our command line as its own
    return tokamax


def register_tpu_info() -> None:
    """Makes TPU kernels, which query the chip, see a v5e when the device is a CPU.

    That is the case when they are interpreted, or compiled ahead of time for one chip; on a mesh of
    TPUs the mesh answers. They only need the shape of registers, which is the same from v5 to v6.
    """
    from jax.experimental.pallas import tpu as pltpu

    private.tpu_info_registry().setdefault(
        "cpu", lambda: pltpu.get_tpu_info_for_chip(pltpu.ChipVersion.TPU_V5E, 1)
    )
