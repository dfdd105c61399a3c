"""Checkpoints that transformers saves under other names, or in other shapes, than the model in memory has."""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils.logging import enable_progress_bar

from vog_hf import VoGScorer, input_gradients
from vog_hf.errors import SnapshotError

WIDTH = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
PATCHES = {**WIDTH, "image_size": 8, "patch_size": 4}
TOKENS = {**WIDTH, "vocab_size": 40, "max_position_embeddings": 32, "pad_token_id": 0}
DECODER = {**TOKENS, "num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {**DECODER, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
SWIN = {"image_size": 8, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}
LATENT = {
    "num_key_value_heads": 2,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_experts_per_tok": 2,
}
SPECTRUM = {**WIDTH, "num_mel_bins": 16, "max_length": 24, "patch_size": 8, "frequency_stride": 8, "time_stride": 8}
MAMBA = {
    "use_mamba_kernels": False,
    "mamba_d_state": 4,
    "mamba_dt_rank": 4,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
}

RENAMED: dict[str, tuple[str, str, Mapping[str, Any]]] = {
    "vit": ("ViT", "ImageClassification", PATCHES),
    "deit": ("DeiT", "ImageClassification", PATCHES),
    "swin": ("Swin", "ImageClassification", SWIN),
    "beit": ("Beit", "ImageClassification", PATCHES),
    "dinov2": ("Dinov2", "ImageClassification", PATCHES),
    "ast": ("AST", "AudioClassification", SPECTRUM),
    "mixtral": ("Mixtral", "SequenceClassification", {**DECODER, "num_local_experts": 4}),
    "qwen2_moe": ("Qwen2Moe", "SequenceClassification", {**EXPERTS, "shared_expert_intermediate_size": 12}),
    "qwen3_moe": ("Qwen3Moe", "SequenceClassification", EXPERTS),
    "deepseek_v3": ("DeepseekV3", "SequenceClassification", {**TOKENS, **LATENT, "moe_intermediate_size": 12}),
    "jamba": ("Jamba", "SequenceClassification", {**DECODER, **MAMBA, "num_experts": 4}),
    "gemma3": (
        "Gemma3",
        "SequenceClassification",
        {"text_config": DECODER, "vision_config": PATCHES, "pad_token_id": 0},
    ),
}
AS_IN_MEMORY: dict[str, tuple[str, str, Mapping[str, Any]]] = {
    "bert": ("Bert", "SequenceClassification", TOKENS),
    "roberta": ("Roberta", "SequenceClassification", TOKENS),
    "electra": ("Electra", "SequenceClassification", {**TOKENS, "embedding_size": 16}),
    "albert": ("Albert", "SequenceClassification", {**TOKENS, "embedding_size": 8}),
    "distilbert": (
        "DistilBert",
        "SequenceClassification",
        {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    ),
    "gpt2": (
        "GPT2",
        "SequenceClassification",
        {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "pad_token_id": 0},
    ),
    "llama": ("Llama", "SequenceClassification", DECODER),
    "opt": ("OPT", "SequenceClassification", {**TOKENS, "ffn_dim": 24, "word_embed_proj_dim": 16}),
    "deberta_v2": ("DebertaV2", "SequenceClassification", TOKENS),
    "convnext": (
        "ConvNext",
        "ImageClassification",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 2},
    ),
    "resnet": (
        "ResNet",
        "ImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    ),
}


def made(architecture: str) -> nn.Module:
    """A model of random weights; the same for the same random state."""
    stem, head, options = {**RENAMED, **AS_IN_MEMORY}[architecture]
    config = getattr(transformers, f"{stem}Config")(num_labels=3, **options)
    return getattr(transformers, f"{stem}For{head}")(config).eval()


def rows(model: Any, n: int = 5) -> list[dict[str, Any]]:
    """Rows of what a model eats, with labels."""
    random = torch.Generator().manual_seed(1)
    shapes = {"pixel_values": (n, 3, 8, 8), "input_values": (n, 24, 16)}
    name = model.main_input_name
    values = (
        torch.randn(shapes[name], generator=random)
        if name in shapes
        else torch.randint(3, 39, (n, 6), generator=random)
    )
    return [{name: value, "labels": i % 3} for i, value in enumerate(values)]


def checkpoints(architecture: str, folder: Path, save: Callable[[Any, Path], object]) -> tuple[nn.Module, list[Path]]:
    """A model, and the folders of two others of its kind."""
    torch.manual_seed(0)
    paths = [folder / f"checkpoint-{step}" for step in (5, 10)]
    for path in paths:
        save(made(architecture), path)
    return made(architecture), paths


def by_hand(model: Any, paths: list[Path], data: list[dict[str, Any]]) -> np.ndarray:
    """VoG of rows from the gradients that each checkpoint gives behind from_pretrained."""
    batch = {name: torch.stack([torch.as_tensor(row[name]) for row in data]) for name in data[0]}
    gradients = torch.stack([input_gradients(type(model).from_pretrained(path).float(), batch) for path in paths])
    if model.main_input_name == "pixel_values":
        gradients = gradients.mean(2)
    return gradients.double().std(0, correction=0).flatten(1).mean(1).numpy()


def saved_whole(model: Any, path: Path) -> None:
    """As Trainer does."""
    model.save_pretrained(path)


@pytest.mark.parametrize("architecture", [*RENAMED, *AS_IN_MEMORY])
def test_a_run_is_scored_as_from_pretrained_reads_its_checkpoints(architecture: str, tmp_path: Path) -> None:
    """Scores from the checkpoints of a run are those of models that from_pretrained loads from them."""
    model, paths = checkpoints(architecture, tmp_path, saved_whole)
    before = copy.deepcopy(model.state_dict())
    parameters = [id(p) for p in model.parameters()]
    found = VoGScorer(model, progress=False).score(rows(model), tmp_path).column("vog")
    np.testing.assert_allclose(found, by_hand(model, paths, rows(model)), rtol=2e-4)
    assert found.min() > 0
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert [id(p) for p in model.parameters()] == parameters


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.24"), reason="this transformers renames fewer")
@pytest.mark.parametrize("architecture", RENAMED)
def test_the_renamed_architectures_are_saved_under_other_names(architecture: str, tmp_path: Path) -> None:
    """The architectures that this file calls renamed have keys in their checkpoints that the model in memory lacks."""
    model, paths = checkpoints(architecture, tmp_path, saved_whole)
    assert set(load_file(paths[0] / "model.safetensors")) - set(model.state_dict())


def saved_in_shards(model: Any, path: Path) -> None:
    """In several files with an index."""
    model.save_pretrained(path, max_shard_size="4KB")


def saved_in_bfloat16(model: Any, path: Path) -> None:
    """In half the bits."""
    model.to(torch.bfloat16).save_pretrained(path)


def saved_as_it_is_in_memory(model: Any, path: Path) -> None:
    """As accelerate does, in the names of the model in memory."""
    path.mkdir(parents=True)
    save_file(model.state_dict(), path / "model.safetensors")


def saved_without_a_config(model: Any, path: Path) -> None:
    """The weights alone."""
    model.save_pretrained(path)
    (path / "config.json").unlink()


@pytest.mark.parametrize(
    ("architecture", "prefix", "max_shard_size"),
    [
        ("vit", "module._orig_mod.", "50GB"),
        pytest.param("vit", "_orig_mod.module.", "4KB", marks=pytest.mark.slow),
        pytest.param("bert", "_orig_mod.", "4KB", marks=pytest.mark.slow),
        pytest.param("bert", "module.", "50GB", marks=pytest.mark.slow),
    ],
)
def test_folders_of_compiled_and_parallel_models_are_those_of_the_plain_one(
    architecture: str, prefix: str, max_shard_size: str, tmp_path: Path
) -> None:
    """A wrapper's prefix before every key next to a config, of one file or several, changes no score."""

    def saved_wrapped(model: Any, path: Path) -> None:
        model.save_pretrained(path, max_shard_size=max_shard_size)
        for file in path.glob("*.safetensors"):
            save_file({prefix + key: value for key, value in load_file(file).items()}, file, {"format": "pt"})
        for index in path.glob("*.index.json"):
            held = json.loads(index.read_text())
            held["weight_map"] = {prefix + key: name for key, name in held["weight_map"].items()}
            index.write_text(json.dumps(held))

    model, wrapped = checkpoints(architecture, tmp_path / "wrapped", saved_wrapped)
    _, plain = checkpoints(architecture, tmp_path / "plain", saved_whole)
    scorer, expected = VoGScorer(model, progress=False), by_hand(model, plain, rows(model))
    np.testing.assert_allclose(scorer.score(rows(model), wrapped).column("vog"), expected, rtol=2e-4)


@pytest.mark.parametrize("architecture", ["vit", "mixtral", "bert"])
@pytest.mark.parametrize("save", [saved_in_shards, saved_in_bfloat16, saved_as_it_is_in_memory, saved_without_a_config])
def test_however_checkpoints_are_saved_they_give_the_same_scores(
    architecture: str, save: Callable[[Any, Path], object], tmp_path: Path
) -> None:
    """Shards that part the experts of a layer, bfloat16, raw state dicts and folders without a config are all read."""
    model, paths = checkpoints(architecture, tmp_path / "run", save)
    _, whole = checkpoints(
        architecture, tmp_path / "whole", saved_in_bfloat16 if "bfloat16" in save.__name__ else saved_whole
    )
    assert ("shards" in save.__name__) == (paths[0] / "model.safetensors.index.json").is_file()
    found = VoGScorer(model, progress=False).score(rows(model), paths).column("vog")
    np.testing.assert_allclose(found, by_hand(model, whole, rows(model)), rtol=2e-4)


def test_files_and_state_dicts_in_saved_names_are_read(tmp_path: Path) -> None:
    """A list of files, and pairs of names and state dicts read from them, give the scores of the folders."""
    model, paths = checkpoints("vit", tmp_path, saved_whole)
    files = [path / "model.safetensors" for path in paths]
    scorer, expected = VoGScorer(model, progress=False), by_hand(model, paths, rows(model))
    renamed = [file.rename(tmp_path / f"{file.parent.name}.safetensors") for file in files]
    for source in (renamed, [(file.stem, load_file(file)) for file in renamed]):
        np.testing.assert_allclose(scorer.score(rows(model), source).column("vog"), expected, rtol=2e-4)


def test_a_changed_head_is_no_obstacle(tmp_path: Path) -> None:
    """A model that was changed after its class made it is scored by names all the same."""
    torch.manual_seed(0)
    models: list[Any] = [made("swin") for _ in range(3)]
    for model in models:
        model.classifier = nn.Sequential(nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 3))
    states = [(f"epoch-{i}", copy.deepcopy(model.state_dict())) for i, model in enumerate(models[1:])]
    for (name, _), model in zip(states, models[1:], strict=True):
        model.save_pretrained(tmp_path / name)
    scorer = VoGScorer(models[0], progress=False)
    data = rows(models[0])
    found = scorer.score(data, [tmp_path / name for name, _ in states]).column("vog")
    np.testing.assert_allclose(found, scorer.score(data, states).column("vog"), rtol=2e-4)


def rewritten(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Any, Path], object]:
    """Checkpoints with tensors added, left out or cut."""

    def save(model: Any, path: Path) -> None:
        model.save_pretrained(path)
        tensors = load_file(path / "model.safetensors")
        change(tensors)
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})

    return save


