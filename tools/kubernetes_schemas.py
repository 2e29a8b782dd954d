"""Make the schemas by which the tests check etc/kubernetes/, from the package kubernetes-validate.

Run as a program, with the package's wheel (`pip download --no-deps kubernetes-validate`), it
writes a file for each version into tests/system/kubernetes/. The package has 17,000 files, the
tests need five kinds of three versions: only what they refer to is kept, without its descriptions.
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "tests/system/kubernetes"

VERSIONS = ("1.28", "1.32", "1.37")

# The files of the kinds that etc/kubernetes/ has.
KINDS = (
    "configmap-v1",
    "deployment-apps-v1",
    "networkpolicy-networking-v1",
    "poddisruptionbudget-policy-v1",
    "service-v1",
)

_REFERENCE = re.compile(r"^(/api/_definitions\.json)?#/\$defs/")


def _compact(schema: object, used: set[str]) -> object:
    """Return a schema without descriptions; note what it refers to in `used`."""
    if isinstance(schema, list):
        return [_compact(each, used) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept: dict[str, object] = {}
    for name, value in schema.items():
        if name == "$ref":
            used.add(_REFERENCE.sub("", value))
            kept[name] = _REFERENCE.sub("#/$defs/", value)
        elif name == "properties":  # one of them may be called "description"
            kept[name] = {key: _compact(each, used) for key, each in value.items()}
        elif name not in ("description", "$schema", "$id") and not name.startswith("x-"):
            kept[name] = _compact(value, used)
    return kept


def schemas(wheel: zipfile.ZipFile, version: str) -> dict[str, object]:
    """Return the schemas of a version: `kinds` by the names of their files, and `$defs`."""

    def read(name: str) -> dict[str, dict[str, object]]:
        folder = f"kubernetes_validate/kubernetes-json-schema/v{version}.0-local-strict"
        found = json.loads(wheel.read(f"{folder}/{name}.json"))
        assert isinstance(found, dict)
        return found

    definitions = read("_definitions")["$defs"]
    used: set[str] = set()
    kinds = {name: _compact(read(name), used) for name in KINDS}
    kept: dict[str, object] = {}
    while left := used - set(kept):
        for name in left:
            kept[name] = _compact(definitions[name], used)
    return {"kinds": kinds, "$defs": dict(sorted(kept.items()))}


def main() -> None:
    """Write the files."""
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        for version in VERSIONS:
            text = json.dumps(schemas(wheel, version), separators=(",", ":"), sort_keys=True)
            (FOLDER / f"v{version}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
