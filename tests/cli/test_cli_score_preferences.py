"""`vog-hf score` for rows of a chosen and a rejected text: reward models, and language models trained by DPO."""

import json

import models
import numpy as np
import pytest
import torch
from cli_checkpoints import END, START, TEMPLATE, assert_scores, language, refused, saved, scored
from cli_runs import run
from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoTokenizer, BertForSequenceClassification
from unlabeled_cases import answerer, collate_preferences, rewarder

from vog_hf.cli.models import read_architecture
from vog_hf.cli.preference_heads import split_prompt
from vog_hf.cli.preparing import choose_columns, prepare, prepared
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.trainer.announcements import summary_lines


def chat(*messages):
    """Messages of these roles and contents."""
    return [{"role": role, "content": content} for role, content in messages]


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """Checkpoints of a causal language model."""
    folder, model = tmp_path_factory.mktemp("writer"), answerer()
    return folder, model, saved(folder, model, language())


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """Checkpoints of a reward model."""
    folder, model = tmp_path_factory.mktemp("judge"), rewarder()
    return folder, model, saved(folder, model, language())


ROWS = {  # columns; prompt, chosen and rejected tokens of each row
    "texts with a prompt": (
        {"prompt": ["w4 w5 ", "w6 "], "chosen": ["w7", "w8 w10 w3"], "rejected": ["w11 w12", "w13"]},
        [([4, 5], [7, END], [11, 12, END]), ([6], [8, 10, END], [13, END])],
    ),
    "texts": (
        {"chosen": ["w4 w5 w7", "w6 w8 w10"], "rejected": ["w4 w5 w11", "w6 w12"]},
        [([4, 5], [7, END], [11, END]), ([6], [8, 10, END], [12, END])],
    ),
    "conversations with a prompt": (
        {
            "prompt": [chat(("user", "w4")), chat(("user", "w7 w8"))],
            "chosen": [chat(("assistant", "w9 w5 w6"))] * 2,
            "rejected": [chat(("assistant", "w9 w10"))] * 2,
        },
        [([4, START], [5, 6], [10]), ([7, 8, START], [5, 6], [10])],
    ),
    "conversations": (
        {
            "chosen": [chat(("user", "w4"), ("assistant", "w9 w5 w6")), chat(("user", "w7"), ("assistant", "w9 w11"))],
            "rejected": [chat(("user", "w4"), ("assistant", "w9 w10")), chat(("user", "w7"), ("assistant", "w9 w12"))],
        },
        [([4, START], [5, 6], [10]), ([7, START], [11], [12])],
    ),
}
MERGED = {"prompt": ["w4 w", "w5 w6 "], "chosen": ["5 w6", "w7"], "rejected": ["7", "w8"]}


@pytest.mark.parametrize("kind", ROWS)
def test_answers_are_tokenized_as_for_their_training(capfd, writer, tmp_path, kind):
    """As TRL's DPOTrainer does it: the prompt is its own column or what both begin with, and does not count."""
    folder, model, states = writer
    columns, expected = ROWS[kind]
    Dataset.from_dict(columns).save_to_disk(str(tmp_path / "data"))
    own = [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), row, strict=True)) for row in expected]
    got = scored(capfd, folder, data=tmp_path / "data", output=tmp_path / "scores")
    wanted = assert_scores(got, model, states, own, collate_fn=collate_preferences, columns=("vog", "margin"))
    np.testing.assert_allclose(got.units.column("logp_side"), wanted.units.column("logp_side"), rtol=1e-5)
    assert got.manifest["task"] == "preference_optimization"
    assert got.manifest["transform"]["reference"] == "none: the margin is the model's alone"
    assert got.manifest["transform"]["input_columns"] == list(columns)


