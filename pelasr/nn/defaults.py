"""Options of ESPnet's encoders that are never left to ESPnet."""

from typing import Any


def settled(options: dict[str, Any]) -> dict[str, Any]:
    """A backbone's options, in which a Conformer's relative positions are never left to ESPnet: by its default,
    `legacy`, an utterance's output depends on what pads its batch."""
    conf = options.get("encoder_conf") or {}
    if options.get("encoder") != "conformer" or not isinstance(conf, dict) or "rel_pos_type" in conf:
        return options
    return {**options, "encoder_conf": {**conf, "rel_pos_type": "latest"}}
