"""Train a dual encoder of images and texts with Trainer, as the example of transformers does, with VoG added.

See examples/pytorch/contrastive-image-text/run_clip.py in github.com/huggingface/transformers.
What was added for VoG is the import and the line with `VoGCallback`;
`tests/trainer/test_task_scripts.py` runs it.
"""

from dataclasses import dataclass, field

import torch
from datasets import load_dataset
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

from vog_hf import VoGCallback


@dataclass
class Arguments:
    model_name_or_path: str = field(metadata={"help": "A local folder, or an id on the Hub."})
    train_file: str = field(metadata={"help": "Parquet file with images in `image` and texts in `caption`."})
    max_seq_length: int = field(default=16)


def main():
    parser = HfArgumentParser((Arguments, TrainingArguments))
    args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)
    raw_datasets = load_dataset("parquet", data_files={"train": args.train_file})

    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    image_processor = AutoImageProcessor.from_pretrained(args.model_name_or_path)
    model = AutoModel.from_pretrained(args.model_name_or_path)
    size = model.config.vision_config.image_size
    normalize = Normalize(image_processor.image_mean, image_processor.image_std)
    image_transformations = Compose([Resize(size), CenterCrop(size), ToTensor(), normalize])

    def tokenize_captions(examples):
        options = {"max_length": args.max_seq_length, "padding": "max_length", "truncation": True}
        text_inputs = tokenizer(list(examples["caption"]), **options)
        return {"input_ids": text_inputs.input_ids, "attention_mask": text_inputs.attention_mask}

    def transform_images(examples):
        examples["pixel_values"] = [image_transformations(image.convert("RGB")) for image in examples["image"]]
        return examples

    def collate_fn(examples):
        pixel_values = torch.stack([example["pixel_values"] for example in examples])
        input_ids = torch.tensor([example["input_ids"] for example in examples], dtype=torch.long)
        attention_mask = torch.tensor([example["attention_mask"] for example in examples], dtype=torch.long)
        return {
            "pixel_values": pixel_values,
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "return_loss": True,
        }

    train_dataset = raw_datasets["train"].map(tokenize_captions, batched=True)
    train_dataset.set_transform(transform_images)
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        data_collator=collate_fn,
        callbacks=[VoGCallback(train_dataset)],
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    return trainer


if __name__ == "__main__":
    main()
