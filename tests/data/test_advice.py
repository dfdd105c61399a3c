"""Messages about rows, models and schedules that cannot be scored: each names something that works, and it does."""

from types import SimpleNamespace

import models
import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import default_collate
from trainers import digits, tokenizer
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
)

from vog_hf import VoGCallback, VoGConfig, VoGScorer
from vog_hf.data import SeededPerRow
from vog_hf.errors import ConfigError, DataError, ModelError, SnapshotError
from vog_hf.snapshots.schedule import plan_snapshots

LENGTHS = (9, 5, 12, 3, 7)


def vog_of(model, rows, *, n=3, **options):
    """Scores from three snapshots; tied weights stay tied."""
    generator = torch.Generator().manual_seed(0)
    states = []
    for k in range(n):
        state = {name: value.clone() for name, value in model.state_dict().items()}
        for name, _ in model.named_parameters():
            state[name] += 0.1 * torch.randn(state[name].shape, generator=generator)
        states.append((f"s{k}", {name: state[name] for name, _ in model.named_parameters()} | _buffers(model)))
    collate_fn = options.pop("collate_fn", models.collate)
    return VoGScorer(model, progress=False, **options).score(rows, states, collate_fn=collate_fn).column("vog")


def _buffers(model):
    persistent = model.state_dict()
    return {name: value.clone() for name, value in model.named_buffers() if name in persistent}


# --- random collators -----------------------------------------------------------------------------------------------


def masking(probability=0.3, side="right"):
    """A collator that masks tokens at random."""
    tokenize = tokenizer()
    tokenize.padding_side = side
    tokenize.mask_token = "w2"  # noqa: S105 (a word)
    return DataCollatorForLanguageModeling(tokenize, mlm_probability=probability)


def masked_model():
    """A masked language model."""
    torch.manual_seed(0)
    return BertForMaskedLM(models.bert_config()).double().eval()


def texts():
    """Rows of tokens without labels: the collator makes them."""
    return [{name: value.tolist() for name, value in row.items()} for row in models.token_rows(2, lengths=LENGTHS)]


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_random_collator_is_named_and_its_wrapper_scores(side):
    """Masks drawn again are refused as the collator's; with a seed per row, scores do not depend on the batch."""
    model, rows = masked_model(), texts()
    with pytest.raises(DataError, match=r"the collator is random.*SeededPerRow\(collator\), from vog_hf\.data"):
        vog_of(model, rows, collate_fn=masking(side=side))
    found = [vog_of(model, rows, collate_fn=SeededPerRow(masking(side=side)), batch_size=n) for n in (1, 2, 5)]
    assert (found[0] > 0).all()
    if side == "right":  # BERT's positions count from the left end of the batch
        np.testing.assert_allclose(found[1], found[0], rtol=1e-6)
        np.testing.assert_allclose(found[2], found[0], rtol=1e-6)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_rows_mask_is_its_own(side):
    """A row is masked alike alone, in any batch and any order; padding keeps its place and another seed masks again."""
    rows, collate = texts(), SeededPerRow(masking(side=side))
    whole = collate(rows)
    for at, n in enumerate(LENGTHS):
        place = slice(None, n) if side == "right" else slice(-n, None)
        alone = collate([rows[at]])
        for name in ("input_ids", "labels", "attention_mask"):
            assert torch.equal(whole[name][at, place], alone[name][0])
            assert torch.equal(collate(rows[::-1])[name][len(rows) - 1 - at], whole[name][at])
        assert (alone["labels"] != -100).any()
        assert whole["attention_mask"][at].sum() == n
    assert not torch.equal(SeededPerRow(masking(side=side), seed=1)(rows)["labels"], whole["labels"])


def test_a_wrapped_collator_leaves_the_random_streams():
    """Collating with seeds per row draws nothing from the global stream."""
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    SeededPerRow(masking())(texts())
    assert torch.equal(torch.rand(2), expected)


# --- other refusals -------------------------------------------------------------------------------------------------


def start_logit(outputs, batch):
    """The strongest start of an answer."""
    return outputs.start_logits.amax(-1)