@pytest.mark.parametrize("kind", ROWS)
def test_pairs_are_tokenized_as_for_a_reward_model(capfd, judge, tmp_path, kind):
    """As TRL's RewardTrainer does it: prompt and answer are one text; conversations have no beginning of an answer."""
    folder, model, states = judge
    columns, expected = ROWS[kind]
    Dataset.from_dict(columns).save_to_disk(str(tmp_path / "data"))
    own = [{"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected} for prompt, chosen, rejected in expected]
    got = scored(capfd, folder, data=tmp_path / "data", output=tmp_path / "scores")
    assert_scores(got, model, states, own, collate_fn=collate_preferences, columns=("vog", "loss", "margin"))
    assert got.manifest["task"] == "reward_modeling"
    assert got.manifest["transform"]["margin_column"] is None


def test_answers_start_with_their_lowest_margins(capfd, writer, tmp_path):
    """Scores after DPO have no loss: no verdict is printed, and swapped pairs are looked for by the margin."""
    columns, _ = ROWS["texts with a prompt"]
    Dataset.from_dict(columns).save_to_disk(str(tmp_path / "data"))
    done = run(capfd, "score", writer[0], "-d", tmp_path / "data", "-o", tmp_path / "scores")
    assert "start with: margin, lowest first: " in " ".join(done.stdout.split())
    assert "in this run" not in done.stdout
    scores = VoGScores.load(tmp_path / "scores")
    lines = list(summary_lines({"": scores}, {"": Dataset.from_dict(columns)}))
    assert lines[1].startswith("Start with margin, lowest first: ")
    assert "found planted swapped pairs with an AUROC of 0.93 to 1.00" in lines[1]


def test_prompts_end_where_their_tokens_do():
    """Where the answers begin to differ; a space belongs to them. Equal texts leave one letter."""
    assert split_prompt("ab cd", "ab ef") == ("ab", " cd", " ef")
    assert split_prompt("ab", "cd") == ("", "ab", "cd")
    assert split_prompt("b ", "cd") == ("", "b ", "cd")
    assert split_prompt("ab", "ab") == ("a", "b", "b")
    assert split_prompt("ab", "abc") == ("a", "b", "bc")
    assert split_prompt("", "a") == ("", "", "a")
    assert split_prompt([1, 2, 3], [1, 4]) == ([1], [2, 3], [4])


def test_tokens_that_merge_belong_to_the_answers(capfd, writer, tmp_path):
    """The prompt alone ends with another token than the prompt with its answer."""
    folder, model, states = writer
    Dataset.from_dict(MERGED).save_to_disk(str(tmp_path / "data"))
    own = [
        {"prompt_ids": [4], "chosen_ids": [5, 6, END], "rejected_ids": [7, END]},
        {"prompt_ids": [5, 6], "chosen_ids": [7, END], "rejected_ids": [8, END]},
    ]
    got = scored(capfd, folder, data=tmp_path / "data", output=tmp_path / "scores")
    assert_scores(got, model, states, own, collate_fn=collate_preferences, columns=("vog", "margin"))


def test_margins_are_over_the_columns_that_trl_reads(capfd, writer, judge, tmp_path):
    """Log-probabilities of the reference for DPO, the margin of a pair for a reward model; recorded in the manifest."""
    columns, expected = ROWS["texts with a prompt"]
    constants = {"ref_chosen_logps": [-1.0, -2.5], "ref_rejected_logps": [-3.0, 1.0], "margin": [1, 0]}
    Dataset.from_dict({**columns, **constants}).save_to_disk(str(tmp_path / "data"))
    rows = [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), row, strict=True)) for row in expected]
    of_answers = [row | {n: constants[n][i] for n in constants if n != "margin"} for i, row in enumerate(rows)]
    of_pairs = [
        {**{name: row["prompt_ids"] + row[name] for name in ("chosen_ids", "rejected_ids")}, "margin": margin}
        for row, margin in zip(rows, constants["margin"], strict=True)
    ]
    for name, (folder, model, states), own in (("answers", writer, of_answers), ("pairs", judge, of_pairs)):
        got = scored(capfd, folder, data=tmp_path / "data", output=tmp_path / name)
        assert_scores(got, model, states, own, collate_fn=collate_preferences, columns=("vog", "margin"))
        noted = got.manifest["transform"]
        assert noted.get("reference", noted.get("margin_column")) == (
            ["ref_chosen_logps", "ref_rejected_logps"] if name == "answers" else "margin"
        )


def test_long_answers_are_cut_and_long_pairs_skipped(capfd, writer, judge, tmp_path):
    """As TRL does: DPOTrainer cuts the end off, RewardTrainer leaves the row out."""
    columns, expected = ROWS["texts with a prompt"]
    Dataset.from_dict(columns).save_to_disk(str(tmp_path / "data"))
    cut = []
    for prompt, chosen, rejected in expected:
        n = 4 - len(prompt)
        cut.append({"prompt_ids": prompt, "chosen_ids": chosen[:n], "rejected_ids": rejected[:n]})
    folder, model, states = writer
    got = scored(capfd, folder, "--max-length", "4", data=tmp_path / "data", output=tmp_path / "cut")
    assert_scores(got, model, states, cut, collate_fn=collate_preferences, columns=("vog", "margin"))
    message = refused(capfd, folder, tmp_path / "data", "--max-length", "2")
    assert "has no token of either answer (both are cut off, or empty)" in message
    message = refused(capfd, judge[0], tmp_path / "data", "--max-length", "4")
    assert "a text of the pair has 5 tokens, more than the limit of 4" in message
    assert "TRL's RewardTrainer leaves such pairs out: pass --on-error 'skip'" in message
    skipped = ["--max-length", "4", "--on-error", "skip"]
    got = scored(capfd, judge[0], *skipped, data=tmp_path / "data", output=tmp_path / "skipped")
    assert np.isnan(got.column("vog")).tolist() == [True, False]


