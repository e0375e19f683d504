"""Recognises files and folders in unsupported formats by their names and first bytes.

Each comes with advice. Read as text, such a file would become a document that is not one: a table,
an archive, another trainer's tokens.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

from emo_jax.documents.archives import packing
from emo_jax.documents.locations import open_binary
from emo_jax.files.json_files import NotReadableError, loads


class Foreign(NamedTuple):
    """What something is, and what to do about it."""

    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.what} ({self.advice})" if self.may_hold_text else self.what

    @property
    def may_hold_text(self) -> bool:
        """Whether something can be done about it."""
        return self.advice != _NO_TEXT

    @property
    def is_data(self) -> bool:
        """Whether data sets are made of it, so that a README next to it is not a document."""
        return self.may_hold_text and self not in (PAPER, PRETTY)


_LINES = "write its texts as lines of JSON or Parquet"
_UNPACK = "unpack it"
_REPACK = "unpack it, or pack it as .gz or .zst"
_PANDAS = "make Parquet of it, with pandas: read_csv(FILE).to_parquet(FILE)"
_IN_PLACE = "tokens are not prepared again; train on them in place: data.store=FILES, docs/data.md"
_RECORDS = (
    "token ids in it are trained on in place: data.store={}, docs/data.md; texts in it write as"
    " lines of JSON or Parquet"
)
_NO_TEXT = "no text is in it"

TAR = Foreign("a tar archive", "name it .tar, or .tar.gz or .tar.zst if it is packed")
TABLE = Foreign("a table of text (CSV)", _PANDAS)
SHEET = Foreign("a spreadsheet", _LINES)
ARROW = Foreign("an Arrow file", "name it .arrow")
TFRECORD = Foreign("a TFRecord file", "name a seqio task that reads it: seqio:MODULE:TASK")
ARRAY_RECORD = Foreign("an ArrayRecord file", _RECORDS.format("FILES"))
BAGZ = Foreign("a Bagz file", _LINES)
MDS = Foreign("a MosaicML dataset (MDS)", _RECORDS.format("FOLDER"))
LITDATA = Foreign("a litdata dataset", _LINES)
MEGATRON = Foreign("a Megatron dataset (.bin and .idx)", _IN_PLACE)
DATATROVE = Foreign("tokens of datatrove (.ds)", _IN_PLACE)
NUMPY = Foreign("NumPy arrays or token ids (.npy)", _IN_PLACE)
NUMPY_ZIP = Foreign("NumPy arrays (.npz)", _LINES)
STORE = Foreign("a token store of emo prepare", "train on it: --config.data.store=FOLDER")
ORC = Foreign("an ORC or Avro file", _LINES)
LANCE = Foreign("a Lance, Delta or Iceberg table", "write it out as Parquet")
PARQUET = Foreign("Parquet", "name it .parquet")
GZIP = Foreign("gzip data", "name it .gz behind its ending, as in .jsonl.gz")
ZSTD = Foreign("zstd data", "name it .zst behind its ending, as in .jsonl.zst")
ZIP = Foreign("an archive (zip, 7z, rar)", _UNPACK)
PACKED = Foreign("packed with bzip2, xz or lz4", _REPACK)
WARC = Foreign("a web archive (WARC)", f"extract its texts, and {_LINES}")
DATABASE = Foreign("a database", _LINES)
WEIGHTS = Foreign("weights or objects of a program", _NO_TEXT)
IMAGE = Foreign("an image", _NO_TEXT)
SOUND = Foreign("sound or video", _NO_TEXT)
PAPER = Foreign("a PDF or office document", f"extract its text, and {_LINES}")
PROGRAM = Foreign("a program, library or font", _NO_TEXT)
BINARY = Foreign("a binary file", _NO_TEXT)
POINTER = Foreign("a pointer of Git LFS", "fetch the file itself: git lfs pull")
ARRAY = Foreign("one JSON array, no lines", "make a line of each document: jq -c '.[]' FILE")
PRETTY = Foreign("JSON over several lines", "make a line of each document: jq -c . FILE")
RECORDS = Foreign("lines of JSON, no text", "name it .jsonl")

_BY_SUFFIX: dict[Foreign, str] = {
    TAR: "tar tgz",  # what reads only lines does not read them
    TABLE: "csv tsv psv tab",
    SHEET: "xls xlsx xlsm ods",
    ARROW: "arrow feather arrows ipc",
    TFRECORD: "tfrecord tfrecords tfr",
    ARRAY_RECORD: "array_record arrayrecord riegeli",
    BAGZ: "bagz",
    MDS: "mds",
    NUMPY: "npy",
    NUMPY_ZIP: "npz",
    ORC: "orc avro",
    LANCE: "lance",
    ZIP: "zip 7z rar",
    PACKED: "tbz tbz2 txz bz2 xz lz4 lzma br snappy sz",
    WARC: "warc wet wat",
    DATABASE: "sqlite sqlite3 db mdb duckdb",
    WEIGHTS: "safetensors gguf pt pth ckpt h5 hdf5 onnx pkl pickle joblib msgpack model bin idx",
    IMAGE: "png jpg jpeg gif webp bmp tif tiff ico heic avif psd",
    SOUND: "mp3 wav flac ogg opus m4a aac mp4 mkv webm mov avi",
    PAPER: "pdf doc docx odt ppt pptx odp epub djvu ps rtf",
    PROGRAM: "exe dll so dylib o a lib pyc class jar wasm whl ttf otf woff woff2 eot",
}
_SUFFIXES = {
    f".{suffix}": kind for kind, suffixes in _BY_SUFFIX.items() for suffix in suffixes.split()
}
_DATATROVE = re.compile(r"\.ds(\.(index|metadata|loss))?$", re.IGNORECASE)
_TFRECORD_SHARD = re.compile(r"\.(tfrecords?|array_record)-\d+-of-\d+$", re.IGNORECASE)

# (offset, bytes, kind): magic bytes near the start of a file.
_MAGIC: tuple[tuple[int, bytes, Foreign], ...] = (
    (0, b"version https://git-lfs.github.com/spec/", POINTER),
    (0, b"PAR1", PARQUET),
    (0, b"ARROW1\0\0", ARROW),
    (0, b"\xff\xff\xff\xff", ARROW),  # an Arrow stream
    (0, b"\x93NUMPY", NUMPY),
    (0, b"MMIDIDX\0\0", MEGATRON),
    (0, b"SQLite format 3\0", DATABASE),
    (0, b"Obj\x01", ORC),
    (0, b"WARC/1.", WARC),
    (257, b"ustar", TAR),
    (0, b"PK\x03\x04", ZIP),
    (0, b"7z\xbc\xaf\x27\x1c", ZIP),
    (0, b"Rar!\x1a\x07", ZIP),
    (0, b"\x1f\x8b", GZIP),
    (0, b"\x28\xb5\x2f\xfd", ZSTD),
    (0, b"\xfd7zXZ\0", PACKED),
    (0, b"\x04\x22\x4d\x18", PACKED),
    (0, b"%PDF-", PAPER),
    (0, b"\xd0\xcf\x11\xe0", PAPER),
    (0, b"\x89PNG\r\n", IMAGE),
    (0, b"\xff\xd8\xff", IMAGE),
    (0, b"GIF8", IMAGE),
    (0, b"RIFF", SOUND),
    (0, b"OggS", SOUND),
    (0, b"fLaC", SOUND),
    (0, b"ID3", SOUND),
    (0, b"\x7fELF", PROGRAM),
    (0, b"\x89HDF", WEIGHTS),
    (0, b"GGUF", WEIGHTS),
)
_TEXTS = (POINTER, PAPER, WARC)
_BZIP = re.compile(rb"BZh[1-9]1AY&SY")
_LOOK_AT = 8192  # bytes searched for NULs, as git does


_OF_FORM = (ARRAY, PRETTY, GZIP, ZSTD, PACKED, ZIP, POINTER)


def as_lines(other: Foreign) -> Foreign:
    """Changes the advice for a caller that reads only lines, where Parquet is not an option."""
    keep = other in _OF_FORM or not other.may_hold_text
    return other if keep else other._replace(advice="write it as lines of JSON")


def of_name(path: Path) -> Foreign | None:
    """Returns what a file is by its extension, compressed or not; None if it is not foreign."""
    if _DATATROVE.search(path.name):
        return DATATROVE
    if _TFRECORD_SHARD.search(path.name):
        return ARRAY_RECORD if "array_record" in path.name.lower() else TFRECORD
    inner = Path(path.stem if packing(path) else path.name)
    found = _SUFFIXES.get(inner.suffix.lower())
    return MEGATRON if found is WEIGHTS and _is_megatron(path) else found


def _is_megatron(path: Path) -> bool:
    pair = {".bin": ".idx", ".idx": ".bin"}.get(path.suffix.lower())
    return pair is not None and path.with_suffix(pair).exists()


def of_content(start: bytes) -> Foreign | None:
    """Returns what a file is by its first bytes, as `text_files.read_chunks` yields them."""
    binary = b"\0" in start[:_LOOK_AT]
    for where, magic, kind in _MAGIC:
        # A text may also start with "ID3".
        if start.startswith(magic, where) and (binary or kind in _TEXTS or not magic.isalnum()):
            return kind
    if _BZIP.match(start):
        return PACKED
    return BINARY if binary else None


def of_text(start: bytes, text_field: str) -> Foreign | None:
    """Returns what a text file is instead, by its first bytes, including misnamed JSON lines.

    For a single line, only the text field tells a document from the output of some program.
    """
    first, _, more = start.lstrip().partition(b"\n")
    if first[:1] == b"{" and isinstance(value := _value(first), dict):
        second = more.lstrip().partition(b"\n")[0]
        named = text_field in value or text_field.partition(".")[0] in value
        if named or (second[:1] == b"{" and isinstance(_value(second), dict)):
            return RECORDS
    return of_content(start)


def of_lines(start: bytes) -> Foreign | None:
    """Returns what a file of JSON lines is instead, by its first bytes."""
    if start.lstrip()[:1] not in (b"[", b"{"):
        return of_content(start)
    first, newline, more = start.lstrip().partition(b"\n")
    value = _value(first)
    if value is not None:  # a line; lines that are lists are counted one by one
        return ARRAY if isinstance(value, list) and not more.strip() else None
    if isinstance(_value(more.lstrip().partition(b"\n")[0]), dict):
        return None  # lines, the first of them broken
    inside = first.strip()[1:].strip()
    if first[:1] == b"[":
        return ARRAY if not inside or inside[:1] in b"{[" else None
    return PRETTY if newline and (not inside or inside[-1:] in b",{[") else None


def _value(line: bytes) -> Any:
    try:
        return loads(line.decode("utf-8", "replace"))
    except NotReadableError:
        return None


def of_folder(path: Path) -> Foreign | None:
    """Returns what a whole folder is; None if it is not foreign."""
    index = path / "index.json"
    if index.is_file():
        if next(path.glob("*.mds*"), None) is not None:
            return MDS
        if next(path.glob("chunk-*.bin*"), None) is not None:
            return LITDATA
    if (path / "_delta_log").is_dir() or (path / "metadata" / "version-hint.text").is_file():
        return LANCE
    if path.suffix == ".lance" or (path / "_versions").is_dir():
        return LANCE
    if next(path.glob("*.ds"), None) is not None:
        return DATATROVE
    if _is_store(path / "store.json"):
        return STORE
    return None


def _is_store(manifest: Path) -> bool:
    if not manifest.is_file():
        return False
    try:
        with open_binary(manifest, 1 << 16) as file:
            return b'"emo_jax token store"' in file.read(1 << 16)
    except (OSError, NotReadableError):
        return False
