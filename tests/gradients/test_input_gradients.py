import copy
import functools
import random
from collections import UserDict

import models
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import reference_deviation, reference_gradients, reference_heat_map
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from vog_hf.errors import ConfigError, DataError, ForwardError, LabelError, ModelError
from vog_hf.gradients.input_gradients import input_gradients
from vog_hf.gradients.input_leaf import InputLeaf, averaged_axis, find_leaf
from vog_hf.gradients.model_inputs import forward_inputs, forward_parameters, split_batch
from vog_hf.gradients.model_mode import scoring_mode, unwrap
from vog_hf.gradients.model_outputs import find_logits
from vog_hf.gradients.task import TARGETS

TOLERANCE = 1e-8  # relative to the row's largest gradient; both sides are float64
COMBINATIONS = [(name, target) for name in models.CASES for target in TARGETS]
COMBINATIONS.remove(("regression_bert", "probability"))


@functools.cache
def case_of(name):
    """A case in float64, built once; tests that change the model make a copy."""
    case = models.CASES[name]()
    case.model.double()
    return case


def changed_case(name):
    """A copy that a test may change."""
    return copy.deepcopy(case_of(name))


def assert_rows_agree(found, expected, tolerance=TOLERANCE, vanishing=()):
    """``found [batch, padded input]`` against the oracle's arrays of the last snapshot, row by row, unpadded."""
    for i, (row, reference) in enumerate(zip(found, expected, strict=True)):
        wanted = torch.from_numpy(reference[-1])
        scale = wanted.abs().max().item()
        assert (scale > 0) == (i not in vanishing)
        assert row.dtype == torch.float64
        assert row.shape[1:] == wanted.shape[1:]
        assert_close(row[: len(wanted)], wanted, rtol=0, atol=tolerance * scale)


def assert_agrees(case, target="logit", **options):
    """The whole batch against the oracle's rows."""
    expected = reference_gradients(case.model, None, case.rows, target, case.labels, task=case.task)
    vanishing = without_positive_label(case) if target != "loss" else ()
    found = input_gradients(case.model, case.batch(), target=target, **options)
    assert_rows_agree(found, expected, vanishing=vanishing)


def without_positive_label(case):
    """Multi-label rows of which the sum over the positive labels is one over none."""
    multi = case.task == "multi_label_classification"
    return [i for i, label in enumerate(case.labels) if multi and not label.any()]


# --- the gradient is the oracle's -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "bert"])
def test_the_oracle_agrees_with_finite_differences(name):
    """The oracle itself is right: its gradient predicts how the label's logit changes when the input does."""
    case = case_of(name)
    inputs = {key: value.unsqueeze(0) for key, value in case.rows[1].items()}
    if "input_ids" in inputs:
        inputs["inputs_embeds"] = case.model.get_input_embeddings()(inputs.pop("input_ids")).detach()
    leaf = "features" if name == "mlp" else "inputs_embeds"
    x = inputs.pop(leaf).double()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def logit(moved):
        return find_logits(case.model(**{leaf: moved}, **inputs))[0, case.labels[1]]

    with torch.no_grad():
        slope = (logit(x + 1e-5 * direction) - logit(x - 1e-5 * direction)) / 2e-5
    gradient = torch.from_numpy(reference_gradients(case.model, None, case.rows, "logit", case.labels)[1])
    assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(5, 4), (33, 70), (3, 40, 8)])
def test_the_oracles_heat_map_is_an_adaptive_average_pool(shape):
    """The oracle's plain loops pool as torch does, to at most 32 x 32."""
    gradient = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    deviation = torch.from_numpy(reference_deviation(gradient)).reshape(-1, *shape[-2:]).mean(0)
    expected = F.adaptive_avg_pool2d(deviation[None, None], [min(32, n) for n in deviation.shape])[0, 0]
    assert_close(torch.from_numpy(reference_heat_map(gradient)), expected)
    line = gradient.reshape(4, -1)
    expected = F.adaptive_avg_pool1d(torch.from_numpy(reference_deviation(line))[None], min(1024, line.shape[1]))[0]
    assert_close(torch.from_numpy(reference_heat_map(line)), expected)


@pytest.mark.parametrize(("name", "target"), COMBINATIONS)
def test_gradients_of_every_kind_of_model_are_the_oracles(name, target):
    """In one padded batch, each row has the gradient that it has alone, whatever the model and its task."""
    assert_agrees(case_of(name), target)


@pytest.mark.parametrize("name", ["conv_net", "caching", "bert", "gpt2", "t5", "lora_bert"])
def test_gradients_follow_the_weights_of_each_snapshot(name):
    """With the weights of one state after the other loaded, the gradients are those the oracle has of that state."""
    case = changed_case(name)
    states = models.perturbed_states(case.model, 3)
    expected = reference_gradients(case.model, states, case.rows, "logit", case.labels, task=case.task)
    seen = []
    for k, state in enumerate(states):
        case.model.load_state_dict(state)
        seen.append(input_gradients(case.model, case.batch()))
        assert_rows_agree(seen[-1], [of_row[k : k + 1] for of_row in expected])
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("name", ["conv_net", "timm_net", "bert", "gpt2", "t5", "wav2vec2"])
def test_train_mode_changes_nothing(name):
    """Dropout, BatchNorm's batch statistics and layer drop play no part, whichever mode the model is in."""
    case = changed_case(name)
    case.model.train()
    assert_agrees(case)
    assert all(module.training for module in case.model.modules())


