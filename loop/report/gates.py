"""The gates section: both gates of every round with their reasons, alarms, and all that they measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from loop.report import tables
from loop.report.charts import interval, number
from loop.report.collect import Row, Run, is_number
from loop.report.markup import Html, element, join

_TOLD = {"keep", "use", "reason", "alarms", "low", "high"}  # elsewhere in the section
_IN_THE_REASON = ("promote", "roll_back", "none")  # actions that the reason begins with


def decisions(run: Run) -> Html | None:
    """A row per gate and round; None while no gate has decided."""
    rows, alarms, details = [], [], []
    for r in run.rounds:
        for stage, who, key, yes, no, measured in (
            ("judge_gate", "judge", "use", "in use", "refused", "accuracy"),
            ("gate", "generator", "keep", "kept", "rolled back", "win_rate"),
        ):
            decision = run.json(r, stage, "gate.json")
            if decision is None:
                continue
            good = bool(decision.get(key))
            mark = element("span", yes if good else no, _class="mark good" if good else "mark bad")
            share = decision.get(measured)
            value = number(float(share)) if is_number(share) else "–"
            bounds = interval(decision.get("low"), decision.get("high"))
            if bounds and is_number(decision.get("alpha")):  # one-sided, of an error that shrinks by attempt
                bounds += f" (each at α\u00a0=\u00a0{decision['alpha']:.3f})"
            rows.append([f"round {r}", who, mark, value, bounds, _why(decision)])
            alarms += [_alarm(r, who, alarm) for alarm in _listed(decision.get("alarms"))]
            rest = {name: value for name, value in decision.items() if name not in _TOLD}
            if rest:
                details.append(_everything(f"round {r}, {who}", rest))
    if not rows:
        return None
    lead = (
        "The judge is measured by its accuracy on held-out known answers, with a 95\u00a0% interval, the "
        "generator by its win rate, with one-sided bounds at the error α that the attempt may spend."
    )
    return join(
        element("p", lead, _class="lead"),
        element("ul", *alarms, _class="alarms") if alarms else None,
        element(
            "div",
            tables.plain(("", "gate", "decision", "measured", "interval", "reason"), rows, numeric=(3, 4)),
            _class="decisions",
        ),
        element("details", element("summary", "All that the gates measured"), *details) if details else None,
    )


def num_alarms(run: Run) -> int:
    found = (run.json(r, stage, "gate.json") or {} for r in run.rounds for stage in ("judge_gate", "gate"))
    return sum(len(_listed(decision.get("alarms"))) for decision in found)


def _why(decision: Row) -> str:
    action = decision.get("action")
    told = str(decision.get("reason") or "")
    if not action or action in _IN_THE_REASON:
        return told
    return f"{told.rstrip('.')}; then: {_say(action)}"


def _alarm(r: int, who: str, alarm: Any) -> Html:
    if not isinstance(alarm, Mapping):
        alarm = {"name": str(alarm)}
    name = str(alarm.get("name", "alarm")).replace("_", " ")
    return element(
        "li",
        element("b", name),
        element("small", f"round {r}, {who}"),
        element("span", str(alarm.get("reason") or "")),
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _everything(title: str, values: Mapping[str, Any]) -> Html:
    """Single values as a list, groups of them (a probe's, the power calculation's) as small tables below."""
    groups = {name: value for name, value in values.items() if isinstance(value, Mapping) and value}
    single = {name: value for name, value in values.items() if name not in groups}
    return element(
        "div",
        element("h3", title),
        _list(single) if single else None,
        *(
            join(element("h4", _plain(name)), _table(value) if _is_table(value) else _list(value))
            for name, value in groups.items()
        ),
        _class="measured",
    )


def _list(values: Mapping[str, Any]) -> Html:
    told = (
        element("div", element("dt", _plain(name)), element("dd", _say(value)))
        for name, value in values.items()
    )
    return element("dl", *told, _class="versions")


def _is_table(values: Mapping[str, Any]) -> bool:
    return all(isinstance(value, Mapping) for value in values.values())


def _table(rows: Mapping[str, Mapping[str, Any]]) -> Html:
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    cells = [
        [_plain(name), *(_say(row[column]) if column in row else "" for column in columns)]
        for name, row in rows.items()
    ]
    return tables.plain(("", *map(_plain, columns)), cells, numeric=range(1, len(columns) + 1))


def _plain(name: str) -> str:
    return str(name).replace("_", " ")


def _say(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, str):
        return value.replace("_", " ")
    if isinstance(value, int):
        return f"{value:,}"
    if is_number(value):
        return number(value)
    return json.dumps(value, ensure_ascii=False)
