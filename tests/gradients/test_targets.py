import functools
from types import SimpleNamespace

import models
import pytest
import torch
from detection_cases import DETECTION_CASES
from reference import _scalar, reference_logits
from sentence_cases import SENTENCE_CASES
from task_cases import TASK_CASES
from torch import nn
from torch.testing import assert_close
from unlabeled_cases import UNLABELED_CASES

from vog_hf.errors import ConfigError, DataError, LabelError, ModelError
from vog_hf.gradients import token_tasks
from vog_hf.gradients.model_outputs import find_logits
from vog_hf.gradients.targets import check_target, fill_missing_labels, find_task, row_scalar, target_name
from vog_hf.gradients.task import TARGETS
from vog_hf.gradients.tasks import TASKS

N = 53
CLASSES = 4
TOKENS = 6
ELSEWHERE = {name.split("/")[0] for name in (*TASK_CASES, *UNLABELED_CASES, *DETECTION_CASES)}  # scoring/test_tasks.py
ELSEWHERE |= set(SENTENCE_CASES)  # trainer/test_sentence_transformers.py
PLAIN = [name for name in TASKS if name not in ELSEWHERE]
WITHOUT_LOSS = ("pair_similarity", "preference_optimization")
WITHOUT_PROBABILITY = (*WITHOUT_LOSS, "regression", "speech_recognition", "pixel_reconstruction", "text_similarity")
WHOLE_NUMBERS = [torch.int64, torch.int32, torch.int16, torch.uint8]


def drawn(*shape, seed=0):
    """Random values in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def token_labels():
    """Labels of tokens, every fifth left out."""
    labels = torch.randint(CLASSES, (N, TOKENS), generator=torch.Generator().manual_seed(1))
    labels[torch.arange(N * TOKENS).reshape(N, TOKENS) % 5 == 0] = -100
    return labels


def example_of(task):
    """Logits and labels of a task, ``[batch, ...]`` each."""
    if task == "single_label_classification":
        return drawn(N, CLASSES), torch.arange(N) % CLASSES
    if task == "multi_label_classification":
        return drawn(N, CLASSES), (drawn(N, CLASSES, seed=1) > 0).double()
    if task == "regression":
        return drawn(N, 2), drawn(N, 2, seed=1)
    return drawn(N, TOKENS, CLASSES), token_labels()


@pytest.mark.parametrize(("task", "target"), [(name, target) for name in PLAIN for target in TASKS[name].targets])
def test_the_scalar_of_every_task_and_target_is_the_oracles(task, target):
    """Each row's scalar is what the oracle computes of that row alone by plain loops."""
    logits, labels = example_of(task)
    expected = [_scalar(z, label, target, task) for z, label in zip(logits, labels, strict=True)]
    assert_close(TASKS[task].scalar(target, logits, labels), torch.stack([torch.as_tensor(e) for e in expected]))


def test_every_task_has_a_logit_and_most_have_a_loss_and_a_probability():
    """The targets of a task are a subset of the targets there are."""
    for name, task in TASKS.items():
        assert set(task.targets) <= set(TARGETS)
        assert "logit" in task.targets
        assert ("loss" in task.targets) == (name not in WITHOUT_LOSS)
        assert ("probability" in task.targets) == (name not in WITHOUT_PROBABILITY)
        check_target("logit", task)
    with pytest.raises(ConfigError, match="target 'probability' does not exist for regression, which has logit, loss"):
        check_target("probability", TASKS["regression"])
    with pytest.raises(ConfigError, match="target 'margin' does not exist for single_label_classification"):
        check_target("margin", TASKS["single_label_classification"])
    check_target(lambda outputs, batch: None, TASKS["regression"])


@pytest.mark.parametrize("dtype", WHOLE_NUMBERS)
def test_labels_may_be_whole_numbers_of_any_size(dtype):
    """int32 labels of numpy and uint8 labels of a table are labels."""
    logits, labels = example_of("single_label_classification")
    task = TASKS["single_label_classification"]
    task.check_labels(labels.to(dtype), CLASSES)
    for target in task.targets:
        assert_close(task.scalar(target, logits, labels.to(dtype)), task.scalar(target, logits, labels))
    assert_close(task.observation(logits, labels.to(dtype)), task.observation(logits, labels))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16])
