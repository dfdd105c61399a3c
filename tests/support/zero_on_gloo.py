"""DeepSpeed on CPU processes under gloo; Accelerate has it on accelerators only, unless its state is configured."""

import os


def use_deepspeed():
    """Import DeepSpeed for CPUs; gloo reduces what kernels that it would compile first reduce."""
    os.environ["DS_ACCELERATOR"] = "cpu"  # read at import
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def configure_state():
    """Let Accelerate train with DeepSpeed on all processes of this launch."""
    use_deepspeed()
    os.environ |= {"ACCELERATE_USE_CPU": "false", "ACCELERATE_USE_DEEPSPEED": "true"}
    from accelerate import PartialState

    PartialState(backend="gloo")


def trainer_options(stage):
    """TrainingArguments of a training under a ZeRO stage, which shards parameters of any size."""
    sharding = {"stage": stage, "stage3_param_persistence_threshold": 0}
    automatic = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    return {
        "deepspeed": {"zero_optimization": sharding, **dict.fromkeys(automatic, "auto")},
        "accelerator_config": {"use_configured_state": True},
        "use_cpu": False,
        "optim": "adamw_torch",
    }
