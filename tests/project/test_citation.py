"""CITATION.cff against the rules of the Citation File Format 1.2.0, as far as software and a paper need them.

The full schema is at https://citation-file-format.github.io/1.2.0/schema. A key that it has and this copy lacks is
added here before it is used. Also the changelog's form.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import jsonschema
import pytest
import yaml
from toys import REPOSITORY

import guardrail

TEXT = {"type": "string", "minLength": 1}
TEXTS = {"type": "array", "items": TEXT, "minItems": 1, "uniqueItems": True}
URL = {"type": "string", "pattern": r"^(https|http|ftp|sftp)://.+"}
DATE = {"type": "string", "pattern": r"^[0-9]{4}-(0[1-9]|1[012])-(0[1-9]|[12][0-9]|3[01])$"}
DOI = {"type": "string", "pattern": r"^10\.\d{4,9}(\.\d+)?/[A-Za-z0-9:/_;\-\.\(\)\[\]\\]+$"}
NUMBER = {"anyOf": [{"type": "integer"}, TEXT]}
LICENCE = {"enum": ["MIT", "Apache-2.0", "BSD-3-Clause", "CC-BY-4.0"]}  # of SPDX's list, the ones likely here
ADDRESS = dict.fromkeys(["address", "alias", "city", "email", "fax", "post-code", "region", "tel"], TEXT)
ADDRESS |= {"country": {"type": "string", "pattern": "^[A-Z]{2}$"}, "website": URL}
ADDRESS |= {"orcid": {"type": "string", "pattern": r"https://orcid\.org/[0-9]{4}-[0-9]{4}-[0-9]{4}-[0-9]{3}[0-9X]{1}"}}


def closed(required: list[str], **properties: Any) -> dict[str, Any]:
    """An object with these keys and no others; ``_`` in a name stands for ``-``."""
    named = {name.replace("_", "-"): rule for name, rule in properties.items()}
    return {"type": "object", "required": required, "properties": named, "additionalProperties": False}


NAMES = dict.fromkeys(["affiliation", "family-names", "given-names", "name-particle", "name-suffix"], TEXT)
PERSON = closed([], **NAMES, **ADDRESS)
ENTITY = closed(["name"], name=TEXT, location=TEXT, date_start=DATE, date_end=DATE, **ADDRESS)
AGENTS = {"type": "array", "items": {"anyOf": [PERSON, ENTITY]}, "minItems": 1, "uniqueItems": True}
IDENTIFIER = closed(["type", "value"], type={"enum": ["doi", "url", "swh", "other"]}, value=TEXT, description=TEXT)
SHARED = {
    **dict.fromkeys(["abstract", "commit", "title"], TEXT),
    **dict.fromkeys(["authors", "contact"], AGENTS),
    **dict.fromkeys(["license-url", "repository", "repository-artifact", "repository-code", "url"], URL),
    "date-released": DATE,
    "doi": DOI,
    "identifiers": {"type": "array", "items": IDENTIFIER, "minItems": 1},
    "keywords": TEXTS,
    "license": LICENCE,
    "version": NUMBER,
}
PAPER = closed(
    ["authors", "title", "type"],
    **SHARED,
    type={"enum": ["article", "conference-paper", "generic", "proceedings", "report", "software", "thesis"]},
    collection_title=TEXT,
    collection_type=TEXT,
    conference=ENTITY,
    date_published=DATE,
    editors=AGENTS,
    end=NUMBER,
    isbn={"type": "string", "pattern": "^[0-9\\- ]{10,17}X?$"},
    journal=TEXT,
    month={"anyOf": [{"type": "integer", "minimum": 1, "maximum": 12}, {"enum": [str(n) for n in range(1, 13)]}]},
    notes=TEXT,
    number=NUMBER,
    pages=NUMBER,
    publisher=ENTITY,
    start=NUMBER,
    volume=NUMBER,
    year=NUMBER,
)
CITATION = closed(
    ["authors", "cff-version", "message", "title"],
    **SHARED,
    cff_version={"const": "1.2.0"},
    message=TEXT,
    preferred_citation=PAPER,
    references={"type": "array", "items": PAPER, "minItems": 1},
    type={"enum": ["dataset", "software"]},
)


def citation() -> dict[str, Any]:
    content = yaml.load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    for key in ("start", "end", "month", "year"):  # the base loader reads text only, so that a version stays one
        content["preferred-citation"][key] = int(content["preferred-citation"][key])
    return content


def test_citation_is_valid() -> None:
    jsonschema.validate(citation(), CITATION)


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ([], "cff-version", "1.1.0"),
        ([], "message", None),
        ([], "authors", []),
        ([], "author", "somebody"),
        ([], "date-released", "21.11.2026"),
        ([], "license", "MIT license"),
        (["preferred-citation"], "type", "conference"),
        (["preferred-citation"], "year", 2026.5),
        (["preferred-citation"], "month", 13),
        (["preferred-citation"], "booktitle", "Proceedings"),
        (["preferred-citation"], "publisher", "A publisher"),
        (["authors", 0], "name", ""),
    ],
)
def test_an_invalid_citation_is_seen(where: list[Any], key: str, value: Any) -> None:
    content = copy.deepcopy(citation())
    place: Any = content
    for step in where:
        place = place[step]
    if value is None:
        del place[key]
    else:
        place[key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, CITATION)


def test_citation_agrees_with_package_and_readme() -> None:
    content, readme = citation(), (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert content["version"] == guardrail.__version__
    paper = content["preferred-citation"]
    bibtex = readme[readme.index("@inproceedings") :].replace("{", "").replace("}", "")
    assert paper["title"] in bibtex
    assert f"{paper['start']}--{paper['end']}" in bibtex
    for author in paper["authors"]:
        assert f"{author['family-names']}, {author['given-names']}" in bibtex


def test_changelog_keeps_its_form() -> None:
    lines = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    versions = [line for line in lines if line.startswith("## ")]
    assert versions[0] == "## [Unreleased]"
    assert versions[1].startswith(f"## [{guardrail.__version__}] - ")
    assert all(re.fullmatch(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", line) for line in versions[1:])
    kinds = [line[4:] for line in lines if line.startswith("### ")]
    assert kinds and set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