@pytest.mark.parametrize("task", ["token_prediction", "causal_language_model"])
def test_token_labels_may_be_whole_numbers_of_any_size(task, dtype):
    """Token labels, too, may come in any signed size."""
    logits, labels = example_of(task)
    TASKS[task].check_labels(labels.to(dtype), CLASSES)
    for target in TASKS[task].targets:
        found = TASKS[task].scalar(target, logits, labels.to(dtype))
        assert_close(found, TASKS[task].scalar(target, logits, labels))


def test_the_order_of_causal_labels_is_position_minus_one_for_the_label():
    """The logit at i - 1 is for the label at i: the last position has no label and the first label no logit."""
    logits = torch.zeros(1, 3, 5)
    logits[0, 0, 2], logits[0, 1, 4], logits[0, 2, 3] = 10.0, 20.0, 1000.0
    labels = torch.tensor([[3, 2, 4]])
    assert TASKS["causal_language_model"].scalar("logit", logits, labels).tolist() == [15.0]


# --- observations ---------------------------------------------------------------------------------------------------


def test_observation_of_a_multi_label_row_is_over_its_labels():
    """Confidence is the mean probability of the labels' given values; correct is the share that is predicted."""
    logits, labels = example_of("multi_label_classification")
    seen = TASKS["multi_label_classification"].observation(logits, labels)
    probability = 1 / (1 + (-logits).exp())
    given = torch.where(labels == 1, probability, 1 - probability)
    assert_close(
        seen, {"loss": -given.log().mean(1), "confidence": given.mean(1), "correct": (given > 0.5).double().mean(1)}
    )


def test_observation_of_a_regression_is_prediction_and_squared_error():
    """A regression shows its prediction, and with labels its mean squared error; it has no confidence."""
    logits, labels = example_of("regression")
    task = TASKS["regression"]
    assert_close(task.observation(logits, None), {"prediction": logits.sum(1)})
    expected = {"prediction": logits.sum(1), "loss": ((logits - labels) ** 2).mean(1)}
    assert_close(task.observation(logits, labels), expected)
    assert_close(task.observation(logits[:, 0], labels[:, :1])["loss"], (logits[:, 0] - labels[:, 0]) ** 2)


