"""The table of tasks: one class for each kind of head."""

from vog_hf.gradients.class_tasks import (
    MultiLabelClassification,
    MultipleChoice,
    Regression,
    SingleLabelClassification,
)
from vog_hf.gradients.detection import ObjectDetection
from vog_hf.gradients.dual_encoders import PairSimilarity
from vog_hf.gradients.preferences import PreferenceOptimization, RewardModeling
from vog_hf.gradients.question_answering import QuestionAnswering
from vog_hf.gradients.reconstruction import PixelReconstruction
from vog_hf.gradients.segmentation import SemanticSegmentation
from vog_hf.gradients.sentence_encoders import PairScore, TextContrast, TextSimilarity
from vog_hf.gradients.speech_recognition import SpeechRecognition
from vog_hf.gradients.task import Task
from vog_hf.gradients.token_tasks import CausalLanguageModel, TokenClassification, TokenPrediction

__all__ = [
    "PREDICTING_TASKS",
    "TASKS",
    "CausalLanguageModel",
    "MultiLabelClassification",
    "MultipleChoice",
    "ObjectDetection",
    "PairScore",
    "PairSimilarity",
    "PixelReconstruction",
    "PreferenceOptimization",
    "QuestionAnswering",
    "Regression",
    "RewardModeling",
    "SemanticSegmentation",
    "SingleLabelClassification",
    "SpeechRecognition",
    "Task",
    "TextContrast",
    "TextSimilarity",
    "TokenClassification",
    "TokenPrediction",
]

TASKS: dict[str, Task] = {
    task.name: task()
    for task in (
        SingleLabelClassification,
        MultiLabelClassification,
        Regression,
        TokenClassification,
        TokenPrediction,
        CausalLanguageModel,
        QuestionAnswering,
        SemanticSegmentation,
        ObjectDetection,
        SpeechRecognition,
        MultipleChoice,
        PixelReconstruction,
        PairSimilarity,
        RewardModeling,
        PreferenceOptimization,
        TextSimilarity,
        TextContrast,
        PairScore,
    )
}
PREDICTING_TASKS = tuple(name for name, task in TASKS.items() if task.can_predict_label)
