"""Fine-tune a cross-encoder on pairs of questions, as the example of sentence-transformers does, with VoG added.

See examples/cross_encoder/training/quora_duplicate_questions/training_quora_duplicate_questions.py in
github.com/huggingface/sentence-transformers. What was added for VoG is the import and the line with `VoGCallback`;
`tests/trainer/test_task_scripts.py` runs it.
"""

from dataclasses import dataclass, field

from datasets import load_dataset
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.evaluation import CrossEncoderClassificationEvaluator
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.cross_encoder.trainer import CrossEncoderTrainer
from transformers import HfArgumentParser

from vog_hf import VoGCallback


@dataclass
class Arguments:
    model_name_or_path: str = field(metadata={"help": "A local folder, or an id on the Hub."})
    train_file: str = field(metadata={"help": "JSON file with `sentence1`, `sentence2` and `label`, 0 or 1."})
    validation_file: str = field(metadata={"help": "JSON file with the same columns."})
    output_dir: str = field(metadata={"help": "A folder."})
    train_batch_size: int = field(default=4)
    num_epochs: int = field(default=3)


def main():
    (options,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    # 1. The model, with one output.
    model = CrossEncoder(options.model_name_or_path, num_labels=1, device="cpu")

    # 2. The pairs.
    train_dataset = load_dataset("json", data_files={"train": options.train_file}, split="train")
    eval_dataset = load_dataset("json", data_files={"dev": options.validation_file}, split="dev")

    # 3. The loss, for pairs with a label of 0 or 1.
    loss = BinaryCrossEntropyLoss(model)

    # 4. The evaluator, before and during training.
    dev_cls_evaluator = CrossEncoderClassificationEvaluator(
        sentence_pairs=list(zip(eval_dataset["sentence1"], eval_dataset["sentence2"], strict=True)),
        labels=eval_dataset["label"],
        name="quora-duplicates-dev",
    )
    dev_cls_evaluator(model)

    # 5. The training arguments.
    args = CrossEncoderTrainingArguments(
        output_dir=options.output_dir,
        num_train_epochs=options.num_epochs,
        per_device_train_batch_size=options.train_batch_size,
        per_device_eval_batch_size=options.train_batch_size,
        warmup_steps=0.1,
        use_cpu=True,
        dataloader_pin_memory=False,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="steps",
        save_steps=3,
        save_total_limit=2,
        logging_steps=100,
        report_to="none",
        run_name="reranker-quora-duplicates",
    )

    # 6. The trainer.
    trainer = CrossEncoderTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        loss=loss,
        evaluator=dev_cls_evaluator,
        callbacks=[VoGCallback(train_dataset)],
    )
    trainer.train()

    # 7. The model after training.
    dev_cls_evaluator(model)
    model.save_pretrained(f"{options.output_dir}/final")
    return trainer


if __name__ == "__main__":
    main()
