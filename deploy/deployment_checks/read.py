"""Reads the files that are checked. What is ambiguous is refused: a key that stands twice, a line that is no assignment."""

import plistlib
import re
from pathlib import Path

import yaml


class Fault(Exception):
    """A file that cannot be read as what it should be."""


class _Strict(yaml.SafeLoader):
    """YAML's loader takes the last of two equal keys. This one takes neither."""

    def construct_mapping(self, node, deep=False):
        # Keys that come by a merge (<<) may be overridden: that is what merges are for.
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise Fault(f"the key {key!r} stands twice, again in line {key_node.start_mark.line + 1}")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def yaml_documents(path: Path) -> list:
    """All documents of a YAML file."""
    try:
        return list(yaml.load_all(path.read_text(), Loader=_Strict))
    except (yaml.YAMLError, OSError) as error:
        raise Fault(str(error)) from error


def yaml_document(path: Path):
    """The only document of a YAML file."""
    documents = yaml_documents(path)
    if len(documents) != 1:
        raise Fault(f"it has {len(documents)} documents instead of one")
    return documents[0]


def plist(path: Path) -> dict:
    """A property list in XML."""
    try:
        return plistlib.loads(path.read_bytes(), fmt=plistlib.FMT_XML)
    except Exception as error:  # plistlib raises what its XML parser raises
        raise Fault(str(error)) from error


def assignments(path: Path) -> dict:
    """An environment file: NAME=VALUE a line, comments and empty lines between."""
    found = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise Fault(f"line {number} is not NAME=VALUE")
        if name in found:
            raise Fault(f"{name} stands twice, again in line {number}")
        found[name] = value
    return found


def examples(path: Path) -> set:
    """Names that an environment file has as commented examples: #NAME=VALUE, without a space."""
    return set(re.findall(r"^#([A-Z][A-Z0-9_]*)=", path.read_text(), re.MULTILINE))


def unit(path: Path) -> dict:
    """A file of systemd: section to key to the list of its values."""
    sections, section = {}, None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        if line.startswith("[") and line.endswith("]"):
            section = sections.setdefault(line[1:-1], {})
            continue
        key, equals, value = line.partition("=")
        if section is None or not equals:
            raise Fault(f"line {number} is not KEY=VALUE in a section")
        section.setdefault(key.strip(), []).append(value.strip())
    return sections


def dockerfile(path: Path) -> list:
    """Instructions and what follows each, line ends joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]


_UNITS = {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "hr": 3600, "d": 86400, "day": 86400}


def seconds(text) -> float:
    """A time as systemd and Compose write it: 60, 60s, 1m30s, 7day."""
    text = str(text).strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text)
    if not parts or "".join(number + word for number, word in parts) != text.replace(" ", ""):
        raise Fault(f"{text!r} is no time")
    try:
        return sum(float(number) * _UNITS[word] for number, word in parts)
    except KeyError as error:
        raise Fault(f"{text!r} is no time") from error


_BINARY = {
    "": 1,
    "k": 1 << 10,
    "m": 1 << 20,
    "g": 1 << 30,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
}


def size(text) -> int:
    """Bytes as Kubernetes, Compose and the worker write them: 2Gi, 1536m, 256MiB."""
    match = re.fullmatch(r"(\d+)\s*([A-Za-z]*)", str(text).strip())
    if not match or match[2].lower() not in _BINARY:
        raise Fault(f"{text!r} is no size")
    return int(match[1]) * _BINARY[match[2].lower()]
