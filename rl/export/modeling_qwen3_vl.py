"""Qwen3-VL with FlexiVideo's encoder, as an export's `AutoModelForImageTextToText`."""

from __future__ import annotations

from rl.export.video_tensors import VideoTensors
from rl.policy.qwen3_vl import FlexiVideoQwen3VLForConditionalGeneration as Policy


class FlexiVideoQwen3VLForConditionalGeneration(VideoTensors, Policy):
    """The policy, taking what the folder's processor gives."""
