"""The policy on the learner's side: Qwen2.5-VL with FlexiVideo's patch embedding, and log-probs that fit in memory.

A policy folder is an ordinary Hugging Face folder. Its config.json says `model_type: qwen2_5_vl` (AutoConfig reads it
without remote code), `architectures: [FlexiVideoForConditionalGeneration]` (the name under which the engine's plugin
registers), and `vision_config.flexivideo`: every field of ScenesConfig plus `fingerprint`. Weights carry the names of
stock Qwen2.5-VL (`model.visual.`, `model.language_model.`, `lm_head.`) except one: `model.visual.patch_embed.weight` of
shape (C, 3, init_frames, p, p) stands for `model.visual.patch_embed.proj.weight`; in `fixed` mode it has 2 frames.

Every forward makes exactly one call of the vision tower, with a scene times zero where the micro-batch holds no video,
and one of the head, so that ranks meet in the same collectives.

Legend: B sequences · T tokens · N patches · D values of a patch · E hidden size · V vocabulary · S scored tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLModel,
    Qwen2_5_VLVisionAttention,
    apply_rotary_pos_emb_vision,
)

from rl.config.policy import ScenesConfig
from rl.policy.patch_embed import STOCK_FRAMES, FlexiPatchEmbed
from rl.policy.processor import PackedVideo, Processor, require_inert
from rl.policy.scenes import fingerprint
from rl.policy.token_ids import PolicyFilesError

ARCHITECTURE = "FlexiVideoForConditionalGeneration"


@dataclass(frozen=True, slots=True, eq=False)
class Scoring:
    """Ask the model for log-probs of its tokens instead of logits."""

    scored_BT: torch.Tensor  # bool: tokens whose log-prob is wanted, given those before; the first of a row never is
    allowed_V: torch.Tensor  # bool: ids the policy may sample; the others have probability zero
    temperature: float = 1.0
    chunk_tokens: int = 2048  # logits of so many tokens exist at a time


class ScoringHead(nn.Linear):
    """The output layer; scores tokens chunk by chunk in one call and recomputes logits in the backward pass."""

    def forward(
        self, hidden_SE: torch.Tensor, target_ids_S: torch.Tensor | None = None, scoring: Scoring | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Logits; or, with targets, their log-probs (S) and entropies (S, no gradient), both float32, in nats."""
        if target_ids_S is None:
            return super().forward(hidden_SE)
        size = scoring.chunk_tokens
        chunks = zip(hidden_SE.split(size), target_ids_S.split(size), strict=True)
        arguments = (scoring.allowed_V.to(hidden_SE.device), scoring.temperature)
        scores = [checkpoint(self._score, *chunk, *arguments, use_reentrant=False) for chunk in chunks]
        logprobs, entropies = zip(*scores, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _score(
        self, hidden_SE: torch.Tensor, target_ids_S: torch.Tensor, allowed_V: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits_SV = super().forward(hidden_SE).float() / temperature
        logits_SV = logits_SV.masked_fill(~allowed_V, float("-inf"))
        log_total_S = logits_SV.logsumexp(-1)
        logprob_S = logits_SV.gather(-1, target_ids_S[:, None]).squeeze(-1) - log_total_S
        with torch.no_grad():
            expected_S = (logits_SV.softmax(-1) * logits_SV.masked_fill(~allowed_V, 0.0)).sum(-1)
        return logprob_S, log_total_S.detach() - expected_S


class WindowAttention(Qwen2_5_VLVisionAttention):
    """The vision tower's attention, windows of equal length in one call: stock attends to one window after the other,
    and a small frame is one window."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: object,
    ) -> torch.Tensor:
        """(N, E) in, (N, E) out; `cu_seqlens` are the windows' bounds, `position_embeddings` rotary (cos, sin)."""
        lengths = cu_seqlens.diff()
        if self.config._attn_implementation != "sdpa" or bool((lengths != lengths[0]).any()):
            return super().forward(hidden_states, cu_seqlens, position_embeddings, **kwargs)
        qkv = self.qkv(hidden_states).reshape(len(hidden_states), 3, self.num_heads, -1)
        query, key = apply_rotary_pos_emb_vision(qkv[:, 0], qkv[:, 1], *position_embeddings)
        windows = (part.unflatten(0, (len(lengths), -1)).transpose(1, 2) for part in (query, key, qkv[:, 2]))
        attended = nn.functional.scaled_dot_product_attention(*windows, scale=self.scaling)
        return self.proj(attended.transpose(1, 2).reshape(len(hidden_states), -1))


class FlexiVideoForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL that reads packed scenes and is always told every token's position."""

    def __init__(self, config: Qwen2_5_VLConfig) -> None:
        super(Qwen2_5_VLForConditionalGeneration, self).__init__(config)
        text, vision = config.text_config, config.vision_config
        self.scenes = scenes_of(config)
        self.model = Qwen2_5_VLModel(config)
        _make_flexible(self.model.visual, vision, self.scenes)
        self.lm_head = ScoringHead(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FlexiPatchEmbed):
            init.normal_(module.weight, std=self.config.vision_config.initializer_range)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        videos: Sequence[PackedVideo] = (),
        *,
        scoring: Scoring | None = None,
        past_key_values: object | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        return_dict: bool = True,
    ) -> CausalLMOutputWithPast | tuple[torch.Tensor, torch.Tensor]:
        """One pass over right-padded sequences.

        Args:
            input_ids: (B, T) with every placeholder expanded.
            attention_mask: (B, T), 0 on padding; None if there is none.
            position_ids: (3, B, T) from `mrope_positions`; never guessed.
            videos: all videos of all rows, in order of appearance, row after row.
            scoring: if given, log-probs (B, T) and entropies (B, T) come back instead of logits, zero where not asked.
            past_key_values, use_cache, logits_to_keep, return_dict: passed by `generate(input_ids, position_ids=...,
                videos=...)`, which continues the positions by itself.
        Raises:
            ValueError: no positions, or placeholders and videos do not match.
        """
        if position_ids is None:
            raise ValueError("position_ids are needed: they come from rl.policy.positions.mrope_positions")
        embeddings_BTE = self.model.language_model.embed_tokens(input_ids)
        if past_key_values is None or past_key_values.get_seq_length() == 0:
            embeddings_BTE = self._with_videos(input_ids, embeddings_BTE, videos)
        output = self.model.language_model(
            inputs_embeds=embeddings_BTE,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        if scoring is not None:
            return self._scores(input_ids, output.last_hidden_state, scoring)
        hidden_BTE = output.last_hidden_state[:, -logits_to_keep:]
        return CausalLMOutputWithPast(logits=self.lm_head(hidden_BTE), past_key_values=output.past_key_values)

    def encode_videos(self, videos: Sequence[PackedVideo]) -> torch.Tensor:
        """Embeddings (tokens, E) of the videos' placeholders, in order: one call of the vision tower."""
        return encode_videos(self.model.visual, videos)

    def _with_videos(
        self, input_ids: torch.Tensor, embeddings_BTE: torch.Tensor, videos: Sequence[PackedVideo]
    ) -> torch.Tensor:
        placeholders_BT = input_ids == self.config.video_token_id
        unit = self.config.vision_config.spatial_merge_size**2
        given = sum(video.num_scenes * video.patches_per_frame for video in videos) // unit
        asked = int(placeholders_BT.sum())
        if given != asked:
            raise ValueError(f"{asked} video placeholders, but {len(videos)} videos with {given} tokens")
        if not videos:
            return embeddings_BTE + 0.0 * self.encode_videos([self._blank_scene()]).sum()
        visual_NE = self._encode_distinct(videos).to(embeddings_BTE.dtype)
        return embeddings_BTE.masked_scatter(placeholders_BT[..., None], visual_NE)

    def _encode_distinct(self, videos: Sequence[PackedVideo]) -> torch.Tensor:
        """As `encode_videos`, but a video that siblings share (one object) is encoded once."""
        distinct = list(dict.fromkeys(videos))
        if len(distinct) == len(videos):
            return self.encode_videos(videos)
        unit = self.config.vision_config.spatial_merge_size**2
        sizes = [video.num_scenes * video.patches_per_frame // unit for video in distinct]
        embedded = dict(zip(distinct, self.encode_videos(distinct).split(sizes), strict=True))
        return torch.cat([embedded[video] for video in videos])

    def _blank_scene(self) -> PackedVideo:
        vision = self.config.vision_config
        side = vision.spatial_merge_size
        return PackedVideo(np.zeros((side * side, 3 * vision.patch_size**2), np.uint8), (1,), side, side, (0.0,))

    def _scores(
        self, input_ids: torch.Tensor, hidden_BTE: torch.Tensor, scoring: Scoring
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scored_BT = scoring.scored_BT[:, 1:].to(input_ids.device)
        if not scored_BT.any():  # the head must run on every rank
            blank_BT = (hidden_BTE[..., :1].sum() * 0 + self.lm_head(hidden_BTE[:1, :1]).sum() * 0).expand(
                input_ids.shape
            )
            return blank_BT.float(), torch.zeros_like(blank_BT, dtype=torch.float32)
        targets_S = input_ids[:, 1:][scored_BT]
        if not scoring.allowed_V.to(input_ids.device)[targets_S].all():
            raise ValueError("a token to be scored is one the policy may not sample (a vision token or a padding id)")
        logprob_S, entropy_S = self.lm_head(hidden_BTE[:, :-1][scored_BT], targets_S, scoring)
        blank_BT = torch.zeros(input_ids.shape, dtype=torch.float32, device=input_ids.device)
        where_BT = nn.functional.pad(scored_BT, (1, 0))
        return blank_BT.masked_scatter(where_BT, logprob_S), blank_BT.masked_scatter(where_BT, entropy_S)


def encode_videos(visual: Qwen2_5_VisionTransformerPretrainedModel, videos: Sequence[PackedVideo]) -> torch.Tensor:
    """Embeddings (tokens, E) of the videos' placeholders, in order: one pass through a tower of ours."""
    device = visual.patch_embed.weight.device
    patches_ND = torch.from_numpy(np.concatenate([video.patches_ND for video in videos])).to(device)
    lengths = [length for video in videos for length in video.scene_lengths]
    patches_per_frame = [video.patches_per_frame for video in videos for _ in video.scene_lengths]
    grids = torch.tensor([(video.num_scenes, video.grid_h, video.grid_w) for video in videos], device=device)
    embedded = visual.patch_embed(patches_ND, lengths, patches_per_frame)
    return visual(embedded, grid_thw=grids).pooler_output


def token_logprobs(
    model: nn.Module,
    input_ids_BT: torch.Tensor,
    attention_mask_BT: torch.Tensor | None,
    position_ids_3BT: torch.Tensor,
    videos: Sequence[PackedVideo],
    *,
    allowed_V: torch.Tensor,
    temperature: float = 1.0,
    scored_BT: torch.Tensor | None = None,
    chunk_tokens: int = 2048,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-prob of every token given those before it, and the entropy of the distribution it was drawn from.

    Of the distribution the engine samples from: logits over temperature, ids not allowed removed, softmax in float32.

    Args:
        model: the policy, or an engine around it that forwards calls.
        scored_BT: bool, tokens that are wanted; None: all but the first of each row and padding and banned ids.
        chunk_tokens: logits of so many tokens exist at a time, in the backward pass too.
    Returns:
        logprobs_BT (with gradient) and entropies_BT (without), float32, nats, zero where not scored.
    """
    if scored_BT is None:
        scored_BT = allowed_V.to(input_ids_BT.device)[input_ids_BT]
        scored_BT = scored_BT if attention_mask_BT is None else scored_BT & attention_mask_BT.bool()
    scoring = Scoring(scored_BT, allowed_V, temperature, chunk_tokens)
    return model(input_ids_BT, attention_mask_BT, position_ids_3BT, videos, scoring=scoring)


def load_policy(
    folder: str | Path, scenes: ScenesConfig, dtype: torch.dtype | str = torch.float32
) -> FlexiVideoForConditionalGeneration:
    """The policy of a folder of ours; `convert_stock_checkpoint` makes one from a stock Qwen2.5-VL checkpoint.

    Raises:
        PolicyFilesError: a stock checkpoint, one made for other scene parameters, or weights that do not fit.
    """
    require_inert(Path(folder))
    config = Qwen2_5_VLConfig.from_pretrained(folder)
    require_scenes(config, scenes, folder)
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    model, loading = FlexiVideoForConditionalGeneration.from_pretrained(
        folder, config=config, dtype=dtype, attn_implementation="sdpa", output_loading_info=True, use_safetensors=True
    )
    wrong = {kind: sorted(map(str, names)) for kind, names in loading.items() if names}
    if wrong:
        raise PolicyFilesError(f"{folder}: weights do not fit the model: {wrong}")
    return model


def save_policy(
    model: FlexiVideoForConditionalGeneration,
    processor: Processor,
    folder: str | Path,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """An ordinary Hugging Face folder: configuration, weights, tokenizer, chat template.

    Args:
        state_dict: weights under HF names where the model's own are not whole (ZeRO-3).
    """
    model.save_pretrained(folder, state_dict=state_dict)
    processor.save(folder)


def freeze_vision(model: FlexiVideoForConditionalGeneration) -> None:
    """Stop training patch embedding and ViT blocks; merger and language model stay trained."""
    visual = model.model.visual
    for part in (visual.patch_embed, visual.blocks):
        part.requires_grad_(False)


def make_vision_tower(vision: Qwen2_5_VLVisionConfig, scenes: ScenesConfig) -> Qwen2_5_VisionTransformerPretrainedModel:
    """A vision tower of ours without its language model, with random weights: for measuring what encoding costs."""
    vision = copy.deepcopy(vision)
    vision._attn_implementation = "sdpa"
    visual = Qwen2_5_VisionTransformerPretrainedModel(vision)
    _make_flexible(visual, vision, scenes)
    init.normal_(visual.patch_embed.weight, std=vision.initializer_range)
    return visual.eval().requires_grad_(False)


def _make_flexible(
    visual: Qwen2_5_VisionTransformerPretrainedModel, vision: Qwen2_5_VLVisionConfig, scenes: ScenesConfig
) -> None:
    """Put our patch embedding and window attention into a stock tower."""
    visual.patch_embed = make_patch_embed(vision.hidden_size, vision.patch_size, scenes)
    for block in visual.blocks:
        block.attn = WindowAttention(vision)


def make_patch_embed(channels: int, patch: int, scenes: ScenesConfig) -> FlexiPatchEmbed:
    """The patch embedding for scene parameters: stock kernel in `fixed` mode, expanded otherwise."""
    fixed = scenes.mode == "fixed"
    frames = STOCK_FRAMES if fixed else scenes.init_frames
    return FlexiPatchEmbed(channels, patch, frames, fixed=fixed, unit_gain=scenes.unit_gain)


def scenes_of(config: Qwen2_5_VLConfig) -> ScenesConfig:
    """The scene parameters a checkpoint was made for.

    Raises:
        PolicyFilesError: a stock checkpoint.
    """
    stored = getattr(config.vision_config, "flexivideo", None)
    if not stored:
        raise PolicyFilesError(
            "config.json has no vision_config.flexivideo: a stock checkpoint; convert it with convert_stock_checkpoint"
        )
    return ScenesConfig(**{name: value for name, value in stored.items() if name != "fingerprint"})


def flexivideo_section(scenes: ScenesConfig) -> dict[str, object]:
    """What config.json keeps under vision_config.flexivideo."""
    return {**asdict(scenes), "fingerprint": fingerprint(scenes)}


def require_scenes(config: Qwen2_5_VLConfig, scenes: ScenesConfig, folder: str | Path) -> None:
    """Refuse a checkpoint made for other scene parameters.

    Raises:
        PolicyFilesError: names what differs.
    """
    stored = scenes_of(config)
    recorded = config.vision_config.flexivideo.get("fingerprint")
    if fingerprint(stored) != recorded:
        raise PolicyFilesError(f"{folder}: made by another version of the encoder (fingerprint {recorded})")
    ours, theirs = asdict(scenes), asdict(stored)
    differing = [f"{name}={theirs[name]!r} (asked {ours[name]!r})" for name in ours if ours[name] != theirs[name]]
    if differing:
        raise PolicyFilesError(f"{folder}: made for other policy.scenes: {', '.join(differing)}")