def test_many_tokens_in_bfloat16_are_observed_as_in_float32(monkeypatch):
    """bfloat16 rounds a count of 403 tokens and a loss of 2.004; and tokens are looked at a few at a time."""
    task = TASKS["token_prediction"]
    logits, labels = drawn(2, 403, CLASSES).bfloat16(), torch.zeros(2, 403, dtype=torch.int64)
    in_one = task.observation(logits, labels)
    monkeypatch.setattr(token_tasks, "PART_ON_CPU", 7 * CLASSES)
    in_parts = task.observation(logits, labels)
    expected = task.observation(logits.double(), labels)
    for name, values in expected.items():
        assert_close(in_one[name], values.float(), rtol=1e-6, atol=0)
        assert torch.equal(in_parts[name], in_one[name])
    assert_close(task.scalar("logit", logits, labels).double(), logits[..., 0].double().mean(1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("task", ["token_prediction", "causal_language_model"])
def test_observation_of_tokens_is_the_mean_over_the_label_tokens(task):
    """Loss, confidence and share of right tokens are over the tokens that have a label, row by row."""
    logits, labels = example_of(task)
    shift = int(task == "causal_language_model")
    expected = {"loss": [], "confidence": [], "correct": []}
    for z, label in zip(logits, labels, strict=True):
        tokens = [(z[i - shift].softmax(0), label[i]) for i in range(shift, TOKENS) if label[i] != -100]
        expected["loss"].append(sum(-p[y].log() for p, y in tokens) / len(tokens))
        expected["confidence"].append(sum(p[y] for p, y in tokens) / len(tokens))
        expected["correct"].append(sum((p.argmax() == y).double() for p, y in tokens) / len(tokens))
    expected = {name: torch.stack(values) for name, values in expected.items()}
    assert_close(TASKS[task].observation(logits, labels), expected)
    labels[0, 1:3] = -100
    unknown = logits.clone()
    unknown[0, 2 - shift] = torch.nan  # as attention at padding may give
    assert_close(TASKS[task].observation(unknown, labels), TASKS[task].observation(logits, labels))


# --- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "message", "position"),
    [
        ([0, 1, 4], r"label 4 is outside the model's classes 0\.\.3", 2),
        ([0, -2, 4], r"label -2 is outside .* only None, -1 and -100 mean no label", 1),
        ([-99, 0, 0], "label -99 is outside", 0),
    ],
)
def test_class_labels_out_of_range_are_refused_with_their_place(labels, message, position):
    """The first label that is not a class is named with its place, so that the row can be found."""
    with pytest.raises(LabelError, match=message) as caught:
        TASKS["single_label_classification"].check_labels(torch.tensor(labels), CLASSES)
    assert caught.value.position == position


@pytest.mark.parametrize("labels", [[0, 1, 3], [-1, -100, 0]])
def test_class_labels_in_range_and_missing_ones_are_accepted(labels):
    """Next to the refused: the highest class, and the two numbers that mean no label."""
    TASKS["single_label_classification"].check_labels(torch.tensor(labels), CLASSES)


def test_labels_of_the_wrong_kind_are_refused_with_the_way_out():
    """One class number per row is asked for, and what to set where the task is another."""
    for labels in (torch.zeros(3), torch.zeros(3, CLASSES, dtype=torch.int64)):
        with pytest.raises(DataError, match=r"one class number per row, .* set model\.config\.problem_type"):
            TASKS["single_label_classification"].check_labels(labels, CLASSES)


def test_multi_label_labels_are_zeros_and_ones_for_every_output():
    """Soft or missing values, and too few columns, are refused; 0.0 and 1.0, 0 and 1, False and True are fine."""
    check = TASKS["multi_label_classification"].check_labels
    for good in (torch.tensor([[0.0, 1.0]]), torch.tensor([[0, 1]]), torch.tensor([[False, True]])):
        check(good, 2)
    with pytest.raises(LabelError, match=r"must be 0 or 1, got \[0\.5, 1\.0\]") as caught:
        check(torch.tensor([[0.0, 1.0], [0.5, 1.0]]), 2)
    assert caught.value.position == 1
    with pytest.raises(DataError, match=r"one 0 or 1 for each of 3 labels, got shape \(1, 2\)"):
        check(torch.tensor([[0, 1]]), 3)
    with pytest.raises(DataError, match=r"got shape \(2,\)"):
        check(torch.tensor([0, 1]), 2)


def test_regression_labels_are_finite_and_one_per_output():
    """A NaN value is refused with its place; [batch] and [batch, 1] are both one value per row."""
    check = TASKS["regression"].check_labels
    check(torch.tensor([1.0, 2.0]), 1)
    check(torch.tensor([[1], [2]]), 1)
    with pytest.raises(LabelError, match="regression labels must be finite, got nan") as caught:
        check(torch.tensor([1.0, torch.nan]), 1)
    assert caught.value.position == 1
    with pytest.raises(DataError, match=r"a regression with 3 outputs needs 3 numbers a row, got .* \(2, 2\)"):
        check(torch.zeros(2, 2), 3)
    with pytest.raises(DataError, match=r"\(2,\); if the numbers are classes, cast them to int64"):
        check(torch.tensor([0.0, torch.nan]), 3)  # classes of which one is missing, as pandas stores them


def test_token_labels_are_of_the_vocabulary_and_not_all_left_out():
    """A row without any label token has no target; of a causal model the first label does not count."""
    for name, empty in (("token_prediction", [-100, -100, -100]), ("causal_language_model", [3, -100, -100])):
        check = TASKS[name].check_labels
        check(torch.tensor([[-100, 3, -100]]), CLASSES)
        with pytest.raises(LabelError, match="a row has no label token") as caught:
            check(torch.tensor([[-100, 3, -100], empty]), CLASSES)
        assert caught.value.position == 1
        for bad in (4, -1):
            with pytest.raises(LabelError, match=f"label token {bad} is outside the vocabulary of 4") as caught:
                check(torch.tensor([[0, 1, 2], [0, 1, bad]]), CLASSES)
            assert caught.value.position == 1
        with pytest.raises(DataError, match=r"whole numbers \[batch, tokens\]"):
            check(torch.zeros(2, 3), CLASSES)
    TASKS["causal_language_model"].check_labels(torch.tensor([[99, 1, 2]]), CLASSES)


@pytest.mark.parametrize("task", [name for name in TASKS if TASKS[name].needs_labels])
def test_a_task_that_needs_labels_says_so(task):
    """Without labels there is no scalar; a regression has one: its prediction."""
    logits, _ = example_of(task)
    with pytest.raises(DataError, match=f"{task} needs labels"):
        TASKS[task].scalar("logit", logits, None)
    assert TASKS["regression"].scalar("logit", drawn(N), None).shape == (N,)
    with pytest.raises(DataError, match="regression needs labels"):
        TASKS["regression"].scalar("loss", drawn(N), None)


def test_logits_and_labels_of_different_lengths_are_refused():
    """A prompt-tuned model has more logits than labels: no alignment is guessed."""
    with pytest.raises(ModelError, match=r"logits for \(2, 5\) tokens do not fit labels for \(2, 3\); .* \(CTC\)"):
        TASKS["token_prediction"].scalar("logit", drawn(2, 5, CLASSES), torch.zeros(2, 3, dtype=torch.int64))


def test_missing_labels_are_filled_with_the_prediction_and_given_ones_stay():
    """-1 and -100 mean no label; no labels at all means the prediction for every row."""
    prediction = torch.tensor([3, 2, 1])
    assert fill_missing_labels(torch.tensor([-1, 0, -100]), prediction).tolist() == [3, 0, 1]
    assert fill_missing_labels(None, prediction).tolist() == [3, 2, 1]


# --- tasks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(models.CASES))
def test_the_task_of_every_kind_of_model_is_found(name):
    """The task follows the model's configuration, its head, or the shapes of logits and labels."""
    case = models.CASES[name]()
    batch = case.batch()
    logits = torch.from_numpy(reference_logits(case.model, None, case.rows[:1], case.labels[:1])[0])
    assert find_task(case.model, logits, batch["labels"][:1]).name == case.task


@pytest.mark.parametrize(
    ("logits_shape", "labels", "expected"),
    [
        ((N, 4), torch.zeros(N, dtype=torch.int64), "single_label_classification"),
        ((N, 4), None, "single_label_classification"),
        ((N, 4), torch.zeros(N, 4), "multi_label_classification"),
        ((N, 4), torch.zeros(N, 4, dtype=torch.int64), "multi_label_classification"),
        ((N, 1), torch.zeros(N), "regression"),
        ((N, 1), None, "regression"),
        ((N,), torch.zeros(N), "regression"),
        ((N, 6, 4), torch.zeros(N, 6, dtype=torch.int64), "token_prediction"),
    ],
)
def test_the_task_of_a_plain_module_follows_the_shapes(logits_shape, labels, expected):
    """Without a configuration, the shapes of logits and labels say what is predicted."""
    assert find_task(nn.Identity(), torch.zeros(logits_shape), labels).name == expected


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification", "regression"])
def test_the_problem_type_of_the_configuration_comes_first(problem_type):
    """What the model's configuration says is not guessed from shapes."""
    model = models.bert(problem_type=problem_type).model
    assert find_task(model, torch.zeros(N, 3), torch.zeros(N, dtype=torch.int64)).name == problem_type


@pytest.mark.parametrize(
    ("name", "attributes", "config", "expected"),
    [
        ("QwenVLForConditionalGeneration", {}, {"is_encoder_decoder": False}, "causal_language_model"),
        ("SomeForConditionalGeneration", {}, {"is_encoder_decoder": True}, "token_prediction"),
        ("Blip2ForConditionalGeneration", {}, {"text_config": {"is_encoder_decoder": True}}, "token_prediction"),
        ("Blip2ForConditionalGeneration", {}, {"text_config": {"is_encoder_decoder": False}}, "causal_language_model"),
        ("Mine", {"loss_type": "ForCausalLM"}, {}, "causal_language_model"),
        ("Mine", {"loss_type": "ForMaskedLM"}, {}, "token_prediction"),
        ("Mine", {"loss_type": "ForCausalLM"}, {"is_encoder_decoder": True}, "token_prediction"),
    ],
)
def test_decoders_shift_their_labels_and_encoder_decoders_do_not(name, attributes, config, expected):
    """ForConditionalGeneration is both: an encoder-decoder, or a decoder of text that is also given images."""
    if "text_config" in config:
        config = {"text_config": SimpleNamespace(**config["text_config"])}
    model = type(name, (nn.Identity,), attributes)()
    model.config = SimpleNamespace(problem_type=None, **config)
    assert find_task(model, torch.zeros(N, 6, 4), torch.zeros(N, 6, dtype=torch.int64)).name == expected


def test_the_loss_of_a_decoder_of_images_and_text_is_its_own():
    """Llava's mean loss over label tokens, row by row, is the target "loss"."""
    case = models.llava()
    own = [
        case.model(**models.collate([row]), labels=label[None]).loss
        for row, label in zip(case.rows, case.labels, strict=True)
    ]
    batch = case.batch()
    logits = case.model(**case.batch(labels=False)).logits
    loss = find_task(case.model, logits, batch["labels"]).scalar("loss", logits, batch["labels"])
    assert_close(loss, torch.stack(own))


def test_logits_that_mean_nothing_known_ask_for_a_callable():
    """A map without masks as labels has no scalar per row of its own."""
    with pytest.raises(
        ModelError, match=r"logits of shape \(2, 4, 8, 8\) belong to no task that is known here; pass a callable"
    ):
        find_task(nn.Identity(), torch.zeros(2, 4, 8, 8), None)


def test_an_unknown_problem_type_is_refused_by_name():
    """A configuration that names a task of its own is told which ones there are."""
    model = nn.Identity()
    model.config = type("Config", (), {"problem_type": "ranking"})()
    with pytest.raises(ModelError, match="problem_type 'ranking', expected one of single_label_classification"):
        find_task(model, torch.zeros(2, 3), None)


# --- callables and outputs ------------------------------------------------------------------------------------------


def test_a_callable_target_sees_outputs_batch_and_labels():
    """A custom target gets the model's outputs and the batch it was fed, with the labels under `labels`."""
    seen = {}

    def first_logit(outputs, batch):
        seen.update(batch)
        return outputs["logits"][:, 0]

    logits, labels = example_of("single_label_classification")
    batch = {"features": drawn(N, 5)}
    assert torch.equal(row_scalar(first_logit, None, {"logits": logits}, batch, labels), logits[:, 0])
    assert set(seen) == {"features", "labels"}
    assert torch.equal(seen["labels"], labels)
    assert list(batch) == ["features"]
    row_scalar(first_logit, None, {"logits": logits}, batch, None)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda z: z, rf"a tensor of shape \({N},\), got \({N}, {CLASSES}\)"),
        (lambda z: z.sum(), r"got \(\)"),
        (lambda z: z[:1, 0], r"got \(1,\)"),
        (lambda z: z[:, :1], rf"got \({N}, 1\)"),
        (lambda z: z[:, 0].tolist(), "got list"),
        (lambda z: None, "got NoneType"),
    ],
)
def test_a_callable_that_returns_no_value_per_row_is_refused_by_name(returned, message):
    """One value per row, as a tensor: anything else would be summed into nonsense."""

    def my_target(outputs, batch):
        return returned(outputs)

    with pytest.raises(ConfigError, match=f"target .*my_target must return one value per row, .*{message}"):
        row_scalar(my_target, None, drawn(N, CLASSES), {"features": drawn(N, 5)}, None)