def test_question_answering_without_an_answer_is_told_what_to_add():
    """Rows need the ends of their answers; without, the predicted ones or a callable target of one end are scored."""
    model = BertForQuestionAnswering(models.bert_config(num_labels=2)).eval()
    rows = models.token_rows(0, lengths=LENGTHS)
    with pytest.raises(DataError, match="let the rows have start_positions and end_positions"):
        vog_of(model, rows)
    for target in ("logit", start_logit):
        assert (vog_of(model, rows, config=VoGConfig(target=target, label="predicted")) > 0).all()


@pytest.mark.filterwarnings("ignore:.*quant.*")
def test_quantized_models_are_sent_back_to_the_model_before():
    """Layers of whole numbers have no gradient, and packed ones no weight; the model before quantization is scored."""
    from torch.ao.quantization import quantize_dynamic

    model, rows = models.bert().model, [{**row, "labels": 1} for row in models.token_rows(0, lengths=LENGTHS)]
    with pytest.raises(ModelError, match=r"the target does not depend on the input: .*quantized"):
        VoGScorer(quantize_dynamic(model, {nn.Linear}), progress=False).check(rows, collate_fn=models.collate)
    with pytest.raises(ModelError, match=r"without any; pass a trained one, as it was before it was quantized"):
        VoGScorer(quantize_dynamic(models.mlp().model, {nn.Linear}))
    assert (vog_of(model, rows) > 0).all()


class Detector(nn.Module):
    """``[batch, queries, classes]`` from vectors."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Linear(5, 8)

    def forward(self, features):
        return {"logits": self.queries(features).tanh().unflatten(-1, (2, 4))}


def objectness(outputs, batch):
    """The logit of the most certain box."""
    return outputs["logits"].flatten(1).amax(-1)


def test_a_detector_is_scored_by_the_target_that_the_message_names():
    """One mapping of boxes per row is not a class; a callable target does without labels and companions."""
    rows = [{"features": torch.rand(5), "labels": {"class_labels": [1], "boxes": [[0, 0, 1, 1]]}} for _ in range(4)]

    def collate(batch):
        return {"features": torch.stack([r["features"] for r in batch]), "labels": [r["labels"] for r in batch]}

    with pytest.raises(ModelError, match=r"belong to no task that is known here; pass a callable target"):
        vog_of(Detector(), rows, collate_fn=collate)
    assert (vog_of(Detector(), rows, collate_fn=collate, config=VoGConfig(target=objectness)) > 0).all()


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"chosen_input_ids": [1], "rejected_input_ids": [2]},
        {"sentence_0_input_ids": [1], "sentence_1_input_ids": [2]},
    ],
)
def test_rows_of_several_texts_are_told_to_become_rows_of_their_own(row):
    """Preferences and pairs are not taken for rows without a transform; single texts are scored."""
    model = models.bert().model
    with pytest.raises(DataError, match=r"several inputs .*make each text a row of its own"):
        vog_of(model, Dataset.from_list([row] * 3), collate_fn=None)
    single = [{**row, "labels": i % 3} for i, row in enumerate(models.token_rows(0, lengths=LENGTHS))]
    assert (vog_of(model, single) > 0).all()


def test_rows_that_were_not_transformed_name_what_is_missing():
    """A collator's KeyError becomes the name of the input and the transform; transformed rows are scored."""

    def collate(rows):
        return {"features": torch.stack([row["features"] for row in rows]), "labels": torch.zeros(len(rows)).long()}

    rows = Dataset.from_dict({"x": [[0.1 * i] * 5 for i in range(4)]})
    model = models.mlp().model
    with pytest.raises(
        DataError, match=r"the collator expects 'features', and the rows have \['x'\]; .*with_transform"
    ):
        vog_of(model, rows, collate_fn=collate)
    ready = rows.with_transform(lambda batch: {"features": [torch.tensor(x) for x in batch["x"]]})
    assert (vog_of(model, ready, collate_fn=collate) > 0).all()


def test_a_path_is_not_rows():
    """A folder's name is refused when the callback is made, with the way to load it."""
    with pytest.raises(DataError, match=r"got the text 'photos'; load its rows first: datasets\.load_dataset"):
        VoGCallback("photos")
    with pytest.raises(DataError, match="got the text 'photos'"):
        VoGScorer(models.mlp().model).score("photos", [])


