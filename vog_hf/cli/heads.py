"""The table of heads: which transform makes the inputs of a model, and what works for a model that has none."""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vog_hf.cli.head_inputs import Answers, Masks, SpokenTexts, Transcripts
from vog_hf.cli.image_heads import Captions, MaskedImages, Reconstructions
from vog_hf.cli.model_inputs import Preparation
from vog_hf.cli.models import Architecture
from vog_hf.cli.object_heads import Objects
from vog_hf.cli.preference_heads import PAIR, AnswerPairs, RewardPairs, texts_of_pairs
from vog_hf.cli.text_heads import Completions, MaskedTexts, Summaries
from vog_hf.cli.word_heads import Choices, TaggedWords
from vog_hf.errors import ConfigError, ModelError
from vog_hf.gradients.fixed_noise import NOISE

if TYPE_CHECKING:
    from datasets import Dataset

    from vog_hf.data.column_kinds import Kind

HEADS: dict[str, type[Preparation]] = {  # by a part of the name of a model or of what it derives from
    "ImageClassification": Preparation,
    "SequenceClassification": Preparation,
    "AudioClassification": Preparation,
    "ForQuestionAnswering": Answers,
    "ForSemanticSegmentation": Masks,
    "ForObjectDetection": Objects,
    "ForCTC": Transcripts,
    "ForTokenClassification": TaggedWords,
    "ForMultipleChoice": Choices,
    "ForCausalLM": Completions,
    "LMHeadModel": Completions,
    "ForMaskedLM": MaskedTexts,
    "ForMaskedImageModeling": MaskedImages,
    "MarianMTModel": Summaries,
}
PREFERENCES: dict[type[Preparation], type[Preparation]] = {Preparation: RewardPairs, Completions: AnswerPairs}
CALLABLE = "VoGScorer(model, config=VoGConfig(target=a callable)), from Python"
WITH_PROCESSOR = "VoGScorer(model), from Python, with a collator that calls the model's processor"
INSTEAD = {  # by a part of the name, for models without such a transform
    "ForConditionalGeneration": WITH_PROCESSOR,
    "ForPreTraining": f"the same checkpoint with a head of this list, or {CALLABLE}",
    "ForDepthEstimation": CALLABLE,
    "ForInstanceSegmentation": CALLABLE,
    "ForUniversalSegmentation": CALLABLE,
    "ForNextSentencePrediction": "VoGScorer(model), from Python, with a collator that makes pairs of texts",
}
OTHER_LANGUAGE_MODELS = ("XLNetLMHeadModel",)  # they predict tokens in an order that is drawn
NEEDS_BOXES = "bbox"  # of models of documents: where on the page each token is


def head_of(architecture: Architecture) -> type[Preparation]:
    """The transform for the head of a model, before its weights are loaded.

    Raises:
        ModelError: There is none; names what works instead.
    """
    model_class, names = architecture.model_class, [cls.__name__ for cls in architecture.model_class.__mro__]
    parameters = inspect.signature(model_class.forward).parameters
    by_name = next((head for part, head in HEADS.items() if any(part in name for name in names)), None)
    head = _by_inputs(architecture, names, list(parameters)) or by_name
    if head is None or NEEDS_BOXES in parameters or names[0] in OTHER_LANGUAGE_MODELS:
        raise ModelError(
            "vog-hf score takes classification, regression, token classification, multiple choice, question "
            "answering, language models, summarization, preferences, semantic segmentation, detection, masked images, "
            "dual encoders of image and text, and speech recognition, and "
            f"{architecture.name} is a {names[0]}; use {_instead(names)}"
        )
    return head


def for_preferences(
    head: type[Preparation],
    architecture: Architecture,
    dataset: "Dataset",
    *,
    kind: "Kind",
    inputs: Sequence[str],
    label: str | None,
) -> type[Preparation]:
    """The transform of a head as it is, or that of preferences where the rows are such.

    Args:
        head: Transform for the model's head.
        architecture: Model.
        dataset: Dataset, which has preferences if it has columns of these names.
        kind: What the model's input columns hold.
        inputs: Input columns that are named on the command line.
        label: Label column that is named there.

    Raises:
        ConfigError: Half of a preference, or preferences for a model with several labels.
    """
    pairs = PREFERENCES.get(head) if kind == "text" else None
    halves = [name for name in PAIR if name in (inputs or texts_of_pairs(dataset)) and name != label]
    if pairs is None or not halves or (inputs and len(halves) == 1):
        return head
    if len(halves) == 1:
        missing = next(name for name in PAIR if name not in halves)
        raise ConfigError(
            f"the dataset has a column {halves[0]!r} and none named {missing!r} (columns: "
            f"{', '.join(dataset.column_names)}); rename the column of the other text to {missing!r}, or name the "
            "model's input with --input-column"
        )
    n_labels = architecture.config.num_labels
    if pairs is RewardPairs and n_labels != 1:
        raise ConfigError(
            f"the dataset has pairs of texts ({' and '.join(PAIR)}), and {architecture.name} has {n_labels} labels; a "
            "reward model has one (num_labels=1), and a classifier needs the column of its text: --input-column"
        )
    return pairs


def _by_inputs(architecture: Architecture, names: list[str], parameters: list[str]) -> type[Preparation] | None:
    """The transform of a head whose name says too little."""
    model_class = architecture.model_class
    if hasattr(model_class, "get_text_features") and hasattr(model_class, "get_image_features"):
        return None if any(name.endswith("ForConditionalGeneration") for name in names) else Captions
    is_image = model_class.main_input_name == "pixel_values"
    if names[0].endswith("ForPreTraining") and is_image and NOISE in parameters:
        return Reconstructions
    if names[0].endswith("ForConditionalGeneration") and architecture.config.is_encoder_decoder and not is_image:
        return Summaries if model_class.main_input_name == "input_ids" else SpokenTexts
    return None


def _instead(names: list[str]) -> str:
    by_name = (advice for part, advice in INSTEAD.items() if part in names[0])
    return next(by_name, "VoGScorer(model), from Python, with a collator and, without logits, a callable target")