@pytest.mark.parametrize("name", ["conv_net", "bert", "gpt2"])
def test_a_row_does_not_depend_on_its_batch(name):
    """Batch size and order change nothing but the order of the result."""
    case = case_of(name)
    expected = reference_gradients(case.model, None, case.rows, "logit", case.labels, task=case.task)
    for rows in ([2], [3, 1], [4, 3, 2, 1, 0]):
        part = models.Case(case.model, [case.rows[i] for i in rows], [case.labels[i] for i in rows], case.task)
        assert_rows_agree(input_gradients(case.model, part.batch()), [expected[i] for i in rows])


def test_a_row_may_be_padded_on_the_left():
    """Where the model itself is indifferent to the side of the padding, so are its gradients.

    To float32: Llama computes the angles of its positions in that.
    """
    case = case_of("llama")
    expected = reference_gradients(case.model, None, case.rows, "logit", case.labels, task=case.task)
    flipped = models.collate(
        [
            {**{name: value.flip(0) for name, value in row.items()}, "labels": label.flip(0)}
            for row, label in zip(case.rows, case.labels, strict=True)
        ]
    )
    found = input_gradients(case.model, {name: value.flip(1) for name, value in flipped.items()})
    assert_rows_agree([row[row.shape[0] - len(e[0]) :] for row, e in zip(found, expected, strict=True)], expected, 1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_attention_implementations_give_the_same_gradients(name, attention):
    """SDPA, the default, and eager attention agree with the oracle on padded rows."""
    case = changed_case(name)
    case.model.set_attn_implementation(attention)
    assert case.model.config._attn_implementation == attention
    assert_agrees(case)


def test_float32_models_give_float32_gradients():
    """The gradient is in the model's precision and as exact as that allows; a float64 batch is cast to it."""
    case = models.bert()
    expected = reference_gradients(case.model, None, case.rows, "logit", case.labels)
    found = input_gradients(case.model, case.batch())
    assert found.dtype == torch.float32
    for row, reference in zip(found, expected, strict=True):
        wanted = torch.from_numpy(reference[0])
        assert_close(row[: len(wanted)].double(), wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())
    case = models.mlp()
    batch = {name: value.double() for name, value in case.batch(labels=False).items()}
    assert input_gradients(case.model, batch).dtype == torch.float32


# --- labels and targets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("missing", ["all", "some", "absent"])
def test_rows_without_a_label_use_the_prediction(missing, target):
    """-1, -100 and no labels at all mean the model's own prediction; given labels stay."""
    case = case_of("bert")
    labels = {"all": [-1, -100, -1, -1, -100], "some": [0, -1, 2, -100, 2], "absent": [None] * 5}[missing]
    expected = reference_gradients(case.model, None, case.rows, target, labels)
    batch = case.batch(labels=False)
    if missing != "absent":
        batch["labels"] = torch.tensor(labels)
    assert_rows_agree(input_gradients(case.model, batch, target=target), expected)


@pytest.mark.parametrize("name", ["labels", "label", "label_ids"])
def test_labels_are_found_in_the_batch_and_overridden_by_the_argument(name):
    """The usual label names are taken from the batch; `labels=` goes before them."""
    case = case_of("conv_net")
    batch = {**case.batch(labels=False), name: torch.tensor(case.labels)}
    assert_rows_agree(
        input_gradients(case.model, batch), reference_gradients(case.model, None, case.rows, labels=case.labels)
    )
    others = [2, 1, 0, 2, 1]
    found = input_gradients(case.model, batch, labels=torch.tensor(others))
    assert_rows_agree(found, reference_gradients(case.model, None, case.rows, labels=others))


def test_regression_needs_labels_for_its_loss_only():
    """The prediction of a regression can be differentiated without labels; its loss cannot."""
    case = case_of("regression_bert")
    expected = reference_gradients(case.model, None, case.rows, "logit", case.labels, task="regression")
    assert_rows_agree(input_gradients(case.model, case.batch(labels=False)), expected)
    with pytest.raises(DataError, match="regression needs labels"):
        input_gradients(case.model, case.batch(labels=False), target="loss")


class Slope(nn.Module):
    """A regression whose output has no axis but the batch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))

    def forward(self, features):
        return features @ self.weight


def test_a_regression_may_return_one_value_per_row_without_an_axis():
    """Logits [batch] are one output per row, with labels and without."""
    batch = {"features": torch.ones(3, 2), "labels": torch.tensor([0.0, 1.0, -1.0])}
    assert input_gradients(Slope(), batch).tolist() == [[1.0, -2.0]] * 3
    assert input_gradients(Slope(), batch, target="loss")[:, 0].tolist() == [-2.0, -4.0, 0.0]


def squared_norm(outputs, batch):
    """A custom target."""
    return outputs["logits"].square().flatten(1).sum(1)


@pytest.mark.parametrize("name", ["resnet", "bert", "lora_bert"])
def test_a_callable_target_is_differentiated(name):
    """Any function of outputs and batch that gives a value per row can be the target."""
    case = case_of(name)
    expected = reference_gradients(case.model, None, case.rows, squared_norm, case.labels)
    assert_rows_agree(input_gradients(case.model, case.batch(), target=squared_norm), expected)


def test_a_callable_target_may_use_the_labels_of_the_batch():
    """A callable that picks the label's logit is the target "logit"."""
    case = case_of("bert")

    def label_logit(outputs, batch):
        return outputs.logits.gather(1, batch["labels"][:, None])[:, 0]

    found = input_gradients(case.model, case.batch(), target=label_logit)
    assert torch.equal(found, input_gradients(case.model, case.batch()))


class Encoder(nn.Module):
    """A model without logits."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(5, 4)

    def forward(self, features):
        return {"embedding": self.body(features).tanh()}


def test_a_callable_target_needs_no_logits():
    """An encoder that returns embeddings can be scored with your own target, and only so."""
    model, batch = Encoder(), {"features": torch.ones(3, 5)}
    with pytest.raises(ModelError, match=r"must return logits .* got a mapping with \['embedding'\]"):
        input_gradients(model, batch)
    assert input_gradients(model, batch, target=lambda outputs, _: outputs["embedding"].sum(1)).shape == (3, 5)


# --- batches --------------------------------------------------------------------------------------------------------


def test_a_batch_may_be_a_mapping_a_pair_or_a_tensor():
    """The forms in which data loaders give batches all mean the same."""
    case = case_of("conv_net")
    images, labels = case.batch()["image"], torch.tensor(case.labels)
    expected = reference_gradients(
        case.model, None, [(x["image"], y) for x, y in zip(case.rows, case.labels, strict=True)]
    )
    for batch in (
        {"image": images, "labels": labels},
        UserDict({"image": images, "labels": labels}),
        (images, labels),
        [images, labels],
        ({"image": images}, labels),
    ):
        assert_rows_agree(input_gradients(case.model, batch), expected)
    for batch in (images, (images,)):
        assert_rows_agree(input_gradients(case.model, batch, labels=labels), expected)


def test_a_batch_encoding_of_a_tokenizer_is_a_mapping():
    """What tokenizers and `DataCollatorWithPadding` return is taken as it is."""
    from transformers import BatchEncoding

    case = case_of("bert")
    assert torch.equal(
        input_gradients(case.model, BatchEncoding(case.batch())), input_gradients(case.model, case.batch())
    )


@pytest.mark.parametrize("batch", [(torch.ones(2, 5),) * 3, "text", 3, None, ()])
def test_other_batches_are_refused(batch):
    """What a third part of a tuple means is not guessed."""
    with pytest.raises(DataError, match="a batch must be a mapping, a pair"):
        input_gradients(case_of("mlp").model, batch)


def test_keys_that_forward_does_not_know_are_left_out():
    """Ids and texts that travel with a batch do not reach the model, nor do its labels."""
    case = case_of("bert")
    batch = {**case.batch(), "idx": torch.arange(5), "text": ["a"] * 5}
    assert torch.equal(input_gradients(case.model, batch), input_gradients(case.model, case.batch()))
    kept = forward_inputs(case.model, batch, None)
    assert set(kept) - {"use_cache"} == {"input_ids", "attention_mask", "labels"}  # `split_batch` takes the labels out
    assert "labels" not in split_batch(batch, case.model)[0]


def test_a_batch_of_which_forward_knows_nothing_is_refused_with_both_names():
    """The message says what forward is called with and what the batch has."""
    with pytest.raises(ModelError, match=r"none of forward's parameters \['features'\] .* which has \[\]; name the"):
        input_gradients(case_of("mlp").model, {"x": torch.ones(2, 5)})
    assert input_gradients(case_of("mlp").model, {"features": torch.ones(2, 5)}).shape == (2, 5)


def test_embeddings_in_the_batch_are_the_leaf():
    """`inputs_embeds` goes before the token ids: it is floating, so its own gradient is taken."""
    case = case_of("bert")
    batch = case.batch()
    embeds = case.model.get_input_embeddings()(batch.pop("input_ids")).detach()
    found = input_gradients(case.model, {**batch, "inputs_embeds": embeds})
    assert_close(found, input_gradients(case.model, case.batch()), rtol=1e-12, atol=1e-14)


def test_tensors_of_the_batch_are_left_as_they_were():
    """The leaf is a detached view: the caller's tensor does not come to require gradients or change."""
    case = case_of("conv_net")
    batch = case.batch()
    images = batch["image"] = batch["image"].double()
    before = images.clone()
    input_gradients(case.model, batch)
    assert not images.requires_grad
    assert images.grad is None
    assert torch.equal(images, before)
    assert set(batch) == {"image", "labels"}
    wanted = images.clone().requires_grad_()
    assert torch.equal(input_gradients(case.model, {**batch, "image": wanted}), input_gradients(case.model, batch))
    assert wanted.grad is None


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]
)
@pytest.mark.parametrize("name", ["conv_net", "bert"])
def test_the_callers_gradient_and_autocast_modes_do_not_matter(name, context):
    """Under no_grad, inference mode or autocast the gradients are those outside, and the mode stays on."""
    case = models.CASES[name]()
    expected = input_gradients(case.model, case.batch())
    with context():
        batch = case.batch()
        before = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
        found = input_gradients(case.model, batch)
        after = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
    assert after == before
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


