"""A program without this package: what it finds in exported folders, by their own code. Run with `python -I -S`.

stranger.py SITE_PACKAGES JOB.json      the job's folders are written back to, as results.npz and told.json
"""

import importlib.util
import json
import sys
from pathlib import Path

sys.path.append(sys.argv[1])  # as plain folders: no .pth file is read, so that an editable installation is not found
import numpy as np
import torch
import transformers
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

TRUSTED = {"trust_remote_code": True}
GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def log_probs(model, inputs):
    """Of every token given those before it."""
    with torch.no_grad():
        log_probs_TV = model(**inputs).logits[0].double().log_softmax(-1)
    return log_probs_TV[:-1].gather(-1, inputs["input_ids"][0, 1:, None])[:, 0].numpy()


def read(folder, clip, times_s, chat):
    """Everything a stranger does: ask, write, look again, chat, batches, several samples, training, saving."""
    processor = AutoProcessor.from_pretrained(folder, **TRUSTED)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, **TRUSTED)
    video = (clip, {"times_s": times_s})
    first = processor.ask("Which colour?", video)
    written = model.generate(**first, **GREEDY)
    second = processor.look(written, first, (clip[1:4], {"times_s": times_s[1:4]}))
    answered = model.generate(**second, **GREEDY)
    chatted = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "video", "video": video}, {"type": "text", "text": chat}]}],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        return_tensors="pt",
    )
    batch = processor(text=[f"<|video_pad|>{chat}", f"<|video_pad|>{chat} Why?"], videos=[video, video])
    alone = processor(text=f"<|video_pad|>{chat}", videos=video)
    padded = model.generate(**batch, **GREEDY)[0][batch["attention_mask"][0].argmax() :]
    assert padded.tolist() == model.generate(**alone, **GREEDY)[0].tolist()
    loss = model(**second, labels=second["input_ids"]).loss
    loss.backward()
    samples = model.generate(**second, max_new_tokens=2, do_sample=True, num_return_sequences=3, pad_token_id=0)
    assert samples.shape == (3, second["input_ids"].shape[1] + 2)
    beams = model.generate(**second, **GREEDY, num_beams=2)
    assert beams.shape == answered.shape
    assert AutoTokenizer.from_pretrained(folder, **TRUSTED)(chat).input_ids == processor.tokenizer(chat).input_ids

    model.save_pretrained(folder / "again")
    processor.save_pretrained(folder / "again")
    again = AutoModelForImageTextToText.from_pretrained(folder / "again", **TRUSTED)
    AutoProcessor.from_pretrained(folder / "again", **TRUSTED)
    assert np.array_equal(log_probs(again, second), log_probs(model, second))
    return {
        "asked": first["input_ids"][0],
        "written": written[0],
        "looked": second["input_ids"][0],
        "answered": answered[0],
        "log_probs": log_probs(model, second),
        "loss": loss.detach(),
        "chatted": chatted["input_ids"][0],
    }


def told_by(call):
    """What a call that must fail says."""
    try:
        call()
    except Exception as error:  # whatever transformers raises
        return f"{type(error).__name__}: {error}"
    return "loaded"


def failures(case):
    """What is said where an export is not loaded as it should be."""
    auto, stock = AutoModelForImageTextToText.from_pretrained, getattr(transformers, case["stock"]).from_pretrained
    untrusted = {"trust_remote_code": False}
    return {
        "no trust": told_by(lambda: auto(case["exported"], **untrusted)),
        "no trust, processor": told_by(lambda: AutoProcessor.from_pretrained(case["exported"], **untrusted)),
        "stock class": told_by(lambda: stock(case["exported"])),
        "no code": told_by(lambda: auto(case["no_code"], **TRUSTED)),
        "not exported": told_by(lambda: auto(case["not_exported"], **TRUSTED)),
    }


job = json.loads(Path(sys.argv[2]).read_text())
clip = np.load(job["clip"])
assert importlib.util.find_spec("rl") is None and importlib.util.find_spec("envs") is None
for folder in map(Path, job["folders"]):
    np.savez(folder / "results.npz", **read(folder, clip, job["times_s"], job["chat"]))
Path(job["told"]).write_text(json.dumps({name: failures(case) for name, case in job["failing"].items()}))
