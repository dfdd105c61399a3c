import re
import shlex
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

FOLDER = Path(__file__).parents[2] / "recipes" / "accelerate_configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
README = (FOLDER / "README.md").read_text(encoding="utf-8")
DISTRIBUTED = {
    "one_gpu": "NO",
    "multi_gpu": "MULTI_GPU",
    "multi_node": "MULTI_GPU",
    "fsdp": "FSDP",
    "deepspeed_zero3": "DEEPSPEED",
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_each_configuration(path):
    """Accelerate's own loader knows every key, and the kind of training is the one that the name says."""
    config = load_config_from_file(str(path))
    assert config.distributed_type.value == DISTRIBUTED[path.stem]
    assert config.use_cpu is False
    assert config.num_processes == config.num_machines * (1 if path.stem == "one_gpu" else 8)
    if path.stem == "fsdp":
        assert config.fsdp_config["fsdp_version"] == 2
    if path.stem == "deepspeed_zero3":
        assert config.deepspeed_config["zero_stage"] == 3


def test_a_misspelled_key_is_noticed(tmp_path):
    """The loader refuses what it does not know, so that loading is a check."""
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(CONFIGS[0].read_text(encoding="utf-8") + "num_procesess: 2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="num_procesess"):
        load_config_from_file(str(wrong))


def test_each_configuration_has_its_launch_command():
    """The table names every file, and accelerate's own parser takes each command."""
    commands = [shlex.split(command) for command in re.findall(r"`(accelerate launch --config_file [^`]+)`", README)]
    assert {Path(command[3]).name for command in commands} == {path.name for path in CONFIGS}
    for command in commands:
        parsed = launch_command_parser().parse_args(command[2:])
        assert (FOLDER.parents[1] / parsed.config_file).is_file()
        assert (FOLDER.parents[1] / parsed.training_script).is_file()
