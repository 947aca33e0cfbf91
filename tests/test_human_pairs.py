"""Pairs that people compared: what the file may say, what is wrong with it by line, and how it is stored."""

import hashlib
import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from generator.clips import read_clip, write_clip
from loop.config import CampaignConfig, DataConfig
from loop.data import load_anchors, load_human_pairs, read_prompts
from loop.errors import UserError
from loop.human_pairs import read_human_pairs
from loop.progress import Display
from loop.stages import StageContext
from loop.steps import prepare
from loop.steps.common import clip_paths
from tests.test_clips import ramp

HEAD = "path_A,path_B,prompt,Overall\n"


def pairs_file(folder: Path, text: str, *names: str) -> Path:
    (folder / "pairs.csv").write_text(text, encoding="utf-8")
    for number, name in enumerate(names):
        write_clip(folder / name, ramp(8, 32, 32) + number, 8)
    return folder / "pairs.csv"


def test_the_columns_of_videogen_rewardbench_are_read(tmp_path):
    text = (
        "path_A,path_B,prompt,VQ,MQ,TA,fps_A,num_frames_A\n"
        'v/1A.mp4,./v/1B.mp4,"a dog, running",B,B,A,24.0,126.0\n'
        "v/2A.mp4,v/2B.mp4,a cat,same,same,A,24.0,144.0\n\n"
        "v/3A.mp4,v/3B.mp4,a cow,A,B,same,24.0,128.0\n"
        "v/4A.mp4,v/4B.mp4,a hen,same,same,same,24.0,128.0\n"
    )
    found = read_human_pairs(pairs_file(tmp_path, text))
    assert [p.label for p in found] == ["B", "A", "same", "same"]
    assert (found[0].path_a, found[0].path_b) == ("v/1A.mp4", "v/1B.mp4")
    assert found[0].prompt == "a dog, running" and found[2].where == "pairs.csv, line 5"


def test_overall_comes_before_the_three(tmp_path):
    text = "path_A,path_B,prompt,VQ,MQ,TA,Overall,category\na.mp4,b.mp4,x,A,A,A,B,run\n"
    [found] = read_human_pairs(pairs_file(tmp_path, text))
    assert (found.label, found.category) == ("B", "run")


