"""What a key that does not exist was meant to be."""

from collections.abc import Collection

from app.suggest import did_you_mean

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


def unknown_key(prefix: str, name: str, known: Collection[str], elsewhere: str | None = None) -> str:
    """The message for a key `prefix + name` that is none of `known`; `elsewhere` is a full key it may have meant."""
    hint = "" if name in ELSEWHERE and elsewhere == ELSEWHERE[name] else did_you_mean(name, known, prefix)
    if not hint and elsewhere is not None:
        hint = f"; did you mean '{elsewhere}'?"
    return f"unknown key '{prefix}{name}'{hint} (keys: {', '.join(sorted(known)) or 'none'})"
