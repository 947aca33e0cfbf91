"""Anchors, splits and prompts: what the folder says is used, and what is wrong is named with its line."""

from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from generator.clips import read_clip, write_clip
from loop.config import ClipConfig, DataConfig, SplitConfig
from loop.data import (
    PARTS,
    Anchor,
    Row,
    Skip,
    assign_parts,
    check_videos,
    load_anchors,
    read_metadata,
    read_prompts,
)
from loop.embedded import world
from loop.embedded.anchors import spread, write_anchors
from tests.test_clips import CODECS, encode, ramp

SMALL = ClipConfig(num_frames=5, height=32, width=32, fps=8)
ONE_EACH = SplitConfig(train=1, calibrate=1, gate=1, report=1)


def folder_with(tmp_path: Path, text: str, *names: str) -> Path:
    (tmp_path / "metadata.csv").write_text(text, encoding="utf-8")
    for name in names:
        write_clip(tmp_path / name, ramp(8, 32, 32), 8)
    return tmp_path


def row(name: str, caption: str = "", source: str = "", part: str = "", line: int = 2) -> Row:
    return Row(line, name, caption or f"caption of {name}", source or name, part, "")


def test_metadata_is_read_with_its_optional_columns(tmp_path):
    text = '\ufefffile_name,caption,source,part,category\na.mp4,"one, two",film,gate,x\n\nb.mp4, plain ,,,\n'
    rows, skips = read_metadata(folder_with(tmp_path, text, "a.mp4", "b.mp4"))
    assert rows == [
        Row(2, "a.mp4", "one, two", "film", "gate", "x"),
        Row(4, "b.mp4", "plain", "b.mp4", "", ""),
    ]
    assert skips == []


def test_the_two_columns_are_enough_in_any_order(tmp_path):
    rows, _ = read_metadata(folder_with(tmp_path, "caption,other,file_name\nthing,9,a.mp4\n", "a.mp4"))
    assert rows == [Row(2, "a.mp4", "thing", "a.mp4", "", "")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no column 'file_name'"),
        ("file_name,caption\n", "no rows"),
        ("file,caption\na.mp4,x\n", "line 1: no column 'file_name'"),
        ("file_name,text\na.mp4,x\n", "line 1: no column 'caption'"),
        ("file_name,caption,caption\na.mp4,x,y\n", "line 1: column 'caption' is there twice"),
        ("file_name,caption\na.mp4,x\n,y\n", "line 3: no file name"),
        ("file_name,caption\na.mp4,\n", "line 2: no caption"),
        ("file_name,caption\na.mp4\n", "line 2: no caption"),
        ("file_name,caption\na.mp4,  \n", "line 2: no caption"),
        ("file_name,caption\na.mp4,one, two\n", "line 2: more values than columns"),
        ("file_name,caption,part\na.mp4,x,test\n", "line 2: unknown part 'test'"),
        ("file_name,caption\na.mp4,x\nb.mp4,y\na.mp4,z\n", "line 4: a.mp4 is already on line 2"),
        ('file_name,caption\na.mp4,"x\n', "not valid CSV"),
    ],
)
def test_what_is_wrong_in_metadata_is_named_with_its_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        read_metadata(folder_with(tmp_path, text, "a.mp4"))
    assert "metadata.csv" in str(error.value)


