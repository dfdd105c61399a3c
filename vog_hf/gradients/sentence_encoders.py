"""Models of sentence-transformers: several texts per row, each encoded alone, or a pair that is read together.

Batches of its trainers have the inputs of each text under a prefix (``anchor_input_ids``, ``positive_input_ids``), or,
for a `CrossEncoder`, the texts themselves. `sentence_inputs` makes ``[rows, texts, tokens]`` of the former, under
`TEXTS_OF_ROW`, and ``[rows, tokens]`` of the latter; the model gets one mapping.
"""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Self, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from vog_hf.errors import DataError, LabelError, ModelError
from vog_hf.gradients.model_outputs import CALLABLE_TARGET, base_model, find_logits
from vog_hf.gradients.preferences import TASK_ONLY, TEXTS_OF_ROW
from vog_hf.gradients.task import TARGETS, RowValue, required_labels
from vog_hf.metric.input_parts import PART

AS_MAPPING = f"{TASK_ONLY}as_mapping"  # name of the parameter under which forward takes all inputs as one mapping
NEGATIVES = f"{TASK_ONLY}negatives"  # rows have negatives behind their anchor and positive
TOKEN_IDS, MASK = "input_ids", "attention_mask"
EMBEDDING = "sentence_embedding"
SCALE = 20.0  # of similarities in a softmax: the default of MultipleNegativesRankingLoss


