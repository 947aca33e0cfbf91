"""gate.json: what judge_gate and gate decided, as it is read outside of stages: damage to it is named."""

import json
from pathlib import Path
from typing import Any

from loop.errors import UserError
from loop.store import how_to_redo

FILE = "gate.json"


def read_decision(gate: Path) -> dict[str, Any]:
    """All of it. Raises UserError naming the file if it is missing or damaged."""
    path = gate / FILE
    try:
        decision = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {how_to_redo(gate)}") from None
    except (OSError, ValueError):
        decision = None
    if not isinstance(decision, dict) or not _are_alarms(decision.get("alarms", [])):
        raise UserError(f"{path} is damaged; {how_to_redo(gate)}")
    return decision


def _are_alarms(found: Any) -> bool:
    return isinstance(found, list) and all(
        isinstance(alarm, dict) and {"name", "reason"} <= alarm.keys() for alarm in found
    )


def accepts(gate: Path, key: str) -> bool:
    """key: "use" of a judge, "keep" of a generator. Raises UserError as `read_decision` does."""
    decided = read_decision(gate).get(key)
    if not isinstance(decided, bool):
        raise UserError(f"{gate / FILE} is damaged: it does not say {key}; {how_to_redo(gate)}")
    return decided