def test_metadata_that_is_not_text_is_an_error(tmp_path):
    (tmp_path / "metadata.csv").write_bytes("file_name,caption\na.mp4,caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"metadata\.csv: cannot read it .* UTF-8"):
        read_metadata(tmp_path)


def test_a_missing_folder_or_table_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: no such folder.*data\.anchors"):
        read_metadata(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"metadata\.csv: no such file"):
        read_metadata(tmp_path)


def test_videos_that_cannot_be_used_are_skipped_with_the_reason(tmp_path):
    names = ("good.mp4", "gone.mp4", "text.mp4", "empty.mp4", "short.mp4")
    text = "file_name,caption\n" + "".join(f"{n},{n}\n" for n in names)
    folder = folder_with(tmp_path, text, "good.mp4")
    (folder / "text.mp4").write_text("no video")
    (folder / "empty.mp4").write_bytes(b"")
    write_clip(folder / "short.mp4", ramp(2, 32, 32), 8)
    rows, skips = read_metadata(folder)
    good, unusable = check_videos(folder, rows, SMALL)
    assert [r.file_name for r in good] == ["good.mp4"]
    reasons = {s.file: s.reason for s in skips + unusable}
    assert str(tmp_path) not in "".join(reasons.values())
    assert reasons["gone.mp4"] == "line 3: no such video file"
    assert "line 4" in reasons["text.mp4"] and "not a readable video" in reasons["text.mp4"]
    assert "line 5" in reasons["empty.mp4"] and "not a readable video" in reasons["empty.mp4"]
    assert "line 6" in reasons["short.mp4"] and "0.25 s is shorter than the 0.62 s" in reasons["short.mp4"]


def test_quotas_are_met_and_what_is_left_trains():
    rows = [row(f"{i}.mp4") for i in range(30)]
    parts = assign_parts(rows, SplitConfig(train=10, calibrate=3, gate=4, report=5), seed=1)
    assert {p: list(parts.values()).count(p) for p in PARTS} == {
        "train": 18,
        "calibrate": 3,
        "gate": 4,
        "report": 5,
    }


def test_a_split_depends_on_the_seed_and_not_on_the_order_of_rows():
    rows = [row(f"{i}.mp4") for i in range(20)]
    split = SplitConfig(train=5, calibrate=5, gate=5, report=5)
    first = assign_parts(rows, split, seed=1)
    assert assign_parts(rows[::-1], split, seed=1) == first
    assert assign_parts(rows, split, seed=2) != first


def test_too_few_clips_say_how_many_more_are_needed():
    rows = [row(f"{i}.mp4") for i in range(9)]
    split = SplitConfig(train=4, calibrate=2, gate=4, report=3)
    skips = [Skip("bad.mp4", "line 7: no such video file")]
    with pytest.raises(ValueError) as error:
        assign_parts(rows, split, 0, skips)
    assert str(error.value) == (
        "part gate needs 4 groups of clips, 3 left; add at least 4 more clips, each with a source and a "
        "caption of its own, or lower data.split.gate "
        "(skipped clips: 1; the first: bad.mp4, line 7: no such video file)"
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=40),
    st.integers(0, 5),
)
def test_groups_never_meet_themselves_across_parts(pairs, seed):
    rows = [row(f"{i}.mp4", f"caption {c}", f"source {s}") for i, (s, c) in enumerate(pairs)]
    try:
        parts = assign_parts(rows, ONE_EACH, seed)
    except ValueError:
        return
    assert set(parts) == {r.file_name for r in rows} and set(parts.values()) == set(PARTS)
    for key in ("source", "caption"):
        seen: dict[str, str] = {}
        for r in rows:
            assert seen.setdefault(getattr(r, key), parts[r.file_name]) == parts[r.file_name]


def test_groups_join_through_other_rows():
    # a and b share a source, b and c a caption: one group, so three parts are left without a clip
    rows = [row("a", "1", "s"), row("b", "2", "s"), row("c", "2", "t")]
    with pytest.raises(
        ValueError, match="part calibrate needs 1 groups of clips, 0 left; add at least 3 more"
    ):
        assign_parts(rows, ONE_EACH, 0)


def test_a_given_part_holds_for_its_group_and_counts_towards_its_quota():
    rows = [row("a", "1", part="report"), row("b", "1"), row("c"), row("d"), row("e")]
    parts = assign_parts(rows, ONE_EACH, 0)
    assert parts["a"] == parts["b"] == "report"
    assert sorted(parts[n] for n in "cde") == ["calibrate", "gate", "train"]


def test_parts_that_tear_a_group_apart_are_an_error():
    rows = [row("a", "1", part="report", line=2), row("b", "1", part="gate", line=3)]
    with pytest.raises(ValueError, match="lines 2 and 3: a is in part report, b in part gate"):
        assign_parts(rows, ONE_EACH, 0)


def test_a_split_written_out_is_followed():
    rows = [row(n) for n in "abcde"]
    split = SplitConfig(train=["a"], calibrate=["b"], gate=["c"], report=["d"])
    assert assign_parts(rows, split, 0) == {"a": "train", "b": "calibrate", "c": "gate", "d": "report"}


