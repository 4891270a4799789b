"""A loss that has jumped: when it is told, and what follows."""

import pytest

from ldm.training.nonfinite import NonFiniteError, NonFinitePolicy, Spikes


def fed(spikes, losses, policy=None):
    policy = policy or NonFinitePolicy("stop")
    for step, loss in enumerate(losses, 1):
        spikes.see(step, loss, policy)
    return policy


USUAL = [1.0, 1.2, 0.8, 1.1] * 5


def test_one_high_step_is_no_spike_and_three_in_a_row_are():
    policy = fed(Spikes(2.0, action="go_back"), [*USUAL, 9.0, 9.0, 1.0, 9.0, 9.0])
    assert policy.lost_since is None
    policy = fed(Spikes(2.0, action="go_back"), [*USUAL, 9.0, 9.0, 9.0])
    assert policy.lost_since == 21
    assert "from 1.05 to 9 at step 21" in policy.why
    policy.found()
    assert policy.lost_since is None


def test_what_is_usual_follows_a_falling_loss_and_does_not_follow_a_spike():
    falling = [2.0 * 0.95**step for step in range(60)]
    spikes = Spikes(2.0, action="go_back")
    policy = fed(spikes, [*falling, 0.3, 0.3, 0.3])  # the median of the last 20 is 0.15
    assert policy.lost_since is None
    assert fed(Spikes(1.5, action="go_back"), [*falling, 0.3, 0.3, 0.3]).lost_since == 61


def test_early_steps_and_no_factor_and_no_number_are_not_judged():
    assert fed(Spikes(2.0, action="stop"), [1.0] * 10 + [9.0] * 10).lost_since is None
    assert fed(Spikes(None, action="stop"), [*USUAL, 9.0, 9.0, 9.0]).lost_since is None
    assert fed(Spikes(2.0, action="stop"), [*USUAL, *[float("nan")] * 9]).lost_since is None


def test_stop_and_warn():
    with pytest.raises(NonFiniteError, match=r"the loss jumped from 1\.05 to 9 at step 21"):
        fed(Spikes(2.0, action="stop"), [*USUAL, 9.0, 9.0, 9.0])
    with pytest.warns(UserWarning, match="the loss jumped"):
        fed(Spikes(2.0), [*USUAL, 9.0, 9.0, 9.0])


@pytest.mark.parametrize(("factor", "action"), [(1.0, "warn"), (2.0, "panic")])
def test_what_means_nothing_is_refused(factor, action):
    with pytest.raises(ValueError, match=r"spikes\."):
        Spikes(factor, action=action)


def test_a_continued_training_is_judged_as_if_it_had_not_stopped():
    before, after = Spikes(2.0, action="go_back"), Spikes(2.0, action="go_back")
    first, second = NonFinitePolicy("skip"), NonFinitePolicy("skip")
    first.skipped, first.in_a_row = 5, 2
    fed(before, [*USUAL, 9.0, 9.0], first)
    after.load_state_dict(before.state_dict())
    second.load_state_dict(first.state_dict())
    assert (second.skipped, second.in_a_row) == (5, 2)
    after.see(23, 9.0, second)
    assert second.lost_since == 21