def test_parquet_says_the_same_as_csv(tmp_path):
    columns = {
        "path_A": ["a.mp4"],
        "path_B": ["b.mp4"],
        "prompt": ["x"],
        "VQ": ["A"],
        "MQ": ["A"],
        "TA": ["B"],
    }
    pq.write_table(pa.table(columns), tmp_path / "pairs.parquet")
    text = "path_A,path_B,prompt,VQ,MQ,TA\na.mp4,b.mp4,x,A,A,B\n"
    [one], [other] = (
        read_human_pairs(tmp_path / "pairs.parquet"),
        read_human_pairs(pairs_file(tmp_path, text)),
    )
    assert (one.id, one.label, one.where) == (other.id, other.label, "pairs.parquet, row 1")
    pq.write_table(pa.table(columns | {"TA": [None]}), tmp_path / "pairs.parquet")
    with pytest.raises(UserError, match=r"pairs\.parquet, row 1: '' in column 'TA' is no label"):
        read_human_pairs(tmp_path / "pairs.parquet")
    (tmp_path / "pairs.parquet").write_bytes(b"no")
    with pytest.raises(UserError, match="cannot read it as Parquet"):
        read_human_pairs(tmp_path / "pairs.parquet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path_A,prompt,Overall\na,x,A\n", r"pairs\.csv, line 1: no column 'path_B'; the columns are path_A"),
        (
            "path_A,path_B,prompt,VQ,TA\na,b,x,A,A\n",
            "line 1: no column 'Overall', nor 'MQ'; say who is better",
        ),
        (
            HEAD + "a,b,x,A\nc,d,x,left\n",
            "line 3: 'left' in column 'Overall' is no label; write A, B or same",
        ),
        (HEAD + "a,b,,A\n", "line 2: column 'prompt' is empty; fill it in or remove the line"),
        (HEAD + "a,./a,x,A\n", "line 2: path_A and path_B are the same file, a"),
        (HEAD + "a,b,x,A\nb,a,x,A\n", r"line 3: b and a were compared .* in pairs\.csv, line 2 already"),
        (HEAD + "a,b,one, two,A\n", "line 2: more values than columns; put a text with commas"),
        (HEAD, "no pairs; list one a line"),
        ("path_A,path_B,prompt,prompt,Overall\n", "column 'prompt' is there twice"),
    ],
)
def test_what_is_wrong_is_named_with_its_line_and_remedy(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_human_pairs(pairs_file(tmp_path, text))


def test_a_missing_or_unknown_file_and_a_missing_category(tmp_path):
    with pytest.raises(UserError, match=r"data\.human_pairs: .*no such file; give a \.csv or \.parquet"):
        read_human_pairs(tmp_path / "none.csv")
    (tmp_path / "pairs.txt").touch()
    with pytest.raises(UserError, match=r"ends in '\.txt'"):
        read_human_pairs(tmp_path / "pairs.txt")
    with pytest.raises(UserError, match=r"no column 'category', by which data\.categories chooses"):
        read_human_pairs(pairs_file(tmp_path, HEAD + "a,b,x,A\n"), needs_category=True)


def clips_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    lines = ["file_name,caption,part,category"]
    for number, part in enumerate(["train", "train", "calibrate", "gate", "report"] * 2):
        write_clip(folder / f"{number}.mp4", ramp(20, 32, 32) + number, 8)
        lines.append(f"{number}.mp4,caption {number},{part},{'dancing' if number < 5 else 'running'}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def data(folder: Path, **keys) -> DataConfig:
    clip = {"num_frames": 17, "height": 32, "width": 32, "fps": 8}
    split = dict.fromkeys(["train", "calibrate", "gate", "report"], 1)
    return DataConfig.model_validate({"anchors": str(folder), "clip": clip, "split": split, **keys})


def test_categories_choose_anchors_prompts_and_pairs(tmp_path):
    folder = clips_folder(tmp_path)
    text = "path_A,path_B,prompt,Overall,category\n0.mp4,1.mp4,x,A,dancing\n5.mp4,6.mp4,y,A,running\n"
    file = pairs_file(folder, text)
    settings = data(folder, human_pairs=str(file), categories=["dancing"])
    pairs, skips, categories = load_human_pairs(settings)
    assert [p.prompt for p in pairs] == ["x"] and categories == {"dancing", "running"}
    assert skips[0].reason == "1 pairs of categories not in data.categories"
    anchors, skips = load_anchors(settings, tmp_path, 0)
    assert {a.category for a in anchors} == {"dancing"} and len(anchors) == 5
    assert [(s.file, s.reason) for s in skips] == [
        ("metadata.csv", "5 clips of categories not in data.categories")
    ]
    prompts = read_prompts(anchors, None, settings.categories)
    assert [p.text for p in prompts] == [f"caption {i}" for i in range(5)]
    with pytest.raises(UserError, match=r"data\.prompts: .* no category"):
        read_prompts(anchors, "embedded", settings.categories)


def test_an_unknown_category_names_the_nearest(tmp_path):
    folder = clips_folder(tmp_path)
    with pytest.raises(
        UserError, match=r"data\.categories: 'dancin' is the category of no clip; did you mean"
    ):
        load_anchors(data(folder, categories=["dancin"]), tmp_path, 0)
    with pytest.raises(UserError, match="there are: dancing, running"):
        load_anchors(data(folder, categories=["zzz"]), tmp_path, 0)


def prepared(tmp_path: Path, out: str, **keys) -> StageContext:
    config = CampaignConfig.model_validate(
        {
            "name": "test",
            "data": data(tmp_path / "clips", **keys).model_dump(),
            "generator": {"model": "embedded:tiny-wan", "max_text_tokens": 8},
            "judge": {"model": "embedded:tiny-judge"},
        }
    )
    (tmp_path / out).mkdir()
    display = Display(1)
    ctx = StageContext(
        config, 0, {}, tmp_path / out, 0, display.stage(0, "prepare"), logging.getLogger("retake")
    )
    prepare.run(ctx)
    return ctx


def tree(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_prepare_stores_both_clips_as_it_stores_anchors_and_counts_what_it_cannot_use(tmp_path):
    folder = clips_folder(tmp_path)
    (folder / "broken.mp4").write_bytes(b"\0" * 500)
    write_clip(folder / "short.mp4", ramp(3, 32, 32), 8)
    lines = ["0.mp4,./5.mp4,x,A", "broken.mp4,1.mp4,x,A", "2.mp4,short.mp4,y,B", "2.mp4,none.mp4,y,B"]
    file = pairs_file(folder, HEAD + "\n".join(lines) + "\n")
    ctx = prepared(tmp_path, "out", human_pairs=str(file))
    [row] = pq.read_table(ctx.out / "human_pairs.parquet").to_pylist()
    assert (row["prompt"], row["label"]) == ("x", "A")
    skips = {s["file"]: s["reason"] for s in json.loads((ctx.out / "skips.json").read_text())}
    assert skips.keys() == {"broken.mp4", "short.mp4", "none.mp4"}
    assert skips["broken.mp4"].startswith("pairs.csv, line 3: not a readable video")
    assert skips["short.mp4"].startswith("pairs.csv, line 4: clip of 0.38 s is shorter than")
    assert skips["none.mp4"] == "pairs.csv, line 5: no such video file"
    # an anchor and a clip that people saw are the same bytes where they are the same video
    anchors = {a["source"]: a for a in pq.read_table(ctx.out / "anchors.parquet").to_pylist()}
    assert row["sha256_A"] == anchors["0.mp4"]["sha256"] != row["sha256_B"]
    after = StageContext(ctx.config, 1, {"prepare": ctx.out}, ctx.out, 0, ctx.progress, ctx.log, "update")
    paths = clip_paths(after, "prepare")
    trained = {a["anchor_id"] for a in anchors.values() if a["part"] == "train"}
    assert {row["clip_A"], row["clip_B"]} | trained == set(paths) and len(trained) < len(anchors)
    assert read_clip(paths[row["clip_B"]])[0].shape == (17, 32, 32, 3)
    again = prepared(tmp_path, "again", human_pairs=str(file))
    assert tree(again.out) == tree(ctx.out)
