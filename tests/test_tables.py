"""Tables that are written as their rows come hold the bytes of one write, and few rows at a time."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import loop.steps.common
from loop.steps.common import TableWriter, read_table, write_table

SCHEMA = pa.schema(
    [("name", pa.string()), ("kind", pa.string()), ("value", pa.float64()), ("signs", pa.list_(pa.int8()))]
)


def rows(num: int) -> list[dict]:
    """Long and short texts, nulls that come late, repeated and distinct values."""
    return [
        {
            "name": f"clip-{n}-" + "x" * (n * 7 % 90),
            "kind": None if n > 5000 and n % 3 == 0 else ("fresh", "guided")[n % 2],
            "value": None if n % 11 == 0 else n / 7,
            "signs": [n % 2, -1, 0][: n % 4],
        }
        for n in range(num)
    ]


@pytest.mark.parametrize("num", [0, 1, 4096, 12_300])
def test_a_table_has_the_bytes_of_one_write(tmp_path, num):
    pq.write_table(pa.Table.from_pylist(rows(num), schema=SCHEMA), tmp_path / "once.parquet")
    write_table(tmp_path / "streamed.parquet", iter(rows(num)), SCHEMA)
    assert (tmp_path / "streamed.parquet").read_bytes() == (tmp_path / "once.parquet").read_bytes()
    assert read_table(tmp_path / "streamed.parquet") == rows(num)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["once.parquet", "streamed.parquet"]


@pytest.mark.parametrize("num", [0, 100, 128, 129, 400])
def test_so_it_has_over_several_row_groups(tmp_path, monkeypatch, num):
    monkeypatch.setattr(loop.steps.common, "_ROWS_A_GROUP", 128)
    monkeypatch.setattr(loop.steps.common, "_ROWS_AT_ONCE", 32)
    table = pa.Table.from_pylist(rows(num), schema=SCHEMA)
    pq.write_table(table, tmp_path / "once.parquet", row_group_size=128)
    with TableWriter(tmp_path / "streamed.parquet", SCHEMA) as writer:
        for row in rows(num):
            writer.add([row])
            assert len(writer._rows) < 32 and writer._num_rows < 128  # all that it holds
    assert (tmp_path / "streamed.parquet").read_bytes() == (tmp_path / "once.parquet").read_bytes()


def test_a_table_that_is_not_finished_does_not_appear(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_table(tmp_path / "t.parquet", ({"name": 1 / n} for n in (0, 1)), SCHEMA)
    assert not (tmp_path / "t.parquet").exists()


def test_rows_and_columns_are_chosen_before_they_are_made(tmp_path, monkeypatch):
    monkeypatch.setattr(loop.steps.common, "_ROWS_AT_ONCE", 32)
    write_table(tmp_path / "t.parquet", rows(100), SCHEMA)
    fresh = [row for row in rows(100) if row["kind"] == "fresh"]
    assert read_table(tmp_path / "t.parquet", where={"kind": "fresh"}) == fresh
    some = read_table(tmp_path / "t.parquet", columns=["value", "name"], where={"kind": "fresh"})
    assert some == [{"value": row["value"], "name": row["name"]} for row in fresh]
    assert read_table(tmp_path / "t.parquet", columns=["name"]) == [{"name": r["name"]} for r in rows(100)]
    assert read_table(tmp_path / "t.parquet", where={"kind": "none"}) == []