@pytest.mark.parametrize("columns", [{"text": ["a", "b"], "label": [0, 1]}, {"input_ids": [[1, 2], [3]]}])
def test_columns_are_not_rows(columns):
    """A dictionary of columns is not taken for one of splits, which stays one; the message says what to write."""
    with pytest.raises(
        DataError, match=r"a dictionary with the columns \[.*Dataset\.from_dict\(columns\) with the model"
    ):
        VoGCallback(columns)
    VoGCallback({"train": [{"input_ids": [1, 2], "labels": 0}], "test": [(torch.zeros(2), 1)]})
    VoGCallback({"train": ["a", "b"], "test": ["c"]}, collate_fn=lambda rows: {"x": torch.zeros(len(rows), 3)})


@pytest.mark.parametrize("collate_fn", [None, DataCollatorWithPadding(tokenizer())])
def test_texts_are_not_tokens(collate_fn):
    """Rows that are texts name what a model reads instead, with a collator of tokens and without one."""
    with pytest.raises(DataError, match=r"the rows are texts, and a model reads their tokens: pass tokenized rows"):
        vog_of(models.mlp().model, ["good", "bad"], collate_fn=collate_fn)


def test_rows_without_an_input_name_what_makes_it():
    """Texts without tokens, images without their transform, and a table of pandas: the next step is named."""
    texts = Dataset.from_dict({"text": ["a"] * 3, "label": [0, 1, 0]})
    with pytest.raises(DataError, match=r"\['label', 'text'\] is an input of .*lambda row: tokenizer\(row\['text'\]"):
        vog_of(models.bert().model, texts, collate_fn=None)
    with pytest.raises(DataError, match=r"given images \('image'\) as they are stored: pass the rows with the transf"):
        vog_of(models.conv_net().model, digits(3), collate_fn=default_collate)
    with pytest.raises(
        DataError, match=r"got a DataFrame, whose rows have no number; pass datasets\.Dataset\.from_pand"
    ):
        VoGCallback(texts.to_pandas())


def test_a_training_of_one_step_is_not_told_to_use_what_is_set():
    """More steps are the only remedy; with two of them there are two snapshots."""
    with pytest.raises(ConfigError, match=r"over 1 steps gives 1; train longer \(num_train_epochs") as caught:
        plan_snapshots("auto", max_snapshots=10, max_steps=1, steps_per_epoch=1)
    assert "e.g. snapshots='auto'" not in str(caught.value)
    assert plan_snapshots("auto", max_snapshots=10, max_steps=2, steps_per_epoch=2) == [1, 2]


def test_a_model_around_a_module_names_the_module_inside():
    """SetFit's model is not a torch module; the one inside it is scored."""
    outer = SimpleNamespace(model_body=models.mlp().model)
    with pytest.raises(ModelError, match=r"a torch\.nn\.Module is expected .*SimpleNamespace; .*\(model_body\)"):
        VoGScorer(outer)
    rows = [{"features": torch.rand(5), "labels": i % 3} for i in range(4)]
    assert (vog_of(outer.model_body, rows) > 0).all()


def test_pickled_checkpoints_of_timm_are_told_how_to_be_saved(tmp_path):
    """A ``.pth.tar`` is not told to use a method that timm's models do not have; the file that is advised is scored."""
    from safetensors.torch import save_model

    model = models.mlp().model
    for k in (1, 2):
        folder = tmp_path / f"epoch-{k}"
        folder.mkdir()
        torch.save({"state_dict": model.state_dict()}, folder / "checkpoint.pth.tar")
    folders = sorted(tmp_path.iterdir())
    rows = [{"features": torch.rand(5), "labels": i % 3} for i in range(4)]
    with pytest.raises(SnapshotError, match=r"pth\.tar is not safetensors.*safetensors\.torch\.save_model\(model, "):
        VoGScorer(model, progress=False).score(rows, folders)
    files = [folder / "epoch.safetensors" for folder in folders]
    for k, file in enumerate(files):
        save_model(_moved(model, k), str(file))
    assert (VoGScorer(model, progress=False).score(rows, files).column("vog") > 0).all()


def _moved(model, seed):
    moved = models.MLP()
    moved.load_state_dict(models.perturbed_states(model, 1, seed=seed)[0])
    return moved
