"""`experts.json` in the workdir of a mixture of branches: what its routed experts are called."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emo_jax.errors import UsageError, listed
from emo_jax.files import json_files
from emo_jax.files.inside import check_own_files
from emo_jax.files.json_files import Fields, NotReadableError, dumps

EXPERTS_FILE = "experts.json"
FORMAT = "emo_jax experts"
_ADVICE = "mix the branches again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertNames:
    """Names of the routed experts, the same in every layer.

    Attributes:
      experts: by their place.
      about: the branches: path, name and step.
    """

    experts: tuple[str, ...]
    about: Sequence[dict[str, Any]] = ()

    def text(self) -> str:
        """Contents of the file."""
        return dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"

    def places(self, names: Sequence[str], where: str) -> list[int]:
        """The places of experts.

        Raises:
          UsageError: there is none of a name.
        """
        for name in names:
            if name not in self.experts:
                raise UsageError(f"{where}: no expert {name!r}; it has {listed(self.experts, 20)}")
        return [self.experts.index(name) for name in names]


def read_expert_names(folder: str | os.PathLike[str], num_routed: int) -> ExpertNames:
    """Reads the names of a model's experts.

    Raises:
      UsageError: there is no such file, it is damaged, or of another number of experts.
    """
    file = Path(folder) / EXPERTS_FILE
    check_own_files(folder, [EXPERTS_FILE], error=UsageError)
    try:
        fields = Fields(json_files.read_object(file, error=UsageError, advice=_ADVICE))
        if fields.text("format") != FORMAT:
            raise NotReadableError("another format")
        experts = tuple(fields.items("experts"))
        if not all(isinstance(name, str) and json_files.is_text(name) for name in experts):
            raise NotReadableError("experts must be names")
    except FileNotFoundError:
        raise UsageError(
            f"{folder}: no {EXPERTS_FILE}, so its experts have no names; give a workdir of emo mix"
        ) from None
    except NotReadableError as error:
        raise UsageError(f"{file}: damaged ({error}); {_ADVICE}") from error
    if len(experts) != num_routed:
        raise UsageError(
            f"{file}: names {len(experts)} experts, the model has {num_routed}; {_ADVICE}"
        )
    return ExpertNames(experts=experts)
