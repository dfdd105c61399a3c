import json
import shutil

import models
import numpy as np
import pytest
import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from trainers import texts, tokenizer, trained
from transformers import BertForTokenClassification, DataCollatorWithPadding, LlamaConfig, LlamaForCausalLM

from vog_hf import input_gradients, vog
from vog_hf.errors import OutputFolderError, SnapshotError
from vog_hf.scoring.scorer import VoGScorer
from vog_hf.snapshots import SnapshotWriter, model_tensors, open_snapshots
from vog_hf.trainer.callback import VoGCallback

LORA = {"r": 2, "target_modules": ["query", "value"], "lora_alpha": 8}
KINDS = {
    "lora": {},
    "modules_to_save": {"modules_to_save": ["classifier", "dense"]},
    "dora, scaled by rank": {"use_dora": True, "use_rslora": True},
    "biases": {"bias": "lora_only"},
    "trained embedding": {"target_modules": ["query", "word_embeddings"], "task_type": "SEQ_CLS"},
}


def adapted(seed=0, base=0, **options):
    """A text classifier under an adapter whose weights are not zero; the same for the same seeds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(**{**LORA, "init_lora_weights": False, **options})
        return get_peft_model(models.bert(base).model, config).eval()


def rows():
    """Tokenized texts without their strings."""
    return texts().remove_columns("text")


def collate(batch):
    """Padded to the longest."""
    return DataCollatorWithPadding(tokenizer())(batch)


def scored(model, snapshots, **options):
    """All scores."""
    return VoGScorer(model, batch_size=16, progress=False).score(rows(), snapshots, collate_fn=collate, **options)


def saved_adapters(folder, model, n=3, **options):
    """As Trainer leaves them: the adapter as it is after each of a few steps; and the states of the whole model."""
    states = []
    for step in range(1, n + 1):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    generator = torch.Generator().manual_seed(hash((step, len(name))) % 1000)
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        model.save_pretrained(folder / f"checkpoint-{step}", **options)
        states.append((f"checkpoint-{step}", {name: t.detach().clone() for name, t in model_tensors(model).items()}))
    return states


def with_base(states, model):
    """States whose adapter and word embeddings stand on another base."""
    own = {name: tensor.detach().clone() for name, tensor in model_tensors(model).items()}
    return [
        (name, {**own, **{n: t for n, t in state.items() if "lora_" in n or "word_embeddings" in n}})
        for name, state in states
    ]


def assert_equal_scores(scores, expected):
    """Every column, bit by bit."""
    assert scores.column_names == expected.column_names
    for name in expected.column_names:
        np.testing.assert_array_equal(scores.column(name), expected.column(name), err_msg=name)


@pytest.mark.parametrize("kind", ["lora", "modules_to_save"])
def test_checkpoints_of_an_adapter_score_what_the_callback_scores(tmp_path, kind):
    """Trainer's checkpoint-* folders next to the callback's own snapshots of the same steps: the same scores."""
    vog = VoGCallback(rows(), snapshots="epoch", collate_fn=collate, batch_size=16)
    options = {"save_strategy": "epoch", "learning_rate": 0.05, "remove_unused_columns": True}
    model = adapted(**KINDS[kind])
    trained(tmp_path, [vog], rows=rows(), model=model, pieces={"data_collator": collate}, **options)
    assert (vog.scores.column("vog") > 0).all()
    checkpoints = sorted(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert all((path / "adapter_model.safetensors").is_file() for path in checkpoints)
    again = adapted(seed=5, **KINDS[kind])  # what the adapter holds before does not matter
    for source in (tmp_path, checkpoints):
        scores = scored(again, source)
        assert_equal_scores(scores, vog.scores)
        assert [s["step"] for s in scores.manifest["snapshots"]] == [
            s["step"] for s in vog.scores.manifest["snapshots"]
        ]


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_peft_saves_is_read_back(tmp_path, kind):
    """Names of files and of tensors differ for each kind of adapter; the scores are those of whole state dicts."""
    model = adapted(**KINDS[kind])
    states = saved_adapters(tmp_path, model)
    before = {name: (t.data_ptr(), t.detach().clone()) for name, t in model_tensors(model).items()}
    if kind == "biases" and not any(
        "bias" in key for key in load_file(tmp_path / "checkpoint-1" / "adapter_model.safetensors")
    ):
        with pytest.raises(SnapshotError, match=r"has no biases, which were trained \(bias='lora_only'\)"):
            scored(model, tmp_path)
        return  # what was not saved cannot be scored
    scores = scored(model, tmp_path)
    assert (scores.column("vog") > 0).all()
    assert_equal_scores(scores, scored(model, states))
    torch.testing.assert_close({n: (t.data_ptr(), t) for n, t in model_tensors(model).items()}, before, rtol=0, atol=0)
    loaded = PeftModel.from_pretrained(models.bert(0).model, tmp_path / "checkpoint-1")
    assert_equal_scores(scored(loaded, tmp_path), scores)


def test_embeddings_saved_beside_an_adapter_are_read_back(tmp_path):
    """PEFT saves them, whole, where a vocabulary was resized or on request."""
    model = adapted()
    model.get_input_embeddings().weight.requires_grad_(True)
    states = saved_adapters(tmp_path, model, save_embedding_layers=True)
    assert any("word_embeddings" in name for name in load_file(tmp_path / "checkpoint-1" / "adapter_model.safetensors"))
    assert_equal_scores(scored(adapted(base=1), tmp_path), scored(adapted(base=1), with_base(states, adapted(base=1))))


def test_an_adapter_of_another_name_is_matched(tmp_path):
    """The name of an adapter is not in its file; the active one of several is meant."""
    model = adapted()
    saved_adapters(tmp_path, model)
    other = models.bert(0).model
    other = get_peft_model(other, LoraConfig(**LORA), adapter_name="unused")
    other.add_adapter("mine", LoraConfig(**LORA))
    other.set_adapter("mine")
    assert_equal_scores(scored(other.eval(), tmp_path), scored(model, tmp_path))
    other.base_model.set_adapter(["mine", "unused"])
    with pytest.raises(SnapshotError, match=r"one active adapter, it has \['mine', 'unused'\]"):
        scored(other, tmp_path)


def test_the_base_is_in_the_fingerprint_and_the_manifest(tmp_path):
    """Nothing says which base an adapter was trained on: the manifest says so, and scores of two bases never mix."""
    model = adapted()
    saved_adapters(tmp_path, model)
    scores = scored(model, tmp_path, output_dir=tmp_path / "scores")
    assert {snapshot["base"] for snapshot in scores.manifest["snapshots"]} == {
        "as loaded for scoring; the adapter does not record it"
    }
    assert_equal_scores(scored(adapted(seed=3), tmp_path, output_dir=tmp_path / "scores"), scores)
    with pytest.raises(OutputFolderError):
        scored(adapted(base=1), tmp_path, output_dir=tmp_path / "scores")
    whole = scored(
        models.bert(0).model, [("a", models.bert(1).model.state_dict()), ("b", models.bert(2).model.state_dict())]
    )
    assert not any("base" in snapshot for snapshot in whole.manifest["snapshots"])


def test_a_model_without_the_adapter_is_refused(tmp_path):
    """The bare base, and the adapter merged into it: weights that would be put in would change nothing."""
    model = adapted()
    saved_adapters(tmp_path, model)
    with pytest.raises(
        SnapshotError, match=r"'checkpoint-1' is an adapter, and BertForSequenceClassification is not a PEFT"
    ):
        scored(models.bert(0).model, tmp_path)
    model.merge_adapter()
    with pytest.raises(SnapshotError, match=r"merged into the model.*unmerge_adapter"):
        scored(model, tmp_path)
    model.unmerge_adapter()
    scored(model, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["query"]}, r"'checkpoint-1' has '.*value\.lora_A\.weight', which the model does not have"),
        ({"target_modules": ["query", "value", "key"]}, r"'checkpoint-1' lacks '.*key\.lora_A\.weight'"),
        ({"modules_to_save": ["classifier"]}, r"'checkpoint-1' lacks '.*classifier\.bias'"),
        ({"r": 3}, r"trained with r=2, the model's has 3"),
        ({"lora_alpha": 9}, r"trained with lora_alpha=8, the model's has 9.*from_pretrained"),
        ({"use_rslora": True}, r"trained with use_rslora=False, the model's has True"),
    ],
)
def test_another_adapter_is_refused(tmp_path, options, message):
    """By names, shapes, and by what scales it, which no tensor shows; how it began and its dropout do not matter."""
    saved_adapters(tmp_path, adapted())
    with pytest.raises(SnapshotError, match=message):
        scored(adapted(**options), tmp_path)
    scored(adapted(lora_dropout=0.3, init_lora_weights=True), tmp_path)


def test_adapters_and_whole_models_do_not_mix(tmp_path):
    """An adapter leaves the tensors under it as they are, so those of a whole model would stay."""
    model = adapted()
    saved_adapters(tmp_path, model)
    models.bert(0).model.save_pretrained(tmp_path / "whole")
    with pytest.raises(SnapshotError, match=r"not both; of .* these are adapters: \['checkpoint-1'\]"):
        open_snapshots([tmp_path / "checkpoint-1", tmp_path / "whole"], spool=tmp_path)
    open_snapshots([tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"], spool=tmp_path)


def test_adapters_that_store_different_tensors_are_refused(tmp_path):
    """One checkpoint with the embeddings and one without: the second would keep those of the first."""
    model = adapted()
    saved_adapters(tmp_path, model)
    path = tmp_path / "checkpoint-2" / "adapter_model.safetensors"
    name = "base_model.model.bert.embeddings.word_embeddings.weight"
    save_file({**load_file(path), name: model.state_dict()[name].clone()}, path)
    with pytest.raises(
        SnapshotError, match=r"'checkpoint-1' and 'checkpoint-2' differ in what they store: '.*embeddings"
    ):
        scored(model, tmp_path)
    scored(model, [tmp_path / "checkpoint-1", tmp_path / "checkpoint-3"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "holds no model.safetensors"),
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), "adapter_model.safetensors cannot be read"),
        (lambda path: path.with_name("adapter_config.json").unlink(), "adapter_config.json cannot be read.*scale"),
        (lambda path: path.with_name("adapter_config.json").write_text('{"r": '), "adapter_config.json cannot be read"),
    ],
    ids=["missing", "truncated", "no config", "truncated config"],
)
def test_a_damaged_adapter_is_refused(tmp_path, damage, message):
    """The file is named; the others are scored."""
    model = adapted()
    saved_adapters(tmp_path, model)
    damage(tmp_path / "checkpoint-2" / "adapter_model.safetensors")
    with pytest.raises(SnapshotError, match=message):
        scored(model, tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-2")
    scored(model, tmp_path)


def test_an_adapter_that_peft_makes_anew_is_refused(tmp_path):
    """A prompt that an encoder computes is saved, the encoder is not: SnapshotWriter stores what trains."""
    from peft import PromptEncoderConfig

    config = PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=2, encoder_hidden_size=4)
    model = get_peft_model(models.bert(0).model, config)
    for step in (1, 2):
        model.save_pretrained(tmp_path / f"checkpoint-{step}")
    with pytest.raises(SnapshotError, match=r"PEFT recreates 'prompt_embeddings'.*SnapshotWriter"):
        scored(model, tmp_path)
    SnapshotWriter(tmp_path / "snapshots", model).take(model, 1)


def test_the_config_of_a_checkpoint_is_what_peft_wrote(tmp_path):
    """What is compared is in the file under the names that are compared."""
    saved_adapters(tmp_path, adapted(), n=1)
    config = json.loads((tmp_path / "checkpoint-1" / "adapter_config.json").read_text())
    assert {"r", "lora_alpha", "use_rslora", "use_dora", "peft_type", "fan_in_fan_out", "alpha_pattern"} <= set(config)


TRAINED_EMBEDDINGS = {
    "all embeddings": ({"modules_to_save": ["embeddings"]}, "bert.embeddings.modules_to_save.default.word_embeddings"),
    "whole base": ({"target_modules": ["classifier"], "modules_to_save": ["bert"]}, None),
    "one embedding": ({"modules_to_save": ["word_embeddings"]}, "bert.embeddings.word_embeddings"),
    "some tokens": ({"trainable_token_indices": [1, 2, 5]}, "bert.embeddings.word_embeddings"),
    "weight norm": (
        {"target_modules": ["query", "word_embeddings"], "use_dora": True},
        "bert.embeddings.word_embeddings",
    ),
}


@pytest.mark.parametrize("kind", TRAINED_EMBEDDINGS)
def test_trained_embeddings_are_differentiated_where_they_are_used(tmp_path, kind):
    """In float64, from state dicts and adapter folders: gradients with respect to what the embedding in use gives."""
    options, name = TRAINED_EMBEDDINGS[kind]
    case = models.bert()
    model = adapted(**options).double()
    used = model.base_model.model.get_submodule(name or "bert.modules_to_save.default.embeddings.word_embeddings")
    states = saved_adapters(tmp_path, model, n=2)
    batch = case.batch()
    labels = batch.pop("labels")
    gradients = []
    for _, state in states:
        model.load_state_dict(state, strict=False)
        x = used(batch["input_ids"]).detach().requires_grad_()
        others = {key: value for key, value in batch.items() if key != "input_ids"}
        logits = model.base_model.model(inputs_embeds=x, **others).logits
        gradients.append(torch.autograd.grad(logits[torch.arange(len(labels)), labels].sum(), x)[0])
        found = input_gradients(model, {**batch, "labels": labels})
        torch.testing.assert_close(found, gradients[-1], rtol=1e-9, atol=1e-12)
    expected = vog(torch.stack(gradients), mask=batch["attention_mask"].bool())
    data = [{**row, "labels": label} for row, label in zip(case.rows, case.labels, strict=True)]
    for source in (states, tmp_path):
        scores = VoGScorer(model, progress=False).score(data, source, collate_fn=models.collate)
        np.testing.assert_allclose(scores.column("vog"), expected, rtol=1e-6)


def test_a_disabled_adapter_runs_the_original_embedding():
    """With adapters off the gradient is that of the base model, whose embedding is used then."""
    case = models.bert()
    model = adapted(modules_to_save=["embeddings"])
    expected = input_gradients(models.bert().model, case.batch())
    with model.disable_adapter():
        torch.testing.assert_close(input_gradients(model, case.batch()), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        IA3Config(target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"]),
        VeraConfig(r=2, target_modules=["query", "value"]),
        LoKrConfig(r=2, alpha=2, target_modules=["query", "value"]),
        LoHaConfig(r=2, alpha=2, target_modules=["query", "value"]),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_adapters_of_other_kinds_are_read_back(tmp_path, config):
    """What PEFT saves of them gives the scores of whole state dicts."""
    model = get_peft_model(models.bert(0).model, config).eval()
    states = saved_adapters(tmp_path, model)
    scores = scored(model, tmp_path)
    assert (scores.column("vog") > 0).all()
    assert_equal_scores(scores, scored(model, states))


# --- virtual tokens -------------------------------------------------------------------------------------------------


def prompted(kind, base, task):
    """A model with four virtual tokens before those of each row."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return get_peft_model(base, kind(task_type=task, num_virtual_tokens=4)).eval()


