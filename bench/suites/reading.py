"""Reading ``bench.yaml``, and its JSON Schema."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

import bench
from bench.contracts.errors import InputError
from bench.suites.config import FIELDS, Config, Suite, ThreatModelConfig
from bench.suites.extending import extended
from bench.suites.problems import first_problem

#: The file looked for in the current folder; the copy in this package holds the shipped suites.
FILE = "bench.yaml"
SCHEMA_FILE = "bench.schema.json"


def load_config(path: Path | None = None) -> Config:
    """Read and validate the shipped suites, and those of a file, which are added to them.

    A suite that has the name of a shipped one takes its place (:attr:`Suite.origin` says so).

    Args:
        path: the file; None for ``bench.yaml`` in the current folder, if there is one.

    Raises:
        InputError: one line with the file, the path of the field, the value and the rule.
    """
    packaged = Path(bench.__file__).with_name(FILE)
    shipped = _suites(packaged, {})
    config = _validated(packaged, {"suites": shipped})
    own = Path(FILE) if path is None and Path(FILE).is_file() else path
    if own is None or (own.is_file() and own.samefile(packaged)):
        return config
    raw = _read(own)
    if isinstance(raw, dict) and isinstance(raw.get("suites"), dict):
        raw = {**raw, "suites": _suites(own, shipped)}
    return config.joined(_validated(own, raw), own, named=path is not None)


def _suites(path: Path, shipped: dict[str, Any]) -> dict[str, Any]:
    """The suites of a file, not yet validated, with what they extend."""
    try:
        return extended(_read(path)["suites"], shipped)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _validated(path: Path, raw: Any) -> Config:
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error, FIELDS)}") from None


def _read(path: Path) -> Any:
    """What a file says, as plain values."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise InputError(f"{path}: {reason}") from None
    try:
        return yaml.load(text, _Loader)  # a SafeLoader: no objects are made
    except yaml.YAMLError as error:
        tab = "; lines are indented by spaces, not by tabs" if "'\\t'" in str(error) else ""
        raise InputError(f"{path}: {' '.join(str(error).split())}{tab}") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that refuses duplicate keys and reads ``1e-3`` as the number it looks like."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position] and key != "<<":
                line = node.value[position][0].start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: key {key!r} appears twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of ``bench.yaml``, for editors that complete and check it while it is written."""
    schema = Config.model_json_schema()
    suite, ball = (schema["$defs"][model.__name__] for model in (Suite, ThreatModelConfig))
    suite["properties"] = {
        "extends": {"description": "the suite that this one is but for what it says itself", "type": "string"},
        "without": {
            "description": "attacks of the suite it extends that it does not have",
            "type": "array",
            "items": {"type": "string"},
        },
        **suite["properties"],
    }
    # A suite that extends another need not say everything.
    whole = {"threat_model": {"required": ball.pop("required")}}
    suite["anyOf"] = [{"required": suite.pop("required"), "properties": whole}, {"required": ["extends"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def schema_text() -> str:
    """The content of ``bench.schema.json``."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
