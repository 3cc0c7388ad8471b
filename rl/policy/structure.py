"""A policy's structure, read from its config.json, and how many parameters each of its parts has. No torch.

Legend: E hidden size · I intermediate size · V vocabulary · Q K widths of queries and keys (heads * head dimension).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.config.policy import OF_TOWER, LoraConfig, PolicyConfig
from rl.policy.families import FAMILIES, Family, family_in, read_config
from rl.policy.geometry import padded_vocab
from rl.policy.token_ids import PolicyFilesError

STOCK_WINDOW, STOCK_FULL = 112, (7, 15, 23, 31)  # of Qwen2.5-VL where its config.json does not say
STOCK_FRAMES = 2  # of a kernel that is not expanded
NO_LORA = LoraConfig()  # all parameters are trained
TINY_HEAD_DIM, TINY_POSITIONS, TINY_LEVELS, TINY_WINDOW = 32, 64, 3, 112  # of the policy that rl.policy.tiny builds


@dataclass(frozen=True, slots=True)
class Language:
    """The language model."""

    layers: int
    hidden: int  # E
    intermediate: int  # I
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int  # V
    is_tied: bool  # the head's weight is the embeddings'
    has_qkv_bias: bool
    has_qk_norm: bool  # queries and keys are normalised head by head (Qwen3)

    @property
    def query_width(self) -> int:
        """Q."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """K."""
        return self.kv_heads * self.head_dim

    @property
    def products(self) -> dict[str, tuple[int, int]]:
        """Widths of what a layer's products take and give, by Hugging Face's names."""
        hidden, inner = self.hidden, self.intermediate
        return {
            "q_proj": (hidden, self.query_width),
            "k_proj": (hidden, self.kv_width),
            "v_proj": (hidden, self.kv_width),
            "o_proj": (self.query_width, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }

    @property
    def embedding(self) -> int:
        """Elements of the embeddings, the largest parameter."""
        return self.vocab * self.hidden

    @property
    def layer_parameters(self) -> int:
        """Of one layer."""
        projections = 2 * self.hidden * (self.query_width + self.kv_width)
        biases = self.query_width + 2 * self.kv_width if self.has_qkv_bias else 0
        norms = 2 * self.hidden + (2 * self.head_dim if self.has_qk_norm else 0)
        return projections + biases + norms + 3 * self.hidden * self.intermediate

    @property
    def parameters(self) -> int:
        """Of all layers, the last norm, embeddings and head."""
        return self.layers * self.layer_parameters + self.hidden + self.embedding * (1 if self.is_tied else 2)


@dataclass(frozen=True, slots=True)
class Tower:
    """The vision tower."""

    blocks: int
    hidden: int
    intermediate: int
    patch: int  # pixels
    merge: int  # patches along each side of a visual token
    kernel_frames: int  # of the patch embedding
    out: int  # the language model's E
    is_gated: bool  # Qwen2.5-VL: RMSNorm and a gated MLP; else LayerNorm and a plain one
    has_patch_bias: bool
    positions: int  # learned ones
    levels: int  # DeepStack's, each with a merger of its own
    window: int  # pixels along each side of what a patch attends to; 0: the whole frame
    full_blocks: int  # blocks that attend to the whole frame all the same

    @property
    def unit(self) -> int:
        """Pixels along each side of a visual token."""
        return self.patch * self.merge

    @property
    def patch_values(self) -> int:
        """Of one frame."""
        return 3 * self.patch**2

    @property
    def merged(self) -> int:
        """Width of the patches of one visual token laid side by side."""
        return self.hidden * self.merge**2

    @property
    def block_parameters(self) -> int:
        """Of one block."""
        attention = 4 * self.hidden**2 + 4 * self.hidden
        if self.is_gated:
            mlp = 3 * self.hidden * self.intermediate + 2 * self.intermediate + self.hidden
            return attention + mlp + 2 * self.hidden
        mlp = 2 * self.hidden * self.intermediate + self.intermediate + self.hidden
        return attention + mlp + 4 * self.hidden

    @property
    def products(self) -> dict[str, tuple[int, int]]:
        """Widths of what a block's products take and give, by Hugging Face's names."""
        hidden, inner = self.hidden, self.intermediate
        mlp = {"gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden)}
        plain = {"linear_fc1": (hidden, inner), "linear_fc2": (inner, hidden)}
        return {"qkv": (hidden, 3 * hidden), "proj": (hidden, hidden), **(mlp if self.is_gated else plain)}

    @property
    def freezable_parameters(self) -> int:
        """What learner.freeze_vision freezes: patch embedding, learned positions, blocks."""
        kernel = self.patch_values * self.kernel_frames * self.hidden + (self.hidden if self.has_patch_bias else 0)
        return kernel + self.positions * self.hidden + self.blocks * self.block_parameters

    @property
    def feature_parameters(self) -> int:
        """What frames are compared by with policy.scenes.difference=features: rl.policy.scene_features."""
        kernel = self.patch_values * self.hidden + (self.hidden if self.has_patch_bias else 0)
        return kernel + self.positions * self.hidden + self.block_parameters

    @property
    def merger_parameters(self) -> int:
        """Of the merger and DeepStack's; a level's norm is as wide as the merged patches."""
        layers = self.merged**2 + self.merged + self.merged * self.out + self.out
        norm = self.hidden * (1 if self.is_gated else 2)
        return layers + norm + self.levels * (layers + 2 * self.merged)

    @property
    def parameters(self) -> int:
        """Of all of it."""
        return self.freezable_parameters + self.merger_parameters


@dataclass(frozen=True, slots=True)
class Structure:
    """A policy: a language model and a vision tower."""

    language: Language
    tower: Tower

    @property
    def parameters(self) -> int:
        """Of all of it; what is tied counts once."""
        return self.language.parameters + self.tower.parameters

    def trained(self, *, freeze_vision: bool, lora: LoraConfig = NO_LORA) -> int:
        """Parameters with a gradient."""
        if not lora.rank:
            return self.parameters - (self.tower.freezable_parameters if freeze_vision else 0)
        head, embeddings = "lm_head" in lora.full, "embed_tokens" in lora.full
        tables = min(head + embeddings, 1 if self.language.is_tied else 2)
        merger = self.tower.merger_parameters if "merger" in lora.full else 0
        return self.updates(lora) + tables * self.language.embedding + merger

    def updates(self, lora: LoraConfig) -> int:
        """Parameters that LoRA adds: of a product, its rank times the widths on both sides."""
        return self.language_updates(lora) + self.tower_updates(lora)

    def language_updates(self, lora: LoraConfig) -> int:
        """Of these, the language model's."""
        products = self.language.products
        return lora.rank * self.language.layers * sum(sum(products.get(name, ())) for name in set(lora.targets))

    def tower_updates(self, lora: LoraConfig) -> int:
        """Of these, the vision tower's."""
        products = {OF_TOWER + name: sides for name, sides in self.tower.products.items()}
        return lora.rank * self.tower.blocks * sum(sum(products.get(name, ())) for name in set(lora.targets))