# --- compiled, wrapped, checkpointed and patched models -------------------------------------------------------------


@pytest.mark.parametrize("name", ["conv_net", "bert"])
def test_compiled_models_are_scored_on_the_plain_module(name):
    """`torch.compile(model)`, after it has run: its hooks would be ignored, so the module inside is used."""
    case = changed_case(name)
    compiled = torch.compile(case.model, backend="eager")
    batch = {
        key: value.double() if value.is_floating_point() else value for key, value in case.batch(labels=False).items()
    }
    compiled(**batch)
    expected = reference_gradients(case.model, None, case.rows, labels=case.labels)
    assert_rows_agree(input_gradients(compiled, case.batch()), expected)
    assert unwrap(compiled) is case.model


@pytest.mark.parametrize("name", ["conv_net", "bert"])
def test_models_compiled_in_place_are_scored_uncompiled_and_stay_compiled(name):
    """`model.compile()` hides the module under its own name; the compiled call is set aside and put back."""
    case = changed_case(name)
    case.model.compile(backend="eager")
    batch = {
        key: value.double() if value.is_floating_point() else value for key, value in case.batch(labels=False).items()
    }
    case.model(**batch)
    compiled_call = case.model._compiled_call_impl
    assert compiled_call is not None
    expected = reference_gradients(case_of(name).model, None, case.rows, labels=case.labels)
    assert_rows_agree(input_gradients(case.model, case.batch()), expected)
    assert case.model._compiled_call_impl is compiled_call


