"""What the routed experts of a mixture of branches are called.

`emo mix` writes `experts.json` into the workdir; the `init.json` of a run that begins from it, and
of one that begins from that, has the names too.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emo_jax.errors import UsageError, listed
from emo_jax.files import json_files
from emo_jax.files.inside import check_own_files
from emo_jax.files.json_files import Fields, NotReadableError, dumps
from emo_jax.run.workdir import INIT_FILE

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
      UsageError: there are none, their file is damaged, or they are of another number of experts.
    """
    experts = names_beside(folder)
    if not experts:
        raise UsageError(
            f"{folder}: no {EXPERTS_FILE}, so its experts have no names; give a workdir of emo mix,"
            " or of a run that began from it"
        )
    if len(experts) != num_routed:
        raise UsageError(
            f"{folder}: its {len(experts)} names of experts are not those of this model, which has"
            f" {num_routed}; {_ADVICE}"
        )
    return ExpertNames(experts=experts)


def names_beside(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names in a workdir of `emo mix`, or what a run has from the one it began from; or none.

    Raises:
      UsageError: a file is damaged.
    """
    check_own_files(folder, [EXPERTS_FILE, INIT_FILE], error=UsageError)
    for name in (EXPERTS_FILE, INIT_FILE):
        file = Path(folder) / name
        try:
            fields = Fields(json_files.read_object(file, error=UsageError, advice=_ADVICE))
            if name == EXPERTS_FILE and fields.text("format") != FORMAT:
                raise NotReadableError("another format")
            experts = tuple(fields.items("experts", []))
            if not all(isinstance(one, str) and json_files.is_text(one) for one in experts):
                raise NotReadableError("experts must be names")
        except FileNotFoundError:
            continue
        except NotReadableError as error:
            raise UsageError(f"{file}: damaged ({error}); {_ADVICE}") from error
        return experts
    return ()
