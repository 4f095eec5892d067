"""The one file of rules that an analyst edits: TOML, a rule a line (``stream/fraud_rules.toml`` is the default)."""

from __future__ import annotations

import tomllib
from pathlib import Path

from models.fraud.rules import RuleError, limits_of
from stream.errors import ConfigurationError

__all__ = ["DEFAULT_RULES", "read_rules"]

DEFAULT_RULES = Path(__file__).with_name("fraud_rules.toml")


def read_rules(path: Path | None) -> dict[str, int]:
    """Limits by rule; None reads the file that is shipped.

    Raises:
        ConfigurationError: the file cannot be read, is no TOML, or names an unknown rule or an impossible limit.
    """
    path = path or DEFAULT_RULES
    try:
        settings = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigurationError(
            f"The rules {path} cannot be read: {error.strerror}. Name another with "
            "--rules or FORECLICK_FRAUD__RULES, or none."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"The rules {path} are no TOML: {error}. Write a rule a line, as in {DEFAULT_RULES}."
        ) from None
    try:
        return limits_of(settings)
    except RuleError as error:
        raise ConfigurationError(f"{path}: {error}") from None