def test_a_submodule_compiled_in_place_is_scored_uncompiled():
    """Regional compilation, of one layer, is set aside as well."""
    case = changed_case("bert")
    embeddings = case.model.bert.embeddings
    embeddings.compile(backend="eager")
    batch = case.batch(labels=False)
    case.model(**batch)
    compiled_call = embeddings._compiled_call_impl
    expected = reference_gradients(case_of("bert").model, None, case.rows, labels=case.labels)
    assert_rows_agree(input_gradients(case.model, case.batch()), expected)
    assert embeddings._compiled_call_impl is compiled_call


def test_data_parallel_wrappers_are_unwrapped():
    """A model under `nn.DataParallel`, also a compiled one, is scored on the module inside."""
    case = case_of("mlp")
    wrapped = torch.compile(nn.DataParallel(case.model), backend="eager")
    assert unwrap(wrapped) is case.model
    assert torch.equal(input_gradients(wrapped, case.batch()), input_gradients(case.model, case.batch()))


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_gradient_checkpointing_of_transformers_models_changes_nothing(name, use_reentrant):
    """HF layers checkpoint in train mode only, so scoring passes them by."""
    case = changed_case(name)
    case.model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    case.model.train()
    assert_agrees(case)
    assert case.model.is_gradient_checkpointing


def test_reentrant_checkpointing_of_a_plain_module_is_refused_by_its_remedy():
    """No input gradient passes a re-entrant checkpoint: the error names `use_reentrant=False`, which works."""
    case = models.conv_net(checkpointing=True)
    with pytest.raises(ModelError, match=r"re-entrant gradient checkpointing .* use_reentrant=False"):
        input_gradients(case.model, case.batch())
    accepted = models.conv_net(checkpointing=False)
    accepted.model.double()
    assert_agrees(accepted)


def test_embeddings_that_were_made_to_require_gradients_change_nothing():
    """`enable_input_require_grads`, which PEFT calls under checkpointing, puts a hook of its own on the embedding."""
    case = changed_case("lora_bert")
    case.model.enable_input_require_grads()
    assert_agrees(case)


@pytest.fixture
def accelerator():
    """An Accelerator for bf16 on the CPU; the process-wide state is put back to none."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(mixed_precision="bf16", cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("name", ["conv_net", "bert", "lora_bert"])
def test_a_forward_patched_by_accelerate_is_set_aside_and_put_back(accelerator, name, times):
    """Under bf16 Accelerate replaces `model.forward`, once per `prepare`; scores are of its own forward."""
    case = models.CASES[name]()
    expected = input_gradients(case.model, case.batch())
    for _ in range(times):
        case.model._is_accelerate_prepared = False  # as where a second Accelerator does not know of the first
        accelerator.prepare_model(case.model)
    patched = case.model.__dict__["forward"]
    inputs = case.batch(labels=False)
    with torch.no_grad():
        rounded = case.model(**inputs)
        assert not torch.equal(
            *(o if torch.is_tensor(o) else o.logits for o in (rounded, type(case.model).forward(case.model, **inputs)))
        )
    assert torch.equal(input_gradients(case.model, case.batch()), expected)
    assert case.model.__dict__["forward"] is patched
    with pytest.raises(LabelError):
        input_gradients(case.model, case.batch(), labels=torch.full((5,), 9))
    assert case.model.__dict__["forward"] is patched


def test_a_forward_that_someone_else_replaced_is_used():
    """Only Accelerate's patch is taken off: another replacement of `forward` is what the model is."""
    case = changed_case("mlp")
    plain = case.model.forward
    case.model.forward = lambda features: 3 * plain(features)
    found = input_gradients(case.model, case.batch())
    del case.model.forward
    assert_close(found, 3 * input_gradients(case.model, case.batch()))


# --- the model is left as it was found ------------------------------------------------------------------------------


