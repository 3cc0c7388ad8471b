"""The plain way that packed rows are held against: every sample a row of its own, right-padded, stock attention."""

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from rl.policy.scoring_head import token_logprobs


def padded_logprobs(model, samples, processor, scored_BT=None, temperature=1.0):
    """Log-probs (B, T) with gradient, and entropies (B, T), of samples in one padded batch.

    Args:
        scored_BT: bool; None: all tokens but each first, and those the policy may not write.
    """
    videos = [packed for sample in samples for packed in map(processor.pack, sample.videos)]
    positions = [torch.from_numpy(processor.positions(sample.token_ids, sample.videos)).T for sample in samples]
    return token_logprobs(
        model,
        padded([sample.token_ids for sample in samples], processor.ids.pad),
        padded([np.ones(len(sample.token_ids), int) for sample in samples]),
        pad_sequence(positions, batch_first=True).permute(2, 0, 1),
        videos,
        allowed_V=torch.from_numpy(processor.allowed_token_mask()),
        scored_BT=scored_BT,
        temperature=temperature,
    )


def padded(rows, fill=0):
    """(B, T)."""
    return pad_sequence([torch.as_tensor(row) for row in rows], batch_first=True, padding_value=fill)
