"""Filling a template: values go in as YAML, so that none can break out of its place."""

from __future__ import annotations

import importlib.resources
import textwrap
from collections.abc import Mapping
from string import Template
from typing import Any

import yaml


def fill(template: str, values: Mapping[str, Any]) -> str:
    """The text of `templates/NAME` with `$name` replaced; what is not text goes in as one-line YAML."""
    source = importlib.resources.files("cluster.provision").joinpath("templates", template).read_text()
    texts = {name: value if isinstance(value, str) else scalar(value) for name, value in values.items()}
    return Template(source).substitute(texts)


def scalar(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


class _Plain(yaml.SafeDumper):
    """Writes what is there twice, twice: readers of the file need not know anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def block(value: Any, indent: int) -> str:
    """A mapping or list as indented YAML lines, to stand on lines of its own."""
    if not value:
        return " " * indent + ("[]" if isinstance(value, list) else "{}")
    text = yaml.dump(
        value, Dumper=_Plain, default_flow_style=False, sort_keys=False, width=10**6, allow_unicode=True
    )
    return textwrap.indent(text.rstrip("\n"), " " * indent)


def literal(text: str, indent: int) -> str:
    """Text as the lines of a literal block (`|`)."""
    return textwrap.indent(text.rstrip("\n"), " " * indent, lambda line: bool(line.strip()))


def reason(error: Exception) -> str:
    """What an error says, on one line that steers no terminal: YAML's have the text that they are about."""
    said = " ".join(str(error).split())[:200]
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in said)
