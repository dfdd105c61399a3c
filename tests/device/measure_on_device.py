"""Run ``benchmarks/run.py`` with its own command line on the simulated device, which is torch's accelerator.

The models of the benchmark for GPUs are replaced by small ones of the same kinds.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import simulated_device

if __name__ == "__main__":
    import on_gpu
    import run
    from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

    simulated_device.install()
    classes = {"num_labels": on_gpu.CLASSES}
    resnet = ResNetConfig(embedding_size=4, hidden_sizes=[8, 8], depths=[1, 1], **classes)
    vit = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32, **classes
    )
    on_gpu.SIDE = 32
    on_gpu.MODELS = {
        "ResNet-50": lambda: ResNetForImageClassification(resnet),
        "ViT-B/16": lambda: ViTForImageClassification(vit),
    }
    run.main()
