"""The page of results by regime, from small records."""

import pytest
from experiments import functions_of

HARDWARE = {"hardware": "an abacus", "date": "2026-01-02"}


def noise_record(*losses, five_fold=None):
    """A record with a seed for each AUROC of the loss; the cross-validation takes as long as four trainings."""
    seeds = []
    for seed, area in enumerate(losses):
        columns = {"loss": [area, 0.5, 0.25], "vog": [0.25, 0.125, 0.0]}
        seconds = {"one training": 10.0, "its scores": 9.0, "its companions": 5.0}
        if five_fold is not None:
            columns |= {"five-fold self-confidence": [five_fold, 0.75, 0.5]}
            columns |= {"confidence at the end (two halves)": [0.875, 0.625, 0.5]}
            seconds |= {"two halves": 12.0, "cross-validation": 40.0}
        details = {"rows": 1500, "wrong": 150, "columns": columns, "cpu_seconds": seconds}
        seeds.append({"seed": seed, "seconds": 1.0, "headline": {}, "details": details})
    return {**HARDWARE, "seeds": seeds}


def test_noise_tables_have_means_over_seeds_and_a_column_for_each_run():
    """The mean of two seeds, a blank where a run has no such ranking, wrong rows, hardware and date."""
    records = {"pretrained_image_uniform_10": noise_record(0.8, 0.9), "pretrained_image_pairs_10": noise_record(0.7)}
    page = functions_of("regime_tables")["make_regimes_page"](records)
    assert "| ranking | uniform 10 % (2 seeds) | pairs 10 % (1 seed) |" in page
    assert "| mean loss | 0.850 / 0.500 / 0.250 | 0.700 / 0.500 / 0.250 |" in page
    assert "| wrong rows | 150 of 1,500 | 150 of 1,500 |" in page
    assert "Measured on: an abacus, 2026-01-02." in page
    assert "Against cross-validation" not in page


def test_cost_is_that_of_all_a_ranking_needs():
    """The mean loss needs a training and forward passes, VoG gradients, the halves two trainings; all of five-fold."""
    records = {"pretrained_text_uniform_10": noise_record(0.8, five_fold=0.9)}
    page = functions_of("regime_tables")["make_regimes_page"](records)
    table = page.partition("### Against cross-validation: pretrained_text_uniform_10")[2]
    assert "| five-fold self-confidence (cleanlab), low | 0.900 | 0.750 | 0.500 | 100% |" in table
    assert "| mean loss | 0.800 | 0.500 | 0.250 | 38% |" in table  # (10 + 5) / 40
    assert "| two halves: confidence at the end, low | 0.875 | 0.625 | 0.500 | 30% |" in table  # 12 / 40


@pytest.mark.parametrize("has_training", [True, False])
def test_decile_tables_have_test_and_training_rows(has_training):
    """Mean over seeds by decile; no table of training rows where none were scored."""
    seeds = []
    for shift in (0, 2):
        part = {"rows": 50, "error": 0.25, "deciles": {"CSG": [shift / 10] * 10}, "auroc": {"CSG": 0.75}}
        details = {"record": {"test_accuracy": 0.9 + shift / 100, "epochs": 7}, "test": part}
        details |= {"training": {**part, "rows": 60}} if has_training else {}
        seeds.append({"seed": shift, "headline": {}, "details": details})
    page = functions_of("regime_tables")["make_regimes_page"]({"full_cifar10": {**HARDWARE, "seeds": seeds}})
    assert "Test accuracy 0.9100 (2 seeds), 7 epochs." in page
    assert f"| CSG |{' 0.100 |' * 10} 0.750 |" in page
    assert ("Error of 60 training rows" in page) == has_training
