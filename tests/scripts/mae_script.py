"""Pretrain a masked autoencoder with Trainer, as the example of transformers does, with VoG added.

See examples/pytorch/image-pretraining/run_mae.py in github.com/huggingface/transformers.
What was added for VoG is the import, the transform without random crops and the line with `VoGCallback`;
`tests/trainer/test_task_scripts.py` runs it.
"""

from dataclasses import dataclass, field

import torch
from datasets import load_dataset
from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, Resize, ToTensor
from transformers import (
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    set_seed,
)

from vog_hf import VoGCallback


@dataclass
class Arguments:
    model_name_or_path: str = field(metadata={"help": "A local folder, or an id on the Hub."})
    train_file: str = field(metadata={"help": "Parquet file with images in `image`."})
    mask_ratio: float = field(default=0.5)


def main():
    parser = HfArgumentParser((Arguments, TrainingArguments))
    args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)
    raw_datasets = load_dataset("parquet", data_files={"train": args.train_file})

    config = ViTMAEConfig.from_pretrained(args.model_name_or_path)
    config.mask_ratio = args.mask_ratio
    image_processor = ViTImageProcessor.from_pretrained(args.model_name_or_path)
    model = ViTMAEForPreTraining.from_pretrained(args.model_name_or_path, config=config)
    size = (image_processor.size["height"], image_processor.size["width"])
    normalize = Normalize(mean=image_processor.image_mean, std=image_processor.image_std)
    transforms = Compose([RandomResizedCrop(size, scale=(0.2, 1.0)), RandomHorizontalFlip(), ToTensor(), normalize])
    plain = Compose([Resize(size), ToTensor(), normalize])

    def preprocess_images(examples, transform=transforms):
        return {"pixel_values": [transform(image.convert("RGB")) for image in examples["image"]]}

    def collate_fn(examples):
        return {"pixel_values": torch.stack([example["pixel_values"] for example in examples])}

    ds = raw_datasets
    ds["train"].set_transform(preprocess_images)
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=ds["train"],
        processing_class=image_processor,
        data_collator=collate_fn,
        callbacks=[VoGCallback(ds["train"].with_transform(lambda rows: preprocess_images(rows, plain)))],
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    return trainer


if __name__ == "__main__":
    main()
