"""Conversations as training samples: the chat template's tokens, of which the assistant's are learned.

    <|im_start|>system\\n…<|im_end|>\\n<|im_start|>user\\n{block}\\nquestion<|im_end|>\\n<|im_start|>assistant\\nreply<|im_end|>…

Learned is each reply with the `<|im_end|>` behind it: what the policy has to write itself. Videos are shown as coarse
frames, as a rollout begins; an image is a scene of repeated frames (FlexiVideo), as many as the patch kernel spans.

Legend: T frames of a block, or tokens of a sample (said where it stands) · HWC pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from envs.data.conversation_rows import Conversation, Media, MediaKind, Message
from envs.data.parquet_rows import read_stored
from envs.data.rows import UnusableRow
from envs.image import ImageError, read_image
from envs.initial_observation import decode_coarse
from envs.prompts import encode_reply, encode_text
from envs.rollout import EpisodeContext
from envs.video.reader import VideoError
from rl.trajectory import Frames, Segment, TrainingSample


@dataclass(frozen=True, slots=True)
class ImageRules:
    """How images are shown."""

    frames: int  # T of the scene that an image is
    max_pixels: int  # after resizing to a multiple of patch * merge


def conversation_sample(conversation: Conversation, context: EpisodeContext, images: ImageRules) -> TrainingSample:
    """Encode a conversation; reads its media.

    Raises:
        UnusableRow: a medium cannot be read, or it does not fit into `context.max_model_len` tokens.
    """
    if context.processor.opens_thought:
        raise UnusableRow("this policy's prompts open a thought, which replies without one cannot close")
    videos: list[Frames] = []
    token_ids: list[int] = []
    turn_ids: list[int] = []
    learned: list[bool] = []
    turn = 0
    for message in _with_system(conversation, context):
        for tokens, is_learned in _pieces(message, context, images, videos):
            token_ids += tokens
            learned += [is_learned] * len(tokens)
            turn_ids += [turn] * len(tokens)
        turn += message.role == "assistant"
    if len(token_ids) > context.max_model_len:
        raise UnusableRow(
            f"{conversation.conversation_id}: {len(token_ids):,} tokens, more than finetune.max_tokens="
            f"{context.max_model_len}"
        )
    zeros = (0.0,) * len(token_ids)
    return TrainingSample(
        token_ids=tuple(token_ids),
        segment_ids=tuple(Segment.REASONING.value if is_own else Segment.CONTEXT.value for is_own in learned),
        turn_ids=tuple(turn_ids),
        behavior_logprobs=zeros,
        advantages=tuple(map(float, learned)),
        loss_mask=tuple(learned),
        policy_versions=tuple(0 if is_own else -1 for is_own in learned),
        videos=tuple(videos),
    )


def _with_system(conversation: Conversation, context: EpisodeContext) -> tuple[Message, ...]:
    """The messages, the configured system message before them where the row has none."""
    messages, system = conversation.messages, context.form.system
    return (Message("system", (system,)), *messages) if system and messages[0].role != "system" else messages


def _pieces(
    message: Message, context: EpisodeContext, images: ImageRules, videos: list[Frames]
) -> Iterator[tuple[list[int], bool]]:
    """Tokens of a message, and whether they are learned; its media are added to `videos`."""
    processor = context.processor
    ids, is_own = processor.ids, message.role == "assistant"
    yield [ids.im_start, *processor.encode(f"{message.role}\n")], False
    for part in message.parts:
        if isinstance(part, Media):
            frames = _frames(part, context, images)
            videos.append(frames)
            yield list(processor.video_block(frames)), False
        else:
            yield list(encode_reply(part, processor) if is_own else encode_text(part, processor)), is_own
    yield [ids.im_end], is_own
    yield processor.encode("\n"), False


def _frames(media: Media, context: EpisodeContext, images: ImageRules) -> Frames:
    processor = context.processor
    try:
        if media.kind is MediaKind.IMAGE:
            content = None if media.stored is None else read_stored(media.stored)
            pixels_HWC = read_image(
                media.path, lambda height, width: processor.fit(height, width, images.max_pixels), content
            )
            return processor.make_frames(np.repeat(pixels_HWC[None], images.frames, axis=0), (0.0,) * images.frames)
        _, pixels_THWC, shown_s_T = decode_coarse(
            media.path, processor=processor, reader=context.reader, rules=context.coarse, look_pixels=0
        )
        return processor.make_frames(pixels_THWC, shown_s_T)
    except (VideoError, ImageError) as error:
        raise UnusableRow(str(error)) from error