def test_a_named_target_without_a_task_is_refused():
    """What a logit is, only a task knows."""
    with pytest.raises(ConfigError, match="target 'logit' needs a known task"):
        row_scalar("logit", None, drawn(N, CLASSES), {"features": drawn(N, 5)}, None)


def test_logits_are_found_in_tensors_tuples_dicts_and_model_outputs():
    """Whatever form a model's output has, its logits are found."""
    from transformers.modeling_outputs import SequenceClassifierOutput

    logits = drawn(N, CLASSES)
    loss = torch.tensor(1.0)
    for outputs in (
        logits,
        (logits, drawn(3)),
        [logits],
        {"loss": loss, "logits": logits},
        SequenceClassifierOutput(loss=loss, logits=logits),
        type("Outputs", (), {"logits": logits})(),
    ):
        assert find_logits(outputs) is logits


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"last_hidden_state": torch.zeros(2, 3)}, r"got a mapping with \['last_hidden_state'\]"),
        ({"logits": None}, r"got a mapping with \['logits'\]"),
        ((), "got a tuple"),
        (("x",), "got a tuple"),
        (None, "got a NoneType"),
    ],
)
def test_outputs_without_logits_are_refused_with_what_they_hold(outputs, message):
    """Hidden states are not taken for logits."""
    with pytest.raises(ModelError, match=f"a model must return logits .*{message}"):
        find_logits(outputs)


