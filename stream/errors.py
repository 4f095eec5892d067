"""Every error of the pipeline, split by whose fault it is.

    ForeclickError (models/errors.py)
    ├── ConfigurationError     a setting, a flag or an environment variable is wrong
    ├── InputFileError         a file that cannot be read as events
    ├── BrokerUnreachable      no broker answers at the address
    │   └── BrokerRefused      one does, who wants another password, certificate or protocol
    ├── TopicError             a topic is missing, or its shape contradicts another's
    ├── PositionError          where to open a partition cannot be decided safely
    ├── StoreError             the data directory: locked, not writable, full, damaged
    │   └── DamagedRow         one row that this build cannot read
    ├── PortTaken              the HTTP port of operators is in use
    ├── Unsupported            a library differs from the pinned version that the engine relies on
    └── BrokenInvariant        what must never happen did: the process ends, the next owner restores

A rejected event is not an error but a value with a destination: ``stream.events.Rejection``.
"""

from __future__ import annotations

from models.errors import ForeclickError

__all__ = [
    "BrokenInvariant",
    "BrokerRefused",
    "BrokerUnreachable",
    "ConfigurationError",
    "DamagedRow",
    "ForeclickError",
    "InputFileError",
    "PortTaken",
    "PositionError",
    "StoreError",
    "TopicError",
    "Unsupported",
]


class ConfigurationError(ForeclickError):
    """A setting is unknown, contradicts another one, or cannot be parsed."""


class InputFileError(ForeclickError):
    """A file is missing, truncated, or has not the columns of its format."""


class BrokerUnreachable(ForeclickError):
    """No Kafka broker answers at the address."""


class BrokerRefused(BrokerUnreachable):
    """A broker is there, and its TLS or SASL does not agree with our settings."""


class TopicError(ForeclickError):
    """A topic is missing, or its partitions differ from the topic that it mirrors."""


class PositionError(ForeclickError):
    """The offset at which to open a partition is lost or contradictory."""


class StoreError(ForeclickError):
    """The data directory is locked, not writable, full or damaged."""


class DamagedRow(StoreError):
    """A state row is shorter than its header says, or of a version that this build does not know."""


class PortTaken(ForeclickError):
    """Another process listens on the operators' HTTP port."""


class Unsupported(ForeclickError):
    """Faust or aiokafka is not the pinned version, or lacks what the engine relies on."""


class BrokenInvariant(ForeclickError):
    """The data would be wrong if the process went on."""

    exit_code = 70