def test_a_split_written_out_must_name_clips_that_are_there():
    rows = [row(n) for n in ("one.mp4", "two.mp4", "three.mp4", "four.mp4")]
    split = SplitConfig(train=["one.mp4"], calibrate=["tow.mp4"], gate=["three.mp4"], report=["four.mp4"])
    with pytest.raises(ValueError, match=r"data\.split\.calibrate: 'tow\.mp4' .* did you mean 'two\.mp4'"):
        assign_parts(rows, split, 0)
    split = SplitConfig(train=["one.mp4"], calibrate=["bad.mp4"], gate=["three.mp4"], report=["four.mp4"])
    with pytest.raises(ValueError, match=r"part calibrate needs 1 clip, 0 left \(bad\.mp4: unreadable\)"):
        assign_parts(rows, split, 0, [Skip("bad.mp4", "unreadable")])


def test_a_split_written_out_may_not_tear_a_group_apart():
    rows = [row("a", source="film"), row("b", source="film", line=3), row("c"), row("d")]
    split = SplitConfig(train=["a"], calibrate=["b"], gate=["c"], report=["d"])
    with pytest.raises(ValueError, match="share a source or a caption"):
        assign_parts(rows, split, 0)


def test_a_folder_of_mixed_videos_becomes_anchors(tmp_path):
    lines = ["file_name,caption"]
    for i, (name, codec, pixel_format, rate) in enumerate(CODECS):
        encode(tmp_path / name, ramp(40, 36 + 4 * i, 64), codec, pixel_format, rate)
        lines.append(f"{name},clip number {i}")
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 100)
    (tmp_path / "zero.avi").write_bytes(b"")
    lines += ["broken.mp4,a broken one", "zero.avi,an empty one"]
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    data = DataConfig(anchors=str(tmp_path), clip=SMALL, split=ONE_EACH)
    anchors, skips = load_anchors(data, tmp_path / "unused", seed=3)
    assert [a.path.name for a in anchors] == [name for name, *_ in CODECS]
    assert {a.part for a in anchors} == set(PARTS)
    assert len({a.id for a in anchors}) == len(anchors)
    assert [s.file for s in skips] == ["broken.mp4", "zero.avi"]
    assert not (tmp_path / "unused").exists()


def test_clips_that_an_explicit_split_leaves_out_are_reported(tmp_path):
    names = [f"{n}.mp4" for n in "abcde"]
    text = "file_name,caption\n" + "".join(f"{n},{n}\n" for n in names)
    split = SplitConfig(train=["a.mp4"], calibrate=["b.mp4"], gate=["c.mp4"], report=["d.mp4"])
    data = DataConfig(anchors=str(folder_with(tmp_path, text, *names)), clip=SMALL, split=split)
    anchors, skips = load_anchors(data, tmp_path, seed=0)
    assert [(a.path.name, a.part) for a in anchors] == [
        ("a.mp4", "train"),
        ("b.mp4", "calibrate"),
        ("c.mp4", "gate"),
        ("d.mp4", "report"),
    ]
    assert skips == [Skip("e.mp4", "not listed in data.split")]


def test_the_embedded_anchors_are_an_ordinary_folder(tmp_path):
    data = DataConfig(num_anchors=8, split=ONE_EACH)
    anchors, skips = load_anchors(data, tmp_path, seed=5)
    assert len(anchors) == 8 and skips == []
    for anchor in anchors:
        colour, shape, direction = world.parse_caption(anchor.caption)
        assert anchor.part == world.part_of(colour, shape, direction) and anchor.category == direction
        frames, fps = read_clip(anchor.path)
        assert frames.shape == (world.NUM_FRAMES, world.SIZE, world.SIZE, 3) and fps == world.FPS


def test_anchors_are_written_alike_and_a_larger_set_contains_a_smaller(tmp_path):
    few = {"train": 1, "a red ring moves up": 2}
    write_anchors(tmp_path / "a", few, seed=1)
    write_anchors(tmp_path / "b", few, seed=1)
    write_anchors(tmp_path / "c", {"train": 2}, seed=1)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    ring = world.part_of("red", "ring", "up")
    assert len(files) == 1 + 48 + (1 if ring == "train" else 2)
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        if name.endswith("-000.mp4") and name in {p.name for p in (tmp_path / "c").iterdir()}:
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()