@pytest.mark.parametrize(
    ("architecture", "change", "message"),
    [
        (
            "vit",
            lambda t: t.update({"vit.encoder.layer.7.output.dense.bias": torch.zeros(2)}),
            r"1 tensors that .*layers?\.7\.",
        ),
        (
            "vit",
            lambda t: t.pop("vit.encoder.layer.1.output.dense.bias"),
            r"'checkpoint-5' lacks 1 tensors.*layers?\.1\..*bias",
        ),
        (
            "vit",
            lambda t: t.update({"classifier.bias": torch.zeros(4)}),
            r"'classifier\.bias' has shape \(4,\).*\(3,\)",
        ),
        (
            "mixtral",
            lambda t: t.pop("model.layers.1.block_sparse_moe.experts.2.w1.weight"),
            r"checkpoint-5'.*layers\.1\.mlp\.experts",
        ),
        ("bert", lambda t: t.update({"extra": torch.zeros(2)}), r"1 tensors that .*'extra'"),
    ],
)
def test_a_converted_checkpoint_must_fit_the_model_exactly(
    architecture: str, change: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path
) -> None:
    """A tensor too many, too few, of another shape or a lost expert is refused by name, and the model is unharmed."""
    model, _ = checkpoints(architecture, tmp_path, rewritten(change))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SnapshotError, match=message):
        VoGScorer(model, progress=False).score(rows(model), tmp_path)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_buffers_that_older_releases_stored_are_passed_over(tmp_path: Path) -> None:
    """A checkpoint with position ids, which the model now computes, is read as from_pretrained reads it."""
    save = rewritten(lambda t: t.update({"bert.embeddings.position_ids": torch.arange(32)[None]}))
    model, paths = checkpoints("bert", tmp_path, save)
    found = VoGScorer(model, progress=False).score(rows(model), tmp_path).column("vog")
    np.testing.assert_allclose(found, by_hand(model, paths, rows(model)), rtol=2e-4)


@pytest.mark.parametrize("loaded", [False, True])
def test_scoring_does_not_change_how_a_model_is_saved(loaded: bool, tmp_path: Path) -> None:
    """save_pretrained writes the same file before and after a scoring, of loaded models and of new ones."""
    model, paths = checkpoints("vit", tmp_path / "run", saved_whole)
    if loaded:
        model = type(model).from_pretrained(paths[0])
    saved_whole(model, tmp_path / "before")
    VoGScorer(model, progress=False).score(rows(model), tmp_path / "run")
    saved_whole(model, tmp_path / "after")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("before", "after"))
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_no_bar_appears_for_each_snapshot(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The loading bar of transformers is hidden while snapshots are loaded, and back afterwards."""
    model, paths = checkpoints("vit", tmp_path, saved_whole)
    enable_progress_bar()  # whatever other tests have left
    capfd.readouterr()
    VoGScorer(model, progress=False).score(rows(model), paths)
    assert "Loading weights" not in capfd.readouterr().err
    type(model).from_pretrained(paths[0])
    assert "Loading weights" in capfd.readouterr().err
