"""Fine-tune an encoder of texts on triplets with in-batch negatives, as sentence-transformers' example, with VoG added.

See examples/sentence_transformer/training/nli/training_nli_v2.py in github.com/huggingface/sentence-transformers.
What was added for VoG is the import and the line with `VoGCallback`;
`tests/trainer/test_task_scripts.py` runs it.
"""

from dataclasses import dataclass, field

from datasets import load_dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.trainer import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.training_args import (
    BatchSamplers,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.util.similarity import SimilarityFunction
from transformers import HfArgumentParser

from vog_hf import VoGCallback


@dataclass
class Arguments:
    model_name_or_path: str = field(metadata={"help": "A local folder, or an id on the Hub."})
    train_file: str = field(metadata={"help": "JSON file with `anchor`, `positive` and `negative`."})
    validation_file: str = field(metadata={"help": "JSON file with `sentence1`, `sentence2` and `score`."})
    output_dir: str = field(metadata={"help": "A folder."})
    train_batch_size: int = field(default=4)
    num_epochs: int = field(default=3)


def main():
    (options,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    # 1. The model; of another one than a SentenceTransformer, one with mean pooling is made.
    model = SentenceTransformer(options.model_name_or_path, device="cpu")

    # 2. The triplets.
    train_dataset = load_dataset("json", data_files={"train": options.train_file}, split="train")

    # 3. The loss, with the other rows of a batch as negatives.
    train_loss = MultipleNegativesRankingLoss(model)

    # 4. An evaluator for use during training.
    eval_dataset = load_dataset("json", data_files={"dev": options.validation_file}, split="dev")
    dev_evaluator = EmbeddingSimilarityEvaluator(
        sentences1=eval_dataset["sentence1"],
        sentences2=eval_dataset["sentence2"],
        scores=eval_dataset["score"],
        main_similarity=SimilarityFunction.COSINE,
        name="sts-dev",
    )
    dev_evaluator(model)

    # 5. The training arguments.
    args = SentenceTransformerTrainingArguments(
        output_dir=options.output_dir,
        num_train_epochs=options.num_epochs,
        per_device_train_batch_size=options.train_batch_size,
        per_device_eval_batch_size=options.train_batch_size,
        warmup_steps=0.1,
        use_cpu=True,
        dataloader_pin_memory=False,
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="steps",
        save_steps=3,
        save_total_limit=2,
        logging_steps=100,
        report_to="none",
        run_name="nli-v2",
    )

    # 6. The trainer.
    trainer = SentenceTransformerTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        loss=train_loss,
        evaluator=dev_evaluator,
        callbacks=[VoGCallback(train_dataset)],
    )
    trainer.train()

    # 7. The model after training.
    dev_evaluator(model)
    model.save(f"{options.output_dir}/final")
    return trainer


if __name__ == "__main__":
    main()