def test_a_saved_dataset_has_scores_of_both_texts(capfd, judge, tmp_path):
    """And a report of it shows both; the names of the scores are checked before the model is loaded."""
    columns, _ = ROWS["texts with a prompt"]
    data, output = tmp_path / "data", tmp_path / "scores"
    Dataset.from_dict(columns).save_to_disk(str(data))
    saving = ["--save-dataset", tmp_path / "rows.parquet", "--columns", "all"]
    scored(capfd, judge[0], *saving, data=data, output=output)
    rows = Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))
    assert [len(pair) for pair in rows["reward_side"]] == [2, 2]
    done = run(capfd, "report", output, "-o", tmp_path / "report.html")
    assert done.code == 0, done.stderr
    page = (tmp_path / "report.html").read_text()
    assert all(text.strip() in page for values in columns.values() for text in values)
    Dataset.from_dict({**columns, "reward_side": [[0.0, 0.0]] * 2}).save_to_disk(str(tmp_path / "taken"))
    saving[1] = tmp_path / "again.parquet"
    assert "the dataset has ['reward_side'] already; pass --prefix" in refused(
        capfd, judge[0], tmp_path / "taken", *saving
    )


def test_wrong_columns_are_refused(capfd, writer, judge, tmp_path):
    """With the names of the columns; what fits the model in another way is scored in that way."""
    texts = {"prompt": ["w4 ", "w5 "], "chosen": ["w6", "w7"], "rejected": ["w8", "w9"]}
    talks = [chat(("assistant", "w8"))] * 2

    def message(columns, *options, folder=writer[0]):
        Dataset.from_dict(columns).save_to_disk(str(tmp_path / "data"))
        return refused(capfd, folder, tmp_path / "data", *options)

    half = {name: texts[name] for name in ("prompt", "chosen")}
    expected = "has a column 'chosen' and none named 'rejected' (columns: prompt, chosen); rename"
    assert expected in message(half)
    assert expected in message(half, folder=judge[0])
    mixed = message({**texts, "rejected": talks})
    assert "prompt and chosen and rejected must be all texts or all conversations (lists of messages with" in mixed
    assert "got prompt text, chosen text, rejected conversation" in mixed
    both = message({**texts, "chosen": talks, "rejected": talks})
    assert "leave out prompt if the conversations hold it: --input-column chosen --input-column rejected" in both
    assert "rejected neither" in message({**texts, "rejected": [["w4"]] * 2})
    swap = message({**texts, "label": [0, 1]}, "--label-column", "label")
    assert "a preference has no label column, and --label-column names 'label'; leave it out, or swap" in swap
    named = ["--input-column", "chosen", "--input-column", "rejected", "--input-column", "text"]
    assert "--input-column names text; rename" in message({**texts, "text": texts["prompt"]}, *named)
    reference = {"ref_chosen_logps": [0.5, 0.5]}
    assert "has ref_chosen_logps and not ref_rejected_logps; a margin" in message({**texts, **reference})
    words = {"margin": ["a", "b"]}
    assert "'margin' must hold a number per row, got string" in message({**texts, **words}, folder=judge[0])
    assert "target 'loss' does not exist for" in message(texts, "--target", "loss")
    assert "--label 'predicted' needs a task that predicts one label per row" in message(texts, "--label", "predicted")
    language(chat_template=None).save_pretrained(tmp_path / "plain")
    columns, _ = ROWS["conversations"]
    assert "column 'chosen' holds conversations, and" in message(columns, "--processor", tmp_path / "plain")


