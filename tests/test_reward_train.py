import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import DPOConfig, DPOTrainer

from reward.config import JudgeConfig, LoraConfig, TrainJudgeConfig
from reward.encoding import Encoder
from reward.frames import show
from reward.judge import load_judge
from reward.judges.transformers import load_model
from reward.known_answers import make_known_answers
from reward.preferences import (
    PreferenceRow,
    SftRow,
    known_answer_rows,
    make_preference_rows,
    weigh_by_certainty,
)
from reward.question import Ask, Vote, build_message, parse_reply, write_reply
from reward.train import (
    PreferenceCollator,
    SftCollator,
    SrpoTrainer,
    mean_log_probs,
    train_judge,
)
from reward.trainer import row_numbers
from reward.voting import fold, make_asks
from tests.reward_clips import question, sources
from tests.tiny_models import make_tiny_qwen_vl

DIMENSIONS = ("overall",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_qwen_vl(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def judge_config(folder):
    return JudgeConfig(
        model=str(folder),
        instructions="compare",
        time_stamps=False,
        num_frames=4,
        frame_size=16,
        max_new_tokens=40,
        dimensions=DIMENSIONS,
        batch_size=32,
    )


def sft_rows(num=16):
    return known_answer_rows(make_known_answers(sources(), num, 0, DIMENSIONS, num_shown=4))


def preference_rows(weights=(1.0, 1.0, 1.0, 1.0)):
    right, wrong = (write_reply("a red box , steady.", {"overall": a}) for a in ("first", "second"))
    asks = [Ask(question(f"p{i}", dimensions=DIMENSIONS), bool(i % 2), 0) for i in range(len(weights))]
    return [PreferenceRow(ask, right, wrong, weight) for ask, weight in zip(asks, weights, strict=True)]


def test_training_learns_logs_and_repeats_byte_for_byte(folder, judge_config, tmp_path):
    config = TrainJudgeConfig(num_steps=12, batch_size=8, learning_rate=3e-3, warmup_steps=0, log_every=4)
    logs, steps = [], []
    for name in ("one", "two"):
        train_judge(
            folder,
            sft_rows(),
            [],
            config,
            judge_config,
            tmp_path / name,
            7,
            lambda *a: steps.append(a),
            logs.append,
        )
    assert steps[:12] == [(i, 12) for i in range(1, 13)]
    assert [row["step"] for row in logs] == [4, 8, 12] * 2
    assert logs[0]["phase"] == "sft" and logs[2]["loss"] < logs[0]["loss"] - 0.3
    assert logs[:3] == logs[3:]
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert {"model.safetensors", "processor_config.json", "chat_template.jinja"} <= set(files)
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
        if not file.endswith(".safetensors"):
            assert str(folder) not in (tmp_path / "one" / file).read_text()  # nothing of where it was made
    trained = judge_config.model_copy(update={"model": str(tmp_path / "one")})
    assert len(load_judge(trained).vote(make_asks(question(), 1))) == 2


def test_micro_batches_give_the_same_judge(folder, judge_config, tmp_path):
    losses = []
    for name, micro in (("whole", None), ("parts", 2)):
        config = TrainJudgeConfig(
            num_steps=3, batch_size=8, micro_batch_size=micro, warmup_steps=0, log_every=1
        )
        train_judge(folder, sft_rows(), [], config, judge_config, tmp_path / name, 7, None, losses.append)
    whole, parts = ([row["loss"] for row in losses[i : i + 3]] for i in (0, 3))
    assert whole == pytest.approx(parts, abs=2e-4)


def test_labels_are_the_reply_alone_and_it_parses(folder, judge_config):
    encoder = Encoder(load_model(judge_config)[1], judge_config)
    rows = sft_rows()
    batch = SftCollator(encoder, rows)([{"row": 0}, {"row": 3}])
    for i, row in enumerate((rows[0], rows[3])):
        labels = batch["labels"][i]
        ids = labels[labels != -100].tolist()
        assert ids[-1] == encoder.tokenizer.eos_token_id
        reply = parse_reply(encoder.decode(ids[:-1]), DIMENSIONS)
        assert reply.answers == parse_reply(row.reply, DIMENSIONS).answers
        prompt = encoder.prompt(row.ask).ids
        assert batch["input_ids"][i, batch["attention_mask"][i] == 1].tolist() == prompt + ids


def test_what_training_scores_is_what_asking_samples(folder, judge_config):
    """One road: the log-probability of a sampled reply equals that of the same tokens in training."""
    judge = load_judge(judge_config)
    ask = make_asks(question(), 1)[1]
    ((ids, log_probability),) = judge._sample([judge.encoder.prompt(ask)], [[ask.seed]])
    judge.encoder.reply_ids = lambda reply: ids
    mean = mean_log_probs(judge.model, judge.encoder, [ask], ["any"], 1)
    assert mean[0] * len(ids) == pytest.approx(log_probability, abs=1e-3)


def srpo_losses(trainer_class, folder, judge_config, tmp_path, weights):
    model, processor = load_model(judge_config)
    encoder = Encoder(processor, judge_config)
    rows = preference_rows(weights)
    collator = PreferenceCollator(encoder, rows)

    def stock(examples):
        batch = collator(examples)
        batch.pop("weight")
        return batch

    trainer = trainer_class(
        model=model,
        ref_model=load_model(judge_config)[0],
        args=DPOConfig(
            output_dir=str(tmp_path),
            beta=0.5,
            max_steps=4,
            per_device_train_batch_size=2,
            learning_rate=1e-3,
            logging_steps=1,
            max_length=None,
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            remove_unused_columns=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=row_numbers(len(rows)),
        data_collator=collator if trainer_class is SrpoTrainer else stock,
        processing_class=processor,
    )
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_with_weights_of_one_srpo_is_dpo(folder, judge_config, tmp_path):
    ours = srpo_losses(SrpoTrainer, folder, judge_config, tmp_path, (1.0,) * 4)
    stock = srpo_losses(DPOTrainer, folder, judge_config, tmp_path, (1.0,) * 4)
    assert ours[0] == pytest.approx(np.log(2), abs=1e-6)
    assert ours == pytest.approx(stock, abs=1e-6)
    assert ours[-1] < ours[0]


def test_a_weight_scales_its_rows_loss(folder, judge_config, tmp_path):
    halved = srpo_losses(SrpoTrainer, folder, judge_config, tmp_path, (0.5,) * 4)
    assert halved[0] == pytest.approx(np.log(2) / 2, abs=1e-6)
    assert srpo_losses(SrpoTrainer, folder, judge_config, tmp_path, (0.0,) * 4) == [0.0] * 4


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=8)])
def test_a_round_with_preferences_ends_in_a_plain_folder(folder, judge_config, tmp_path, lora):
    config = TrainJudgeConfig(
        lora=lora,
        num_steps=2,
        batch_size=4,
        preference_steps=2,
        preference_batch_size=2,
        warmup_steps=0,
        log_every=1,
        min_pce=0.0,
    )
    logs = []
    report = train_judge(
        folder, sft_rows(), preference_rows(), config, judge_config, tmp_path / "out", 1, None, logs.append
    )
    assert [(row["phase"], row["step"]) for row in logs] == [("sft", 1), ("sft", 2), ("srpo", 3), ("srpo", 4)]
    assert report["pce_uninformative"] == 0.0 and report["pce_kept"] == 4
    assert {"margin", "accuracy"} <= set(logs[-1])
    assert "srpo_rows_known" not in report  # only where there is more than one source
    out = tmp_path / "out"
    files = {path.name for path in out.iterdir()}
    # no adapter is left, and what any loader asks for is there
    assert files == {
        "model.safetensors", "config.json", "generation_config.json", "processor_config.json",
        "chat_template.jinja", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    plain = AutoModelForImageTextToText.from_pretrained(out)
    before = load_model(judge_config)[0].state_dict()
    assert set(plain.state_dict()) == set(before)
    assert any(not torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    assert "use_cache" not in json.loads((out / "config.json").read_text())
    parent, own = (json.loads((path / "generation_config.json").read_text()) for path in (folder, out))
    assert own == parent
    # plain transformers, with its own template and processor, writes what our judge writes
    greedy = judge_config.model_copy(update={"model": str(out), "temperature": 0.0})
    judge = load_judge(greedy)
    ask = make_asks(question(dimensions=DIMENSIONS), 1)[0]
    [reply] = judge.write([ask])
    processor = AutoProcessor.from_pretrained(out)
    shown = [show(reader, 4, 16) for reader in ask.shown]
    content = build_message(ask, judge.encoder.instructions, (shown[0][0], shown[1][0]), time_stamps=False)
    images = iter([*shown[0][1], *shown[1][1]])
    for block in content:
        if block["type"] == "image":
            block["image"] = next(images)
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    written = plain.generate(**inputs, do_sample=False, max_new_tokens=greedy.max_new_tokens)
    assert written[0, inputs["input_ids"].shape[1] :].tolist() == reply.ids


def test_known_answers_join_the_preferences_with_their_full_weight(folder, judge_config, tmp_path):
    """PCE keeps what gained more than the mean, so not all votes; it does not touch known answers."""
    own = preference_rows()
    known = [replace(row, source="known") for row in own]
    config = TrainJudgeConfig(
        num_steps=2,
        batch_size=4,
        learning_rate=1e-3,
        preference_steps=1,
        preference_batch_size=2,
        warmup_steps=0,
        known_share=0.5,
    )
    report = train_judge(folder, sft_rows(), [*own, *known], config, judge_config, tmp_path / "out", 1)
    assert report["pce_kept"] + report["pce_dropped"] == 4
    assert report["srpo_rows_known"] == report["srpo_rows_own"] == report["pce_kept"] > 0
    # without a single vote there is no SRPO: known answers join it, they do not replace it
    alone = train_judge(folder, sft_rows(), known, config, judge_config, tmp_path / "alone", 1)
    assert "srpo_loss" not in alone


def test_a_loss_that_is_not_finite_stops_the_training(folder, judge_config, tmp_path):
    rows = preference_rows((float("nan"),) * 4)
    config = TrainJudgeConfig(num_steps=0, preference_steps=1, preference_batch_size=2)
    with pytest.raises(FloatingPointError, match="learning_rate"):
        train_judge(folder, [], rows, config, judge_config, tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()


def test_equal_judges_make_pce_say_nothing():
    rows = preference_rows()
    kept, report = weigh_by_certainty(rows, np.zeros(4), None, 0.5)
    assert kept == rows and report["pce_uninformative"] == 1.0
    # neither do judges that differ by the same everywhere, or in the only row there is
    assert weigh_by_certainty(rows, np.full(4, 0.3), None, 0.5)[0] == rows
    assert weigh_by_certainty(rows[:1], np.array([0.3]), 1.0, 0.5)[0] == rows[:1]


def test_pce_keeps_what_gained_more_than_the_mean():
    kept, report = weigh_by_certainty(
        preference_rows((1.0, 1.0, 1.0, 2.0)), np.array([-1.0, 0, 0, 1]), 1.0, 0.5
    )
    assert [row.weight for row in kept] == [pytest.approx(2 / (1 + np.exp(-1)))]
    assert (report["pce_kept"], report["pce_dropped"]) == (1, 3)


def vote(q, swapped, ballot, answer):
    return Vote(q.id, swapped, ballot, 0, {"overall": answer}, f"says {answer}", None)


def test_right_paths_meet_wrong_ones_of_the_same_order():
    q = question(dimensions=DIMENSIONS)
    votes = [
        vote(q, False, 0, "first"),
        vote(q, True, 0, "second"),
        vote(q, False, 1, "second"),
        vote(q, True, 1, "second"),
    ]
    rows = make_preference_rows(q, votes, fold(q, votes), 0.8)
    assert rows == [
        PreferenceRow(
            Ask(q, False, 0),
            write_reply("says first", {"overall": "first"}),
            write_reply("says second", {"overall": "second"}),
            0.8,
        )
    ]
    unanimous = [votes[0], votes[1]]
    assert make_preference_rows(q, unanimous, fold(q, unanimous), 1.0) == []


def test_rows_keep_the_questions_order():
    row = sft_rows(1)[0]
    assert isinstance(row, SftRow) and not row.ask.swapped
