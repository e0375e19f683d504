"""seqio vocabularies by import path, `seqio:MODULE:VOCABULARY`.

Only this module and `seqio_tasks` import seqio. VOCABULARY is an object of MODULE, or something
that returns one when called without arguments: a class or a function. `seqio:seqio:ByteVocabulary`
is the same as "bytes".
"""

from typing import Any

from emo_jax.errors import UsageError
from emo_jax.files import named_code


def find(spec: str) -> Any:
    """Returns the vocabulary object that `spec` names.

    Raises:
      UsageError: `spec` is malformed, seqio is not installed, or there is no such vocabulary.
    """
    module_name, name = named_code.split(spec, "VOCABULARY", "my_tasks:VOCABULARY")
    found: Any = named_code.import_module(module_name, spec)
    import seqio

    for part in name.split("."):
        if not hasattr(found, part):
            near = named_code.nearest(part, [n for n in dir(found) if not n.startswith("_")])
            raise UsageError(f"{spec}: {module_name} has no {part!r}{near}")
        found = getattr(found, part)
    if not isinstance(found, seqio.Vocabulary):
        if not callable(found):
            raise UsageError(f"{spec}: is a {type(found).__name__}, not a seqio.Vocabulary")
        try:
            found = found()
        except Exception as error:  # the user's code may raise anything
            raise UsageError(
                f"{spec}: cannot be called without arguments ({named_code.short(error)}); name an"
                " object, or a function of your module that makes it"
            ) from error
        if not isinstance(found, seqio.Vocabulary):
            raise UsageError(f"{spec}: gives a {type(found).__name__}, not a seqio.Vocabulary")
    return found


def is_bytes(vocabulary: Any) -> bool:
    """Whether it is seqio's own byte vocabulary, possibly with extra ids."""
    import seqio

    return type(vocabulary) is seqio.ByteVocabulary


def is_pass_through(vocabulary: Any) -> bool:
    """Whether its texts are already ids."""
    import seqio

    return type(vocabulary) is seqio.PassThroughVocabulary


def sentencepiece_content(vocabulary: Any) -> bytes | None:
    """Returns the model of seqio's own SentencePiece vocabulary, with extra ids; else None.

    Raises:
      UsageError: its model cannot be read.
    """
    import seqio

    if type(vocabulary) is not seqio.SentencePieceVocabulary:
        return None
    try:
        return vocabulary.sp_model
    except Exception as error:  # TensorFlow's errors have no common base
        raise UsageError(
            f"{vocabulary.sentencepiece_model_file}: cannot be read ({named_code.short(error)})"
        ) from error
