"""Reads what people said about pairs of clips, to measure a judge on it. Nothing read here is trained on.

Two layouts, told apart by their columns, each as .csv, .jsonl or .parquet:

VideoGen-RewardBench (Liu et al. 2025, "Improving Video Generation with Human Feedback"): path_A, path_B,
prompt, and VQ, MQ, TA and Overall with A, B or same.
GenAI-Bench (Jiang et al. 2024): left_video, right_video, prompt, and vote_type with leftvote, rightvote,
tievote or bothbad_vote.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop.errors import UserError
from loop.metadata import read_lines
from reward.question import Answer


@dataclass(frozen=True)
class Layout:
    """Which columns name the clips, which dimension a column of labels speaks of, and what its words mean."""

    name: str
    first: str
    second: str
    dimensions: Mapping[str, str]
    words: Mapping[str, Answer]


LAYOUTS = (
    Layout(
        "VideoGen-RewardBench",
        "path_A",
        "path_B",
        {"VQ": "visual_quality", "MQ": "motion", "TA": "text_alignment", "Overall": "overall"},
        {"A": "first", "B": "second", "same": "tie"},
    ),
    Layout(
        "GenAI-Bench",
        "left_video",
        "right_video",
        {"vote_type": "overall"},
        # both bad: people preferred neither
        {"leftvote": "first", "rightvote": "second", "tievote": "tie", "bothbad_vote": "tie"},
    ),
)
_MAJORITY = ("VQ", "MQ", "TA")  # stand in for a missing Overall, as in loop/human_pairs.py


@dataclass(frozen=True)
class Comparison:
    """What one line says. first, second: as written there. answers: by dimension; one may be missing."""

    line: int
    first: str
    second: str
    prompt: str
    answers: Mapping[str, Answer]


@dataclass(frozen=True)
class SkippedLine:
    """A line that is not measured on. `reason` is one of a few, to count by; `detail` says more."""

    line: int
    reason: str
    detail: str


@dataclass(frozen=True)
class Compared:
    """A file's comparisons in its order. dimensions: the judge's dimension by column, as it was used."""

    layout: str
    dimensions: Mapping[str, str]
    comparisons: list[Comparison]
    skipped: list[SkippedLine]


def read_comparisons(
    file: str | Path, known: Sequence[str], wanted: Mapping[str, str] | None = None
) -> Compared:
    """The comparisons of a .csv, .jsonl or .parquet file.

    known: the judge's dimensions; a column of another one is left alone. wanted: dimension by column, in
    place of the layout's own. Without a column for `overall` the majority of VQ, MQ and TA stands in, unless
    `wanted` is given. An empty label is none: the line does not count in that dimension.
    Skipped are a clip against itself, a line that repeats an earlier one, and a line without any label.
    Raises UserError naming file, line and column for a file that cannot be read or has no rows, for columns
    of neither layout, an unknown dimension or word, and an empty path or prompt.
    """
    table = Path(file).expanduser()
    rows, word = _rows(table)
    found: list[Comparison] = []
    skipped: list[SkippedLine] = []
    seen: dict[tuple[Any, ...], int] = {}
    layout: Layout | None = None
    columns: dict[str, str] = {}
    for line, values in rows:
        if layout is None:
            layout = _layout(table, values)
            columns = _columns(table, layout, list(values), known, wanted)
        one = _comparison(f"{table}, {word} {line}", line, values, layout, columns)
        said = (one.first, one.second, one.prompt, *sorted(one.answers.items()))
        if one.first == one.second:
            skipped.append(SkippedLine(line, "a clip against itself", one.first))
        elif not one.answers:
            skipped.append(SkippedLine(line, "no label", ", ".join(columns)))
        elif said in seen:
            skipped.append(SkippedLine(line, "repeated", f"says what {word} {seen[said]} says"))
        else:
            seen[said] = line
            found.append(one)
    if layout is None:
        raise UserError(f"{table}: no rows; list one pair of clips a line")
    return Compared(layout.name, columns, found, skipped)


def _comparison(
    where: str, line: int, values: Mapping[str, str], layout: Layout, columns: Mapping[str, str]
) -> Comparison:
    for name in (layout.first, layout.second, "prompt"):
        if not values.get(name):
            raise UserError(f"{where}: column {name!r} is empty; fill it in or remove the line")
    labels = {name: _label(where, name, values.get(name, ""), layout) for name in _sources(columns)}
    answers: dict[str, Answer] = {}
    for name, dimension in columns.items():
        answer = _majority([labels[n] for n in _MAJORITY]) if name == "+".join(_MAJORITY) else labels[name]
        if answer is not None:
            answers[dimension] = answer
    first, second = (str(Path(values[name].replace("\\", "/"))) for name in (layout.first, layout.second))
    return Comparison(line, first, second, values["prompt"], answers)


def _sources(columns: Mapping[str, str]) -> list[str]:
    return list(dict.fromkeys(source for name in columns for source in name.split("+")))


def _label(where: str, column: str, word: str, layout: Layout) -> Answer | None:
    if word and word not in layout.words:
        words = ", ".join(layout.words)
        raise UserError(f"{where}: {word!r} in column {column!r} is no label; write one of {words}")
    return layout.words[word] if word else None


def _majority(labels: Sequence[Answer | None]) -> Answer | None:
    """The clip that more of the labels name, else a tie; None where one is missing."""
    if None in labels:
        return None
    lead = labels.count("first") - labels.count("second")
    return "first" if lead > 0 else "second" if lead < 0 else "tie"


def _layout(table: Path, columns: Mapping[str, str]) -> Layout:
    for layout in LAYOUTS:
        if {layout.first, layout.second, "prompt"} <= columns.keys():
            return layout
    forms = "; or ".join(
        f"{o.first}, {o.second}, prompt and {', '.join(o.dimensions)} ({o.name})" for o in LAYOUTS
    )
    raise UserError(f"{table}: its columns are {', '.join(columns) or 'none'}; they must be {forms}")


def _columns(
    table: Path,
    layout: Layout,
    there: Sequence[str],
    known: Sequence[str],
    wanted: Mapping[str, str] | None,
) -> dict[str, str]:
    """The dimension that each column of labels is measured in."""
    if wanted:
        for column, dimension in wanted.items():
            if column not in there:
                raise UserError(f"--dimension {column}={dimension}: {table} has no column {column!r}")
            if dimension not in known:
                raise UserError(
                    f"--dimension {column}={dimension}: the judge has no dimension {dimension!r}; "
                    f"it has {', '.join(known)}"
                )
        if len(set(wanted.values())) < len(wanted):
            raise UserError("--dimension: two columns for one dimension; give one column for each")
        return dict(wanted)
    columns = {c: d for c, d in layout.dimensions.items() if c in there}
    if "Overall" in layout.dimensions and "Overall" not in there and set(_MAJORITY) <= set(there):
        columns["+".join(_MAJORITY)] = "overall"
    kept = {c: d for c, d in columns.items() if d in known}
    if not kept:
        raise UserError(
            f"{table}: no column of labels ({', '.join(layout.dimensions)}) for a dimension of the judge "
            f"({', '.join(known)}); say which with --dimension COLUMN=NAME"
        )
    return kept


def _rows(table: Path) -> tuple[Iterator[tuple[int, dict[str, str]]], str]:
    """(line number, value by column), and whether to call the number a line or a row."""
    if not table.is_file():
        raise UserError(f"{table}: no such file; give a .csv, .jsonl or .parquet of compared clips")
    readers: dict[str, Callable[[Path], Iterator[tuple[int, dict[str, str]]]]] = {
        ".csv": lambda path: read_lines(path, lambda columns: None),
        ".jsonl": _json_lines,
        ".parquet": _parquet_rows,
    }
    if table.suffix not in readers:
        raise UserError(f"{table}: give a .csv, .jsonl or .parquet, this ends in {table.suffix!r}")
    return readers[table.suffix](table), "row" if table.suffix == ".parquet" else "line"


def _json_lines(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        lines = table.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{table}: cannot read it ({error}); save it as UTF-8 text") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{table}, line {number}: not valid JSON ({error}); fix it there") from None
        if not isinstance(row, dict):
            raise UserError(f"{table}, line {number}: a line is one JSON object with the columns as keys")
        yield number, _texts(row)


def _parquet_rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        content = pq.read_table(table)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{table}: cannot read it as Parquet ({error}); write it again") from None
    for number, row in enumerate(content.to_pylist(), start=1):
        yield number, _texts(row)


def _texts(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: "" if value is None else str(value).strip() for name, value in row.items()}