@pytest.mark.parametrize("num", [4, 7, 24, 96, 200])
def test_a_spread_reaches_every_part_evenly(num):
    counts = spread(num)
    parts = [world.part_of(*world.parse_caption(c)) for c in counts]
    assert sum(counts.values()) == num and set(parts) == set(PARTS)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len(counts) == min(num, 96)


def test_anchors_can_be_counted_by_part():
    wanted = {"train": 5, "calibrate": 13, "gate": 1, "report": 24}
    counts = spread(wanted)
    found = Counter()
    for caption, num in counts.items():
        found[world.part_of(*world.parse_caption(caption))] += num
    assert found == wanted
    assert sorted(n for c, n in counts.items() if world.part_of(*world.parse_caption(c)) == "calibrate") == (
        [1] * 11 + [2]  # twelve captions, one of them twice
    )
    assert DataConfig.model_validate({"num_anchors": wanted}).num_anchors.train == 5
    with pytest.raises(ValidationError, match="report"):
        DataConfig.model_validate({"num_anchors": {"train": 5, "calibrate": 1, "gate": 1}})


def anchor(name: str, caption: str, part: str, category: str = "") -> Anchor:
    return Anchor(name, Path(name), caption, name, category, part)


def test_prompts_are_the_captions_with_their_parts(tmp_path):
    anchors = [anchor("a", "one", "gate", "x"), anchor("b", "one", "gate"), anchor("c", "two", "train")]
    prompts = read_prompts(anchors)
    assert [(p.text, p.part, p.category) for p in prompts] == [("one", "gate", "x"), ("two", "train", "")]
    assert len({p.id for p in prompts}) == 2


def test_new_prompts_join_training_only(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("# more\nthree\n\n one \nthree\n", encoding="utf-8")
    prompts = read_prompts([anchor("a", "one", "report")], str(path))
    assert [(p.text, p.part) for p in prompts] == [("one", "report"), ("three", "train")]
    with pytest.raises(ValueError, match=r"data\.prompts: cannot read .*none\.txt"):
        read_prompts([], str(tmp_path / "none.txt"))


def test_another_spelling_of_a_held_out_caption_is_no_training_prompt(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("A  Cat sits\na DOG runs\n", encoding="utf-8")
    anchors = [anchor("a", "a cat sits", "gate"), anchor("b", "a dog runs", "train")]
    prompts = read_prompts(anchors, str(path))
    assert [(p.text, p.part) for p in prompts] == [
        ("a cat sits", "gate"),
        ("a dog runs", "train"),
        ("a DOG runs", "train"),
    ]


def test_spellings_of_a_caption_are_of_one_part():
    rows = [row("a", "A cat"), row("b", "a  CAT"), row("c"), row("d"), row("e")]
    for seed in range(8):
        parts = assign_parts(rows, ONE_EACH, seed)
        assert parts["a"] == parts["b"]


def test_the_embedded_world_has_prompts_without_anchors():
    held_out = "a red square moves left"
    assert world.part_of("red", "square", "left") == "report"
    prompts = read_prompts([anchor("a", held_out, "report"), anchor("b", "else", "gate")], "embedded")
    assert len(prompts) == 2 + 48
    assert all(p.part == "train" for p in prompts[2:]) and held_out not in [p.text for p in prompts[2:]]


def test_a_source_of_another_rate_is_not_confused_with_another_length(tmp_path):
    # 20 frames at 40 a second last half a second, which is too short for 5 frames at 8
    encode(tmp_path / "fast.mkv", ramp(20, 32, 32), "ffv1", "yuv444p", Fraction(40))
    _, skips = check_videos(tmp_path, [row("fast.mkv")], SMALL)
    assert "0.50 s is shorter than the 0.62 s" in skips[0].reason
    good, _ = check_videos(tmp_path, [row("fast.mkv")], ClipConfig(num_frames=5, height=32, width=32, fps=10))
    assert len(good) == 1
