"""The data of an explorer page, read as the page's own script reads it."""

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = {"u1": np.uint8, "u2": np.uint16, "u4": np.uint32}


def read_page(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(header, {section: array})."""
    text = file.read_text(encoding="utf-8")
    (header,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    header = json.loads(header)
    found = re.findall(
        r'<script type="application/octet-stream" id="bin-([\w-]+)">(.*?)</script>', text
    )
    arrays = {}
    for name, content in found:
        about = header["sections"][name]
        array = np.frombuffer(gzip.decompress(base64.b64decode(content)), DTYPES[about["dtype"]])
        arrays[name] = array.reshape(about["shape"])
    assert set(arrays) == set(header["sections"])
    return header, arrays