def record_of(model):
    """Everything about a model and the random streams that scoring must not change: (tensors, other values)."""
    tensors = {
        **{f"parameter {name}": p.detach().clone() for name, p in model.named_parameters()},
        **{f"buffer {name}": b.clone() for name, b in model.named_buffers()},
        **{f"gradient {name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
        "torch": torch.get_rng_state(),
    }
    config = getattr(model, "config", None)
    legacy = np.random.get_state()
    values = {
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "identity": [id(p) for p in model.parameters()] + [id(p.grad) for p in model.parameters()],
        "training": [module.training for module in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "attributes": [sorted(module.__dict__) for module in model.modules()],
        "config": config.to_dict() if config is not None else None,
        "problem_type": getattr(config, "problem_type", None),
        "python": random.getstate(),
        "numpy": (legacy[0], legacy[1].tolist(), *legacy[2:]),
        "modes": (torch.is_grad_enabled(), torch.get_default_dtype(), torch.is_autocast_enabled("cpu")),
    }
    return tensors, values


def in_mid_training(case):
    """As a callback finds a model: gradients, some of them none, frozen weights, modules in mixed modes."""
    case.model.train()
    parameters = list(case.model.parameters())
    for i, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, i) if i % 3 else None
        parameter.requires_grad_(i % 4 != 1)
    for i, module in enumerate(case.model.modules()):
        if i % 2:
            module.training = False
    return case


@pytest.mark.parametrize("name", list(models.CASES))
def test_the_model_is_left_as_it_was_found(name):
    """Weights, buffers, `.grad`, `requires_grad`, modes, hooks, configuration and random streams, bit by bit."""
    case = models.CASES[name]()
    if name in ("wav2vec2", "llava"):
        case.model(**case.batch(labels=False))  # transformers hooks these layers for good in their first forward pass
    in_mid_training(case)
    tensors, values = record_of(case.model)
    input_gradients(case.model, case.batch(), target="loss")
    tensors_after, values_after = record_of(case.model)
    assert values_after == values
    assert_close(tensors_after, tensors, rtol=0, atol=0)


def test_a_model_that_draws_numbers_leaves_the_random_streams():
    """Layer drop draws from global generators in evaluation mode as well, in torch or in numpy."""

    class LayerDrop(nn.Linear):
        def forward(self, x):
            draws.append((torch.rand([]).item(), np.random.random(), random.random()))
            return super().forward(x)

    draws = []
    model = LayerDrop(3, 2)
    tensors, before = record_of(model)
    input_gradients(model, torch.ones(4, 3))
    tensors_after, after = record_of(model)
    assert draws
    assert after == before
    assert_close(tensors_after, tensors, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["conv_net", "bert", "gpt2", "t5", "lora_bert"])
def test_the_model_is_left_as_it_was_found_after_an_error(name):
    """The same where forward, the labels or the target fail half-way."""
    case = in_mid_training(models.CASES[name]())
    tensors, values = record_of(case.model)

    def failing(outputs, batch):
        raise RuntimeError("the user's own target failed")

    broken = {key: value[:, :0] if key == "input_ids" else value for key, value in case.batch().items()}
    if "image" in broken:
        broken["image"] = broken["image"][:, :1]
    bad_labels = torch.full_like(case.batch()["labels"], 999)
    attempts = [
        lambda: input_gradients(case.model, case.batch(), target=failing),
        lambda: input_gradients(case.model, case.batch(), target="margin"),
        lambda: input_gradients(case.model, case.batch(), labels=bad_labels),
        lambda: input_gradients(case.model, broken),
    ]
    for attempt in attempts:
        with pytest.raises((RuntimeError, ValueError, IndexError)):
            attempt()
        tensors_after, values_after = record_of(case.model)
        assert values_after == values
        assert_close(tensors_after, tensors, rtol=0, atol=0)


def test_the_problem_type_of_the_configuration_stays_unset():
    """A transformers model that is given labels writes `config.problem_type`: it is never given any."""
    case = models.bert()
    assert case.model.config.problem_type is None
    input_gradients(case.model, case.batch(), target="loss")
    assert case.model.config.problem_type is None
    case.model(**case.batch())
    assert case.model.config.problem_type == "single_label_classification"


def test_what_a_model_keeps_of_older_weights_is_not_scored_and_is_given_back():
    """Evaluation mode of some modules keeps values until `train(True)`: it is called, and all is put back as found."""
    case = models.caching()
    with torch.no_grad():
        stale = case.model(**case.batch(labels=False))
        case.model.bias.weight.add_(1.0)
    case.model.hidden.train()
    case.model.bias.weight.requires_grad_(False)
    kept = case.model.bias.cache["cpu"].clone()
    before = record_of(case.model)[1]
    expected = reference_gradients(models.caching().model, [case.model.state_dict()], case.rows, labels=case.labels)
    found = input_gradients(case.model.double(), case.batch())
    assert_rows_agree(found, expected)
    after = record_of(case.model.float())[1]
    for what in ("training", "requires_grad", "hooks", "attributes"):
        assert after[what] == before[what]
    assert torch.equal(case.model.bias.cache["cpu"], kept)
    assert torch.equal(case.model(**case.batch(labels=False)), stale)


def test_modules_that_act_on_train_and_eval_are_called_with_the_mode_they_had_last():
    """A module with a `train` of its own ends in the mode in which it was found, and so do the modules inside it."""

    class Recording(models.MLP):
        def train(self, mode=True):
            self.modes = [*getattr(self, "modes", []), mode]
            return super().train(mode)

    model = Recording()
    model.out.eval()
    with scoring_mode(model):
        assert not model.hidden.training
        assert model.modes[-1] is False
    assert model.hidden.training
    assert not model.out.training


def test_frozen_models_have_input_gradients():
    """Where no weight requires a gradient, the input still has one."""
    for name in ("conv_net", "bert"):
        case = changed_case(name)
        case.model.requires_grad_(False)
        assert_agrees(case)


def test_a_model_may_change_its_input_in_place():
    """It gets a copy: gradients are those of its twin that does not, and the batch stays as it was."""
    model, twin = models.Shifting(in_place=True), models.Shifting(in_place=False)
    twin.load_state_dict(model.state_dict())
    batch = models.mlp().batch()
    before = batch["features"].clone()
    assert torch.equal(input_gradients(model, batch), input_gradients(twin, batch))
    assert torch.equal(batch["features"], before)


def test_a_model_may_change_its_embeddings_and_its_ids_in_place():
    """The same for token ids, of which the embedding is the leaf."""

    class Scaling(Bag):
        def forward(self, input_ids):
            embedded = self.embedding(input_ids).mul_(3.0)
            input_ids.fill_(0)
            return self.head(embedded.tanh().mean(1))

    model = Scaling()
    ids = {name: value.clone() for name, value in IDS.items()}
    x = model.embedding(IDS["input_ids"]).detach().requires_grad_()
    expected = torch.autograd.grad(model.head((3.0 * x).tanh().mean(1))[[0, 1], [0, 2]].sum(), x)[0]
    assert_close(input_gradients(model, ids), expected)
    assert torch.equal(ids["input_ids"], IDS["input_ids"])


@pytest.mark.parametrize("n", [3, 5])
def test_embeddings_with_tokens_first_are_turned_round(n):
    """XLNet embeds [tokens, batch]; gradients are [batch, tokens, width] also where both are equally many."""
    case = changed_case("xlnet")
    case.rows = models.token_rows(1, lengths=(5,) * n)
    case.labels = case.labels[:n]
    assert_agrees(case)


# --- models that cannot be scored, and their nearest neighbors that can ---------------------------------------------


class Bag(nn.Module):
    """Mean of token embeddings, linear: ``used`` times embedded; ``get_input_embeddings`` only if ``named``."""

    def __init__(self, *, named=True, used=1):
        super().__init__()
        self.embedding = nn.Embedding(models.VOCABULARY, 4)
        self.other = nn.Embedding(models.VOCABULARY, 4)
        self.head = nn.Linear(4, 3)
        self.used = used
        if named:
            self.get_input_embeddings = lambda: self.embedding

    def forward(self, input_ids):
        embedded = sum((self.embedding(input_ids) for _ in range(self.used)), start=0 * self.other(input_ids))
        return self.head(embedded.tanh().mean(1))


IDS = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]]), "labels": torch.tensor([0, 2])}