def some_target(outputs, batch):
    """A custom target."""
    return outputs.logits[:, 0]


class Weighted:
    def __call__(self, outputs, batch):
        return outputs.logits[:, 0]

    def method(self, outputs, batch):
        return outputs.logits[:, 0]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("logit", "logit"),
        (some_target, f"{__name__}.some_target"),
        (Weighted(), f"{__name__}.Weighted"),
        (Weighted().method, f"{__name__}.Weighted.method"),
        (functools.partial(some_target), "functools.partial"),
    ],
)
def test_targets_have_names(target, expected):
    """A manifest names a callable by module and qualified name."""
    assert target_name(target) == expected


@pytest.mark.parametrize(
    ("task", "mask", "expected"),
    [
        ("causal_language_model", [0, 0, 1, 1, 1], [-100, -100, -100, 3, 4]),
        ("causal_language_model", [1, 1, 1, 0, 0], [0, 1, 2, -100, -100]),
        ("causal_language_model", [1, 1, 0, 1, 1], [0, 1, -100, -100, 4]),
        ("token_prediction", [0, 0, 1, 1, 1], [-100, -100, 2, 3, 4]),
    ],
)
def test_labels_at_padding_and_predicted_from_padding_do_not_count(task, mask, expected):
    """A label counts where it is text and, in a causal model, the token that predicts it is text too."""
    labels, mask = torch.arange(5, dtype=torch.uint8)[None], torch.tensor([mask])
    assert TASKS[task].counted_labels(labels, {"attention_mask": mask}).tolist() == [expected]
    assert TASKS[task].counted_labels(labels, {}) is labels
    assert TASKS[task].counted_labels(None, {"attention_mask": mask}) is None


def test_the_mask_of_an_encoder_says_nothing_of_a_decoders_labels():
    """Source and target may be of one length by chance; only the decoder's own mask is of the labels."""
    labels, source = torch.tensor([[5, 6, 7]]), torch.tensor([[1, 0, 0]])
    batch = {"attention_mask": source, "decoder_input_ids": labels}
    count = TASKS["token_prediction"].counted_labels
    assert count(labels, batch).tolist() == [[5, 6, 7]]
    batch["decoder_attention_mask"] = torch.tensor([[1, 1, 0]])
    assert count(labels, batch).tolist() == [[5, 6, -100]]
