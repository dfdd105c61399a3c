"""Transforms from rows to the inputs and labels of heads that write text: language models, summaries, translations."""

from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from vog_hf.cli.columns import find_text, refuse_label
from vog_hf.cli.head_inputs import HeadPreparation
from vog_hf.cli.model_inputs import Row, Rows
from vog_hf.data.collating import SeededPerRow
from vog_hf.errors import ConfigError, ModelError
from vog_hf.gradients.task import IGNORED_TOKEN
from vog_hf.gradients.token_tasks import CausalLanguageModel, TokenPrediction

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from vog_hf.data.column_kinds import Kind

Text = str | list[dict[str, object]]  # a conversation is a list of messages
MESSAGES, COMPLETED = "messages", ("prompt", "completion")  # columns as TRL's SFTTrainer has them
TEXT_INPUTS = ("input_ids", "attention_mask")
SUMMARIZED = (  # columns of published datasets: what is read, and what is written
    ("document", "summary"),
    ("article", "highlights"),
    ("text", "summary"),
    ("source", "target"),
)
MASKED_SHARE = 0.15  # of transformers' run_mlm.py


class Conversations(HeadPreparation):
    """Texts or conversations, tokenized as TRL does: a text ends with the token for it, a chat template has its own."""

    @override
    def check(self, dataset: "Dataset") -> None:
        if getattr(self.processor, "chat_template", None) is None and isinstance(dataset[0][self.inputs[0]], list):
            raise ModelError(
                f"column {self.inputs[0]!r} holds conversations, and {type(self.processor).__name__} has no chat "
                "template; save the training's tokenizer with the model, or name one with --processor"
            )

    def _tokens(self, value: Text, **options: object) -> list[int]:
        """Tokens of a conversation, or of a text with the token that ends it."""
        if isinstance(value, list):
            return self._chat(value, **options)
        end = self.processor.eos_token or ""
        ids: list[int] = self.processor(value if value.endswith(end) else value + end)["input_ids"]
        return ids

    def _prompt_tokens(self, prompt: Text, **options: object) -> list[int]:
        """Tokens of a prompt by itself, up to where an answer begins."""
        if isinstance(prompt, list):
            return self._chat(prompt, add_generation_prompt=True, **options)
        ids: list[int] = self.processor(prompt)["input_ids"]
        return ids

    def _chat(self, messages: list[dict[str, object]], **options: object) -> list[int]:
        ids: list[int] = self.processor.apply_chat_template(messages, tokenize=True, return_dict=True, **options)[
            "input_ids"
        ]
        return ids


class Completions(Conversations):
    """Texts, conversations or completions of a causal language model, tokenized as by TRL's SFTTrainer.

    Every token of a text or a conversation has a label; of a prompt with its completion, only those of the completion.
    """

    task: ClassVar[str | None] = CausalLanguageModel.name
    needs_label_column: ClassVar[bool] = False

    @classmethod
    @override
    def find_columns(
        cls, dataset: "Dataset", kind: "Kind", inputs: tuple[str, ...], label: str | None
    ) -> tuple[tuple[str, ...], str | None]:
        refuse_label(label, "a causal language model", "name prompt and completion with --input-column, twice")
        names = set(dataset.column_names)
        if not inputs and MESSAGES in names:
            inputs = (MESSAGES,)
        if not inputs and names >= set(COMPLETED):
            inputs = COMPLETED
        return inputs or (find_text(dataset),), None

    @classmethod
    @override
    def pad(cls, tokenizer: "PreTrainedTokenizerBase", config: object) -> None:
        if tokenizer.pad_token is None and tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token  # padding is masked, and has no label
        super().pad(tokenizer, config)

    @override
    def __call__(self, rows: Rows) -> dict[str, Any]:
        encoded = [self._encoded(*values) for values in zip(*(rows[name] for name in self.inputs), strict=True)]
        ids = [tokens[: self.max_length] for tokens, _ in encoded]
        return {
            "input_ids": ids,
            "attention_mask": [[1] * len(tokens) for tokens in ids],
            "labels": [
                [IGNORED_TOKEN] * min(n_prompt, len(tokens)) + tokens[n_prompt:]
                for tokens, (_, n_prompt) in zip(ids, encoded, strict=True)
            ],
        }

    @override
    def described(self) -> dict[str, Any]:
        return {**super().described(), "labels": "completion" if len(self.inputs) > 1 else "all tokens"}

    def _encoded(self, first: Any, completion: Any = None) -> tuple[list[int], int]:
        """Tokens of a row, and how many of them are of its prompt."""
        if completion is None:
            return self._tokens(first), 0
        return self._tokens(first + completion), len(self._prompt_tokens(first))


class MaskedTexts(HeadPreparation):
    """Texts of which some tokens are hidden, drawn once for each row."""

    task: ClassVar[str | None] = TokenPrediction.name
    needs_label_column: ClassVar[bool] = False

    @classmethod
    @override
    def find_columns(
        cls, dataset: "Dataset", kind: "Kind", inputs: tuple[str, ...], label: str | None
    ) -> tuple[tuple[str, ...], str | None]:
        refuse_label(label, "a masked language model", "name the text with --input-column")
        return inputs or (find_text(dataset),), None

    @override
    def check(self, dataset: "Dataset") -> None:
        if getattr(self.processor, "mask_token", None) is None:
            raise ModelError(
                f"{type(self.processor).__name__} has no mask token, which a masked language model needs; save the "
                "training's tokenizer with the model, or name one with --processor"
            )

    @override
    def __call__(self, rows: Rows) -> dict[str, Any]:
        return {**self._texts(rows, return_special_tokens_mask=True)}

    @override
    def collate(self, rows: list[Row]) -> dict[str, Any]:
        from transformers import DataCollatorForLanguageModeling

        masking = DataCollatorForLanguageModeling(self.processor, mlm_probability=MASKED_SHARE)
        return SeededPerRow(masking)(rows)

    @override
    def described(self) -> dict[str, Any]:
        return {**super().described(), "masked_share": MASKED_SHARE}


class Summaries(HeadPreparation):
    """Texts with those that an encoder-decoder is to write: summaries, translations, answers."""

    task: ClassVar[str | None] = TokenPrediction.name

    @classmethod
    @override
    def find_columns(
        cls, dataset: "Dataset", kind: "Kind", inputs: tuple[str, ...], label: str | None
    ) -> tuple[tuple[str, ...], str | None]:
        pairs = [pair for pair in SUMMARIZED if set(pair) <= set(dataset.column_names)]
        usual = ((inputs[0], label) if inputs and label else None) or next(iter(pairs), None)
        if usual is None or (inputs and inputs[0] != usual[0]) or (label and label != usual[1]):
            raise ConfigError(
                "an encoder-decoder needs a column that it reads and one that it writes, and the dataset has "
                f"{', '.join(dataset.column_names)}; name them with --input-column and --label-column"
            )
        return (usual[0],), usual[1]

    @classmethod
    @override
    def most_inputs(cls, kind: "Kind") -> int | None:
        return 1

    @override
    def __call__(self, rows: Rows) -> dict[str, Any]:
        cut: dict[str, Any] = {"truncation": self.max_length is not None, "max_length": self.max_length}
        encoded = self._texts(rows)
        written = self.processor(text_target=[text or "" for text in rows[str(self.label)]], **cut)["input_ids"]
        return {**{name: encoded[name] for name in TEXT_INPUTS}, "labels": written}
