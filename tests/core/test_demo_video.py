"""The demo world of moving shapes, and the measures that read its pixels."""

from __future__ import annotations

import pytest
import torch

from demo.score_video import measure, prompts_for
from demo.video_world import MOTIONS, all_video_prompts, parse_video_prompt, render_clips, sample_clips


def drawings(prompts):
    return render_clips(sample_clips(len(prompts), torch.Generator().manual_seed(3), prompts))


def test_every_prompt_reads_back_as_it_is_written():
    assert [parse_video_prompt(str(prompt)) for prompt in all_video_prompts()] == all_video_prompts()
    assert parse_video_prompt(" ") is None


@pytest.mark.parametrize("text", ["a circle moving left", "a red circle", "a red circle moving left or right"])
def test_a_prompt_that_is_not_of_the_world_says_what_is(text):
    with pytest.raises(ValueError, match="must name exactly one"):
        parse_video_prompt(text)


def test_drawings_are_read_as_what_they_are():
    prompts = prompts_for(45)
    score = measure(drawings(prompts), prompts)
    assert (score.accuracy, score.direction, score.both) == (1, 1, 1)
    assert score.jitter < 0.1 and score.consistency > 0.95


def test_a_clip_that_runs_backwards_goes_the_wrong_way():
    prompts = [prompt for prompt in prompts_for(45) if list(MOTIONS)[prompt.motion] != "still"]
    score = measure(drawings(prompts).flip(1), prompts)
    assert (score.accuracy, score.direction) == (1, 0)


def test_another_colour_is_not_what_was_asked():
    prompts = prompts_for(45)
    score = measure(drawings(prompts).flip(2), prompts)  # red for blue
    assert score.direction > 0.9 and score.accuracy < 0.5
