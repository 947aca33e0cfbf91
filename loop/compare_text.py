"""A comparison of runs as a table to read, and as flat rows for CSV and JSON."""

from collections.abc import Sequence
from typing import Any

from loop.compare import Arm, Cell, Comparison
from loop.pairing import Difference

_OF_DIFFERENCE = (
    *("difference", "difference_low", "difference_high", "difference_lowest", "difference_highest"),
    *("paired", "num_takes", "num_prompts", "note"),
)
COLUMNS = (
    *("metric", "round", "arm", "value", "low", "high", "num_clips", "num_runs", "lowest", "highest", "kept"),
    *("judge", *_OF_DIFFERENCE),
)
ROLLED_BACK, UNPAIRED = "*", "~"


def flat_rows(found: Comparison) -> list[dict[str, Any]]:
    """One row for each metric, round and arm, with COLUMNS; the first arm has no difference."""
    rows = []
    for (metric, number, arm), cell in found.cells.items():
        row: dict[str, Any] = {"metric": metric, "round": number, "arm": arm}
        row |= {name: value for name, value in vars(cell).items() if name != "difference"}
        row |= dict.fromkeys(_OF_DIFFERENCE)
        if cell.difference is not None:
            row |= _flat(cell.difference)
        rows.append(row)
    place = {name: i for i, name in enumerate(found.metrics)}
    arms = [arm.name for arm in found.arms]
    return sorted(rows, key=lambda row: (place[row["metric"]], row["round"], arms.index(row["arm"])))


def as_json(found: Comparison) -> dict[str, Any]:
    """The rows with what they are about: the runs of each arm, and the notes."""
    return {
        "first": found.arms[0].name,
        "arms": {arm.name: [str(run) for run in arm.runs] for arm in found.arms},
        "notes": found.notes,
        "rows": flat_rows(found),
    }


def table(found: Comparison) -> list[str]:
    """Lines for the terminal: a block for each metric, with a row for each round."""
    first, *others = found.arms
    reasons: dict[str, int] = {}
    lines: list[str] = []
    for metric in found.metrics:
        head = ["round", *(arm.name for arm in found.arms), *(f"{arm.name} − {first.name}" for arm in others)]
        rows = [head]
        for number in found.rounds:
            cells = [found.cells.get((metric, number, arm.name)) for arm in found.arms]
            if any(cells):
                told = [value_text(cell) for cell in cells]
                told += [footnoted(cell, reasons) for cell in cells[1:]]
                rows.append([str(number), *told])
        lines += [metric, *_aligned(rows), ""]
    return lines + _legend(found, reasons)


def value_text(cell: Cell | None) -> str:
    """0.412 [0.380, 0.440], or with the span of several runs; "–" where nothing could be measured."""
    if cell is None or cell.value is None:
        return "–"
    text = _number(cell.value)
    if cell.num_runs > 1 and cell.lowest is not None and cell.highest is not None:
        text += f" ({_number(cell.lowest)} to {_number(cell.highest)})"
    elif cell.low is not None and cell.high is not None:
        text += f" [{_number(cell.low)}, {_number(cell.high)}]"
    return text + (ROLLED_BACK if cell.kept is False else "")


def difference_text(difference: Difference) -> str:
    """+0.031 [+0.004, +0.058], with ~ in front where the two are not paired; "–" where there is none."""
    if difference.interval is None:
        return "–"
    told = difference.interval
    text = f"{_number(told.value, '+')} [{_number(told.low, '+')}, {_number(told.high, '+')}]"
    if difference.lowest is not None and difference.highest is not None:
        text += f" ({_number(difference.lowest, '+')} to {_number(difference.highest, '+')})"
    return text if difference.paired else f"{UNPAIRED} {text}"


def footnoted(cell: Cell | None, reasons: dict[str, int]) -> str:
    """A cell's difference with the number of its note, which `reasons` is given if it is new."""
    if cell is None or cell.difference is None:
        return "–"
    text, note = difference_text(cell.difference), cell.difference.note
    if note and not note.startswith("not paired"):  # those stand once, among the comparison's notes
        text += f" ({reasons.setdefault(note, len(reasons) + 1)})"
    return text


def legend(arms: Sequence[Arm]) -> list[str]:
    """What brackets, parentheses and marks mean."""
    lines = [
        "[low, high]: 95 % intervals, drawn over prompts. Differences are taken take by take where both have "
        f"the same prompts, seeds, clip settings and real clips. {UNPAIRED}: they do not, so each was drawn "
        f"apart. {ROLLED_BACK}: a candidate that was rolled back. –: could not be measured."
    ]
    if any(len(arm.runs) > 1 for arm in arms):
        lines.append(
            "(lowest to highest): of single runs. A mean over runs has no interval, and that of a difference "
            "speaks of prompts alone: how far other seeds of training may fall is seen in the span."
        )
    return lines


def _number(value: float, sign: str = "-") -> str:
    """Three decimals, or three digits of what is smaller than that would show."""
    text = format(value, f"{sign}.3f" if value == 0 or abs(value) >= 0.1 else f"{sign}.3g")
    return text.replace("-", "−")


def _flat(difference: Difference) -> dict[str, Any]:
    told = difference.interval
    return {
        "difference": told.value if told else None,
        "difference_low": told.low if told else None,
        "difference_high": told.high if told else None,
        "difference_lowest": difference.lowest,
        "difference_highest": difference.highest,
        "paired": difference.paired if told else None,
        "num_takes": difference.num_takes,
        "num_prompts": difference.num_prompts,
        "note": difference.note,
    }


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "   ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _legend(found: Comparison, reasons: dict[str, int]) -> list[str]:
    numbered = [f"({number}) {reason}" for reason, number in reasons.items()]
    return [*legend(found.arms), *numbered, *(f"note: {note}" for note in found.notes)]
