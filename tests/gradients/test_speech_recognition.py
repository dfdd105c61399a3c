"""Speech recognition by CTC: lengths, the blank, and what counts as a right transcript."""

import pytest
import torch
from datasets import Dataset
from models import collate
from task_cases import BLANK, ctc_loss, recognizer
from torch import nn
from torch.testing import assert_close

from vog_hf import VoGScorer
from vog_hf.errors import ConfigError, DataError, LabelError, ModelError
from vog_hf.gradients.speech_recognition import SpeechRecognition
from vog_hf.gradients.targets import check_target, find_task


@pytest.mark.parametrize("n_samples", [53, 40])
def test_the_loss_of_a_row_is_that_of_the_model(n_samples):
    """With the model's own blank and lengths, also where the row is padded."""
    model, labels = recognizer(), torch.tensor([[5, 5, 9, -100]])
    model.config.ctc_loss_reduction = "sum"
    mask = (torch.arange(53) < n_samples).long()[None]
    batch = {
        "input_values": torch.randn(1, 53, generator=torch.Generator().manual_seed(1)) * mask,
        "attention_mask": mask,
    }
    with torch.no_grad():
        outputs = model(**batch, labels=labels)
    task = find_task(model, outputs, labels)
    logits = task.logits(outputs, batch)
    assert_close(task.scalar("loss", logits, labels)[0], outputs.loss)
    assert_close(task.observation(logits, labels)["loss"][0], outputs.loss)
    assert_close(task.logits(outputs, {"input_values": batch["input_values"]}), outputs.logits)


def frames(*tokens, n_tokens=6):
    """Logits of frames in which these tokens are the largest, ``[1, frames, tokens]``."""
    logits = torch.randn((1, len(tokens), n_tokens), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[0, range(len(tokens)), tokens] = 5.0
    return logits


@pytest.mark.parametrize(
    ("path", "labels", "right"),
    [
        ((3, 3, 2, 3, 4), [3, 3, 4], True),
        ((3, 3, 3, 3, 4), [3, 3, 4], False),
        ((2, 2, 3, 4, 2), [3, 4, -100, -100, -100, -100], True),
        ((2, 2, 3, 4, 2), [-100, 3, -100, 4], True),
        ((2, 3, 4), [3, 4, 5], False),
        ((2, 3, 4, 5), [3, 4], False),
        ((2, 2, 2), [], True),
        ((2, 0, 2), [], False),
    ],
)
def test_a_transcript_is_right_if_the_most_likely_path_gives_it(path, labels, right):
    """Repeats are one token, blanks are none; the loss is that of the recursion over all paths."""
    task, given = SpeechRecognition(BLANK), torch.tensor([labels], dtype=torch.long).reshape(1, -1)
    seen = task.observation(frames(*path), given)
    assert seen["correct"].tolist() == [float(right)]
    assert_close(seen["loss"][0], ctc_loss(frames(*path)[0].softmax(-1), [k for k in labels if k >= 0]))


def test_frames_behind_the_end_of_a_row_count_for_nothing():
    """A row that is padded has the loss, the gradient and the transcript that it has alone."""
    task, labels = SpeechRecognition(BLANK, lambda n_samples: n_samples // 10), torch.tensor([[3, 4]])
    alone = frames(3, 4, 2).requires_grad_()
    padded = torch.cat([frames(3, 4, 2), frames(5, 5)], 1).requires_grad_()
    logits = task.logits(padded, {"attention_mask": torch.ones(1, 35)})
    assert task.observation(logits.detach(), labels)["correct"].tolist() == [1.0]
    loss, expected = task.scalar("loss", logits, labels), task.scalar("loss", alone, labels)
    assert_close(loss, expected)
    (gradient,), (of_alone,) = (torch.autograd.grad(x.sum(), at) for x, at in ((loss, padded), (expected, alone)))
    assert_close(gradient, torch.cat([of_alone, torch.zeros_like(gradient[:, 3:])], 1))


def test_what_the_task_cannot_have_is_refused():
    """Tokens beyond the vocabulary, targets without meaning, models that do not say how long rows are."""
    task = SpeechRecognition(BLANK)
    task.check_labels(torch.tensor([[0, 5, -100]]), 6)
    with pytest.raises(LabelError, match="token 6 of a transcript is outside the vocabulary of 6") as error:
        task.check_labels(torch.tensor([[0, 5], [6, -100]]), 6)
    assert error.value.position == 1
    with pytest.raises(DataError, match=r"a transcript must be whole numbers \[batch, tokens\], got torch.int64"):
        task.check_labels(torch.tensor([0, 5]), 6)
    with pytest.raises(ConfigError, match="'probability' does not exist for speech_recognition, which has logit, loss"):
        check_target("probability", task)
    logits, mask = frames(3, 4), {"attention_mask": torch.ones(1, 20)}
    named = find_task(nn.Identity(), logits, None, name="speech_recognition")
    assert_close(named.logits(logits, {}), logits)
    with pytest.raises(ModelError, match=r"does not say how many frames a row has .*; pass a callable target"):
        named.logits(logits, mask)
    with pytest.raises(ModelError, match=r"needs logits \[batch, frames, vocabulary\], got \(1, 2\)"):
        named.logits(torch.zeros(1, 2), {})


@pytest.mark.parametrize("late", [False, True])
def test_a_transcript_longer_than_its_frames_is_refused_before_scoring(late):
    """The error counts tokens and frames; a late row is found by its length in the table; as many frames are enough."""
    model = recognizer()
    task = SpeechRecognition.for_model(model)
    n_frames = int(model._get_feat_extract_output_lengths(53))
    fits = {"input_values": torch.ones(1, 53)}
    most = torch.arange(4, 4 + n_frames)[None]
    task.check_fit(most, fits)
    with pytest.raises(
        LabelError, match=f"of {n_frames} tokens needs {n_frames + 1} frames .* has {n_frames}: CTC cannot align"
    ):
        task.check_fit(most.masked_fill(most == 5, 4), fits)
    tokens = [[5, 6]] * 40
    tokens[35 if late else 3] = [*range(4, 4 + n_frames), 4]
    rows = Dataset.from_dict({"input_values": [[0.1 * i] * 53 for i in range(40)], "labels": tokens})
    with pytest.raises(LabelError, match=rf"row {35 if late else 3}: a transcript of {n_frames + 1} tokens needs"):
        VoGScorer(model, batch_size=8, progress=False).check(rows, collate_fn=collate)