def test_a_plain_module_on_tokens_is_scored_at_the_embedding_it_names():
    """`get_input_embeddings` is all that a plain module needs; padding masks do not."""
    model = Bag()
    x = model.embedding(IDS["input_ids"]).detach().requires_grad_()
    expected = torch.autograd.grad(model.head(x.tanh().mean(1))[[0, 1], [0, 2]].sum(), x)[0]
    assert_close(input_gradients(model, IDS), expected)


def test_token_ids_without_an_embedding_are_refused_with_the_remedy():
    """Whole numbers have no gradient: the module must name its embedding."""
    with pytest.raises(
        ModelError, match=r"'input_ids' is torch.int64, .* Bag names no embedding .* get_input_embeddings"
    ):
        input_gradients(Bag(named=False), IDS)
    unnamed = Bag()
    unnamed.get_input_embeddings = lambda: None
    with pytest.raises(ModelError, match="names no embedding"):
        input_gradients(unnamed, IDS)


@pytest.mark.parametrize("used", [0, 2])
def test_an_embedding_that_is_not_used_exactly_once_is_refused(used):
    """With none or two uses there is no single leaf."""
    with pytest.raises(
        ModelError, match=rf"input embedding of Bag \(Embedding\) was used {used} times .* exactly once"
    ):
        input_gradients(Bag(used=used), IDS)
    assert input_gradients(Bag(used=1), IDS).shape == (2, 3, 4)


def longformer():
    """Pads its tokens itself to a multiple of 8."""
    from transformers import LongformerConfig, LongformerForSequenceClassification

    config = LongformerConfig(
        **models._width(), attention_window=8, vocab_size=models.VOCABULARY, max_position_embeddings=64, pad_token_id=0
    )
    return models._made(lambda: LongformerForSequenceClassification(config), 0)


def test_tokens_that_a_model_pads_or_flattens_itself_are_refused_with_both_shapes():
    """One vector per token of the batch is needed; tokens padded to what the model wants are accepted."""
    model = longformer()
    rows = models.token_rows(0, lengths=(6, 3))
    with pytest.raises(ModelError, match=r"gave \(2, 8, 8\) for 'input_ids' \(2, 6\), .*pad_to_multiple_of"):
        input_gradients(model, models.collate(rows))
    padded = {name: F.pad(value, (0, 2)) for name, value in models.collate(rows).items()}
    assert input_gradients(model, padded).shape == (2, 8, 8)


class TextsByPlace(nn.Module):
    """Scores texts: the first of all rows, then the second of all rows, or row by row."""

    def __init__(self, *, row_by_row):
        super().__init__()
        self.row_by_row = row_by_row
        self.words = nn.Embedding(models.VOCABULARY, 8)
        self.score = nn.Linear(8, 1)

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids):
        ids = input_ids if self.row_by_row else input_ids.transpose(0, 1)
        scores = self.score(self.words(ids.flatten(0, 1)).tanh().mean(1)).reshape(ids.shape[:2])
        return scores if self.row_by_row else scores.T


def test_several_texts_per_row_are_one_leaf_if_the_model_takes_them_row_by_row():
    """The embeddings [batch * texts, tokens, width] belong to the rows of the batch only in that order."""
    ids, labels = torch.randint(4, models.VOCABULARY, (4, 2, 6)), torch.tensor([0, 1, 1, 0])
    gradients = input_gradients(TextsByPlace(row_by_row=True), {"input_ids": ids, "labels": labels})
    assert gradients.shape == (4, 2, 6, 8)
    assert torch.equal(gradients.flatten(2).any(-1), F.one_hot(labels).bool())  # of the chosen text alone
    with pytest.raises(ModelError, match=r"gave \(8, 6, 8\) for 'input_ids' \(4, 2, 6\), .*the texts of a row in turn"):
        input_gradients(TextsByPlace(row_by_row=False), {"input_ids": ids, "labels": labels})


