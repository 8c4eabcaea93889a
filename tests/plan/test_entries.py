"""What entries of the config mean: stages that are on, random twins, samples of channels."""

from rfatlas import stages
from rfatlas.plan import config, entries

#: What the stage orientation looks at.
FOLLOWED = stages.BY_NAME["orientation"].follows


def test_stages_without_a_switch_follow_those_they_look_at(good):
    good["stages"] = {"color": False, "gratings": False}
    loaded = config.load(good)
    assert not entries.stage_on(loaded, "opponency")
    assert entries.stage_on(loaded, "orientation"), "what it follows besides gratings is on"
    assert entries.stage_on(loaded, "activations")
    loaded["stages"] |= dict.fromkeys(FOLLOWED, False)
    assert not entries.stage_on(loaded, "orientation")


def test_a_run_goes_without_stages(good):
    good["runs"]["a"]["without"] = [*FOLLOWED, "color"]
    loaded = config.load(good)
    assert entries.stage_on(loaded, "gratings") and entries.stage_on(loaded, "gratings", "b")
    assert not entries.stage_on(loaded, "gratings", "a")
    assert entries.stage_on(loaded, "receptive_fields", "a")
    for follower in ("orientation", "opponency"):
        assert entries.stage_on(loaded, follower, "b") and not entries.stage_on(
            loaded, follower, "a"
        )
    good["runs"]["a"]["without"] = ["figures"]
    assert not entries.stage_on(config.load(good), "figures", "a")
    good["stages"] = {"gratings": False}
    assert not entries.stage_on(config.load(good), "gratings", "b")


def test_a_part_of_a_stage_is_off_where_the_stage_is(good):
    part = next(stage for stage in stages.STAGES if stage.part_of == "receptive_fields")
    assert entries.stage_on(config.load(good), part.name, "a")
    good["runs"]["a"]["without"] = ["receptive_fields"]
    good["stages"] = {part.name: True}
    loaded = config.load(good)
    assert entries.stage_on(loaded, part.name, "b")
    assert not entries.stage_on(loaded, part.name, "a")
    loaded["stages"]["receptive_fields"] = False
    assert not entries.stage_on(loaded, part.name)


def test_the_random_twin_of_a_run_differs_from_it_in_its_weights_alone(good):
    net = good["models"]["net"]
    good["models"] |= {
        "twin": net | {"weights": "random:1"},
        "wider": net | {"weights": "random:1", "kwargs": {"width": 9}},
        "other": {"factory": "net.py:other", "weights": "random:1"},
    }
    good["runs"] |= {
        "z": {"model": "twin", "dataset": "photos"},
        "w": {"model": "wider", "dataset": "photos"},
        "o": {"model": "other", "dataset": "photos"},
        "elsewhere": {"model": "twin", "dataset": "s"},
    }
    loaded = config.load(good)
    assert entries.twin(loaded, "a") == "z"
    assert [entries.twin(loaded, run) for run in ("z", "w", "elsewhere", "b")] == [None] * 4
    good["runs"]["y"] = good["runs"]["z"]
    assert entries.twin(config.load(good), "a") == "y", "the first by name"


def test_preferred_stimuli_are_of_all_channels_up_to_a_layer_and_of_a_sample_beyond(good):
    def samples(channels):
        filled = config.load({**good, "preferred_stimulus": {"channels": channels}})
        return [entries.stimulus_sample(filled, description, name) for name in "abc"]

    description = {"layers": [{"name": name} for name in "abc"]}
    assert samples(None) == [None, None, None]
    assert samples({"sample": 4, "all_up_to": "b"}) == [None, None, 4]
    assert samples({"sample": 4}) == [4, 4, 4]
    assert samples({"all_up_to": "elsewhere"}) == [16, 16, 16]
