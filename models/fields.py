"""What all settings share: their base class, the marks on their fields, and ranges such as `1-2`. No torch here."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def axis(default: Any, description: str, **limits: Any) -> Any:
    """A field that a plan may give as a list of values to sweep."""
    return Field(default, description=description, json_schema_extra={"axis": True}, **limits)


def location(description: str) -> Any:
    """A field that says where something lies: takes ${VAR}, never enters an identity."""
    return Field(None, description=description, json_schema_extra={"location": True})


def later(default: Any, description: str, **limits: Any) -> Any:
    """A field added after results existed: it enters an identity only where it differs from its default.

    Its default must be the behaviour from before the field existed.
    """
    return Field(default, description=description, json_schema_extra={"later": True}, **limits)


class Settings(BaseModel):
    """Base of all settings: unknown keys refused, immutable, defaults checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def identity(self, *, leave_out: frozenset[str] = frozenset()) -> dict[str, Any]:
        """What of these settings decides a result, as JSON values: all but locations and the fields in `leave_out`."""
        kept: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
            value = getattr(self, name)
            unchanged = extra.get("later") and value == field.default
            if name in leave_out or extra.get("location") or unchanged:
                continue
            kept[name] = value.identity() if isinstance(value, Settings) else self.model_dump(mode="json")[name]
        return kept


def read_range(value: Any) -> Any:
    """Read `1-2`, `1.0..4.0` or a single number as a (low, high) pair; leave the rest to the type."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (value, value)
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*(?:-|\.\.)\s*(-?\d+(?:\.\d+)?)\s*", value)
        if match:
            return (float(match[1]), float(match[2]))
    return value
