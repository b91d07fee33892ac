"""`ice-gateway demo` ends well only if every step was observed; `make demo` runs its own scenes."""

from __future__ import annotations

from gateway.cli.demo_story import run_demo


def test_a_step_that_fails_ends_it_with_status_1(capsys):
    async def fails(story, folder, options):
        story.require("the status of lab-1", "registered", "provisioned")
        raise AssertionError("the story goes on")

    assert run_demo(scenes=fails) == 1
    assert capsys.readouterr().out.endswith(
        "FAILED: the status of lab-1: expected 'registered', observed 'provisioned'\n"
    )


def test_steps_that_are_observed_end_it_with_status_0(capsys):
    async def happens(story, folder, options):
        story.require("the status of lab-1", "registered", "registered")
        assert folder.is_dir()
        assert options == ["--database", "sqlite:///kept.db"]

    assert run_demo(database="sqlite:///kept.db", scenes=happens) == 0
    assert capsys.readouterr().out.endswith("all of it happened\n")
