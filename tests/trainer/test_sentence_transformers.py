"""Models of sentence-transformers: pairs, triplets and cross-encoders, by the row's own texts, whatever shares a batch.

Where the library is not installed, a model that is called as it calls them stands in for its SentenceTransformer.
"""

import functools

import numpy as np
import pytest
import torch
from datasets import Dataset
from models import _made, bert_config, perturbed_states
from numpy.testing import assert_allclose
from reference import reference_gradients, reference_vog
from sentence_cases import N_ROWS, PAIR, TRIPLET, Encoder, collate, expected, ids_of, installed, texts
from trainers import WeightsByStep, tokenizer
from transformers import BertForSequenceClassification

from vog_hf import VoGCallback, VoGConfig, VoGScorer
from vog_hf.errors import ConfigError, DataError, LabelError, ModelError
from vog_hf.gradients.model_inputs import forward_inputs
from vog_hf.gradients.sentence_encoders import PairScore, TextSimilarity

KINDS = {
    "pairs with scores": ([*PAIR, "score"], ("logit", "loss"), "text_similarity"),
    "pairs": (PAIR, ("logit",), "text_similarity"),
    "triplets": (TRIPLET, ("logit", "probability", "loss"), "text_contrast"),
}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes a model: the stand-in, or the library's."""
    folder = tmp_path_factory.mktemp("encoder")
    return {"stand-in": Encoder, "library": functools.partial(installed, folder)}


def rows_of(kind):
    """Rows with the columns of a kind."""
    names = KINDS[kind][0]
    whole = texts(TRIPLET if "negative" in names else PAIR)
    return [{name: row[name] for name in names} for row in whole]


def scored(model, rows, batch_size, **options):
    """Scores over two snapshots."""
    named = [(f"epoch-{k}", state) for k, state in enumerate(perturbed_states(model, 2))]
    scorer = VoGScorer(model, config=VoGConfig(**options), batch_size=batch_size, progress=False)
    return scorer.score(rows, named, collate_fn=collate)


