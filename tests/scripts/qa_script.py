"""Fine-tune a model that marks answers with Trainer, as the example of transformers does, with VoG added.

See examples/pytorch/question-answering/run_qa.py in github.com/huggingface/transformers.
What was added for VoG is the import and the line with `VoGCallback`;
`tests/trainer/test_task_scripts.py` runs it.
"""

from dataclasses import dataclass, field

from datasets import load_dataset
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

from vog_hf import VoGCallback


@dataclass
class Arguments:
    model_name_or_path: str = field(metadata={"help": "A local folder, or an id on the Hub."})
    train_file: str = field(metadata={"help": "JSON file with `question`, `context` and `answers`."})
    max_seq_length: int = field(default=16)
    doc_stride: int = field(default=4)


def main():
    parser = HfArgumentParser((Arguments, TrainingArguments))
    args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)
    raw_datasets = load_dataset("json", data_files={"train": args.train_file})

    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    model = AutoModelForQuestionAnswering.from_pretrained(args.model_name_or_path)

    def prepare_train_features(examples):
        tokenized = tokenizer(
            examples["question"],
            examples["context"],
            truncation="only_second",
            max_length=args.max_seq_length,
            stride=args.doc_stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        sample_mapping = tokenized.pop("overflow_to_sample_mapping")
        starts, ends = [], []
        for i, offsets in enumerate(tokenized.pop("offset_mapping")):
            answers, sequence_ids = examples["answers"][sample_mapping[i]], tokenized.sequence_ids(i)
            start_char = answers["answer_start"][0]
            end_char = start_char + len(answers["text"][0])
            context = [k for k, part in enumerate(sequence_ids) if part == 1]
            inside = offsets[context[0]][0] <= start_char and offsets[context[-1]][1] >= end_char
            starts.append(next(k for k in context if offsets[k][1] > start_char) if inside else 0)
            ends.append(next(k for k in context if offsets[k][1] >= end_char) if inside else 0)
        return {**tokenized, "start_positions": starts, "end_positions": ends}

    columns = raw_datasets["train"].column_names
    train_dataset = raw_datasets["train"].map(prepare_train_features, batched=True, remove_columns=columns)
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[VoGCallback(train_dataset)],
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    return trainer


if __name__ == "__main__":
    main()
