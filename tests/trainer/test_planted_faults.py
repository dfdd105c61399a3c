"""Planted faults are found: swapped preferences, wrong captions and wrong pairs of texts, one row in ten."""

import numpy as np
import pytest
import torch
import transformers as T
from trainers import arguments, tokenizer
from unlabeled_cases import DPOTrainer, RewardTrainer, collate_preferences, with_loss

from vog_hf import VoGCallback, VoGConfig, VoGScorer
from vog_hf.evaluation import auroc

pytestmark = pytest.mark.slow
N_ROWS, N_FAULTY = 400, 40
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TEXT = {**SIZE, "vocab_size": 64, "max_position_embeddings": 32, "pad_token_id": 0}


def faulty_rows(rng):
    """Which rows are faulty."""
    faulty = np.zeros(N_ROWS, dtype=bool)
    faulty[rng.choice(N_ROWS, N_FAULTY, replace=False)] = True
    return faulty


def preferences(rng, faulty):
    """Texts with two or three good words are chosen over those with bad ones, but for the faulty rows."""

    def text(first):
        n, k = rng.integers(5, 10), rng.integers(2, 4)
        ids = rng.integers(24, 60, n)
        ids[rng.choice(n, k, replace=False)] = rng.integers(first, first + 10, k)
        return ids.tolist()

    pairs = [(text(4), text(14)) for _ in range(N_ROWS)]
    pairs = [pair[::-1] if swapped else pair for pair, swapped in zip(pairs, faulty, strict=True)]
    return [{"chosen_ids": chosen, "rejected_ids": rejected, "margin": 0.0} for chosen, rejected in pairs]


def aurocs(trainer, model, rows, faulty, folder, *, collate_fn, target="logit", **options):
    """AUROC of each column, high = faulty, after a training with one added line."""
    args = arguments(folder, per_device_train_batch_size=16, **options)
    vog = VoGCallback(config=VoGConfig(target=target), snapshots="epoch", max_snapshots=10, log=False)
    trainer(model, args, train_dataset=rows, data_collator=collate_fn, callbacks=[vog]).train()
    units = vog.scores.units
    of_sides = found_by_sides(vog.scores, faulty) if units is not None and units.unit == "side" else {}
    return {**found_by(vog.scores, faulty), **of_sides}


def found_by(scores, faulty):
    """AUROC of each column, high = faulty; printed, for the figures of the page."""
    found = {name: auroc(scores.column(name), faulty) for name in scores.column_names if name != "row"}
    print({name: round(value, 3) for name, value in found.items()})
    return found


@pytest.mark.parametrize("seed", range(3))
def test_swapped_pairs_of_a_reward_model(tmp_path, seed):
    """Loss and margin find them, and VoG of the loss."""
    rng = np.random.default_rng(seed)
    faulty = faulty_rows(rng)
    torch.manual_seed(seed)
    model = T.BertForSequenceClassification(T.BertConfig(**TEXT, num_labels=1))
    options = {"target": ("logit", "loss"), "collate_fn": collate_preferences, "num_train_epochs": 6}
    options["remove_unused_columns"] = True  # as by default: the columns of preferences are kept
    found = aurocs(
        RewardTrainer, model, preferences(rng, faulty), faulty, tmp_path, learning_rate=1e-3, seed=seed + 1, **options
    )
    assert found["loss"] > 0.95
    assert found["margin"] < 0.05
    assert found["vog_loss"] > 0.7
    assert found["reward_side chosen"] < 0.05
    assert found["reward_side rejected"] > 0.95


@pytest.mark.parametrize("seed", range(3))
def test_swapped_pairs_of_a_language_model(tmp_path, seed):
    """The margin over the reference finds them, better than that of the model alone; VoG does not."""
    rng = np.random.default_rng(seed)
    faulty = faulty_rows(rng)
    torch.manual_seed(seed)
    model = T.LlamaForCausalLM(T.LlamaConfig(**TEXT)).eval()
    rows = [row | {"prompt_ids": rng.integers(24, 60, 3).tolist()} for row in preferences(rng, faulty)]
    batch = collate_preferences(rows)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    of_tokens = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    chosen, rejected = (of_tokens * batch["completion_mask"][:, 1:]).sum(1).chunk(2)
    for row, a, b in zip(rows, chosen.tolist(), rejected.tolist(), strict=True):
        row |= {"ref_chosen_logps": a, "ref_rejected_logps": b}
    options = {"collate_fn": collate_preferences, "num_train_epochs": 6, "learning_rate": 2e-3, "seed": seed + 1}
    found = aurocs(DPOTrainer, model, rows, faulty, tmp_path, **options)
    assert found["margin"] < 0.05
    without = [{name: value for name, value in row.items() if not name.startswith("ref")} for row in rows]
    scorer = VoGScorer(model, progress=False)
    alone = found_by(scorer.score(without, tmp_path / "_vog", collate_fn=collate_preferences), faulty)
    assert found["margin"] <= alone["margin"] < 0.4
    assert alone["vog"] == pytest.approx(found["vog"], abs=1e-3)