class Cut(models.MLP):
    """The input is lost on the way: ``where`` says how."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def forward(self, features):
        if self.where == "no_grad":
            with torch.no_grad():
                features = 2 * features
        elif self.where == "detach":
            features = features.detach()
        elif self.where == "unused":
            features = torch.ones_like(features)
        elif self.where == "all under no_grad":
            with torch.no_grad():
                return super().forward(features)
        return super().forward(features)


@pytest.mark.parametrize("where", ["no_grad", "detach", "unused", "all under no_grad"])
def test_a_model_that_does_not_depend_on_its_input_is_refused(where):
    """Where the graph is cut there is no gradient, and zero would be a lie."""
    with pytest.raises(ModelError, match="differentiable from its input to its logits"):
        input_gradients(Cut(where), {"features": torch.ones(2, 5)})
    assert input_gradients(Cut("nowhere"), {"features": torch.ones(2, 5)}).shape == (2, 5)


def test_an_error_of_the_models_own_is_quoted_with_the_shapes_of_the_batch():
    """An input of the wrong width is answered with what came, in words of the model's own error."""
    with pytest.raises(ForwardError, match=r"inputs \{'features': \(2, 4\)\}: RuntimeError: .*cannot be multiplied"):
        input_gradients(case_of("mlp").model, {"features": torch.ones(2, 4)})


def test_a_label_out_of_range_is_refused_and_the_last_class_is_not():
    """A model with 3 outputs has the classes 0, 1, 2."""
    case = models.mlp()
    features = case.batch()["features"]
    with pytest.raises(LabelError, match=r"label 3 is outside the model's classes 0\.\.2") as caught:
        input_gradients(case.model, (features, torch.tensor([0, 1, 2, 3, 0])))
    assert caught.value.position == 3
    with pytest.raises(LabelError, match="label -2 is outside"):
        input_gradients(case.model, (features, torch.tensor([0, 1, 2, -2, 0])))
    assert input_gradients(case.model, (features, torch.tensor([0, 1, 2, 2, -1]))).shape == (5, 5)


def test_an_unknown_target_is_refused_with_those_there_are():
    """A misspelled target names the ones that exist."""
    case = case_of("mlp")
    for target in ("logits", "margin", ""):
        with pytest.raises(ConfigError, match=rf"target '{target}' does not exist .* logit, probability, loss"):
            input_gradients(case.model, case.batch(), target=target)
    case = case_of("regression_bert")
    with pytest.raises(ConfigError, match="target 'probability' does not exist for regression, which has logit, loss"):
        input_gradients(case.model, case.batch(), target="probability")


def test_a_callable_of_the_wrong_shape_is_refused():
    """One value per row; a mean over the batch would mix rows."""
    case = case_of("mlp")
    with pytest.raises(ConfigError, match=r"one value per row, a tensor of shape \(5,\), got \(\)"):
        input_gradients(case.model, case.batch(), target=lambda outputs, batch: outputs.mean())
    assert input_gradients(case.model, case.batch(), target=lambda outputs, batch: outputs.mean(1)).shape == (5, 5)


def test_checkpoint_inside_train_mode_only_is_fine():
    """A plain module that checkpoints re-entrantly while training, as HF layers do, can be scored."""

    class Careful(models.MLP):
        def forward(self, features):
            if self.training:
                return checkpoint(super().forward, features, use_reentrant=True)
            return super().forward(features)

    model = Careful().train()
    assert input_gradients(model, {"features": torch.ones(2, 5)}).shape == (2, 5)


# --- the leaf -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "leaf", "embedding"),
    [
        ("mlp", "features", None),
        ("conv_net", "image", None),
        ("timm_net", "x", None),
        ("resnet", "pixel_values", None),
        ("vit", "pixel_values", None),
        ("wav2vec2", "input_values", None),
        ("spectrogram", "input_values", None),
        ("whisper", "input_features", None),
        ("bert", "input_ids", "bert.embeddings.word_embeddings"),
        ("lora_bert", "input_ids", "base_model.model.bert.embeddings.word_embeddings"),
        ("gpt2", "input_ids", "transformer.wte"),
        ("llama", "input_ids", "model.embed_tokens"),
    ],
)
def test_the_leaf_is_the_main_input_or_its_embedding(name, leaf, embedding):
    """`main_input_name` of transformers models, forward's first parameter of others; for token ids their embedding."""
    case = case_of(name)
    found = find_leaf(case.model, case.batch(labels=False))
    assert found.name == leaf
    assert found.embedding is (None if embedding is None else case.model.get_submodule(embedding))


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_the_leaf_of_an_encoder_decoder_is_the_encoders_embedding(name):
    """The shared module's hook never fires: the encoder's own embedding is used."""
    case = case_of(name)
    assert find_leaf(case.model, case.batch(labels=False)).embedding is case.model.get_encoder().get_input_embeddings()


def test_forward_parameters_are_those_of_the_model_under_an_adapter_or_patch():
    """A PEFT wrapper's forward names few of the parameters that its model takes."""
    assert forward_parameters(case_of("mlp").model) == ("features",)
    assert "attention_mask" in forward_parameters(case_of("lora_bert").model)
    assert forward_parameters(case_of("lora_bert").model) == forward_parameters(case_of("bert").model)


@pytest.mark.parametrize(
    ("name", "shape", "axis"),
    [
        ("pixel_values", (2, 3, 8, 8), 1),
        ("image", (2, 3, 8, 8), 1),
        ("pixel_values", (2, 4, 3, 8, 8), 2),  # frames of a video
        ("volume", (2, 3, 4, 8, 8), None),  # the axes of a volume have no known order
        ("input_features", (2, 8, 20), None),
        ("features", (2, 5), None),
    ],
)
def test_channels_are_averaged_for_images_only(name, shape, axis):
    """`auto` averages where there are channels; True demands them; False never averages."""
    leaf = InputLeaf(name, None)
    assert averaged_axis("auto", leaf, shape) == axis
    assert averaged_axis(False, leaf, shape) is None
    if axis is None:
        with pytest.raises(ConfigError, match=rf"reduce_channels=True needs images .* got '{name}'"):
            averaged_axis(True, leaf, shape)
    else:
        assert averaged_axis(True, leaf, shape) == axis
    assert averaged_axis("auto", InputLeaf("input_ids", nn.Embedding(2, 2)), shape) is None


