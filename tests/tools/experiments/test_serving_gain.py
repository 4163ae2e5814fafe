"""The experiment on devices that run what they tuned, shortened."""

from tools.experiments.serving_gain import run


def test_a_shortened_run_gives_all_figures() -> None:
    shares = []
    outcome = run((3,), True, lambda share, words: shares.append(share))
    assert shares == sorted(shares)
    gains = {one.name: one for one in outcome.figures if one.must_reach is not None}
    assert len(gains) == 4
    two = gains["serve two classes a device"]
    assert two.ours > 0.1  # the release is weak so early, and two classes are easily told apart
    assert all(one.seeds == (3,) for one in outcome.figures)
