"""Checkpoints of small models, scored by `vog-hf score` in this process."""

import models
import numpy as np
import trainers
from cli_runs import run
from safetensors.torch import save_file

from vog_hf import VoGScorer
from vog_hf.scores.vog_scores import VoGScores

END, START = 3, 9  # tokens of `language`: of the end of a text, and of the beginning of an answer
TEMPLATE = "{% for m in messages %}{{ m.content + ' ' }}{% endfor %}{% if add_generation_prompt %}w9{% endif %}"


def language(**names):
    """The tokenizer of `trainers` with tokens of other kinds."""
    made = trainers.tokenizer()
    made.eos_token, made.mask_token, made.chat_template = "w3", "w2", TEMPLATE
    for name, token in names.items():
        setattr(made, name, token)
    return made


def saved(folder, model, *processors):
    """Two checkpoints of a model, and their weights; the processors lie in the last one."""
    states = models.perturbed_states(model, 2)
    for step, state in enumerate(states, 1):
        model.save_pretrained(folder / f"checkpoint-{step}")
        save_file(state, folder / f"checkpoint-{step}" / "model.safetensors", metadata={"format": "pt"})
    for processor in processors:
        processor.save_pretrained(folder / "checkpoint-2")
    return [(f"checkpoint-{step}", state) for step, state in enumerate(states, 1)]


def scored(capfd, folder, *options, data=None, output=None):
    """Scores by the command."""
    output = output or folder / "scores"
    done = run(capfd, "score", folder, "-d", data or folder / "data", "-o", output, *options)
    assert done.code == 0, done.stderr
    return VoGScores.load(output)


def assert_scores(got, model, states, rows, *, collate_fn=models.collate, columns=("vog", "loss"), of=slice(None)):
    """Raise unless scores are those of the rows as the model takes them, of all rows or of some; returns those."""
    wanted = VoGScorer(model, progress=False).score(rows, states, collate_fn=collate_fn)
    assert got.manifest["task"] == wanted.manifest["task"]
    for name in columns:
        assert np.ptp(wanted.column(name)) > 0
        np.testing.assert_allclose(got.column(name)[of], wanted.column(name), rtol=1e-5, err_msg=name)
    return wanted


def refused(capfd, folder, data, *options):
    """The message of a command that fails."""
    done = run(capfd, "score", folder, "-d", data, "-o", folder / "refused", *options)
    assert done.code == 1
    return done.stderr
