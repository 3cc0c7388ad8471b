"""Qwen2.5-VL with FlexiVideo's encoder, as an export's `AutoModelForImageTextToText`."""

from __future__ import annotations

from rl.export.video_tensors import VideoTensors
from rl.policy.qwen2_5_vl import FlexiVideoForConditionalGeneration as Policy


class FlexiVideoForConditionalGeneration(VideoTensors, Policy):
    """The policy, taking what the folder's processor gives."""
