"""Fine-tune an image classifier of timm in a loop with Accelerate, as its example does, with VoG added.

See examples/complete_cv_example.py in github.com/huggingface/accelerate.
What was added for VoG is the import and the two lines that score;
`tests/trainer/test_task_scripts.py` runs it.
"""

import argparse
import os
from pathlib import Path

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, RandomResizedCrop, Resize, ToTensor

from vog_hf import VoGScorer


class PetsDataset(Dataset):
    def __init__(self, file_names, image_transform, label_to_id):
        self.file_names, self.image_transform, self.label_to_id = file_names, image_transform, label_to_id

    def __len__(self):
        return len(self.file_names)

    def __getitem__(self, idx):
        image = self.image_transform(Image.open(self.file_names[idx]).convert("RGB"))
        return {"image": image, "label": self.label_to_id[self.file_names[idx].parent.name]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_name", required=True, help="Name of timm.")
    parser.add_argument("--data_dir", required=True, help="Folder with a subfolder of images per class.")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--num_epochs", type=int, default=3)
    args = parser.parse_args()
    accelerator = Accelerator(cpu=True)
    set_seed(42)
    file_names = sorted(Path(args.data_dir).glob("*/*.png"))
    label_to_id = {label: i for i, label in enumerate(sorted({name.parent.name for name in file_names}))}
    train_tfm = Compose([RandomResizedCrop((32, 32), scale=(0.5, 1.0)), ToTensor()])
    eval_tfm = Compose([Resize((32, 32)), ToTensor()])
    train_dataset = PetsDataset(file_names, train_tfm, label_to_id)
    train_dataloader = DataLoader(train_dataset, shuffle=True, batch_size=16)
    model = timm.create_model(args.model_name, pretrained=False, num_classes=len(label_to_id))
    mean = torch.tensor(model.default_cfg["mean"])[None, :, None, None]
    std = torch.tensor(model.default_cfg["std"])[None, :, None, None]
    optimizer = torch.optim.Adam(params=model.parameters(), lr=1e-3)
    lr_scheduler = OneCycleLR(optimizer, max_lr=1e-2, epochs=args.num_epochs, steps_per_epoch=len(train_dataloader))
    model, optimizer, train_dataloader, lr_scheduler = accelerator.prepare(
        model, optimizer, train_dataloader, lr_scheduler
    )
    for epoch in range(args.num_epochs):
        model.train()
        for batch in train_dataloader:
            outputs = model((batch["image"] - mean) / std)
            accelerator.backward(torch.nn.functional.cross_entropy(outputs, batch["label"]))
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
        accelerator.save_state(os.path.join(args.output_dir, f"epoch_{epoch}"))
    rows = [((r["image"] - mean[0]) / std[0], r["label"]) for r in PetsDataset(file_names, eval_tfm, label_to_id)]
    scores = VoGScorer(accelerator.unwrap_model(model)).score(rows, args.output_dir)
    accelerator.print(f"{len(scores)} rows have scores")
    return scores


if __name__ == "__main__":
    main()