@functools.cache
def expected_columns(kind):
    """The columns by the loop, for the weights that both models have."""
    model = Encoder().double()
    return expected(model, perturbed_states(model, 2), rows_of(kind), KINDS[kind][1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("model", "batch_size"), [("stand-in", 1), ("stand-in", 7), ("stand-in", 53), ("library", 7)])
def test_texts_of_a_row_are_scored_as_each_alone(make, model, kind, batch_size):
    """Every target, both sides and the companions, in float64, for batches of 1, 7 and all rows."""
    _, targets, task = KINDS[kind]
    scores = scored(make[model]().double(), rows_of(kind), batch_size, target=targets)
    assert len(scores) == N_ROWS
    assert scores.manifest["task"] == task
    for name, values in expected_columns(kind).items():
        assert np.ptp(values) > 0 or name in ("correctness", "vog_text_3")  # the similarity is without the negative
        assert_allclose(scores.column(name), values, rtol=1e-6, atol=1e-6 * np.abs(values).mean(), err_msg=name)
    assert {"forgetting", "el2n"}.isdisjoint(scores.column_names)


@pytest.mark.parametrize(("name", "value"), [("dot", 3.0), ("euclidean", -(8.0**0.5)), ("manhattan", -4.0)])
def test_the_similarity_is_the_models_own(name, value):
    """Dot product, or minus a distance."""
    outputs = {"sentence_embedding": torch.tensor([[1.0, 2.0], [3.0, 0.0]])}
    similarity = TextSimilarity(name).logits(outputs, {"input_ids": torch.zeros(1, 2, 4)})
    assert float(similarity) == pytest.approx(value)


def test_what_a_row_of_texts_cannot_have_is_refused():
    """A loss without scores, one text alone, texts that are encoded in several ways, static embeddings, raw texts."""
    rows = rows_of("pairs")[:7]
    with pytest.raises(DataError, match=r"no label was found: .*; pass rows with a column of scores, or a callable"):
        scored(Encoder(), rows, 7, target="loss")
    with pytest.raises(ConfigError, match="'probability' does not exist for text_similarity"):
        scored(Encoder(), rows, 7, target="probability")
    with pytest.raises(DataError, match="compares a similarity with a score, and the labels are whole numbers"):
        scored(Encoder(), [{**row, "score": i % 2} for i, row in enumerate(rows)], 7, target="loss")
    with pytest.raises(ModelError, match="the similarity of texts needs rows of two or more texts"):
        scored(Encoder(), [{"anchor": row["anchor"]} for row in rows], 7)
    batch = collate(rows)
    with pytest.raises(DataError, match=r"must be encoded in one way, got task = \['query', 'document'\]; score each"):
        forward_inputs(Encoder(), {**batch, "anchor_task": "query", "positive_task": "document"}, None)
    static = {name: value for name, value in batch.items() if name.endswith("_input_ids")}
    with pytest.raises(DataError, match="static embeddings pool the tokens of a text in an EmbeddingBag"):
        forward_inputs(Encoder(), static, None)
    with pytest.raises(DataError, match=r"needs batches with the inputs of each text .*collate_fn=trainer.data_coll"):
        VoGScorer(Encoder(), progress=False).check(rows)


def test_texts_that_are_padded_on_the_left_stay_so():
    """As the tokenizers of decoders do; the shorter text of a row is filled up on their side."""
    encoder = Encoder()
    encoder.tokenizer = tokenizer()
    encoder.tokenizer.padding_side = "left"
    fed = forward_inputs(encoder, collate([{"anchor": "w4", "positive": "w5 w6"}]), None)
    assert fed["input_ids"].tolist() == [[[0, 4], [5, 6]]]
    assert fed["attention_mask"].tolist() == [[[0, 1], [1, 1]]]


def training(module, model, rows, folder, *, loss, vog):
    """A training of sentence-transformers with one added line: the callback."""
    steps = WeightsByStep()
    options = {"num_train_epochs": 2, "per_device_train_batch_size": 3, "learning_rate": 1e-2, "report_to": "none"}
    options |= {"use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False}
    args = getattr(module, f"{type(model).__name__}TrainingArguments")(str(folder), **options)
    trainer = getattr(module, f"{type(model).__name__}Trainer")
    trainer(model, args, train_dataset=Dataset.from_list(rows), loss=loss(model), callbacks=[vog, steps]).train()
    return [steps.weights[2], steps.weights[4]]


@pytest.mark.slow
@pytest.mark.parametrize("collect", ["replay", "live"])
@pytest.mark.parametrize(
    ("kind", "loss"), [("pairs", "MultipleNegativesRankingLoss"), ("triplets", "MultipleNegativesRankingLoss"),
                       ("pairs with scores", "CosineSimilarityLoss")],
)  # fmt: skip
def test_a_training_with_its_trainer_is_scored_with_one_added_line(kind, loss, collect, tmp_path):
    """`VoGCallback()` under SentenceTransformerTrainer, with in-batch negatives and without."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import sentence_transformer
    from sentence_transformers.sentence_transformer import losses

    model, rows = installed(tmp_path / "encoder"), rows_of(kind)[:6]
    vog = VoGCallback(collect=collect, snapshots=[2, 4], batch_size=4, log=False)
    states = training(sentence_transformer, model, rows, tmp_path / "run", loss=getattr(losses, loss), vog=vog)
    found = expected(installed(tmp_path / "encoder"), states, rows, ("logit",))
    for name in ("vog", "vog_text_1", "vog_text_2", *(["margin"] if kind == "triplets" else ["prediction"])):
        values = found[name]
        assert_allclose(vog.scores.column(name), values, rtol=2e-4, atol=2e-4 * np.abs(values).mean(), err_msg=name)
    assert vog.scored_dataset().column_names[:2] == list(PAIR)


def cross_encoder(folder):
    """The library's class around a classifier with one output."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import CrossEncoder

    _made(lambda: BertForSequenceClassification(bert_config(num_labels=1)), 0).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return CrossEncoder(str(folder), device="cpu")


def binary_loss(outputs, inputs, label):
    """Binary cross-entropy of one pair, ``[1]``."""
    p = 1 / (1 + (-outputs.logits[:, 0]).exp())
    return -(label * p.log() + (1 - label) * (1 - p).log())


@pytest.mark.slow
@pytest.mark.parametrize("collect", ["replay", "live"])
def test_a_cross_encoder_is_scored_over_both_texts_with_one_added_line(collect, tmp_path):
    """`VoGCallback()` under CrossEncoderTrainer, whose collator leaves texts to the loss."""
    model = cross_encoder(tmp_path / "encoder")
    from sentence_transformers import cross_encoder as module
    from sentence_transformers.cross_encoder import losses

    rows = [{**row, "score": float(i % 2)} for i, row in enumerate(rows_of("pairs with scores")[:6])]
    vog = VoGCallback(
        config=VoGConfig(target=("logit", "loss")), collect=collect, snapshots=[2, 4], batch_size=4, log=False
    )
    states = training(module, model, rows, tmp_path / "run", loss=losses.BinaryCrossEntropyLoss, vog=vog)
    (prefix,) = {name.partition("bert.")[0] for name in states[0] if "bert." in name}
    states = [{name.removeprefix(prefix): value for name, value in state.items()} for state in states]
    pairs = tokenizer()([row["anchor"] for row in rows], [row["positive"] for row in rows])
    alone = [{name: torch.tensor(values[i]) for name, values in pairs.items()} for i in range(len(rows))]
    plain = BertForSequenceClassification(bert_config(num_labels=1))
    for name, column in (("logit", "vog"), ("loss", "vog_loss")):
        values = []
        for row, inputs in zip(rows, alone, strict=True):
            target = functools.partial(binary_loss, label=row["score"]) if name == "loss" else name
            gradients = reference_gradients(plain, states, [inputs], target, [0.0], task="regression")
            values += reference_vog(gradients).tolist()
        assert_allclose(vog.scores.column(column), values, rtol=2e-4, atol=2e-4 * np.mean(values), err_msg=column)
    assert vog.scores.manifest["task"] == "pair_score"


def test_the_score_of_a_pair_is_compared_with_a_label_between_0_and_1():
    """Binary cross-entropy; other labels are refused by row."""
    task, logits = PairScore(), torch.tensor([0.5, -2.0])
    labels = torch.tensor([1, 0])
    p = logits.sigmoid()
    assert_allclose(task.scalar("loss", logits, labels), -torch.stack([p[0], 1 - p[1]]).log(), rtol=1e-6)
    assert_allclose(task.scalar("probability", logits, labels), p, rtol=1e-6)
    assert set(task.observation(logits, None)) == {"prediction"}
    with pytest.raises(LabelError, match=r"must lie between 0 and 1, got 3; .*VoGConfig\(task='regression'\)") as error:
        task.check_labels(torch.tensor([1, 3]), None)
    assert error.value.position == 1


def test_ids_of_a_text_are_those_of_its_tokenizer():
    """What the oracle reads is what the model is given."""
    assert tokenizer()("w4 w7")["input_ids"] == ids_of("w4 w7").tolist()
