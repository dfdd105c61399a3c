"""Scores and datasets for the tests of the report: random but for the seed, with names that would break a page."""

import io

import numpy as np
from datasets import Audio, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from scipy.io import wavfile
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from vog_hf.metric.definition import percentile
from vog_hf.metric.heat_maps import RaggedMaps
from vog_hf.scores.vog_scores import VoGScores

N = 153
SNAPSHOTS = 5
HOSTILE = [
    "<script>alert(1)</script>",
    "\"quotes' & `ticks`",
    "**bold** [link](https://example.org) $x_1$ ]]> <!--",
    "\x07\ud800 {{ 7 * 7 }}",
]
HOSTILE_TEXT = "</p><img src=https://example.org/x onerror=alert(2)> & {% raw %} row"


def make_maps(kind, n_rows, generator):
    """A heat map per row: ``"picture"`` or ``"tokens"`` of differing length."""
    shapes = np.full((n_rows, 2), 4, np.int32)
    if kind == "tokens":
        shapes = (3 + np.arange(n_rows, dtype=np.int32) % 5)[:, None]
    shares = generator.random(int(shapes.prod(axis=1).sum())).astype(np.float16)
    return RaggedMaps(shares, shapes, np.ones(n_rows, np.float32))


def make_scores(n_rows=N, *, maps="picture", labels=True, trajectories=True, names=HOSTILE, noise=0.3):
    """Scores of a classification in which high VoG goes with errors; some rows have no label."""
    generator = np.random.default_rng(0)
    given = generator.integers(0, len(names), n_rows).astype(np.int32)
    hardness = generator.random(n_rows)
    wrong = hardness + noise * generator.normal(size=n_rows) > 0.7
    confidence = np.clip(1 - hardness[:, None] + 0.1 * generator.normal(size=(n_rows, SNAPSHOTS)), 0, 1)
    vog = (0.1 + hardness + 0.1 * generator.random(n_rows)).astype(np.float32)
    columns = {
        "label": np.where(np.arange(n_rows) % 10 == 7, -1, given).astype(np.int32),
        "prediction": np.where(wrong, (given + 1) % len(names), given).astype(np.int32),
        "vog": vog,
        "vog_class_normalized": ((vog - vog.mean()) / vog.std()).astype(np.float32),
        "vog_percentile": percentile(vog).numpy(),
        "vog_early": generator.random(n_rows).astype(np.float32),
        "vog_late": vog + np.float32(0.1),
        "confidence": confidence.mean(1).astype(np.float32),
        "correctness": np.ones(n_rows, dtype=np.float32),
        "gradient_magnitude": (vog * 2).astype(np.float32),
        "loss": (hardness + 0.1).astype(np.float32),
        "variability": confidence.std(1).astype(np.float32),
    }
    if not labels:
        columns["label"] = np.full(n_rows, -1, np.int32)
    manifest = {
        "created": "2026-01-02T03:04:05+00:00",
        "versions": {"vog-hf": "0.1.0", "torch": "2.9"},
        "config": {"target": ["logit"], "label": "given", "dtype": "float32"},
        "task": "single_label_classification",
        "class_names": list(names),
        "model": {"class": "Net", "name": "me/<b>net</b>\"'&"},
        "input": {
            "name": "input",
            "embedding": maps == "tokens",
            "element_shape": [3, 8, 8],
            "channels_averaged": True,
        },
        "computed": {"device": "cpu", "folding": "nothing folded", "torch_compile": False},
        "data": {"columns": {"<i>col</i>": "abcdef0123456789abcdef", "class": "9" * 64}},
        "collect": "replay",
        "rows_digest": "d1665d1665d1665d",
        "snapshots": [{"name": f"step-{k}", "step": 10 * k, "digest": f"{k}" * 64} for k in range(1, SNAPSHOTS + 1)],
        "windows": {"early": ["a", "b"], "late": ["c", "d"], "all": list("abcde")},
    }
    running = vog[:, None] * np.linspace(0.5, 1, SNAPSHOTS) + 0.05 * generator.random((n_rows, SNAPSHOTS))
    predicted = np.where(
        generator.random((n_rows, SNAPSHOTS)) < confidence, given[:, None], (given[:, None] + 1) % len(names)
    )
    predicted[:, -1] = columns["prediction"]
    found = {"vog": running, "confidence": confidence} if trajectories else {}
    found = {name: values.astype(np.float32) for name, values in found.items()}
    found |= {"prediction": predicted.astype(np.int32)} if trajectories else {}
    heat = make_maps(maps, n_rows, generator) if maps else None
    return VoGScores(columns, manifest, trajectories=found, heat_maps=heat, row_hash=np.arange(n_rows, dtype=np.uint64))


def make_regression(n_rows=N):
    """Scores of a regression: no class, no confidence; a NaN in VoG and one in the loss."""
    generator = np.random.default_rng(1)
    vog = generator.random(n_rows).astype(np.float32)
    vog[3] = np.nan
    columns = {
        "label": generator.normal(size=n_rows).astype(np.float32),
        "prediction": generator.normal(size=n_rows).astype(np.float32),
        "vog": vog,
        "vog_normalized": (vog - 0.5) / 0.3,
        "vog_early": generator.random(n_rows).astype(np.float32),
        "vog_late": generator.random(n_rows).astype(np.float32),
        "loss": np.where(np.arange(n_rows) == 9, np.nan, vog + generator.random(n_rows)).astype(np.float32),
    }
    return VoGScores(columns, {"class_names": None, "config": {"target": ["prediction"]}, "snapshots": []})


def make_pictures(n_rows=N, side=8):
    """Tiny pictures whose color tells the row."""
    features = Features({"image": ImageFeature()})
    pictures = [Image.new("RGB", (side, side), (i % 256, 100, 255 - i % 256)) for i in range(n_rows)]
    return Dataset.from_dict({"image": pictures}, features=features)


def make_words(n_rows=N):
    """Scores with a tokenizer, and texts with a word for each value of their heat maps."""
    scores = make_scores(n_rows, maps="tokens", names=["bad", "good"])
    texts = [" ".join(f"word{(i + place) % 7}" for place in range(3 + i % 5)) for i in range(n_rows)]
    words = {word: number for number, word in enumerate(sorted({word for text in texts for word in text.split()}))}
    tokenizer = Tokenizer(WordLevel(words, unk_token=min(words)))
    tokenizer.pre_tokenizer = Whitespace()
    scores.tokenizer = tokenizer.to_str()
    return scores, Dataset.from_dict({"sentence": texts, "source": [f"page {i % 9}" for i in range(n_rows)]})


def make_sounds(n_rows=N, rate=8000):
    """Tones in files, of a tenth of a second, with the names of the files."""
    sounds = []
    for i in range(n_rows):
        file = io.BytesIO()
        wave = 0.3 * np.sin(2 * np.pi * (200 + 10 * i) * np.arange(rate // 10) / rate)
        wavfile.write(file, rate, (wave * 32767).astype(np.int16))
        sounds.append({"bytes": file.getvalue(), "path": f"{i % 10}_speaker_{i}.wav"})
    return Dataset.from_dict({"audio": sounds}).cast_column("audio", Audio(decode=False))


def make_texts(n_rows=N):
    """Texts that would break a page."""
    features = Features({"sentence": Value("string")})
    texts = [f"{HOSTILE_TEXT} {i}" for i in range(n_rows)]
    return Dataset.from_dict({"sentence": texts}, features=features)
