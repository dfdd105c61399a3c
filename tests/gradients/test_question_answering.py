"""Question answering: which positions count, and how their labels come to the task."""

import models
import pytest
import torch
import transformers as T
from torch.testing import assert_close

from vog_hf import VoGScorer, input_gradients
from vog_hf.errors import DataError, LabelError, ModelError
from vog_hf.gradients.question_answering import LEFT_OUT
from vog_hf.gradients.tasks import TASKS

TASK = TASKS["question_answering"]


def answers(start, end):
    """Rows of 7 and 4 tokens with their answers."""
    rows = models.token_rows(0, lengths=(7, 4))
    ends = zip(start, end, strict=True)
    return [{**row, "start_positions": s, "end_positions": e} for row, (s, e) in zip(rows, ends, strict=True)]


def test_positions_are_counted_as_transformers_counts_them_whatever_the_padding():
    """Before the row: its first token. Behind it, also where other rows are longer: left out."""
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    counted = TASK.counted_labels(torch.tensor([[-1, 4], [1, 2]]), {"attention_mask": mask})
    assert counted.tolist() == [[0, LEFT_OUT], [1, LEFT_OUT]]
    assert TASK.counted_labels(counted, {"attention_mask": mask}).equal(counted)
    ids = {"input_ids": torch.zeros(2, 4, dtype=torch.long)}
    assert TASK.counted_labels(torch.tensor([[3, 4], [1, 2]]), ids).tolist() == [[3, LEFT_OUT], [1, 2]]
    left = {"attention_mask": mask.flip(1)}
    assert TASK.counted_labels(torch.tensor([[0, 3], [1, 2]]), left).tolist() == [[0, 3], [LEFT_OUT, 2]]


@pytest.mark.parametrize(("start", "end"), [((2, 1), (4, 3)), ((0, -1), (6, 0)), ((3, 99), (99, 2))])
def test_the_loss_of_rows_of_one_length_is_that_of_the_model(start, end):
    """Without padding, the loss of each row is what the model itself returns for it; a left out end is not halved."""
    model = models._made(lambda: T.BertForQuestionAnswering(models.bert_config(num_labels=2)), 0)
    for row in answers(start, end):
        batch = models.collate([row])
        with torch.no_grad():
            outputs = model(**batch)
        labels = torch.stack([batch["start_positions"], batch["end_positions"]], 1)
        loss = TASK.scalar("loss", TASK.logits(outputs, batch), TASK.counted_labels(labels, batch))
        n_counted = sum(int(batch[name] < len(row["input_ids"])) for name in ("start_positions", "end_positions"))
        own = outputs.loss if n_counted == 2 else _of_the_other_end(outputs, batch)
        assert_close(loss[0], own)


def _of_the_other_end(outputs, batch):
    """The mean over no end is NaN in transformers, so the other end's loss by itself."""
    for name in ("start", "end"):
        position = int(batch[f"{name}_positions"].clamp(min=0))
        z = outputs[f"{name}_logits"][0]
        if position < len(z):
            return -z.log_softmax(0)[position]
    raise AssertionError


def test_a_row_without_any_end_is_named():
    """An answer that was cut off whole has no target; one with an end left has one."""
    model = models._made(lambda: T.BertForQuestionAnswering(models.bert_config(num_labels=2)), 0)
    scorer = VoGScorer(model, progress=False)
    with pytest.raises(LabelError, match="row 1: a row has neither start nor end of its answer among its tokens"):
        scorer.check(answers((0, 4), (6, 5)), collate_fn=models.collate)
    scorer.check(answers((0, 3), (6, 5)), collate_fn=models.collate)
    with pytest.raises(DataError, match=r"an answer is two whole numbers, start_positions and end_positions, got"):
        TASK.check_labels(torch.zeros(3, dtype=torch.long), None)


def test_an_encoder_decoder_is_not_fed_the_answer():
    """Start and end are not tokens for the decoder, which gets the text itself."""
    config = models.bart().model.config
    model = models._made(lambda: T.BartForQuestionAnswering(config), 0)
    batch = models.collate(answers((1, 2), (3, 3)))
    batch["input_ids"][:, -1] = config.eos_token_id

    def answer(outputs, batch):
        ends = zip((outputs.start_logits, outputs.end_logits), ((1, 2), (3, 3)), strict=True)
        return sum(z[[0, 1], list(at)] for z, at in ends)

    assert_close(input_gradients(model, batch), input_gradients(model, batch, target=answer))


def test_outputs_without_start_and_end_are_refused_by_name():
    """A model with another head that is said to answer questions."""
    with pytest.raises(ModelError, match="needs outputs with start_logits and end_logits, got Tensor"):
        TASK.logits(torch.zeros(2, 3), {})