def found_by_sides(scores, faulty):
    """AUROC of each column of the chosen text, and of the rejected one, high = faulty; printed."""
    units, found = scores.units, {}
    for name in units.columns:
        for side, values in zip(("chosen", "rejected"), units.column(name).reshape(-1, 2).T, strict=True):
            found[f"{name} {side}"] = auroc(values, faulty) if np.ptp(values) > 0 else 0.5
    print({name: round(value, 3) for name, value in found.items()})
    return found


def captioned(rng, faulty):
    """Images of a colored square in one of four places, with the words for color and place; of faulty rows, others."""
    generator = torch.Generator().manual_seed(0)
    kinds = rng.integers(0, 16, N_ROWS)
    named = np.where(faulty, (kinds + rng.integers(1, 16, N_ROWS)) % 16, kinds)
    paints = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1]])
    for kind, name in zip(kinds.tolist(), named.tolist(), strict=True):
        image, y, x = 0.3 * torch.randn(3, 16, 16, generator=generator), 8 * (kind % 4 // 2), 8 * (kind % 2)
        image[:, y : y + 8, x : x + 8] += 1.5 * paints[kind // 4][:, None, None]
        yield image, [10 + name // 4, 20 + name % 4]


def test_wrong_captions_of_a_dual_encoder(tmp_path):
    """The similarity finds them: colored squares in one of four places, named by two words."""
    rng = np.random.default_rng(0)
    faulty = faulty_rows(rng)
    rows = []
    for image, words in captioned(rng, faulty):
        ids = torch.tensor([1, *words, 63])
        rows.append({"pixel_values": image, "input_ids": ids, "attention_mask": torch.ones_like(ids)})
    torch.manual_seed(0)
    text = {**TEXT, "eos_token_id": 63, "bos_token_id": 1}
    vision = {**SIZE, "image_size": 16, "patch_size": 4}
    model = T.CLIPModel(T.CLIPConfig(text_config=text, vision_config=vision, projection_dim=32))
    options = {"collate_fn": with_loss, "num_train_epochs": 10, "learning_rate": 1e-3, "seed": 1}
    found = aurocs(T.Trainer, model, rows, faulty, tmp_path, **options)
    assert found["prediction"] < 0.1


def test_wrong_captions_of_a_language_model_that_sees(tmp_path):
    """The loss of the caption finds them, and VoG of the loss, of the text as of the image (Llava)."""
    rng = np.random.default_rng(0)
    faulty = faulty_rows(rng)
    rows = []
    for image, words in captioned(rng, faulty):
        ids = torch.tensor([1, *[62] * 16, *words])
        labels = ids.masked_fill(torch.arange(len(ids)) < 17, -100)
        rows.append({"pixel_values": image, "input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)})
    torch.manual_seed(0)
    config = T.LlavaConfig(
        vision_config=T.CLIPVisionConfig(**SIZE, image_size=16, patch_size=4),
        text_config=T.LlamaConfig(**TEXT),
        vision_feature_layer=-1,
        image_token_index=62,
        image_token_id=62,
    )
    options = {"collate_fn": T.default_data_collator, "num_train_epochs": 10, "learning_rate": 1e-3, "seed": 1}
    model, target = T.LlavaForConditionalGeneration(config), ("loss", "logit")
    found = aurocs(T.Trainer, model, rows, faulty, tmp_path, target=target, **options)
    assert found["loss"] > 0.9
    assert found["confidence"] < 0.1


def test_wrong_pairs_of_a_bi_encoder(tmp_path):
    """The similarity of the row's own pair finds them, after a training with in-batch negatives."""
    pytest.importorskip("sentence_transformers")
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, sentence_transformer
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    rng = np.random.default_rng(0)
    faulty = faulty_rows(rng)
    subjects = rng.integers(0, 6, N_ROWS)
    others = np.where(faulty, (subjects + rng.integers(1, 6, N_ROWS)) % 6, subjects)

    def text(subject):
        words = [*(4 + 4 * subject + rng.integers(0, 4, 3)), rng.integers(4, 28)]
        return " ".join(f"w{word}" for word in rng.permutation(words))

    rows = [{"anchor": text(a), "positive": text(b)} for a, b in zip(subjects, others, strict=True)]
    torch.manual_seed(0)
    T.BertModel(T.BertConfig(**TEXT)).save_pretrained(tmp_path / "encoder")
    tokenizer().save_pretrained(tmp_path / "encoder")
    model = SentenceTransformer(modules=[Transformer(str(tmp_path / "encoder")), Pooling(32)], device="cpu")
    args = sentence_transformer.SentenceTransformerTrainingArguments(
        str(tmp_path / "run"), num_train_epochs=10, per_device_train_batch_size=16, learning_rate=1e-3, seed=1,
        report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    vog = VoGCallback(snapshots="epoch", max_snapshots=10, log=False)
    loss = losses.MultipleNegativesRankingLoss(model)
    sentence_transformer.SentenceTransformerTrainer(
        model, args, train_dataset=Dataset.from_list(rows), loss=loss, callbacks=[vog]
    ).train()
    assert found_by(vog.scores, faulty)["prediction"] < 0.2