def test_padding_does_not_count():
    """Masks cover tokens, samples, frames or pixels; without a mask everything counts."""
    tokens = torch.tensor([[1, 1, 0], [1, 1, 1]])
    embedding = InputLeaf("input_ids", nn.Embedding(2, 2))
    ids = {"input_ids": torch.zeros(2, 3, dtype=torch.int64)}
    assert torch.equal(embedding.element_mask({**ids, "attention_mask": tokens}, (2, 3, 4)), tokens.bool())
    assert torch.equal(embedding.element_mask(ids, (2, 3, 4)), torch.ones(2, 3, dtype=torch.bool))
    wave = InputLeaf("input_values", None)
    assert torch.equal(wave.element_mask({"attention_mask": tokens}, (2, 3)), tokens.bool())
    assert wave.element_mask({"input_values": torch.ones(2, 3)}, (2, 3)) is None
    mel = InputLeaf("input_features", None)
    expected = tokens.bool()[:, None].expand(2, 8, 3)
    assert torch.equal(mel.element_mask({"attention_mask": tokens}, (2, 8, 3)), expected)
    image = InputLeaf("pixel_values", None)
    pixels = torch.ones(2, 4, 4)
    pixels[0, :, 3] = 0
    assert torch.equal(image.element_mask({"pixel_mask": pixels}, (2, 4, 4)), pixels.bool())
    assert torch.equal(image.element_mask({"pixel_mask": pixels}, (2, 3, 4, 4))[:, 2], pixels.bool())
    assert (
        image.element_mask({"pixel_values": torch.ones(2, 3, 4, 4), "attention_mask": tokens}, (2, 4, 4)) is None
    )  # the text's mask of a two-part model


# --- what does not fit together -------------------------------------------------------------------------------------


class Sum(nn.Module):
    """Logits of the sum of two inputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x, y=None):
        return self.layer(x if y is None else x + y)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.tensor([0, 1]), ConfigError, r"one entry for each of the 4 rows, got torch.int64 of shape \(2,\)"),
        (torch.tensor([0]), ConfigError, "one entry for each of the 4 rows"),
        (torch.tensor(1), ConfigError, r"of shape \(\)"),
        (torch.tensor([]), ConfigError, r"of shape \(0,\)"),
        (torch.zeros(2, 3), ConfigError, r"of shape \(2, 3\)"),
        (torch.zeros(4, dtype=torch.complex64), ConfigError, "must be real numbers"),
        ([0, 1, 2, 0], ConfigError, "pass a tensor with one label per row"),
        (torch.zeros(4, 5), DataError, "one 0 or 1 for each of 3 labels"),
        (torch.zeros(4), DataError, "needs 3 numbers a row"),
        (torch.tensor([0, 1, 3, 2]), LabelError, "label 3 is outside"),
    ],
)
@pytest.mark.parametrize("in_batch", [False, True])
def test_labels_that_do_not_fit_the_rows_are_refused(labels, error, message, in_batch):
    """Length, width, kind and range are checked, of an argument and of the batch's own labels."""
    x = torch.rand(4, 3)
    with pytest.raises(error, match=message):
        input_gradients(Sum(), (x, labels)) if in_batch else input_gradients(Sum(), x, labels=labels)


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (
            {"x": torch.rand(4, 3), "y": torch.rand(3, 3)},
            ForwardError,
            "which differ in their number of rows",
        ),
        ({"x": torch.rand(1, 3), "y": torch.rand(4, 3)}, ModelError, "outputs of 4 rows for 1 rows of the input"),
        (
            {"x": torch.rand(4, 5)},
            ForwardError,
            r"failed on the batch with inputs {'x': \(4, 5\)}: RuntimeError",
        ),
        ({"x": torch.tensor(1.0)}, ForwardError, "forward failed on the batch"),
    ],
)
def test_inputs_that_do_not_fit_together_are_refused(batch, error, message):
    """A model that fails on a batch, or gives other rows than it was given, is named with the shapes."""
    with pytest.raises(error, match=message):
        input_gradients(Sum(), batch)
    input_gradients(Sum(), {"x": torch.rand(4, 3), "y": torch.rand(1, 3)})  # shared by all rows


class Pooling(nn.Module):
    """Mean of token embeddings, pooled by the embedding or by forward."""

    def __init__(self, embedding):
        super().__init__()
        self.embedding, self.out = embedding, nn.Linear(embedding.embedding_dim, 3)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids):
        hidden = self.embedding(input_ids)
        return self.out(torch.tanh(hidden.mean(1) if hidden.dim() == 3 else hidden))


@pytest.mark.parametrize("width", [4, 5])  # of 5, as many as tokens
def test_an_embedding_bag_is_refused_with_a_replacement_that_works(width):
    """An embedding under the same name takes the same state dict, gives the same outputs, and is scored."""
    bag, ids = Pooling(nn.EmbeddingBag(9, width)), torch.arange(10).reshape(2, 5) % 9
    with pytest.raises(ModelError, match=r"use nn\.Embedding, under the same name .* take the mean over the tokens"):
        input_gradients(bag, {"input_ids": ids})
    replaced = Pooling(nn.Embedding(9, width))
    replaced.load_state_dict(bag.state_dict())
    torch.testing.assert_close(replaced(ids), bag(ids))
    assert input_gradients(replaced, {"input_ids": ids}).shape == (2, 5, width)
