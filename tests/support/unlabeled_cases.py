"""Tiny models whose rows hold all that they are compared with, 53 rows each, and what their scalars are by plain loops.

Masked images, images with their texts, chosen and rejected answers. `UNLABELED_CASES` maps a task's name, with the kind
of model behind a slash, to its `task_cases.TaskCase`.
"""

from dataclasses import dataclass
from typing import Any

import models
import numpy as np
import torch
import torch.nn.functional as F
import transformers as T
from reference import _snapshots, reference_vog
from task_cases import N_ROWS, TaskCase
from torch.nn.utils.rnn import pad_sequence

SIDE, PATCH = 8, 4
N_PATCHES = (SIDE // PATCH) ** 2
WIDTH = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
NO_LABEL = ("label", "prediction", "confidence", "variability", "correctness", "forgetting", "margin", "el2n")


def _images(**others: Any) -> list[dict[str, Any]]:
    """Images, with a function of the row number and a generator for every other key."""
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randn((N_ROWS, 3, SIDE, SIDE), generator=generator)
    return [
        {"pixel_values": image, **{name: make(i, generator) for name, make in others.items()}}
        for i, image in enumerate(pixels)
    ]


# --- reconstruction -------------------------------------------------------------------------------------------------


def autoencoder(**options: Any) -> Any:
    """A masked autoencoder that hides half of the patches."""
    config = T.ViTMAEConfig(
        image_size=SIDE, patch_size=PATCH, decoder_num_attention_heads=2, decoder_hidden_size=8,
        decoder_num_hidden_layers=1, decoder_intermediate_size=16, **{"mask_ratio": 0.5, **WIDTH, **options},
    )  # fmt: skip
    return models._made(lambda: T.ViTMAEForPreTraining(config), 0)


def masked_image_model(**options: Any) -> Any:
    """SimMIM on ViT."""
    config = T.ViTConfig(image_size=SIDE, patch_size=PATCH, encoder_stride=PATCH, **{**WIDTH, **options})
    return models._made(lambda: T.ViTForMaskedImageModeling(config), 0)


def _mask(i: int, generator: torch.Generator) -> torch.Tensor:
    """One to all patches of a row."""
    order = torch.randperm(N_PATCHES, generator=generator)
    return order < 1 + i % N_PATCHES


def _place(patch: int) -> tuple[slice, ...]:
    y, x = PATCH * (patch // (SIDE // PATCH)), PATCH * (patch % (SIDE // PATCH))
    return slice(None), slice(y, y + PATCH), slice(x, x + PATCH)


def _patch_loss(outputs: Any, row: dict[str, Any]) -> torch.Tensor:
    """Mean squared error over the patches with the largest noise, whose pixels lie row by row, channels last."""
    hidden = sorted(range(N_PATCHES), key=row["noise"].tolist().__getitem__)[N_PATCHES // 2 :]
    errors = []
    for patch in hidden:
        pixels = row["pixel_values"][_place(patch)].permute(1, 2, 0).flatten()
        errors += [(a - b) ** 2 for a, b in zip(outputs.logits[0, patch], pixels, strict=True)]
    return sum(errors) / len(errors)


def _pixel_loss(outputs: Any, row: dict[str, Any]) -> torch.Tensor:
    """Mean absolute error over the pixels of masked patches and their channels; transformers adds 1e-5 pixels."""
    errors, n = 0, 1e-5
    for patch in row["bool_masked_pos"].nonzero().flatten().tolist():
        errors = errors + (outputs.reconstruction[0][_place(patch)] - row["pixel_values"][_place(patch)]).abs().sum()
        n += PATCH**2
    return errors / n / 3


def _of_loss(loss: Any) -> dict[str, Any]:
    return {
        "scalar": lambda outputs, row, target: loss(outputs, row) * (1 if target == "loss" else -1),
        "observed": lambda outputs, row: {"loss": float(loss(outputs, row))},
        "targets": ("logit", "loss"),
        "absent": NO_LABEL,
        "channels": True,
    }


# --- images and texts -----------------------------------------------------------------------------------------------


def clip(**options: Any) -> Any:
    """CLIP without the parts that make it large."""
    special = {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    text = {**WIDTH, **special, "vocab_size": models.VOCABULARY, "max_position_embeddings": 16, "projection_dim": 8}
    vision = {**WIDTH, "image_size": SIDE, "patch_size": PATCH, "projection_dim": 8}
    return models._made(lambda: T.CLIPModel(T.CLIPConfig(text_config=text, vision_config=vision, **options)), 0)


def siglip() -> Any:
    """SigLIP, whose similarities have a bias, and which reads a text from its last token."""
    text = {**WIDTH, "vocab_size": models.VOCABULARY, "max_position_embeddings": 16, "projection_size": 8}
    vision = {**WIDTH, "image_size": SIDE, "patch_size": PATCH}
    return models._made(lambda: T.SiglipModel(T.SiglipConfig(text_config=text, vision_config=vision)), 0)


def captioned(*, length: int | None = None) -> list[dict[str, Any]]:
    """Images with texts of 2 to 8 tokens, or of one length."""
    lengths = tuple(length or 2 + i % 7 for i in range(N_ROWS))
    return [image | text for image, text in zip(_images(), models.token_rows(3, lengths=lengths), strict=True)]


def with_loss(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """As the published collator: it asks for the loss over all pairs of the batch."""
    return {**models.collate(rows), "return_loss": True}


SIMILARITY = {
    "fed": ("pixel_values", "input_ids", "attention_mask"),
    "scalar": lambda outputs, row, target: outputs.logits_per_image[0, 0],
    "observed": lambda outputs, row: {},
    "targets": ("logit",),
    "absent": tuple({*NO_LABEL, "loss"} - {"prediction"}),
    "collate_fn": with_loss,
    "channels": True,
}

# --- preferences ----------------------------------------------------------------------------------------------------


def collate_preferences(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """As TRL's collators: all chosen texts, then all rejected ones, with the prompt before both if there is one."""
    texts = [(row.get("prompt_ids", []), row[name]) for name in ("chosen_ids", "rejected_ids") for row in rows]
    ids = [torch.tensor(prompt + answer) for prompt, answer in texts]
    batch = {"input_ids": ids, "attention_mask": [torch.ones_like(text) for text in ids]}
    if "prompt_ids" in rows[0]:
        batch["completion_mask"] = [torch.tensor([0] * len(a) + [1] * len(b)) for a, b in texts]
    batch = {name: pad_sequence(values, batch_first=True) for name, values in batch.items()}
    constants = [name for name in ("ref_chosen_logps", "ref_rejected_logps", "margin") if name in rows[0]]
    return batch | {name: torch.tensor([row[name] for row in rows]) for name in constants}


class _PreferenceTrainer(T.Trainer):
    """What TRL's trainers of preferences have in common: the columns that their collators need."""

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps"]
        self._signature_columns += ["ref_rejected_logps", "margin"]


class RewardTrainer(_PreferenceTrainer):
    """The loss of TRL's RewardTrainer."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """Minus the logarithm of the sigmoid of the difference of rewards minus the margin."""
        chosen, rejected = model(**inputs).logits.squeeze(-1).chunk(2)
        return -F.logsigmoid(chosen - rejected - inputs["margin"]).mean()


class DPOTrainer(_PreferenceTrainer):
    """The loss of TRL's DPOTrainer, with log-probabilities of the reference that were computed before."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """Minus the logarithm of the sigmoid of beta times the margin."""
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
        of_tokens = logits.log_softmax(-1).gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
        chosen, rejected = (of_tokens * inputs["completion_mask"][:, 1:]).sum(1).chunk(2)
        reference = inputs["ref_chosen_logps"] - inputs["ref_rejected_logps"]
        return -F.logsigmoid(0.1 * (chosen - rejected - reference)).mean()


@dataclass(frozen=True)
class PreferenceCase(TaskCase):
    """The oracle of rows with two texts: each goes through the model alone, without padding."""

    def _values(self, snapshot: Any, row: dict[str, Any], target: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """A row's scalar, and the embeddings of its two texts, from which it is computed."""
        leaves, values = [], []
        for name in ("chosen_ids", "rejected_ids"):
            prompt, answer = row.get("prompt_ids", []), row[name]
            ids = torch.tensor([prompt + answer])
            leaves.append(snapshot.get_input_embeddings()(ids).detach().requires_grad_())
            z = snapshot(inputs_embeds=leaves[-1]).logits[0]
            at = range(len(prompt), len(prompt) + len(answer)) if prompt else ()
            values.append(sum((z[i - 1] - z[i - 1].exp().sum().log())[ids[0, i]] for i in at) if prompt else z[0])
        reference = row["ref_chosen_logps"] - row["ref_rejected_logps"] if "prompt_ids" in row else row["margin"]
        margin = values[0] - values[1] - reference
        scalar = {"logit": margin, "probability": 1 / (1 + (-margin).exp()), "loss": (1 + (-margin).exp()).log()}
        return scalar[target], leaves

    def expected_vog(self, states: list[dict[str, torch.Tensor]], *, predicted: bool = False) -> dict[str, np.ndarray]:
        """VoG of each row by target, ``[rows]``, over the elements of both texts."""
        rows = self.rows()
        gradients: dict[str, list[list[np.ndarray]]] = {target: [[] for _ in rows] for target in self.targets}
        for snapshot in _snapshots(self.model(), states):
            for target, of_rows in gradients.items():
                for of_row, row in zip(of_rows, rows, strict=True):
                    both = torch.autograd.grad(*self._values(snapshot, row, target))
                    of_row.append(np.concatenate([gradient[0].numpy() for gradient in both]))
        stacked = {target: [np.stack(of_row) for of_row in of_rows] for target, of_rows in gradients.items()}
        return {target: reference_vog(of_rows) for target, of_rows in stacked.items()}

    def _observed(self, snapshot: Any, row: dict[str, Any]) -> dict[str, float]:
        values = {target: float(self._values(snapshot, row, target)[0].detach()) for target in self.targets}
        return self.observed(values, row)


def _preferences(*, prompts: bool) -> list[dict[str, Any]]:
    """Pairs of texts of several lengths, as lists of tokens."""
    generator = torch.Generator().manual_seed(6)

    def drawn(n: int) -> list[int]:
        return torch.randint(4, models.VOCABULARY, (n,), generator=generator).tolist()

    rows = []
    for i in range(N_ROWS):
        row = {"chosen_ids": drawn(1 + i % 5), "rejected_ids": drawn(1 + 3 * i % 7)}
        if prompts:
            row |= {"prompt_ids": drawn(1 + i % 3), "ref_chosen_logps": -0.1 * i, "ref_rejected_logps": -0.2 * (i % 7)}
        else:
            row |= {"margin": 0.05 * (i % 4)}
        rows.append(row)
    return rows


def rewarder() -> Any:
    """A classifier with one output."""
    return models._made(lambda: T.BertForSequenceClassification(models.bert_config(num_labels=1)), 0)


def answerer() -> Any:
    """A language model whose input and output embeddings are trained apart."""
    config = T.LlamaConfig(
        **WIDTH,
        vocab_size=models.VOCABULARY,
        num_key_value_heads=1,
        max_position_embeddings=16,
        tie_word_embeddings=False,
    )
    return models._made(lambda: T.LlamaForCausalLM(config), 0)


def _rewarded(values: dict[str, float], _row: dict[str, Any]) -> dict[str, float]:
    margin = values["logit"]
    names = {"loss": "loss", "confidence": "probability"}
    return {name: values[target] for name, target in names.items()} | {"margin": margin, "correctness": margin > 0}


UNLABELED_CASES = {
    "pixel_reconstruction/autoencoder": TaskCase(
        autoencoder,
        lambda: _images(noise=lambda _, generator: torch.rand(N_PATCHES, generator=generator)),
        fed=("pixel_values", "noise"),
        **_of_loss(_patch_loss),
    ),
    "pixel_reconstruction/masked images": TaskCase(
        masked_image_model,
        lambda: _images(bool_masked_pos=_mask),
        fed=("pixel_values", "bool_masked_pos"),
        **_of_loss(_pixel_loss),
    ),
    "pair_similarity/clip": TaskCase(clip, captioned, **SIMILARITY),
    "pair_similarity/siglip": TaskCase(siglip, lambda: captioned(length=5), **SIMILARITY),
    "reward_modeling": PreferenceCase(
        rewarder,
        lambda: _preferences(prompts=False),
        fed=("input_ids", "attention_mask"),
        scalar=None,
        observed=_rewarded,
        absent=("label", "prediction", "forgetting", "el2n"),
        collate_fn=collate_preferences,
        trainer=RewardTrainer,
    ),
    "preference_optimization": PreferenceCase(
        answerer,
        lambda: _preferences(prompts=True),
        fed=("input_ids", "attention_mask"),
        scalar=None,
        observed=lambda values, row: {"margin": values["logit"]},
        targets=("logit",),
        absent=("label", "prediction", "loss", "confidence", "variability", "correctness", "forgetting", "el2n"),
        collate_fn=collate_preferences,
        trainer=DPOTrainer,
    ),
}