def read_structure(config: Mapping[str, Any], path: str, *, init_frames: int) -> Structure:
    """From a config.json, stock or ours, nested or flat as the hub's Qwen2.5-VL.

    Args:
        path: of the file, for messages.
        init_frames: temporal extent of the patch embedding's kernel.
    Raises:
        PolicyFilesError: another family's, or a size is missing.
    """
    family = family_in(config, path)
    text, vision = config.get("text_config", config), config.get("vision_config")
    try:
        return Structure(_language(config, text, family), _tower(vision, text, family, init_frames))
    except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError) as error:
        raise PolicyFilesError(f"{path}: not a configuration of {family.model_type} ({error!r})") from error


def structure_of(folder: str | Path, policy: PolicyConfig) -> Structure:
    """Of the policy in a folder of ours.

    Raises:
        PolicyFilesError: as read_structure.
    """
    path = Path(folder) / "config.json"
    return read_structure(read_config(path), str(path), init_frames=kernel_frames(policy))


def kernel_frames(policy: PolicyConfig) -> int:
    """Temporal extent of the patch embedding's kernel."""
    return STOCK_FRAMES if policy.scenes.mode == "fixed" else policy.scenes.init_frames


def tiny_structure(policy: PolicyConfig) -> Structure:
    """Of the policy that the project builds itself, before it is built."""
    tiny, family = policy.tiny, FAMILIES[policy.tiny.family]
    is_qwen3 = family.has_patch_bias
    language = Language(
        layers=tiny.num_layers,
        hidden=tiny.hidden_size,
        intermediate=3 * tiny.hidden_size,
        heads=tiny.num_heads,
        kv_heads=tiny.num_kv_heads,
        head_dim=TINY_HEAD_DIM,
        vocab=padded_vocab(tiny.vocab_size),
        is_tied=False,
        has_qkv_bias=not is_qwen3,
        has_qk_norm=is_qwen3,
    )
    tower = Tower(
        blocks=tiny.vision_layers,
        hidden=tiny.vision_hidden_size,
        intermediate=2 * tiny.vision_hidden_size,
        patch=16 if is_qwen3 else 14,
        merge=2,
        kernel_frames=kernel_frames(policy),
        out=tiny.hidden_size,
        is_gated=not is_qwen3,
        has_patch_bias=is_qwen3,
        positions=TINY_POSITIONS if is_qwen3 else 0,
        levels=min(TINY_LEVELS, tiny.vision_layers - 1) if is_qwen3 else 0,
        window=0 if is_qwen3 else TINY_WINDOW,
        full_blocks=tiny.vision_layers if is_qwen3 else 1,
    )
    return Structure(language, tower)


def _language(config: Mapping[str, Any], text: Mapping[str, Any], family: Family) -> Language:
    hidden, heads = int(text["hidden_size"]), int(text["num_attention_heads"])
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    return Language(
        layers=int(text["num_hidden_layers"]),
        hidden=hidden,
        intermediate=int(text["intermediate_size"]),
        heads=heads,
        kv_heads=int(text["num_key_value_heads"]),
        head_dim=int(text.get("head_dim") or hidden // heads),
        vocab=int(text["vocab_size"]),
        is_tied=bool(tied),
        has_qkv_bias=not family.has_patch_bias,
        has_qk_norm=family.has_patch_bias,
    )


def _tower(vision: Mapping[str, Any], text: Mapping[str, Any], family: Family, init_frames: int) -> Tower:
    return Tower(
        blocks=int(vision["depth"]),
        hidden=int(vision["hidden_size"]),
        intermediate=int(vision["intermediate_size"]),
        patch=int(vision.get("patch_size", vision.get("spatial_patch_size"))),
        merge=int(vision["spatial_merge_size"]),
        kernel_frames=init_frames,
        out=int(text["hidden_size"]),
        is_gated=not family.has_patch_bias,
        has_patch_bias=family.has_patch_bias,
        positions=int(vision.get("num_position_embeddings", 0)),
        levels=len(vision.get("deepstack_visual_indexes", ())),
        window=0 if family.has_patch_bias else int(vision.get("window_size", STOCK_WINDOW)),
        full_blocks=int(vision["depth"])
        if family.has_patch_bias
        else len(vision.get("fullatt_block_indexes", STOCK_FULL)),
    )