class TextSimilarity(RowValue):
    """Logits ``[batch]``: the similarity of the row's own two texts, whatever shares the batch.

    The one that the model has (``similarity_fn_name``): cosine, dot product, or minus a distance. Where the rows have
    scores, the loss is the squared difference, as in CosineSimilarityLoss; a loss with in-batch negatives is one of the
    whole batch, so that no row has one of its own.
    """

    name = "text_similarity"
    targets: ClassVar[tuple[str, ...]] = ("logit", "loss")
    loss_needs_labels = True
    label_advice = "pass rows with a column of scores"

    def __init__(self, similarity: str = "cosine") -> None:
        self._similarity = similarity

    @override
    @classmethod
    def for_model(cls, model: nn.Module) -> Self:
        return cls(str(getattr(base_model(model), "similarity_fn_name", None) or "cosine"))

    @override
    def logits(self, outputs: object, inputs: Mapping[str, object]) -> Tensor:
        return self._of_candidates(outputs, inputs)[:, 0]

    @override
    def counted_labels(self, labels: Tensor | None, batch: Mapping[str, object]) -> Tensor | None:
        return labels

    @override
    def scalar(self, target: str, logits: Tensor, labels: Tensor | None) -> Tensor:
        if target != "loss":
            return logits
        labels = required_labels(labels, self.name)
        if not labels.is_floating_point():
            raise DataError(
                "the loss of text_similarity compares a similarity with a score, and the labels are whole numbers; "
                "use target='logit', or cast them to floats if they are scores"
            )
        return self._loss(logits, labels)

    @override
    def observation(self, logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        seen = {"prediction": logits}
        if labels is None or not labels.is_floating_point():
            return seen
        return seen | {"loss": self._loss(logits, labels)}

    def _of_candidates(self, outputs: object, inputs: Mapping[str, object]) -> Tensor:
        """Similarities ``[batch, texts - 1]`` of each row's first text with its others."""
        ids = inputs.get(TOKEN_IDS)
        if not has_embeddings(outputs) or not isinstance(ids, Tensor) or ids.dim() != 3 or ids.shape[1] < 2:
            raise ModelError(
                "the similarity of texts needs rows of two or more texts and a SentenceTransformer, got "
                f"{type(outputs).__name__} for {None if not isinstance(ids, Tensor) else tuple(ids.shape)}; for others "
                f"pass {CALLABLE_TARGET}"
            )
        embeddings = outputs[EMBEDDING].unflatten(0, ids.shape[:2])
        first, others = embeddings[:, :1], embeddings[:, 1:]
        if self._similarity == "cosine":
            first, others = F.normalize(first, dim=-1), F.normalize(others, dim=-1)
        if self._similarity in ("cosine", "dot"):
            return (first * others).sum(-1)
        return -(first - others).norm(p=1 if self._similarity == "manhattan" else 2, dim=-1)

    @staticmethod
    def _loss(logits: Tensor, labels: Tensor) -> Tensor:
        return (logits - labels.reshape(logits.shape).to(logits.dtype)).square()


class TextContrast(TextSimilarity):
    """Logits ``[batch, candidates]``: the similarity of the row's anchor with its positive, then with its negatives.

    The probability of the positive is a softmax over the row's own candidates, with the scale of
    MultipleNegativesRankingLoss; the negatives that are other rows of a batch are left out.
    """

    name = "text_contrast"
    targets = TARGETS
    loss_needs_labels = False

    @override
    def logits(self, outputs: object, inputs: Mapping[str, object]) -> Tensor:
        return self._of_candidates(outputs, inputs)

    @override
    def counted_labels(self, labels: Tensor | None, batch: Mapping[str, object]) -> Tensor | None:
        return None

    @override
    def scalar(self, target: str, logits: Tensor, labels: Tensor | None) -> Tensor:
        if target == "logit":
            return logits[:, 0]
        log_probability = (SCALE * logits).log_softmax(-1)[:, 0]
        return -log_probability if target == "loss" else log_probability.exp()

    @override
    def observation(self, logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        loss, margin = self.scalar("loss", logits, None), logits[:, 0] - logits[:, 1:].amax(-1)
        correct = (margin > 0).to(logits.dtype)
        return {"loss": loss, "confidence": loss.neg().exp(), "correct": correct, "margin": margin}


class PairScore(RowValue):
    """Logits ``[batch]``: the score of a pair that a `CrossEncoder` with one output reads together.

    The loss is the binary cross-entropy with the row's label, 0 to 1, as in BinaryCrossEntropyLoss; the probability is
    that of a label of 1.
    """

    name = "pair_score"
    targets = TARGETS
    loss_needs_labels = True

    @override
    def logits(self, outputs: object, inputs: Mapping[str, object]) -> Tensor:
        return find_logits(outputs).flatten(1).squeeze(-1)

    @override
    def counted_labels(self, labels: Tensor | None, batch: Mapping[str, object]) -> Tensor | None:
        return labels

    @override
    def check_labels(self, labels: Tensor, n_outputs: int | None) -> None:
        outside = ~((labels >= 0) & (labels <= 1)).reshape(len(labels), -1).all(1)
        if bool(outside.any()):
            at = int(outside.nonzero()[0])
            raise LabelError(
                f"labels of pairs must lie between 0 and 1, got {labels[at].tolist()}; for scores without bounds pass "
                "VoGConfig(task='regression')",
                at,
            )

    @override
    def scalar(self, target: str, logits: Tensor, labels: Tensor | None) -> Tensor:
        if target == "loss":
            return self._loss(logits, required_labels(labels, self.name))
        return logits.sigmoid() if target == "probability" else logits

    @override
    def observation(self, logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        seen = {"prediction": logits}
        return seen if labels is None else seen | {"loss": self._loss(logits, labels)}

    @staticmethod
    def _loss(logits: Tensor, labels: Tensor) -> Tensor:
        labels = labels.reshape(logits.shape).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def task_of_sentences(outputs: object, inputs: Collection[str]) -> str | None:
    """Name of the task of a model of sentence-transformers; None where it is that of any model with such outputs."""
    if AS_MAPPING not in inputs:
        return None
    if has_embeddings(outputs):
        return TextContrast.name if NEGATIVES in inputs else TextSimilarity.name
    return PairScore.name if find_logits(outputs).flatten(1).shape[1] == 1 else None


def has_embeddings(outputs: object) -> TypeGuard[Mapping[str, Tensor]]:
    """Tell whether a model's outputs are those of a SentenceTransformer."""
    return isinstance(outputs, Mapping) and isinstance(outputs.get(EMBEDDING), Tensor)


def is_sentence_model(model: nn.Module) -> bool:
    """Tell whether a model is one of sentence-transformers, whose forward takes all inputs as one mapping."""
    return any(cls.__module__.startswith("sentence_transformers.") for cls in type(base_model(model)).__mro__)


def sentence_encoder(model: nn.Module) -> nn.Module | None:
    """The transformer inside a model of sentence-transformers; None: the model is something else."""
    inner: Any = base_model(model)
    part = getattr(inner, "transformers_model", None) if is_sentence_model(model) else None
    return part if isinstance(part, nn.Module) else None


def sentence_inputs(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of forward, of a batch of sentence-transformers' trainers, by row, without labels.

    Raises:
        DataError: The batch has neither the inputs of texts nor two columns of texts, or texts of a row that are
            encoded in different ways.
    """
    if TOKEN_IDS in batch:
        return {**batch, AS_MAPPING: "input"}
    prefixes = [name.removesuffix(TOKEN_IDS) for name in batch if name.endswith(f"_{TOKEN_IDS}")]
    if prefixes:
        return _texts_by_row(model, batch, prefixes) | {AS_MAPPING: "input"}
    texts = [value for value in batch.values() if isinstance(value, list) and all(isinstance(v, str) for v in value)]
    preprocess: Any = getattr(base_model(model), "preprocess", None)
    if len(texts) != 2 or preprocess is None:
        raise DataError(
            f"a model of sentence-transformers needs batches with the inputs of each text (anchor_{TOKEN_IDS}, ...), "
            f"or two columns of texts for a CrossEncoder, got {sorted(batch)}; pass its trainer's collator "
            "(collate_fn=trainer.data_collator), and make each pair a row of its own",
            argument="collate_fn=",
        )
    pairs = list(zip(*texts, strict=True))
    return {**preprocess(pairs, prompt=batch.get("prompt"), task=batch.get("task")), AS_MAPPING: "input"}


def parts_of_texts(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Masks of each text of a row among the tokens ``[rows, texts, tokens]``; {} for other models."""
    if AS_MAPPING not in inputs or inputs[TOKEN_IDS].dim() != 3:
        return {}
    mask = inputs[MASK].bool()
    number = torch.arange(mask.shape[1], device=mask.device).reshape(1, -1, 1)
    return {f"{PART}text_{i + 1}": mask & (number == i) for i in range(mask.shape[1])}


def _texts_by_row(model: nn.Module, batch: Mapping[str, Any], prefixes: list[str]) -> dict[str, Any]:
    """The inputs of all texts of each row, ``[rows, texts, ...]``, padded to the longest text."""
    texts = [
        {name.removeprefix(prefix): value for name, value in batch.items() if name.startswith(prefix)}
        for prefix in prefixes
    ]
    names = [name for name in texts[0] if all(name in text for text in texts)]
    if MASK not in names:
        raise DataError(
            f"each text of a row needs an {MASK}, and the batch has {sorted(batch)}; static embeddings pool the "
            "tokens of a text in an EmbeddingBag: use a model that embeds each token"
        )
    found: dict[str, Any] = {}
    for name in names:
        values = [text[name] for text in texts]
        if all(isinstance(value, Tensor) and value.dim() > 0 for value in values):
            found[name] = _stacked(model, name, values)
        elif any(value != values[0] for value in values):
            raise DataError(
                f"the texts of a row must be encoded in one way, got {name} = {values}; score each text of a model "
                "with several (Router) as a row of its own"
            )
        else:
            found[name] = values[0]
    found[TEXTS_OF_ROW] = tuple(name for name in names if isinstance(found[name], Tensor) and found[name].dim() > 1)
    return found | ({NEGATIVES: True} if len(texts) > 2 else {})


def _stacked(model: nn.Module, name: str, values: list[Tensor]) -> Tensor:
    """One input of all texts, ``[rows, texts, ...]``, padded as the tokenizer does."""
    if values[0].dim() == 1:
        return torch.stack(values, 1)
    width = max(value.shape[1] for value in values)
    fill = (getattr(getattr(base_model(model), "config", None), "pad_token_id", None) or 0) if name == TOKEN_IDS else 0
    at_left = getattr(getattr(base_model(model), "tokenizer", None), "padding_side", "right") == "left"
    return torch.stack(
        [F.pad(v, (width - v.shape[1], 0) if at_left else (0, width - v.shape[1]), value=fill) for v in values], 1
    )
