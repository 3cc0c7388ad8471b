"""What the families' models of the learner have in common: they read packed scenes and score tokens.

The families' own classes stand in rl.policy.qwen2_5_vl and rl.policy.qwen3_vl.

Every forward calls the vision tower once, or its mergers where features are given, with a scene times zero where the
micro-batch holds no video, and the head once, so that ranks meet in the same collectives.

Legend: B rows · T tokens of a row · N visual tokens · E hidden size · V vocabulary · S scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from rl.policy.geometry import PackedVideo
from rl.policy.packed_attention import PACKED, SEQUENCE_PARALLEL, prepare_packing
from rl.policy.packing import Packing
from rl.policy.scoring_head import Scoring
from rl.policy.vision_tower import (
    NOTHING,
    Encoded,
    Features,
    SceneTower,
    VisualTokens,
    grid_of,
    merge_features,
    run_tower,
    run_trunk,
)


class VideoPolicy(nn.Module):
    """A transformers model that reads packed scenes and is always told every token's position.

    A family's class stands before its stock class: `class Ours(VideoPolicy, Stock)`, and says which tower it has
    (`tower_class`) and how its language model takes visual tokens (`decode`).
    """

    tower_class: ClassVar[type[SceneTower]]  # made of (vision_config, scene parameters); it is `model.visual`

    def encode_videos(self, videos: Sequence[PackedVideo]) -> VisualTokens:
        """Visual tokens of the videos' placeholders, in order: one call of the vision tower."""
        return run_tower(self.model.visual, videos)

    def decode(
        self, embeddings_BTE: torch.Tensor, placeholders_BT: torch.Tensor, visual: VisualTokens | None, **inputs: Any
    ) -> Any:
        """The language model's output for embedded tokens; `visual` are those of the placeholders, where there are any.

        Args:
            inputs: attention_mask, position_ids, past_key_values, use_cache, packing.
        """
        raise NotImplementedError

    def forward(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        videos: Sequence[PackedVideo] = (),
        *,
        packing: Packing | None = None,
        part: slice | None = None,
        run: Callable[[VideoPolicy], Any] | None = None,
        encoded: Encoded = NOTHING,
        scoring: Scoring | None = None,
        past_key_values: object | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        return_dict: bool = True,
    ) -> Any:
        """One pass over right-padded sequences, or over one row of packed ones.

        Args:
            input_ids: (B, T) with every placeholder expanded; None: `run` is given.
            attention_mask: (B, T), 0 on padding; None if there is none.
            position_ids: (3, B, T) from `mrope_positions`; never guessed.
            videos: all videos of all rows, in order of appearance, row after row.
            packing: the sequences of the only row, which has no padding and no mask; None: every row is a sequence.
            part: tokens of the packed row that go through this rank's layers, where other ranks have the rest; all that
                `scoring` names is then predicted by one of them.
            run: asked instead, with the model: a part of it. At ZeRO 3 every pass has to begin with the whole model.
            encoded: what of the videos has been encoded before; the rest of the tower runs, if on a blank scene.
            scoring: if given, log-probs (S) and entropies (S) come back instead of logits.
            past_key_values: passed by `generate(input_ids, position_ids=..., videos=...)`, which continues positions
                by itself; so are `use_cache`, `logits_to_keep` and `return_dict`.
        Raises:
            ValueError: no positions, placeholders and videos do not match, or an attention that knows no packing.
        """
        if run is not None:
            return run(self)
        self._require_readable(position_ids, packing, part)
        embeddings_BTE = self.model.language_model.embed_tokens(input_ids)
        placeholders_BT, visual = input_ids == self.config.video_token_id, None
        if past_key_values is None or past_key_values.get_seq_length() == 0:
            embeddings_BTE, visual = self._with_videos(placeholders_BT, embeddings_BTE, videos, encoded)
        if part is not None:
            visual = None if visual is None else _visible(visual, placeholders_BT, part)
            embeddings_BTE, placeholders_BT = embeddings_BTE[:, part], placeholders_BT[:, part]
            position_ids = with_text_positions(position_ids[..., part])
        output = self.decode(
            embeddings_BTE,
            placeholders_BT,
            visual,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            packing=None if packing is None else prepare_packing(packing, input_ids.device),
        )
        if scoring is not None:
            return self._scores(input_ids, output.last_hidden_state, scoring)
        hidden_BTE = output.last_hidden_state[:, -logits_to_keep:]
        return CausalLMOutputWithPast(logits=self.lm_head(hidden_BTE), past_key_values=output.past_key_values)

    def _require_readable(self, position_ids: object | None, packing: Packing | None, part: slice | None) -> None:
        if position_ids is None:
            raise ValueError("position_ids are needed: they come from rl.policy.positions.mrope_positions")
        needed = PACKED if part is None else SEQUENCE_PARALLEL
        if packing is not None and self.config.text_config._attn_implementation != needed:
            raise ValueError(f"packed rows need attn_implementation={needed!r}; rl.policy.model loads a policy with it")

    def trunk_features(self, video: PackedVideo | None) -> Features:
        """Of one video by itself; None: of a blank scene."""
        return run_trunk(self.model.visual, video or self._blank_scene())

    def encode_chunk(self, videos: Sequence[PackedVideo]) -> tuple[torch.Tensor, ...]:
        """As `encode_videos`, or a blank scene: embeddings, then levels, as bare tensors, which ZeRO 3 knows."""
        tokens = self.encode_videos(videos or [self._blank_scene()])
        return tokens.embeddings_NE, *tokens.levels

    def closing_loss(
        self, videos: Sequence[PackedVideo], gradients: Sequence[VisualTokens], kept: VisualTokens | None
    ) -> torch.Tensor:
        """A loss whose gradient by the tower's weights is the one that these gradients by its tokens make, and 0 by all
        other weights: they are in its graph, too, as DeepSpeed asks of the last backward pass.

        Args:
            gradients: of each video's tokens.
            kept: the tokens, with the graph they came from; None: they are computed again.
        """
        encoded = self.encode_videos(videos or [self._blank_scene()]) if kept is None else kept
        loss = encoded.dot(VisualTokens.joined(gradients)) if videos else 0.0 * encoded.sum()
        token = torch.zeros(1, 1, dtype=torch.long, device=encoded.embeddings_NE.device)
        embedded_11E = self.model.language_model.embed_tokens(token)
        output = self.decode(
            embedded_11E, token.bool(), None, position_ids=token.expand(3, 1, 1), attention_mask=None, use_cache=False
        )
        return loss + 0.0 * self.lm_head(output.last_hidden_state).sum()

    def _with_videos(
        self,
        placeholders_BT: torch.Tensor,
        embeddings_BTE: torch.Tensor,
        videos: Sequence[PackedVideo],
        encoded: Encoded,
    ) -> tuple[torch.Tensor, VisualTokens | None]:
        given, asked = sum(map(self._num_tokens, videos)), int(placeholders_BT.sum())
        if given != asked:
            raise ValueError(f"{asked} video placeholders, but {len(videos)} videos with {given} tokens")
        if not videos:
            return embeddings_BTE + 0.0 * self._encode_blank(encoded).sum(), None
        visual = self._encode(videos, encoded).to(embeddings_BTE.dtype)
        return embeddings_BTE.masked_scatter(placeholders_BT[..., None], visual.embeddings_NE), visual

    def _encode(self, videos: Sequence[PackedVideo], encoded: Encoded) -> VisualTokens:
        """A video that siblings share (one object) is encoded once, one whose tokens are given not at all."""
        distinct = list(dict.fromkeys(videos))
        given = {video: encoded.tokens[video.digest] for video in distinct if video.digest in encoded.tokens}
        new = [video for video in distinct if video not in given]
        if not new:
            blank = 0.0 * self._encode_blank(encoded).sum()
            return VisualTokens.joined([given[video] for video in videos]).mapped(lambda tokens_NE: tokens_NE + blank)
        features = encoded.features
        found = self.encode_videos(new) if features is None else merge_features(self.model.visual, new, features)
        if len(new) == len(videos):
            return found
        pieces = given | dict(zip(new, found.split([self._num_tokens(video) for video in new]), strict=True))
        return VisualTokens.joined([pieces[video].to(found.embeddings_NE.dtype) for video in videos])

    def _encode_blank(self, encoded: Encoded) -> VisualTokens:
        """Of a blank scene: the mergers learn, so that every pass must reach them."""
        scene = self._blank_scene()
        if encoded.features is None:
            return self.encode_videos([scene])
        visual = self.model.visual
        shape = scene.patches_per_frame, self.config.vision_config.hidden_size
        # a parameter is not asked for its device: at ZeRO 3 that gathers it
        nothing_NC = torch.zeros(shape, dtype=self.dtype, device=self.device)
        return visual.merge((nothing_NC,) * visual.num_features, [grid_of(scene)])

    def _num_tokens(self, video: PackedVideo) -> int:
        return video.num_scenes * video.patches_per_frame // self.config.vision_config.spatial_merge_size**2

    def _blank_scene(self) -> PackedVideo:
        vision = self.config.vision_config
        side = vision.spatial_merge_size
        return PackedVideo(np.zeros((side * side, 3 * vision.patch_size**2), np.uint8), (1,), side, side, (0.0,))

    def _scores(
        self, input_ids: torch.Tensor, hidden_BTE: torch.Tensor, scoring: Scoring
    ) -> tuple[torch.Tensor, torch.Tensor]:
        targets_S = input_ids.flatten()[scoring.targets_S]
        if not len(targets_S):  # the head must run on every rank
            blank = hidden_BTE[..., :1].sum() * 0 + self.lm_head(hidden_BTE[:1, :1]).sum() * 0
            return blank.float().expand(1)[:0], torch.zeros(0, device=input_ids.device)
        if not scoring.allowed_V.to(input_ids.device)[targets_S].all():
            raise ValueError("a token to be scored is one the policy may not sample (a vision token or a padding id)")
        return self.lm_head(hidden_BTE.flatten(0, 1)[scoring.predictors_S], targets_S, scoring)


def with_text_positions(position_ids_3BT: torch.Tensor) -> torch.Tensor:
    """(4, B, T): before the three axes, places in the row, which DeepSpeed's attention wants to exchange."""
    places_BT = torch.arange(position_ids_3BT.shape[-1], device=position_ids_3BT.device).expand_as(position_ids_3BT[0])
    return torch.cat([places_BT[None], position_ids_3BT])


def _visible(visual: VisualTokens, placeholders_BT: torch.Tensor, part: slice) -> VisualTokens:
    """Those whose placeholders stand in a part of the row."""
    before, within = (int(placeholders_BT[:, place].sum()) for place in (slice(part.start), part))
    return visual.between(before, before + within)
