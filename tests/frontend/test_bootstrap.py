"""Intervals over subjects against a loop over draws, and a permutation test against what can be counted by hand."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hsta.results import bootstrap
from hsta.results.bootstrap import Subjects, draw, figures, interval, intervals
from hsta.results.comparison import PERMUTATIONS, permutation_test
from hsta.results.metrics import Scores
from hsta.results.scoring import scores_of
from hsta.results.tested_clips import Prediction
from hsta.results.unit_metrics import UnitScores

from tests.frontend.evaluations import NAMES, certain, drawn_predictions

UNITS = ("AU1", "AU2", "AU4", "AU12")


def drawn_units(rng, subjects):
    def units():
        return tuple(np.flatnonzero(rng.random(4) < 0.4).tolist())

    return [
        Prediction("samm", str(person), str(clip), units(), certain(units(), 4))
        for person in range(subjects)
        for clip in range(5)
    ]


@pytest.mark.parametrize("action_units", [False, True])
def test_the_interval_is_that_of_a_loop_over_draws_of_clips(action_units):
    """The loop scores the clips of the drawn subjects, each as often as it was drawn, as `hsta evaluate` does."""
    rng = np.random.default_rng(1)
    names = UNITS if action_units else NAMES
    predictions = drawn_units(rng, 6) if action_units else drawn_predictions(rng, 6, 0.6)
    subjects = Subjects.of(predictions, names, action_units)
    times = np.random.default_rng(bootstrap.SEED).multinomial(6, np.full(6, 1 / 6), size=bootstrap.DRAWS)
    looped = []
    for row in times[:300]:
        clips = [
            p
            for (_, name), n in zip(subjects.people, row, strict=True)
            for p in predictions
            if p.subject == name
            for _ in range(n)
        ]
        scores = scores_of(clips, names)
        looped.append([getattr(scores, name) for name in scores.FIGURES])
    drawn = figures(draw(subjects.counts), action_units)
    kind = UnitScores if action_units else Scores
    fast = np.stack([drawn[name] for name in kind.FIGURES], axis=1)
    np.testing.assert_allclose(fast[:300], looped, rtol=1e-12)
    expected = np.nanquantile(fast, [0.025, 0.975], axis=0)
    told = intervals(subjects)
    np.testing.assert_allclose([told[name] for name in kind.FIGURES], expected.T, rtol=1e-12)
    assert all(low < getattr(subjects.scores, name) < high for name in kind.FIGURES for low, high in [told[name]])


def test_subjects_are_drawn_whole():
    """Were clips drawn, the accuracy of two people, one always and one never told right, would hardly be 0 or 1."""
    predictions = [Prediction("d", s, str(n), n % 2, certain((n + (s == "b")) % 2, 2)) for s in "ab" for n in range(50)]
    drawn = figures(draw(Subjects.of(predictions, "xy", False).counts), False)["accuracy"]
    assert set(drawn.tolist()) == {0.0, 0.5, 1.0}
    assert np.mean(drawn == 0.5) == pytest.approx(0.5, abs=0.05)


def test_spellings_of_one_subject_are_one_person_and_data_sets_have_their_own():
    people = [("a", "6"), ("a", "06"), ("b", "6"), ("a", "10")]
    clips = [Prediction(*person, str(number), 0, certain(0, 2)) for number, person in enumerate(people)]
    subjects = Subjects.of(clips, "xy", False)
    assert subjects.people == (("a", "6"), ("a", "10"), ("b", "6"))
    assert subjects.clips().tolist() == [2, 1, 1]
    assert {name: part.people for name, part in subjects.datasets.items()} == {
        "a": (("a", "6"), ("a", "10")),
        "b": (("b", "6"),),
    }


def test_of_one_subject_there_is_no_interval():
    assert intervals(Subjects.of([Prediction("d", "a", "1", 0, certain(0, 2))], "xy", False)) is None


def test_what_no_draw_defines_is_undefined_and_others_are_left_out():
    drawn = np.array([[np.nan, 1.0], [np.nan, np.nan], [np.nan, 3.0]])
    np.testing.assert_allclose(interval(drawn), [[np.nan, 1.05], [np.nan, 2.95]])


def test_five_subjects_all_better_have_a_p_value_of_two_in_two_to_the_fifth():
    truth = [Prediction("d", s, str(n), n, certain(n, 2)) for s in "abcde" for n in range(2)]
    wrong = [replace(p, probabilities=certain(1 - p.truth, 2)) for p in truth]
    first, second = (Subjects.of(predictions, "xy", False) for predictions in (truth, wrong))
    assert permutation_test(first, second) == {"uf1": 2 / 32, "uar": 2 / 32, "accuracy": 2 / 32}
    assert set(permutation_test(first, first).values()) == {1.0}


def both(rng, subjects):
    one = drawn_predictions(rng, subjects, 0.5)
    other = [
        Prediction(
            p.dataset, p.subject, p.clip, p.truth, p.probabilities if rng.random() < 0.5 else certain(p.truth, 3)
        )
        for p in one
    ]
    return one, other


def test_the_exact_p_value_is_that_of_a_loop_over_all_exchanges():
    one, other = both(np.random.default_rng(3), 6)
    people = sorted({p.subject for p in one})

    def apart(swapped):
        pairs = [(b, a) if p.subject in swapped else (a, b) for p, a, b in zip(one, one, other, strict=True)]
        first, second = (scores_of(side, NAMES) for side in zip(*pairs, strict=True))
        return {name: abs(getattr(second, name) - getattr(first, name)) for name in Scores.FIGURES}

    all_of_them = [apart({s for s, yes in zip(people, c, strict=True) if yes}) for c in product([0, 1], repeat=6)]
    expected = {
        name: np.mean([found[name] >= observed - 1e-12 for found in all_of_them])
        for name, observed in apart(set()).items()
    }
    assert all(2 / 64 <= p < 1 for p in expected.values())
    subjects = [Subjects.of(side, NAMES, False) for side in (one, other)]
    assert permutation_test(*subjects) == pytest.approx(expected)
    assert permutation_test(*subjects[::-1]) == pytest.approx(expected)


def test_many_subjects_are_exchanged_at_random_and_p_is_never_0():
    one = drawn_predictions(np.random.default_rng(4), 40, 0.0)
    other = [replace(p, probabilities=certain(p.truth, 3)) for p in one]
    first, second = (Subjects.of(side, NAMES, False) for side in (one, other))
    assert permutation_test(first, second)["uf1"] == 1 / (PERMUTATIONS + 1)
