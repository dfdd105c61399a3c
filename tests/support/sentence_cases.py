"""Rows of two texts and more for models of sentence-transformers, one such model, and its columns by plain loops.

`Encoder` calls and returns what a SentenceTransformer does, for environments without sentence-transformers; `installed`
makes the real one around the same weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from models import _made, bert_config, token_rows
from models import collate as collate_tokens
from reference import _snapshots, reference_vog
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from trainers import tokenizer

N_ROWS = 53
PAIR, TRIPLET = ("anchor", "positive"), ("anchor", "positive", "negative")


def bert() -> Any:
    """The encoder of one text."""
    from transformers import BertModel

    return _made(lambda: BertModel(bert_config()), 0)


class Encoder(nn.Sequential):
    """One mapping in, the same mapping with the mean over the tokens of each text out."""

    similarity_fn_name = "cosine"

    def __init__(self) -> None:
        super().__init__(bert())

    @property
    def transformers_model(self) -> nn.Module:
        """The transformer inside."""
        return self[0]

    def forward(self, input: dict[str, Any], **_options: Any) -> dict[str, Any]:  # noqa: A002 (as the library has it)
        """Add ``sentence_embedding``."""
        names = ("input_ids", "attention_mask", "token_type_ids")
        states = self[0](**{name: input[name] for name in names if name in input}).last_hidden_state
        mask = input["attention_mask"].unsqueeze(-1).to(states.dtype)
        input["sentence_embedding"] = (states * mask).sum(1) / mask.sum(1)
        return input


class PairReader(nn.Sequential):
    """As a CrossEncoder with one output: ``scores`` beside the inputs."""

    def __init__(self) -> None:
        from transformers import BertForSequenceClassification

        super().__init__(_made(lambda: BertForSequenceClassification(bert_config(num_labels=1)), 0))

    @property
    def transformers_model(self) -> nn.Module:
        """The classifier inside."""
        return self[0]

    def forward(self, input: dict[str, Any], **_options: Any) -> dict[str, Any]:  # noqa: A002 (as the library has it)
        """Add ``scores``."""
        input["scores"] = self[0](input["input_ids"], input["attention_mask"]).logits
        return input


for stand_in in (Encoder, PairReader):
    stand_in.__module__ = "sentence_transformers.stand_in"  # by which such models are known


def installed(folder: Any) -> Any:
    """The SentenceTransformer of the same encoder; skips the test where the library is not installed."""
    import pytest

    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    bert().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    transformer = Transformer(str(folder))
    return SentenceTransformer(modules=[transformer, Pooling(bert_config().hidden_size)], device="cpu").eval()


def texts(names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of texts of 1 to 7 words, and a score."""
    columns = [
        token_rows(k, lengths=tuple(1 + (2 * k + 1) * i % (5 + k) for i in range(N_ROWS))) for k in range(len(names))
    ]
    rows = []
    for i, tokens in enumerate(zip(*columns, strict=True)):
        words = (" ".join(f"w{t}" for t in text["input_ids"].tolist()) for text in tokens)
        rows.append(dict(zip(names, words, strict=True)) | {"score": round(0.01 * i, 2)})
    return rows


def without_scores(names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of texts alone."""
    return [{name: row[name] for name in names} for row in texts(names)]


def read_together() -> list[dict[str, Any]]:
    """Pairs as one text each, with a label of 0 or 1."""
    rows = token_rows(1, lengths=tuple(3 + i % 5 for i in range(N_ROWS)))
    return [{**row, "label": float(i % 2)} for i, row in enumerate(rows)]


def ids_of(text: str) -> torch.Tensor:
    """The tokens of a text."""
    return torch.tensor([int(word[1:]) for word in text.split()])


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """As the collator of sentence-transformers: the inputs of each column under its name."""
    batch = {}
    for name in rows[0]:
        if name == "score":
            batch["label"] = torch.tensor([row[name] for row in rows])
            continue
        ids = [ids_of(row[name]) for row in rows]
        batch[f"{name}_input_ids"] = pad_sequence(ids, batch_first=True)
        batch[f"{name}_attention_mask"] = pad_sequence([torch.ones_like(text) for text in ids], batch_first=True)
    return batch


def expected(model: Any, states: Any, rows: list[dict[str, Any]], targets: tuple[str, ...]) -> dict[str, np.ndarray]:
    """VoG of each target over all texts, of each text for the first one, and the companions; each text alone."""
    names = [name for name in rows[0] if name != "score"]
    gradients: dict[str, list[list[list[np.ndarray]]]] = {target: [[] for _ in rows] for target in targets}
    seen: dict[str, list[list[float]]] = {}
    for snapshot in _snapshots(model, states):
        encoder = snapshot.transformers_model
        at_snapshot: dict[str, list[float]] = {}
        for i, row in enumerate(rows):
            leaves = [encoder.get_input_embeddings()(ids_of(row[name])[None]).detach() for name in names]
            leaves = [leaf.requires_grad_() for leaf in leaves]
            means = [encoder(inputs_embeds=leaf).last_hidden_state[0].mean(0) for leaf in leaves]
            z = [(means[0] * m).sum() / ((means[0] ** 2).sum() * (m**2).sum()).sqrt() for m in means[1:]]
            scalars = _scalars(z, row)
            for target, of_rows in gradients.items():
                found = torch.autograd.grad(
                    scalars[target], leaves, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                of_rows[i].append([gradient[0].detach().numpy() for gradient in found])
            for name, value in _companions(z, scalars).items():
                at_snapshot.setdefault(name, []).append(float(value.detach()))
        for name, values in at_snapshot.items():
            seen.setdefault(name, []).append(values)
    columns = {name: np.mean(values, axis=0) for name, values in seen.items()}
    if "prediction" in seen:
        columns["prediction"] = np.array(seen["prediction"][-1])
    for k, target in enumerate(targets):
        whole = [np.stack([np.concatenate(texts) for texts in of_row]) for of_row in gradients[target]]
        columns["vog" if k == 0 else f"vog_{target}"] = reference_vog(whole)
    for k in range(len(names)):
        of_text = [np.stack([found[k] for found in of_row]) for of_row in gradients[targets[0]]]
        columns[f"vog_text_{k + 1}"] = reference_vog(of_text)
    return columns


def _scalars(z: list[torch.Tensor], row: dict[str, Any]) -> dict[str, torch.Tensor]:
    if len(z) == 1:
        return {"logit": z[0]} | ({"loss": (z[0] - np.float32(row["score"])) ** 2} if "score" in row else {})
    share = (20 * z[0]).exp() / sum((20 * value).exp() for value in z)
    return {"logit": z[0], "probability": share, "loss": -share.log()}


def _companions(z: list[torch.Tensor], scalars: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    loss = {"loss": scalars["loss"]} if "loss" in scalars else {}
    if len(z) == 1:
        return {"prediction": z[0], **loss}
    margin = z[0] - max(z[1:])
    return {"margin": margin, "confidence": scalars["probability"], "correctness": margin > 0, **loss}


@dataclass(frozen=True)
class SentenceCase:
    """A model, its rows and their collator."""

    model: Callable[[], Any]
    rows: Callable[[], list[dict[str, Any]]]
    collate_fn: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]


SENTENCE_CASES = {
    "text_similarity": SentenceCase(Encoder, partial(without_scores, PAIR), collate),
    "text_contrast": SentenceCase(Encoder, partial(without_scores, TRIPLET), collate),
    "pair_score": SentenceCase(PairReader, read_together, collate_tokens),
}
