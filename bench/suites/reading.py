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
from bench.suites.config import FIELDS, Config
from bench.suites.problems import first_problem

#: The file looked for in the current folder; without one, the copy in this package is used.
FILE = "bench.yaml"
SCHEMA_FILE = "bench.schema.json"


def load_config(path: Path | None = None) -> Config:
    """Read and validate a configuration.

    Args:
        path: the file; None for ``bench.yaml`` in the current folder, or the packaged one where there is none.

    Raises:
        InputError: one line with the file, the path of the field, the value and the rule.
    """
    named = path
    if path is None:
        path = Path(FILE) if Path(FILE).is_file() else Path(bench.__file__).with_name(FILE)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise InputError(f"{path}: {reason}") from None
    try:
        value = yaml.load(text, _Loader)  # a SafeLoader: no objects are made
    except yaml.YAMLError as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None
    try:
        return Config.model_validate(value).named(named)
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error, FIELDS)}") from None


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
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def schema_text() -> str:
    """The content of ``bench.schema.json``."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
