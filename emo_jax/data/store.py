"""The token store: documents as token ids, in zarr arrays read through tensorstore.

    STORE/store.json          what is inside, and size and SHA-256 of every other file
    STORE/tokenizer/          the tokenizer, as `transformers` reads it
    STORE/{train,select,test}/
      tokens       (T,) uint16 or uint32: documents end to end, each with its end-of-document token
      doc_ends     (D,) int64: where each document ends, that token included
      doc_domains  (D,) int32: index into the list of domains
      doc_index    (D/1024,) int64: every 1024th of `doc_ends`, the only part held in memory
      doc_ids      (B,) uint8: ids of the documents end to end, UTF-8, compressed (optional)
      doc_id_ends  (D,) int64: where each id ends, compressed
    STORE/sources.json        documents and tokens of each input (optional, not checked: where the
                              documents came from is no part of what the store is)

A path may be local or a URL that tensorstore supports (gs://, s3://). Damage is detected in two
ways: opening compares the files with the manifest, and every chunk read is checked against its
CRC-32C. If a file cannot be read, reads wait for it; if a local one is replaced while in use, it is
compared again (`files.arrays`); a remote store's manifest is looked at again from time to time.
"""

import copy
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emo_jax.data import raw
from emo_jax.data.domain_groups import MOST_DOMAINS, DomainGroups, group_domains
from emo_jax.data.domain_view import DomainStream, domain_number
from emo_jax.data.store_files import StoreFiles, store_patience, store_url
from emo_jax.data.store_manifest import MANIFEST, parse_manifest
from emo_jax.data.store_stream import StoreStream, TokenDocument
from emo_jax.data.stream import SPLITS
from emo_jax.documents import foreign
from emo_jax.documents.records import UNKNOWN_DOMAIN
from emo_jax.errors import DataError, UsageError
from emo_jax.files import json_files, remote
from emo_jax.files.arrays import Files, StoredArray
from emo_jax.files.json_files import Fields, NotReadableError
from emo_jax.tokenizer import vocabularies
from emo_jax.tokenizer.base import Tokenizer
from emo_jax.tokenizer.json_tokenizer import JsonTokenizer
from emo_jax.tokenizer.load import has_tokenizer, load_tokenizer

SOURCES = "sources.json"
VERIFY_BELOW_BYTES = 10**9  # smaller stores are read once in full when opened
_CACHE_BYTES = 1 << 26
_MAX_CHUNK_BYTES = 1 << 26  # ours have 128 KB; a whole chunk is held in memory


