"""What the log of a training tells."""

from moc.workers.trainers import history


def _log(*losses: float) -> list[dict[str, float]]:
    entries: list[dict[str, float]] = []
    for number, loss in enumerate(losses, start=1):
        entries += [{"step": number * 10, "loss": 1.0, "num_tokens": number}, {"step": number * 10, "eval_loss": loss}]
    return entries


def test_the_best_is_the_first_of_the_least() -> None:
    assert history.best_step(_log(3, 2, 2, 4)) == 20
    assert history.best_step([{"step": 1, "loss": 2.0}]) is None


def test_hope_ends_when_none_of_so_many_was_better_than_the_best() -> None:
    assert not history.is_hopeless(_log(3, 2, 2.5), 2)
    assert history.is_hopeless(_log(3, 2, 2.5, 2), 2)
    assert not history.is_hopeless(_log(3, 4, 5, 6), 0)
    assert not history.is_hopeless([], 1)


def test_the_last_of_a_name_is_told() -> None:
    assert history.last(_log(3, 2), "num_tokens") == 2
    assert history.last([], "loss") is None


def test_up_to_a_step_the_log_is_what_it_was_then() -> None:
    assert history.until(_log(3, 2, 4), 20) == _log(3, 2)
