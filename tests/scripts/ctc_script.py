"""Fine-tune a recognizer of speech with Trainer, as the example of transformers does, with VoG added.

See examples/pytorch/speech-recognition/run_speech_recognition_ctc.py in github.com/huggingface/transformers.
What was added for VoG is the import and the line with `VoGCallback`;
`tests/trainer/test_task_scripts.py` runs it.
"""

from dataclasses import dataclass, field
from typing import Any

from datasets import load_dataset
from transformers import (
    AutoFeatureExtractor,
    AutoModelForCTC,
    AutoTokenizer,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

from vog_hf import VoGCallback


@dataclass
class DataCollatorCTCWithPadding:
    feature_extractor: Any
    tokenizer: Any

    def __call__(self, features):
        input_features = [{"input_values": feature["input_values"]} for feature in features]
        label_features = [{"input_ids": feature["labels"]} for feature in features]
        batch = self.feature_extractor.pad(input_features, padding=True, return_tensors="pt")
        labels_batch = self.tokenizer.pad(label_features, padding=True, return_tensors="pt")
        batch["labels"] = labels_batch["input_ids"].masked_fill(labels_batch.attention_mask.ne(1), -100)
        return batch


@dataclass
class Arguments:
    model_name_or_path: str = field(metadata={"help": "A local folder, or an id on the Hub."})
    train_file: str = field(metadata={"help": "Parquet file with waves in `audio` and transcripts in `text`."})


def main():
    parser = HfArgumentParser((Arguments, TrainingArguments))
    args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)
    raw_datasets = load_dataset("parquet", data_files={"train": args.train_file})

    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    feature_extractor = AutoFeatureExtractor.from_pretrained(args.model_name_or_path)
    model = AutoModelForCTC.from_pretrained(args.model_name_or_path, ctc_loss_reduction="mean")
    model.freeze_feature_encoder()

    def prepare_dataset(batch):
        rate = feature_extractor.sampling_rate
        batch["input_values"] = feature_extractor(batch["audio"], sampling_rate=rate).input_values[0]
        batch["labels"] = tokenizer(batch["text"]).input_ids
        return batch

    vectorized = raw_datasets["train"].map(prepare_dataset, remove_columns=["audio"])
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=vectorized,
        processing_class=feature_extractor,
        data_collator=DataCollatorCTCWithPadding(feature_extractor, tokenizer),
        callbacks=[VoGCallback(vectorized)],
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    return trainer


if __name__ == "__main__":
    main()
