"""The nearest valid spelling."""

from collections.abc import Collection, Iterable

OTHER_NAMES = {
    "train": "train_cfg",
    "train.max_epochs": "epochs epoch num_epochs n_epochs",
    "train.max_iters": "iters iterations max_steps num_steps steps",
    "train.clip_norm": "clip_grad grad_clip",
    "train.amp": "precision fp16",
    "hydra.run.dir": "work_dir workdir run_dir save_dir exp_dir",
    "load_from": "ckpt ckpt_path",
    "model": "net arch",
    "data": "train_dataloader val_dataloader test_dataloader dataset datamodule",
    "data.batch_size": "bs",
    "data.num_workers": "workers",
    "optim": "optim_wrapper optimizer",
    "optim.lr": "learning_rate",
    "optim.lr_scaling": "auto_scale_lr",
    "schedule": "param_scheduler lr_scheduler scheduler lr_config",
    "loss": "criterion",
    "metrics": "val_evaluator test_evaluator",
    "hooks": "default_hooks custom_hooks callbacks",
    "hooks.checkpoint": "checkpoint checkpoint_config",
    "hooks.logger": "logger log_config",
    "visualizer": "vis_backends trackers",
    "logging": "log_processor",
    "logging.level": "log_level",
    "env": "env_cfg",
    "env.device": "gpu gpus gpu_id gpu_ids accelerator cuda",
    "env.mp": "mp_cfg",
    "env.dist": "dist_cfg",
}
"""Key -> what MMPretrain, Lightning and others call it."""
ELSEWHERE = {word: key for key, words in OTHER_NAMES.items() for word in words.split()}


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The one of `words` that `word` was most likely meant to be, or None."""
    from difflib import get_close_matches  # only an error needs it

    candidates = list(words)
    folded = {candidate.lower(): candidate for candidate in reversed(candidates)}
    swapped = [candidate for candidate in candidates if sorted(candidate.lower()) == sorted(word.lower())]
    if swapped:
        return swapped[0]
    close = get_close_matches(word.lower(), folded, n=3, cutoff=0.6)
    if close:
        return folded[next((match for match in close if match[0] == word[0].lower()), close[0])]
    return next((candidate for candidate in candidates if len(word) > 2 and candidate.startswith(word)), None)


def did_you_mean(word: str, words: Iterable[str], prefix: str = "") -> str:
    """`; did you mean 'optim.lr'?`, or nothing."""
    match = nearest(word, words)
    return f"; did you mean '{prefix}{match}'?" if match is not None else ""


def unknown_key(prefix: str, name: str, known: Collection[str], elsewhere: str | None = None) -> str:
    """The message for a key `prefix + name` that is none of `known`; `elsewhere` is a full key it may have meant."""
    hint = "" if name in ELSEWHERE and elsewhere == ELSEWHERE[name] else did_you_mean(name, known, prefix)
    if not hint and elsewhere is not None:
        hint = f"; did you mean '{elsewhere}'?"
    return f"unknown key '{prefix}{name}'{hint} (keys: {', '.join(sorted(known)) or 'none'})"