def test_single_texts_beside_a_rejected_column_are_scored_as_such(capfd, writer, tmp_path):
    """A named column goes before the names of columns, and a class named "rejected" is one."""
    folder, model, states = writer
    Dataset.from_dict({"chosen": ["w4 w5", "w6"], "rejected": ["w7", "w8"]}).save_to_disk(str(tmp_path / "data"))
    own = [{"input_ids": torch.tensor(ids), "labels": torch.tensor(ids)} for ids in ([4, 5, END], [6, END])]
    named = ["--input-column", "chosen"]
    got = scored(capfd, folder, *named, data=tmp_path / "data", output=tmp_path / "chosen")
    for row in own:
        row["attention_mask"] = torch.ones_like(row["input_ids"])
    assert_scores(got, model, states, own)
    classifier = models._made(lambda: BertForSequenceClassification(models.bert_config(num_labels=2)), 0)
    saved(tmp_path, classifier, language())
    features = Features({"text": Value("string"), "rejected": ClassLabel(names=["no", "yes"])})
    rows = Dataset.from_dict({"text": ["w4 w5", "w6"], "rejected": [0, 1]}, features=features)
    rows.save_to_disk(str(tmp_path / "classes"))
    got = scored(capfd, tmp_path, data=tmp_path / "classes", output=tmp_path / "scores")
    assert got.manifest["task"] == "single_label_classification"
    message = refused(capfd, tmp_path, tmp_path / "data")
    assert "the dataset has pairs of texts (chosen and rejected), and" in message
    assert (
        "has 2 labels; a reward model has one (num_labels=1), and a classifier needs the column of its text" in message
    )


TOOL = {"type": "function", "function": {"name": "w11"}}
TEMPLATE_OF_TOOLS = (
    "{% for tool in tools or [] %}{{ tool.function.name + ' ' }}{% endfor %}" + TEMPLATE + " {{ ending }}"
)
TRL_ROWS = {
    **{kind: columns for kind, (columns, _) in ROWS.items()},
    "merged": MERGED,
    "tools": {
        **ROWS["conversations"][0],
        "tools": [json.dumps([TOOL])] * 2,
        "chat_template_kwargs": [{"ending": "w12"}] * 2,
    },
}


def trl_rows(trl, case, columns, folder, fast, **precomputed):
    """The rows as TRL's trainer prepares them for a training."""
    options = {"report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no"}
    given = {"train_dataset": Dataset.from_dict(columns), "processing_class": fast}
    if case == "answers":
        args = trl.DPOConfig(str(folder), **options, **precomputed)
        return trl.DPOTrainer(answerer(), args=args, ref_model=answerer(), **given).train_dataset
    return trl.RewardTrainer(rewarder(), args=trl.RewardConfig(str(folder), **options), **given).train_dataset


@pytest.mark.slow  # TRL is loaded
@pytest.mark.parametrize("case", ["answers", "pairs"])
@pytest.mark.parametrize("kind", TRL_ROWS)
def test_rows_are_those_of_trl(tmp_path, writer, judge, case, kind):
    """Token by token, for texts, conversations, tokens that merge, and tools that the chat template shows."""
    trl, columns = pytest.importorskip("trl"), TRL_ROWS[kind]
    folder, model, _ = writer if case == "answers" else judge
    rows = Dataset.from_dict(columns)
    chosen = choose_columns(read_architecture(str(folder / "checkpoint-2")), rows, (), None)
    preparation = prepare(model, rows, chosen, processor=str(folder / "checkpoint-2"))
    if kind == "tools":
        preparation.processor.chat_template = TEMPLATE_OF_TOOLS
    wanted_rows = trl_rows(trl, case, columns, tmp_path, preparation.processor)
    for got, wanted in zip(prepared(rows, preparation), wanted_rows, strict=True):
        assert {name: wanted[name] for name in got} == got
        assert (got["chosen_ids"][-1] == 12) == (kind == "tools")


@pytest.mark.slow  # TRL is loaded
def test_rows_that_trl_has_prepared_hold_the_reference(capfd, tmp_path, writer):
    """The trainer's dataset is scored like the rows that it was made of, and the margin is over its reference model."""
    trl = pytest.importorskip("trl")
    folder, model, states = writer
    fast = AutoTokenizer.from_pretrained(folder / "checkpoint-2")
    rows = trl_rows(trl, "answers", ROWS["texts"][0], tmp_path / "run", fast, precompute_ref_log_probs=True)
    rows.save_to_disk(str(tmp_path / "data"))
    got = scored(capfd, folder, data=tmp_path / "data", output=tmp_path / "scores")
    assert got.manifest["transform"]["reference"] == ["ref_chosen_logps", "ref_rejected_logps"]
    own = [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), row, strict=True)) for row in ROWS["texts"][1]]
    own = [row | {n: rows[i][n] for n in ("ref_chosen_logps", "ref_rejected_logps")} for i, row in enumerate(own)]
    assert_scores(got, model, states, own, collate_fn=collate_preferences, columns=("vog", "margin"))
