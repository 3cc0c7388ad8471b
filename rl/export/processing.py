"""What an exported policy reads, prepared in any transformers: chat, video blocks, positions, and the second look.

    processor = AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)
    inputs = processor.ask("What does she pick up?", "clip.mp4")           # the prompt of training
    written = model.generate(**inputs, eos_token_id=processor.stop_ids)
    call = processor.read_call(written, duration_s=30.0)                    # <span>12 - 15</span><fps>4</fps>
    inputs = processor.look(written, inputs, processor.window("clip.mp4", call))
    written = model.generate(**inputs, eos_token_id=processor.stop_ids)     # goes on with the frames in view

Legend: B sequences · T tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.utils.hub import cached_file

from envs.initial_observation import CoarseFrameRules, coarse_frame_times, fit_visual_tokens
from envs.prompts import PromptFormat, initial_prompt, refusal_note
from envs.tools.rules import RetrievalRules
from envs.tools.span_fps import frame_times, parse_call
from envs.tools.toolbox import builtin_tools, further_tags
from rl.config.policy import ScenesConfig
from rl.export.given_videos import Source, metadata_in, read_file, videos_in
from rl.export.video_tensors import VIDEO_TENSORS, to_tensors
from rl.policy.families import BY_MODEL_TYPE
from rl.policy.geometry import Geometry
from rl.policy.given_frames import pixels_and_times, resized
from rl.policy.processor import Processor
from rl.policy.scene_features import FEATURE_FILE
from rl.trajectory import Call, Frames, RetrievalCall

VIDEO = re.compile(r"(?:<\|vision_start\|>)?<\|video_pad\|>(?:<\|vision_end\|>)?")  # as a chat template puts a video
OF_THE_HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision")  # options of a download
SAVED = ("geometry", "scenes", "episode", "auto_map")  # of processor_config.json, beside the class's name


class FlexiVideoProcessor(ProcessorMixin):
    """Text and videos to tensors, as the policy was trained to read them."""

    def __init__(
        self,
        tokenizer: Any = None,
        chat_template: str | None = None,
        geometry: Mapping[str, Any] | None = None,
        scenes: Mapping[str, Any] | None = None,
        episode: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            geometry: what of the model shapes tokens; see `geometry_section` of the export.
            scenes: the fields of ScenesConfig: how videos are cut and encoded.
            episode: `coarse`, `retrieval` and `prompt`: which frames the policy saw first, what a look could ask for,
                what stood around the question.
        """
        super().__init__(tokenizer, chat_template=chat_template)
        self.geometry, self.scenes, self.episode = dict(geometry), dict(scenes), dict(episode)
        family, thought = BY_MODEL_TYPE[self.geometry["model_type"]], self.geometry["opens_thought"]
        sizes = [self.geometry[name] for name in ("patch", "merge", "tokens_per_second", "vocab_size")]
        self._inner = Processor(
            Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
            Geometry(*sizes, family),
            ScenesConfig(**self.scenes),
            Path(str(tokenizer.name_or_path)),
            opens_thought=thought,
        )
        self._coarse, self._looks = (
            CoarseFrameRules(**self.episode["coarse"]),
            RetrievalRules(**self.episode["retrieval"]),
        )
        tags = further_tags(builtin_tools(self._looks))  # instructions name them as tokens, as in training
        self._form = PromptFormat(**{**self.episode["prompt"], "tags": tags})

    @classmethod
    def from_pretrained(cls, name: str | PathLike[str], **options: Any) -> FlexiVideoProcessor:
        """From an exported folder, or a repository of the hub that holds its files.

        What frames are compared by is fetched, too (`difference: features`): transformers knows nothing of that file.
        """
        processor = super().from_pretrained(name, **options)
        if processor._inner.scenes.difference == "features" and not Path(name).is_dir():
            asked = {key: value for key, value in options.items() if key in OF_THE_HUB}
            processor._inner.folder = Path(cached_file(str(name), FEATURE_FILE, **asked)).parent
        return processor

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        videos: object = None,
        images: object = None,
        audio: object = None,
        *,
        video_metadata: object = None,
        padding_side: str = "left",
        return_tensors: str = "pt",
        **unknown: object,
    ) -> BatchFeature:
        """Prompts with one `<|video_pad|>` per video, as the chat template leaves them, to tensors.

        Args:
            videos: of all prompts, in order; see rl.export.given_videos.
            video_metadata: when their frames were on screen, where a video does not bring it.
            padding_side: left to generate, either to score.
        Returns:
            input_ids and attention_mask (B, T), position_ids (3, B, T), and the tensors of the videos.
        Raises:
            ValueError: images or sound, another option, or prompts and videos that do not match.
        """
        if images is not None or audio is not None or text is None:
            raise ValueError("this policy reads text and video: give text=… and videos=…")
        if return_tensors != "pt" or (unknown := {k: v for k, v in unknown.items() if k not in ("padding",)}):
            raise ValueError(
                f"not an option of this processor: {sorted(unknown) or f'return_tensors={return_tensors!r}'}"
            )
        frames = self._all_frames(list(videos_in(videos)), list(metadata_in(video_metadata)))
        prompts = [text] if isinstance(text, str) else list(text)
        pieces = [VIDEO.split(prompt) for prompt in prompts]
        places = sum(len(parts) - 1 for parts in pieces)
        if places != len(frames):
            raise ValueError(
                f"the text has {places} places for videos (<|video_pad|>), given were {len(frames)} videos"
            )
        rows, waiting = [], iter(frames)
        for first, *rest in pieces:
            token_ids, of_row = self._inner.encode(first), []
            for part in rest:
                of_row.append(next(waiting))
                token_ids += [*self._inner.video_block(of_row[-1]), *self._inner.encode(part)]
            rows.append((token_ids, of_row))
        return self._batch(rows, padding_side)

    def ask(self, question: str, video: object, *, video_metadata: object = None) -> BatchFeature:
        """The prompt that the policy was trained on: the coarse video, the question, its run's instructions.

        Args:
            video: frames with their times, or a file, of which the coarse frames are taken.
        """
        (frames,) = self._all_frames([video], list(metadata_in(video_metadata)))
        return self._batch([(list(initial_prompt(question, frames, self._inner, self._form)), [frames])], "left")

    @property
    def stop_ids(self) -> list[int]:
        """Where to stop writing: the end, and a call for frames, which `look` or `refuse` answers."""
        return [self._inner.ids.im_end, self._inner.ids.fps_close]

    @property
    def max_calls(self) -> int:
        """Looks of one answer that training granted; beyond them it refused."""
        return self._looks.max_calls

    def read_call(self, written: object, *, duration_s: float, native_fps: float = float("nan")) -> Call | None:
        """The request that a text or a generated sequence ends in, granted within the limits of training.

        Args:
            written: text, or token ids of one sequence: of everything so far, or of what was generated.
            duration_s: length of the clip.
            native_fps: its frame rate; NaN: unknown, no limit.
        Returns:
            RetrievalCall (`span`, `fps`, `num_frames`), RefusedCall or MalformedCall (`reason`); None: no request.
        """
        text = written if isinstance(written, str) else self._inner.decode(_one(written))
        return parse_call(text, duration_s=duration_s, native_fps=native_fps, rules=self._looks)

    def window(self, path: str | Path, call: RetrievalCall) -> tuple[Any, dict[str, list[float]]]:
        """The frames that a granted call asks of a file, with their times."""
        pixels_THWC, times_s_T = read_file(path, lambda _: frame_times(call))
        size = self._inner.fit(*pixels_THWC.shape[1:3], self._looks.max_pixels)
        return resized(pixels_THWC, size), {"times_s": times_s_T}

    def look(
        self, written: object, inputs: Mapping[str, torch.Tensor], video: object, *, video_metadata: object = None
    ) -> BatchFeature:
        """What the policy has read and written, and then the frames it asked for: it goes on from there.

        Args:
            written: what `generate` returned for `inputs`: one sequence, from its first token.
            video: frames of the window, with their times.
        """
        pixels_THWC, times_s_T = pixels_and_times(*_with_metadata(video, *metadata_in(video_metadata)))
        size = self._inner.fit(*pixels_THWC.shape[1:3], self._looks.max_pixels)
        frames = self._inner.make_frames(resized(pixels_THWC, size), times_s_T)
        return self._continued(written, inputs, self._inner.video_block(frames), [frames])

    def refuse(self, written: object, inputs: Mapping[str, torch.Tensor], reason: str) -> BatchFeature:
        """As `look`, where a call cannot be granted: the note that says so in training."""
        return self._continued(written, inputs, list(refusal_note(reason, self._inner)), [])

    @property
    def model_input_names(self) -> list[str]:
        """What a batch may hold."""
        return ["input_ids", "attention_mask", "position_ids", *VIDEO_TENSORS]

    def to_dict(self) -> dict[str, Any]:
        """What processor_config.json holds."""
        kept = {name: getattr(self, name) for name in SAVED if hasattr(self, name)}
        return kept | {"processor_class": type(self).__name__}

    def _all_frames(self, videos: Sequence[object], metadata: Sequence[object]) -> list[Frames]:
        given = [None] * len(videos) if not metadata else list(metadata)
        if len(given) != len(videos):
            raise ValueError(f"{len(videos)} videos need as many video_metadata, given were {len(given)}")
        return [self._coarse_frames(video, about) for video, about in zip(videos, given, strict=True)]

    def _coarse_frames(self, video: object, metadata: object) -> Frames:
        if isinstance(video, str | Path):
            read = read_file(
                video, lambda source: coarse_frame_times(source.duration_s, source.native_fps, self._coarse)
            )
        else:
            read = pixels_and_times(*_with_metadata(video, metadata))
        pixels_THWC, times_s_T = read
        source = Source(times_s_T[-1], 0.0, *pixels_THWC.shape[1:3])
        _, size = fit_visual_tokens(tuple(times_s_T), source, self._inner, self._coarse)
        return self._inner.make_frames(resized(pixels_THWC, size), times_s_T)

    def _batch(self, rows: Sequence[tuple[list[int], list[Frames]]], padding_side: str) -> BatchFeature:
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right', got {padding_side!r}")
        longest = max(len(token_ids) for token_ids, _ in rows)
        input_ids = torch.full((len(rows), longest), self._inner.ids.pad)
        mask, positions = torch.zeros_like(input_ids), torch.zeros(3, len(rows), longest, dtype=torch.long)
        for row, (token_ids, videos) in enumerate(rows):
            first = longest - len(token_ids) if padding_side == "left" else 0
            here = slice(first, first + len(token_ids))
            input_ids[row, here], mask[row, here] = torch.tensor(token_ids), 1
            positions[:, row, here] = torch.from_numpy(self._inner.positions(token_ids, videos))
        packed = [self._inner.pack(frames) for _, videos in rows for frames in videos]
        return BatchFeature(
            {"input_ids": input_ids, "attention_mask": mask, "position_ids": positions, **to_tensors(packed)}
        )

    def _continued(
        self, written: object, inputs: Mapping[str, torch.Tensor], appended: list[int], videos: list[Frames]
    ) -> BatchFeature:
        """The sequence so far and what is appended. Positions go on from the highest so far, as those of a whole do."""
        token_ids, before = _one(written), inputs["position_ids"].cpu()
        read = before.shape[-1]
        if token_ids[:read] != inputs["input_ids"][0].tolist():
            raise ValueError(
                "what was written must begin with the inputs it was generated from, as generate returns it"
            )
        rest = [*token_ids[read:], *appended]
        after = torch.from_numpy(self._inner.positions(rest, videos))[:, None] + before.max() + 1
        earlier = {name: inputs[name].cpu() for name in VIDEO_TENSORS if name in inputs}
        added = to_tensors([self._inner.pack(frames) for frames in videos])
        tensors = {
            name: torch.cat([part[name] for part in (earlier, added) if name in part]) for name in earlier | added
        }
        mask = torch.nn.functional.pad(inputs["attention_mask"].cpu(), (0, len(rest)), value=1)
        return BatchFeature(
            {
                "input_ids": torch.tensor([[*token_ids[:read], *rest]]),
                "attention_mask": mask,
                "position_ids": torch.cat([before, after], dim=-1),
                **tensors,
            }
        )


def _with_metadata(video: object, metadata: object = None) -> tuple[object, object]:
    """Frames, and what says when they were on screen: a video that brings its own has the last word."""
    return video if isinstance(video, tuple) and len(video) == 2 else (video, metadata)


def _one(written: object) -> list[int]:
    """Token ids of one sequence."""
    token_ids = written.tolist() if isinstance(written, torch.Tensor) else list(written)
    if token_ids and isinstance(token_ids[0], list):
        (token_ids,) = token_ids if len(token_ids) == 1 else ([],)
    if not token_ids:
        raise ValueError("one sequence at a time: give the row of a batch that asked for frames")
    return token_ids
