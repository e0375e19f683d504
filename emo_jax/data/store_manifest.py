"""`store.json`: what is in a token store, with checksums of its files.

A store may come from anywhere, so every field is checked before it is used: no count in it decides
an allocation, and every name in it stays inside the folder.
"""

import hashlib
import json
from typing import Any

from emo_jax.data.stream import SPLITS
from emo_jax.errors import DataError, one_line
from emo_jax.files import json_files
from emo_jax.files.json_files import Fields, NotReadableError, is_integer
from emo_jax.files.names import plain_name
from emo_jax.tokenizer.base import MAX_IDS

MANIFEST = "store.json"
FORMAT = "emo_jax token store"
VERSION = 1
_LARGEST = 2**63 - 1  # largest count


def checksum(manifest: dict[str, Any]) -> str:
    """Returns the SHA-256 of a manifest without its own checksum."""
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def parse_manifest(content: bytes, where: str) -> dict[str, Any]:
    """Parses and checks a manifest.

    Raises:
      DataError: it is damaged, or from a later version.
    """
    try:
        manifest = json_files.parse(content)
        fields = Fields(manifest)
        if fields.text("format") != FORMAT:
            raise NotReadableError("another format")
        if (version := fields.integer("version")) > VERSION:
            raise DataError(
                f"{where}: format version {version}, this emo_jax reads up to {VERSION}; upgrade"
                " emo_jax"
            )
        if fields.line("checksum") != checksum(manifest):
            raise NotReadableError("its checksum does not fit")
        _check(fields)
    except (NotReadableError, RecursionError) as error:
        raise DataError(
            f"{where}: damaged manifest ({one_line(error)}); copy the store again or prepare it"
            " again"
        ) from error
    return manifest


def _check(fields: Fields) -> None:
    last = fields.integer("vocab_size", low=1, high=MAX_IDS) - 1
    for name in ("eos_id", "pad_id"):
        fields.integer(name, high=last)
    if "bos_id" in fields:
        fields.integer("bos_id", high=last)
    fields.line("tokenizer")
    domains = fields.items("domains")
    if not domains or not all(isinstance(name, str) for name in domains):
        raise NotReadableError("domains must be names")
    if len(known := set(domains)) != len(domains):
        raise NotReadableError("domains has a name twice")
    files = fields.inner("files")
    for name in files:
        plain_name(name)
        one = files.inner(name)
        one.integer("bytes", high=_LARGEST)
        one.line("sha256")
    splits = fields.inner("splits")
    for split in splits:
        if split not in SPLITS:
            raise NotReadableError(f"there is no split {split!r:.40}")
        _check_split(splits.inner(split), split, known)
        if splits.inner(split).integer("documents") and f"{split}/tokens/zarr.json" not in files:
            raise NotReadableError(f"split {split!r} has no tokens")


def _check_split(counts: Fields, split: str, known: set[str]) -> None:
    totals = {what: counts.integer(what, high=_LARGEST) for what in ("tokens", "documents")}
    if totals["documents"] > totals["tokens"] or (totals["tokens"] and not totals["documents"]):
        raise NotReadableError(
            f"split {split!r} has {totals['documents']} documents of {totals['tokens']} tokens"
        )
    domains = counts.inner("domains", {})
    for name in domains:  # there may be 100 000
        if name not in known:
            raise NotReadableError(f"split {split!r} has a domain {name!r:.40} that is none")
        of_domain = domains.value(name)
        for what in totals:
            count = of_domain.get(what) if isinstance(of_domain, dict) else None
            if count is None or not is_integer(count) or count < 0:
                raise NotReadableError(f"{what} of a domain of split {split!r} must be a count")
            totals[what] -= count
    if any(totals.values()) and next(iter(domains), None) is not None:
        raise NotReadableError(f"the domains of split {split!r} do not add up")
