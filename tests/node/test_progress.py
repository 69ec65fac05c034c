"""What the node does right now: the curves that the page and the demonstration draw."""

from pathlib import Path

from tapestry_node.progress import ProgressFile, read_progress


def test_the_speed_is_that_since_the_point_before_and_a_curve_of_one_round(tmp_path: Path) -> None:
    now = 0.0
    progress = ProgressFile(tmp_path / "progress.json", [], clock=lambda: 1.0, ticks=lambda: now)

    def take(round_number: int, step: int, seconds: float) -> None:
        nonlocal now
        now += seconds
        progress.step(round_number, step, 9, loss=1.0, speed=1.0, tokens=100)

    for step, seconds in ((1, 5.0), (2, 0.25), (3, 0.25), (4, 0.5), (5, 4.0)):
        take(7, step, seconds)
    assert progress.now.speeds == [(4, 300.0), (5, 25.0)], "3 steps in 1 s, 1 in 4 s"
    progress.end()
    found = read_progress(tmp_path / "progress.json")
    assert found.speeds == [(4, 300.0), (5, 25.0)]
    assert [step for step, _loss in found.losses] == [1, 2, 3, 4, 5]

    take(7, 3, 2.0)  # a trainer that was started anew goes on from what was kept
    take(7, 4, 2.0)
    assert progress.now.speeds == [(4, 50.0)]
    take(8, 1, 2.0)
    assert progress.now.speeds == []


def test_a_long_round_is_thinned_out_and_keeps_its_ends(tmp_path: Path) -> None:
    now = 0.0
    progress = ProgressFile(tmp_path / "progress.json", [], clock=lambda: 1.0, ticks=lambda: now)
    for step in range(1, 1001):
        now += 2.0
        progress.step(1, step, 1000, loss=1.0, speed=1.0, tokens=10)
    steps = [step for step, _speed in progress.now.speeds]
    assert len(steps) <= 400
    assert (steps[0], steps[-1]) == (2, 1000)
    assert {speed for _step, speed in progress.now.speeds} == {5.0}