def llama():
    """A small decoder."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(vocab_size=models.VOCABULARY, max_position_embeddings=32, **sizes))


@pytest.mark.parametrize("kind", [PromptTuningConfig, PromptEncoderConfig, PrefixTuningConfig])
def test_labels_of_a_decoder_belong_to_the_tokens_behind_the_virtual_ones(kind):
    """Also the first token of a row has a logit, that of the last virtual token: as in PEFT's own loss."""
    model, ids = prompted(kind, llama(), "CAUSAL_LM"), torch.tensor([[5, 6, 7, 8, 9]])
    embedding = model.get_base_model().get_input_embeddings()
    leaf = embedding(ids).detach().requires_grad_()
    handle = embedding.register_forward_hook(lambda _, args, output: leaf if args[0].shape == ids.shape else output)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    handle.remove()
    has_virtual_logits = logits.shape[1] > ids.shape[1]
    assert has_virtual_logits == (kind is not PrefixTuningConfig)
    before, labels = (logits[:, 3:-1], ids) if has_virtual_logits else (logits[:, :-1], ids[:, 1:])
    (expected,) = torch.autograd.grad(before.gather(-1, labels[..., None]).mean(), leaf)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    torch.testing.assert_close(input_gradients(model, batch), expected)


def test_labels_of_tokens_belong_to_those_behind_the_virtual_ones():
    """Token classification under prompt tuning: each label is that of its own token, also through the scorer."""
    base = BertForTokenClassification(models.bert_config()).eval()
    model = prompted(PromptTuningConfig, base, "TOKEN_CLS")
    rows = [{"input_ids": torch.arange(5, 10), "labels": torch.tensor([0, -100, 2, 1, 0])}]
    states, expected = [], []
    embedding = base.get_input_embeddings()
    for k in range(2):
        with torch.no_grad():
            base.classifier.weight.mul_(1 + k)
        states.append((f"s{k}", {name: t.detach().clone() for name, t in model_tensors(model).items()}))
        ids, labels = rows[0]["input_ids"][None], rows[0]["labels"]
        leaf = embedding(ids).detach().requires_grad_()
        handle = embedding.register_forward_hook(lambda _, args, out, leaf=leaf: leaf if args[0].shape[1] == 5 else out)
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 4:]
        handle.remove()
        counted = labels >= 0
        scalar = logits[counted].gather(-1, labels[counted][:, None]).mean()
        expected.append(torch.autograd.grad(scalar, leaf)[0].numpy())
    with_mask = [{**row, "attention_mask": torch.ones_like(row["input_ids"])} for row in rows]
    scores = VoGScorer(model, progress=False).score(with_mask, states)
    np.testing.assert_allclose(scores.column("vog"), np.stack(expected).std(0).mean((1, 2)), rtol=1e-4)


def test_checkpoints_of_prompt_tuning_are_refused_with_what_works(tmp_path):
    """PEFT computes the prompts again whenever it saves them; the callback's own snapshots are read."""
    model = prompted(PromptTuningConfig, models.bert().model, "SEQ_CLS")
    first = {name: t.detach().clone() for name, t in model_tensors(model).items()}
    second = {name: t * 1.1 if t.is_floating_point() else t for name, t in first.items()}
    states = [("checkpoint-1", first), ("checkpoint-2", second)]
    for name, _ in states:
        model.save_pretrained(tmp_path / name)
    with pytest.raises(SnapshotError, match="take snapshots with VoGCallback or SnapshotWriter"):
        scored(model, tmp_path)
    assert (scored(model, states).column("vog") > 0).all()