class TokenStore:
    """A prepared corpus; open it with `TokenStore.open`.

    Attributes:
      path: as given.
      domains: names, indexed by domain id.
      groups: how `grouped` merged the domains; None: they are the store's own.
      tokenizer_fingerprint: fingerprint of the tokenizer that made the ids.
      fingerprint: covers everything in the store; equal stores have equal fingerprints.
    """

    def __init__(
        self,
        path: str,
        manifest: dict[str, Any],
        files: Files | None = None,
        *,
        trust: bool = False,
    ):
        self.path, self._trust = path, trust
        self.manifest = manifest
        self._files = files
        self._patience = store_patience()
        self.vocab_size: int = manifest["vocab_size"]
        self.eos_id: int = manifest["eos_id"]
        self.pad_id: int = manifest["pad_id"]
        self.domains: tuple[str, ...] = tuple(manifest["domains"])
        self.groups: DomainGroups | None = None
        self.tokenizer_fingerprint: str = manifest["tokenizer"]
        self.fingerprint: str = manifest["checksum"]
        self._context = remote.context(cache_pool={"total_bytes_limit": _CACHE_BYTES})
        self._open_streams: dict[str, StoreStream | DomainStream] = {}
        self._whole: TokenStore | None = None  # of which this is a part
        self._only: tuple[str, ...] = ()  # names of its domains

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, verify: bool | None = None, trust: bool = False
    ) -> "TokenStore":
        """Opens a store for reading.

        Args:
          path: local folder or URL.
          verify: compare every file with its SHA-256; None: from 1 GB on, all but chunks of arrays.
            Missing or truncated files are detected either way.
          trust: allow its tokenizer to be code that a file names, see `vocabularies`.

        Raises:
          UsageError: `path` does not exist.
          DataError: it is not a store, or is damaged; names the file.
        """
        location = os.fspath(path)
        files = StoreFiles(location)
        content = files.read(MANIFEST)
        if content is None:
            if files.folder is not None and not files.folder.exists():
                several = "; several are a mixture: config.data.sources" if "," in location else ""
                raise UsageError(
                    f"{location}: no such token store; make one with `emo prepare`{several}"
                )
            raise DataError(f"{location}: {_instead(files.folder)}")
        manifest = parse_manifest(content, f"{location}/{MANIFEST}")
        files.check_sizes(manifest["files"])
        steady = files.steady(manifest["files"], content)
        compared = manifest["files"] if verify is not False else {}
        if verify is None and sum(f["bytes"] for f in compared.values()) >= VERIFY_BELOW_BYTES:
            compared = {name: f for name, f in compared.items() if "/c/" not in name}
        files.check_digests(compared)
        return cls(location, manifest, steady, trust=trust)

    @property
    def num_bytes(self) -> int:
        """Size of all its files."""
        return sum(f["bytes"] for f in self.manifest["files"].values())

    def verify(self) -> None:
        """Compares every file with its SHA-256.

        Raises:
          DataError: one differs; names it.
        """
        StoreFiles(self.path).check_digests(self.manifest["files"])

    def grouped(self, most: int = MOST_DOMAINS) -> "TokenStore":
        """Returns the same store with all but its `most` largest domains merged into one.

        Their sizes are tokens of all splits. A store with few domains is returned unchanged.
        """
        tokens_M = [sum(self.count(s, "tokens", name) for s in SPLITS) for name in self.domains]
        groups = group_domains(self.domains, tokens_M, most)
        if groups is None:
            return self
        made = copy.copy(self)
        made.groups, made.domains, made._open_streams = groups, groups.names, {}
        return made

    def only(self, domains: Sequence[str]) -> "TokenStore":
        """Returns the documents of some domains, as a store that has no others.

        Every stream reads where all of the store's documents end and what their domains are, once.

        Raises:
          UsageError: the store has no such domain.
        """
        assert self._whole is None and self.groups is None
        numbers = sorted({domain_number(self.domains, name, self.path) for name in domains})
        made = copy.copy(self)
        made.domains = made._only = tuple(self.domains[number] for number in numbers)
        made._whole, made._open_streams = self, {}
        together = repr((self.fingerprint, made.domains))
        made.fingerprint = hashlib.sha256(together.encode()).hexdigest()
        return made

    @property
    def named_domains(self) -> tuple[str, ...]:
        """The domains; empty if the only one is "unknown", for documents that name none."""
        return () if self.domains == (UNKNOWN_DOMAIN,) else self.domains

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that hold documents."""
        return tuple(s for s in SPLITS if self.count(s, "documents"))

    def count(self, split: str, what: str = "tokens", domain: str | None = None) -> int:
        """Returns the number of "tokens" or "documents" in a split, for all domains or one."""
        counts = self.manifest["splits"].get(split, {})
        of_domain = counts.get("domains", {})
        total = counts.get(what, 0)
        if self._whole is not None:
            total = sum(of_domain.get(name, {}).get(what, 0) for name in self._only)
        if domain is None:
            return total
        if self.groups is not None and domain == self.groups.names[-1]:
            named = sum(self.count(split, what, name) for name in self.groups.names[:-1])
            return total - named
        return of_domain.get(domain, {}).get(what, 0)

    def sources(self) -> dict[str, dict[str, int]]:
        """Returns "documents" and "tokens" of each input that `emo prepare` read; {} if unknown."""
        content = StoreFiles(self.path).read(SOURCES)
        if content is None:
            return {}
        try:
            fields = Fields(json_files.parse(content))
            return {
                name: {what: fields.inner(name).integer(what) for what in ("documents", "tokens")}
                for name in fields
            }
        except NotReadableError as error:
            raise self.damaged(f"{SOURCES} cannot be read ({error})") from error

    def streams(self, split: str) -> Sequence[StoreStream | DomainStream]:
        """Returns the one stream of a split; an empty list if the split is empty."""
        if split not in SPLITS:
            raise UsageError(f"split {split!r}: must be one of {', '.join(SPLITS)}")
        if not self.count(split):
            return []
        if split not in self._open_streams:
            self._open_streams[split] = self._open_stream(split)
        return [self._open_streams[split]]

    def _open_stream(self, split: str) -> StoreStream | DomainStream:
        if self._whole is None:
            return StoreStream(self, split)
        ids_M = np.full(len(self._whole.domains), -1, np.int32)
        numbers = [self._whole.domains.index(name) for name in self._only]
        ids_M[numbers] = np.arange(len(numbers)) if self.groups is None else self.groups.of_M
        return DomainStream(StoreStream(self._whole, split), ids_M)

    def documents(self, split: str, start: int, stop: int) -> list[TokenDocument]:
        """Returns documents [start, stop) of a split, in its (shuffled) order."""
        streams = self.streams(split)
        return streams[0].documents(start, stop) if streams else []

    def tokenizer(self) -> Tokenizer:
        """Returns the tokenizer that made the ids."""
        found = self._read_tokenizer()
        earlier = found.fingerprint
        if earlier != self.tokenizer_fingerprint and isinstance(found, JsonTokenizer):
            earlier = found.earlier_fingerprint
        if earlier != self.tokenizer_fingerprint:
            raise DataError(
                f"{self.path}/tokenizer: is not the tokenizer that made the ids"
                f" ({found.fingerprint[:12]} is not {self.tokenizer_fingerprint[:12]}); copy the"
                " store again or prepare it again"
            )
        found.adds_bos = "bos_id" in self.manifest
        return found

    def _read_tokenizer(self) -> Tokenizer:
        files = StoreFiles(self.path)
        if files.folder is not None:
            folder = files.folder / "tokenizer"
            return load_tokenizer(folder, trust=self._trust, within=files.folder)
        kept = files.read(f"tokenizer/{vocabularies.FILE}")
        if kept is not None:
            model = files.read(f"tokenizer/{vocabularies.MODEL_FILE}")
            return vocabularies.from_bytes(kept, model, self.path, trust=self._trust)
        try:
            content = json_files.decode(files.read("tokenizer/tokenizer.json") or b"")
            name = "tokenizer/special_tokens_map.json"
            names = Fields(json_files.parse(files.read(name) or b"{}"))
            eos, pad = names.text("eos_token"), names.text("pad_token")
            bos = names.text("bos_token", None)
        except NotReadableError as error:
            raise DataError(
                f"{self.path}/tokenizer: damaged ({error}); copy the store again or prepare it"
                " again"
            ) from error
        return JsonTokenizer(content, eos=eos, pad=pad, bos=bos, where=self.path)

    def check_tokenizer(self, fingerprint: str) -> None:
        """Raises DataError if a model's tokenizer is not the one that made the ids."""
        # Fingerprints in older stores cover more than what the ids depend on.
        if fingerprint not in (self.tokenizer_fingerprint, self.tokenizer().fingerprint):
            raise DataError(
                f"{self.path}: the tokenizer is not the store's (the model's {fingerprint[:12]} is"
                f" not {self.tokenizer_fingerprint[:12]}); prepare the documents with the model's"
                " tokenizer"
            )

    def check_tokenizer_in(self, folder: Path) -> None:
        """Raises DataError if a run's folder has a tokenizer other than the store's."""
        if has_tokenizer(folder):
            self.check_tokenizer(load_tokenizer(folder, within=folder.parent).fingerprint)

    def array(self, name: str, dtypes: Sequence[str], size: int) -> StoredArray:
        """Opens one of the store's one-dimensional arrays.

        Raises:
          DataError: it is damaged, or not what the manifest says.
        """
        found = StoredArray(
            {"driver": "zarr3", "kvstore": store_url(self.path, name)},
            name=f"{self.path}/{name}",
            patience=self._patience,
            context=lambda: self._context,
            files=self._files,
            folder=name,
            watched=(MANIFEST,),
        )
        if found.shape != (size,):
            items = "x".join(map(str, found.shape))
            raise self.damaged(f"{name} has {items} items, the manifest says {size}")
        if found.dtype.name not in dtypes:
            raise self.damaged(f"{name} is {found.dtype.name}, must be {' or '.join(dtypes)}")
        if found.chunk[0] * found.dtype.itemsize > _MAX_CHUNK_BYTES:
            raise self.damaged(f"{name} has chunks of {found.chunk[0]} items")
        for n in range(-(-size // found.file_shape[0])):
            if f"{name}/c/{n}" not in self.manifest["files"]:
                raise self.damaged(f"{name}/c/{n} is not in the manifest")
        return found

    def damaged(self, why: str) -> DataError:
        """Returns the error to raise."""
        return DataError(f"{self.path}: {why}; copy the store again or prepare it again")


def _instead(folder: Path | None) -> str:
    """Says what a folder or file without a manifest is, and what to do."""
    if folder is not None and folder.is_dir():
        for suffix in (*raw.SUFFIXES, ".idx", ".array_record"):
            if next(folder.glob(f"*{suffix}"), None) is not None:
                return (
                    f"a folder of {suffix} files, not a token store; name them as"
                    f" '{folder}/*{suffix}'"
                )
        other = foreign.of_folder(folder)
        if other is not None:
            return f"{other.what}, not a token store; {other.advice}, and prepare that"
    elif folder is not None and (other := foreign.of_name(folder)) is not None:
        return f"{other.what}, not a token store; {other.advice}"
    return f"not a token store (no {MANIFEST}); give the folder that `emo prepare` wrote"
