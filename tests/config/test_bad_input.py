# ruff: noqa: E501 - a row of a table is a line
"""Wrong command lines, files, data and folders: each ends before training, with its exit code and one message.

A row is the command line (as in a shell), the exit code, and patterns that the message must match.
"""

import gzip
import os
import shlex
from pathlib import Path

import pytest
from invocation import Terminal
from PIL import Image

CONFIG, DATA, CHECKPOINT, CANNOT_WRITE, TEMPORARY = 64, 65, 66, 73, 75

WRONG_COMMANDS: list[tuple[str, int, list[str]]] = [
    # keys, at every depth
    ("modle=lenet5", CONFIG, [r"unknown key 'modle'; did you mean 'model'\?"]),
    ("optim.lrr=0.1", CONFIG, [r"unknown key 'optim\.lrr'; did you mean 'optim\.lr'\?", r"keys: .*weight_decay"]),
    ("+optim.lrr=0.1", CONFIG, [r"unknown key 'optim\.lrr'; did you mean 'optim\.lr'\?"]),
    ("++optim.lrr=0.1", CONFIG, [r"unknown key 'optim\.lrr'; did you mean 'optim\.lr'\?"]),
    ("hooks.checkpoint.intervall=2", CONFIG, [r"'hooks\.checkpoint\.intervall'; did you mean 'hooks\.checkpoint\.interval'"]),
    ("+hooks.checkpoint.intervall=2", CONFIG, [r"did you mean 'hooks\.checkpoint\.interval'"]),
    ("env.dist.timeot=3", CONFIG, [r"did you mean 'env\.dist\.timeout'"]),
    ("model.init.chekpoint=x", CONFIG, [r"did you mean 'model\.init\.checkpoint'"]),
    ("optim.lr_scaling.enabled=true", CONFIG, [r"did you mean 'optim\.lr_scaling\.enable'"]),
    ("max_epochs=3", CONFIG, [r"unknown key 'max_epochs'; did you mean 'train\.max_epochs'\?"]),
    ("lr=0.1", CONFIG, [r"did you mean 'optim\.lr'"]),
    ("+train.max_epoch=3", CONFIG, [r"did you mean 'train\.max_epochs'"]),
    ("epochs=3", CONFIG, [r"did you mean 'train\.max_epochs'"]),
    ("default_hooks.logger.interval=3", CONFIG, [r"unknown key 'default_hooks'; did you mean 'hooks'"]),
    ("+log_level=DEBUG", CONFIG, [r"did you mean 'logging\.level'"]),
    ("param_scheduler=cosine", CONFIG, [r"did you mean 'schedule'"]),
    ("optim.momentum=0.9", CONFIG, [r"unknown key 'optim\.momentum'; it is a key of optim=sgd, optim=rmsprop \(keys"]),
    ("data.root=x", CONFIG, [r"it is a key of others of data, data=folder"]),
    ("~hooks.loger", CONFIG, [r"~hooks\.loger: there is no such key; did you mean 'hooks\.logger'"]),
    ("+optim.lr=0.1", CONFIG, [r"optim\.lr exists already; write it without the \+"]),
    ("hydra.rnu.dir=x", CONFIG, [r"unknown key 'hydra\.rnu'; did you mean 'hydra\.run'"]),
    # groups, options, hook names
    ("model=lenet", CONFIG, [r"model has no option 'lenet'; did you mean 'model=lenet5'\?", r"options: .*small_cnn"]),
    ("model=resnet50", CONFIG, [r"did you mean 'model=resnet_cifar'", r"model=torchvision model\.name=resnet50"]),
    ("'+hooks=ema' '+hooks=early_stop'", CONFIG, [r"hooks is chosen more than once; give it once, as \+hooks=\[…,…\]"]),
    ("experiment=mnist", CONFIG, [r"experiment has no option 'mnist'", r"did you mean 'experiment=mnist_lenet5'"]),
    ("'hooks=[default,emma]'", CONFIG, [r"hooks has no option 'emma'; did you mean 'hooks=ema'"]),
    ("+hooks=erly_stop", CONFIG, [r"did you mean 'hooks=early_stop'"]),
    ("hooks.ema.decay=0.5", CONFIG, [r"hooks\.ema is not selected; add `\+hooks=ema`"]),
    ("hooks.earlystop.patience=2", CONFIG, [r"did you mean 'hooks\.early_stop'"]),
    ("'visualizer=[tensorbord]'", CONFIG, [r"did you mean 'visualizer=tensorboard'"]),
    ("-m hydra/launcher=slrum optim.lr=1,2", CONFIG, [r"did you mean 'hydra/launcher=slurm'"]),
    ("+experiment=digits", CONFIG, [r"experiment is chosen more than once; give it once"]),
    ("'model=[lenet5,mlp]'", CONFIG, [r"mlp|model"]),
    # what is no setting at all
    ("test", CONFIG, [r"'test' is not KEY=VALUE; did you mean 'mode=test'"]),
    ("--optim.lr=0.1", CONFIG, [r"settings have no dashes: optim\.lr=0\.1"]),
    ("--lr=0.1", CONFIG, [r"settings have no dashes: optim\.lr=0\.1"]),
    ("--seed 1", CONFIG, [r"settings have no dashes: randomness\.seed=1"]),
    ("--work-dir x", CONFIG, [r"settings have no dashes: hydra\.run\.dir=x"]),
    ("--multirum optim.lr=1,2", CONFIG, [r"unknown option '--multirum'; did you mean '--multirun'"]),
    ("optim.lr = 0.1", CONFIG, [r"write optim\.lr=0\.1, without spaces"]),
    ("optim.lr 0.1", CONFIG, [r"'optim\.lr' is not KEY=VALUE; write optim\.lr=0\.1"]),
    ("-m optim.lr=0.1 0.2", CONFIG, [r"several values of one key are written without spaces: optim\.lr=0\.1,0\.2"]),
    ("-m optim=adamw, sgd", CONFIG, [r"several values of one key are written without spaces: optim=adamw,sgd"]),
    ("'logging.custom={source: loss}'", CONFIG, [r"logging\.custom must be a list: .* logging\.custom=\[\{…\}\]"]),
    ("optim=torch optim.name=Adagrad optim.args.eps=1", CONFIG, [r"needs a \+: \+optim\.args\.eps=…"]),
    ("optim.lr=0.1,0.2", CONFIG, [r"'optim\.lr=\[0\.1,0\.2\]'", r"add --multirun"]),
    ("name=a=b", CONFIG, [r"name must be letters, digits .*; got 'a=b'"]),
    ("'data.mean=[1'", CONFIG, [r"cannot read 'data\.mean=\[1'"]),
    ("--cfg", CONFIG, [r"--cfg needs a value"]),
    ("--config-dir nowhere", CONFIG, [r"--config-dir nowhere: there is no folder .*nowhere"]),
    ("--help optin", CONFIG, [r"no help for 'optin'; did you mean 'optim'"]),
    # types
    ("optim.lr=fast", CONFIG, [r"optim\.lr must be a number, got 'fast'"]),
    ("data.batch_size=1.5", CONFIG, [r"data\.batch_size must be a whole number, got '1\.5'"]),
    ("data.batch_size=null", CONFIG, [r"data\.batch_size must not be null"]),
    ("data.shuffle=maybe", CONFIG, [r"data\.shuffle must be true or false, got 'maybe'"]),
    ("train=3", CONFIG, [r"train has keys of its own; got '3'"]),
    ("hooks.checkpoint=3", CONFIG, [r"hooks\.checkpoint must be a mapping .* or null to leave it out; got 3"]),
    ("data.mean=3", CONFIG, [r"data\.mean must be a list"]),
    ("'resume=[1]'", CONFIG, [r"resume must be true, false or a word"]),
    ("model=null", CONFIG, [r"model must be one of its options: lenet5"]),
    # ranges and closed sets
    ("optim.lr=-1", CONFIG, [r"optim\.lr must be > 0, got -1"]),
    ("optim.lr=nan", CONFIG, [r"optim\.lr must be > 0, got nan"]),
    ("optim.lr=inf", CONFIG, [r"optim\.lr must be > 0.*got inf"]),
    ("data.batch_size=0", CONFIG, [r"data\.batch_size must be >= 1, got 0"]),
    ("train.max_epochs=0", CONFIG, [r"train\.max_epochs must be >= 1, got 0"]),
    ("train.val_interval=0", CONFIG, [r"train\.val_interval must be >= 1"]),
    ("hooks.checkpoint.interval=0", CONFIG, [r"hooks\.checkpoint\.interval must be >= 1, or -1 for no checkpoint"]),
    ("hooks.checkpoint.max_keep_ckpts=-2", CONFIG, [r"max_keep_ckpts must be >= -1, got -2"]),
    ("+hooks=ema hooks.ema.momentum=3.0", CONFIG, [r"hooks\.ema\.momentum must be in \(0, 1\), got 3\.0"]),
    ("train.amp=bf17", CONFIG, [r"train\.amp must be one of false, off, bf16, fp16; got bf17; did you mean 'bf16'"]),
    ("loss.kind=crossentropy", CONFIG, [r"loss\.kind must be one of cross_entropy, bce", r"did you mean 'cross_entropy'"]),
    ("logging.level=info", CONFIG, [r"logging\.level must be one of DEBUG, INFO", r"did you mean 'INFO'"]),
    ("'metrics.topk=[0]'", CONFIG, [r"metrics\.topk\[0\] must be >= 1, got 0"]),
    ("env.device=gpu", CONFIG, [r"env\.device must be auto, cpu, cuda, cuda:N or mps; got 'gpu'; did you mean 'cuda'"]),
    ("hooks.logger.priority=HIHG", CONFIG, [r"hooks\.logger\.priority must be", r"did you mean 'HIGH'"]),
    ("hooks.logger.priority=300", CONFIG, [r"hooks\.logger\.priority must be in \[0, 100\], got 300"]),
    ("name=../elsewhere", CONFIG, [r"name must be letters, digits.*'\.\./elsewhere'"]),
    ("name=..", CONFIG, [r"name must be"]),
    # contradictions
    ("train.max_iters=100", CONFIG, [r"train\.max_iters=100 contradicts train\.by_epoch=true"]),
    ("train.by_epoch=false", CONFIG, [r"train\.by_epoch=false needs train\.max_iters"]),
    ("train.by_epoch=false train.max_iters=5 train.max_epochs=3", CONFIG, [r"train\.max_epochs=3 contradicts"]),
    ("train.max_epochs=3 schedule.warmup=5", CONFIG, [r"schedule\.warmup=5 is longer than the run"]),
    ("mode=test", CONFIG, [r"mode=test needs a checkpoint: load_from="]),
    ("resume=a/b.pth load_from=c.pth", CONFIG, [r"both name a checkpoint; give one"]),
    ("resume=atuo", CONFIG, [r"resume must be false, true, auto or a checkpoint's path", r"did you mean 'auto'"]),
    ("+hooks=ema hooks.ema.momentum=0.1 hooks.ema.decay=0.9", CONFIG, [r"say the same thing twice; give one"]),
    ("+hooks=ema hooks.ema.begin_epoch=1 hooks.ema.begin_iter=5", CONFIG, [r"begin_epoch and hooks\.ema\.begin_iter"]),
    ("+hooks=ema hooks.ema.evaluate_on_ema=false", CONFIG, [r"nothing would be validated"]),
    ("+hooks=nan_guard hooks.nan_guard.policy=rollback hooks.checkpoint=null", CONFIG, [r"needs checkpoints to go back to"]),
    ("resume=latest", CONFIG, [r"there is no file 'latest'; did you mean 'true'"]),
    ("hooks.checkpoint.save_best=accuracy/top1", CONFIG, [r"there is no metric 'accuracy/top1'; did you mean 'top1'"]),
    ("hooks.checkpoint.save_best=top5", CONFIG, [r"hooks\.checkpoint\.save_best: there is no metric 'top5'", r"val/top1"]),
    ("'hooks.checkpoint.save_best=[top1,loss]' 'hooks.checkpoint.rule=[greater,less,less]'", CONFIG, [r"3 entries for 2"]),
    ("'hooks.checkpoint.save_best=[val/top1,val/loss]' 'hooks.checkpoint.rule=[greater]'", CONFIG, [r"1 entries for 2 .* give one for each"]),
    ("'hooks.checkpoint.save_best=[top1,loss]' hooks.checkpoint.rule=greater", CONFIG, [r"hooks\.checkpoint\.rule=greater would keep the worst: of val/loss the less"]),
    ("+hooks=early_stop hooks.early_stop.monitor=loss hooks.early_stop.rule=greater", CONFIG, [r"hooks\.early_stop\.rule=greater would keep the worst"]),
    ("metrics.rule=less", CONFIG, [r"metrics\.rule=less would keep the worst: of val/top1 the greater is better"]),
    ("schedule=plateau schedule.monitor=loss schedule.rule=greater", CONFIG, [r"schedule\.rule=greater would keep the worst"]),
    ("hooks.checkpoint.rule=bigger", CONFIG, [r"hooks\.checkpoint\.rule must be greater or less, got 'bigger'"]),
    ("'hooks.checkpoint.filename=x_{epoch}'", CONFIG, [r"like epoch_{}; got 'x_{epoch}'"]),
    ("hooks.checkpoint.filename=last", CONFIG, [r"hooks\.checkpoint\.filename must be .* one pair of braces"]),
    ("'hooks.checkpoint.filename=\"a b{}\"'", CONFIG, [r"hooks\.checkpoint\.filename must be .*got 'a b{}'"]),
    ("'hooks.checkpoint.filename=\"../e{}\"'", CONFIG, [r"hooks\.checkpoint\.filename must be"]),
    ("+hooks=early_stop hooks.early_stop.monitor=acc", CONFIG, [r"hooks\.early_stop\.monitor: there is no metric 'acc'"]),
    ("schedule=plateau schedule.monitor=val/acuracy", CONFIG, [r"schedule\.monitor: there is no metric"]),
    ("model.init.prefix=backbone.", CONFIG, [r"model\.init\.prefix=backbone\. has no effect without"]),
    ("env.device=cpu env.dist.backend=nccl", CONFIG, [r"nccl needs GPUs"]),
    ("'data.mean=[0.5]'", CONFIG, [r"data\.mean=\[0\.5\] and data\.std=None: give both or neither"]),
    ("data.drop_last=true data.limit_train=8", CONFIG, [r"leaves no step to train"]),
    ("data=folder data.root=x data.val_fraction=0.1 data.val_list=y data.train_list=z", CONFIG, [r"give one"]),
    # augmentation, logged values, multipliers
    ("'data.augment=[flop]'", CONFIG, [r"data\.augment: unknown augmentation 'flop'; did you mean flip"]),
    ("'data.augment={crop: {paddin: 3}}'", CONFIG, [r"data\.augment\.crop: unknown argument 'paddin'; did you mean padding"]),
    ("'data.augment={flip: {prob: 2}}'", CONFIG, [r"data\.augment\.flip\.prob must be"]),
    ("'data.batch_augment={mixup: {prob: 0.7}, cutmix: {prob: 0.7}}'", CONFIG, [r"sum to at most 1, got 1\.4"]),
    ("'logging.custom=[{source: los}]'", CONFIG, [r"logging\.custom\[0\]\.source must be one of loss,", r"did you mean 'loss'"]),
    ("'logging.custom=[{source: loss, windw: 3}]'", CONFIG, [r"unknown key 'logging\.custom\[0\]\.windw'; did you mean"]),
    ("+optim.multipliers.head.rl=2", CONFIG, [r"unknown key 'optim\.multipliers\.head\.rl'"]),
    ("+hooks=switch_recipe 'hooks.switch_recipe.schedule=[{epoch: -1}]'", CONFIG, [r"schedule\[0\]\.epoch must be"]),
    # missing values: all of them
    ("data=folder model=torchvision optim=torch", CONFIG, [r"3 problems", r"model\.name is missing", r"data\.root is missing", r"optim\.name is missing"]),
    ("'name=${oc.env:NO_SUCH_VARIABLE}'", CONFIG, [r"name: the environment variable NO_SUCH_VARIABLE is not set"]),
    ("'name=${nme}'", CONFIG, [r"name: \$\{nme\} has no value"]),
    # classes
    ("hooks.mine._target_=os.system", CONFIG, [r"os\.system is not trusted; allowed are", r"trusted_packages=\[os\]"]),
    ("hooks.mine._target_=subprocess.Popen +hooks.mine.args=ls", CONFIG, [r"subprocess\.Popen is not trusted"]),
    ("model=custom model._target_=torch.load", CONFIG, [r"torch\.load is not trusted"]),
    ("model=custom model._target_=app.models.lenet.torch.load", CONFIG, [r"another name of torch\.serialization\.load"]),
    ("model=custom model._target_=Net", CONFIG, [r"model\._target_ must be the dotted name"]),
    ("hooks.mine.a=3", CONFIG, [r"unknown key 'hooks\.mine'"]),
    ("+hooks.emma.momentum=0.1", CONFIG, [r"unknown key 'hooks\.emma'; did you mean 'hooks\.ema'"]),
    ("model=custom model._target_=torch.nn.Linaer", CONFIG, [r"torch\.nn has no 'Linaer'; did you mean 'torch\.nn\.Linear'"]),
    ("model=custom model._target_=torch.nn.Linear +model.in_feature=3", CONFIG, [r"did you mean 'model\.in_features'", r"model\.out_features is missing"]),
    ("model=custom model._target_=timm_nets.make 'trusted_packages=[timm_nets]'", CONFIG, [r"there is no package 'timm_nets'"]),
    ("'+hydra.callbacks.evil={_target_: os.remove, path: x}'", CONFIG, [r"hydra\.callbacks\.evil.*os\.remove is not trusted"]),
    ("+hydra.job_logging.handlers.evil.class=os.remove", CONFIG, [r"hydra\.job_logging.*os\.remove is not trusted"]),
    # secrets
    ("+visualizer=wandb +visualizer.wandb.api_key=CANARY", CONFIG, [r"visualizer\.wandb\.api_key"]),
    ("'+model.init.token=CANARY'", CONFIG, [r"model\.init\.token"]),
    ("'name=${oc.env:WANDB_API_KEY}'", CONFIG, [r"name looks like a secret.*set it in the environment"]),
    ("load_from=https://me:CANARY@host/w.pth", CONFIG, [r"load_from holds a password"]),
    ("load_from=https://CANARY@host/w.pth", CONFIG, [r"load_from holds a password .*='\$\{oc\.env:ADDRESS\}'"]),
    ("load_from=https://host/w.pth?a=1&X-Amz-Signature=CANARY", CONFIG, [r"load_from holds a password or token"]),
    # files and addresses
    ("load_from=nothing.pth", CHECKPOINT, [r"load_from=nothing\.pth: .*/nothing\.pth does not exist"]),
    ("load_from=.", CHECKPOINT, [r"load_from=\.: .* is a folder; name a file in it"]),
    ("resume=runs/nothing.pth", CHECKPOINT, [r"resume=runs/nothing\.pth: .* does not exist"]),
    ("model.init.checkpoint=nothing.pth", CHECKPOINT, [r"model\.init\.checkpoint=nothing\.pth: .* does not exist"]),
    ("load_from=.", CHECKPOINT, [r"load_from=\.: .* is a folder; name a file in it"]),
    ("load_from=ftp://host/w.pth", CONFIG, [r"load_from: ftp:// is not supported"]),
    ("load_from=https://host/w.pth#md5=abc", CONFIG, [r"load_from: after # comes sha256="]),
    ("data=mnist", DATA, [r"data\.root=data: there is no MNIST/raw in .*/data;", r"data\.download=true"]),
    ("data=cifar10 data.root=here", DATA, [r"cifar-10-batches-py"]),
    ("data=folder data.root=nope", DATA, [r"data\.root=nope: /.*/nope does not exist; expected train/CLASS"]),
    # sweeps
    ("-m optim.lr=-1,1", CONFIG, [r"optim\.lr must be > 0, got -1"]),
    ("-m model=lenet,mlp", CONFIG, [r"model has no option 'lenet'; did you mean 'model=lenet5'"]),
    ("-m optim.lrr=1,2", CONFIG, [r"unknown key 'optim\.lrr'; did you mean 'optim\.lr'"]),
]  # fmt: skip


@pytest.mark.parametrize(("line", "code", "patterns"), WRONG_COMMANDS, ids=[row[0] for row in WRONG_COMMANDS])
def test_wrong_command(terminal: Terminal, line: str, code: int, patterns: list[str]) -> None:
    outcome = terminal.run(*shlex.split(line))
    outcome.says("^error: ", *patterns)
    assert outcome.code == code
    assert "CANARY" not in outcome.message
    assert "To append" not in outcome.message
    assert not list(terminal.folder.glob("outputs/*/2*")), "a run folder was made"


def test_all_problems_are_listed_at_once(terminal: Terminal) -> None:
    outcome = terminal.run("optim.lrr=1", "model=lenet", "train.amp=x", "hooks.ema.decay=0.5")
    outcome.says("4 problems", r"optim\.lrr", "model=lenet5", r"train\.amp must be", r"`\+hooks=ema`")
    assert outcome.code == CONFIG


EXPERIMENT = "# @package _global_\nname: mine\n"
WRONG_FILES: list[tuple[str, str, list[str]]] = [
    ("train: {max_epoch: 3}", CONFIG_FILE := r"own/experiment/mine\.yaml: ", [r"'train\.max_epoch'; did you mean"]),
    ("optim: {lr: fast}", CONFIG_FILE, [r"optim\.lr must be a number, got 'fast'"]),
    ("hooks: {logger: {intervl: 3}}", CONFIG_FILE, [r"'hooks\.logger\.intervl'; did you mean 'hooks\.logger\.interval'"]),
    ("trian: {max_epochs: 3}", CONFIG_FILE, [r"unknown key 'trian'; did you mean 'train'"]),
    ("optim: {lr: -1}", "", [r"optim\.lr must be > 0, got -1"]),
    ("train: {max_epochs: 3", r"own/experiment/mine\.yaml, line \d", [r"is not valid YAML"]),
    ("train:\n\tmax_epochs: 3", r"own/experiment/mine\.yaml, line 4", [r"is not valid YAML"]),
    ("defaults: [{override /modle: mlp}]", "", [r"there is no config group 'modle'.*did you mean 'model'"]),
    ("defaults: [{override /model: mlpp}]", "", [r"model has no option 'mlpp'; did you mean 'model=mlp'",]),
    ("trusted_packages: [os]", "", [r"trusted_packages counts only on the command line"]),
    ("hooks: {mine: {_target_: os.system}}", "", [r"hooks\.mine\._target_: os\.system is not trusted"]),
    ("hooks: {mine: {key: 1}}", "", [r"unknown key 'hooks\.mine'"]),
    ("train: [1, 2]", CONFIG_FILE, [r"train"]),
]  # fmt: skip


@pytest.mark.parametrize(("content", "place", "patterns"), WRONG_FILES, ids=[row[0] for row in WRONG_FILES])
def test_wrong_file(terminal: Terminal, content: str, place: str, patterns: list[str]) -> None:
    terminal.write({"own/experiment/mine.yaml": EXPERIMENT + content})
    outcome = terminal.run("--config-dir", "own", "experiment=mine")
    outcome.says("^error: ", place, *patterns)
    assert outcome.code == CONFIG


def images(folder: Path, *names: str, size: tuple[int, int] = (8, 8)) -> None:
    """Grey JPEG files below `folder`."""
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (index * 20 % 256, 90, 90)).save(path)


GOOD = ("d/train/cat/1.jpg", "d/train/dog/1.jpg", "d/val/cat/1.jpg", "d/val/dog/1.jpg")
SMALL = ["train.max_epochs=1", "schedule=constant", "env.device=cpu"]
FOLDER = ["data=folder", "data.root=d", "data.image_size=8", "data.batch_size=2", *SMALL]
FAKE = ["data=fake", "data.size=16", "data.val_size=8", "data.image_size=8", *SMALL]


def test_folder_without_classes(terminal: Terminal) -> None:
    (terminal.folder / "d").mkdir()
    outcome = terminal.run(*FOLDER)
    outcome.says(r"^error: data\.root=d: /.*/d holds no folders; expected train/CLASS")
    assert outcome.code == DATA


def test_folder_without_train(terminal: Terminal) -> None:
    images(terminal.folder, "d/trian/cat/1.jpg")
    outcome = terminal.run(*FOLDER)
    outcome.says(r"there is no train/ in /.*/d \(trian\)")
    assert outcome.code == DATA


def test_empty_class(terminal: Terminal) -> None:
    images(terminal.folder, *GOOD)
    (terminal.folder / "d/train/emu").mkdir()
    outcome = terminal.run(*FOLDER)
    outcome.says(r"d/train/emu holds no image", r"data\.allow_empty=true")
    assert outcome.code == DATA


def test_no_images_at_all(terminal: Terminal) -> None:
    terminal.write({"d/train/cat/readme.txt": "none", "d/val/cat/readme.txt": "none"})
    outcome = terminal.run(*FOLDER)
    outcome.says(r"no images in /.*/d; expected train/CLASS", r"\.jpg")
    assert outcome.code == DATA


def test_train_and_val_differ_in_classes(terminal: Terminal) -> None:
    images(terminal.folder, *GOOD, "d/val/emu/1.jpg")
    outcome = terminal.run(*FOLDER)
    outcome.says(r"emu")
    assert outcome.code == DATA


@pytest.mark.parametrize(
    ("content", "pattern"),
    [(b"", r"empty|0 bytes"), (b"<html>404</html>", r"<html"), (b"\xff\xd8\xff\xe0", r"4 bytes|truncated")],
)
def test_unreadable_image_is_named(terminal: Terminal, content: bytes, pattern: str) -> None:
    images(terminal.folder, *GOOD)
    terminal.write({"d/train/cat/bad.jpg": content})
    outcome = terminal.run(*FOLDER)
    outcome.says(r"d/train/cat/bad\.jpg", pattern, r"data\.on_error=skip")
    assert outcome.code == DATA


def test_too_large_image(terminal: Terminal) -> None:
    images(terminal.folder, *GOOD, size=(40, 40))
    outcome = terminal.run(*FOLDER, "data.max_pixels=100")
    outcome.says(r"d/(train|val)/(cat|dog)/1\.jpg", r"1600|40", r"data\.max_pixels")
    assert outcome.code == DATA


def test_label_out_of_range_in_a_list(terminal: Terminal) -> None:
    images(terminal.folder, *GOOD)
    terminal.write({"d/t.txt": "train/cat/1.jpg 0\ntrain/dog/1.jpg 1\n", "d/v.txt": "val/cat/1.jpg 7\n"})
    outcome = terminal.run(*FOLDER, "data.train_list=t.txt", "data.val_list=v.txt")
    outcome.says(r"data\.val_list: .*v\.txt:1: label 7 is none of the 2 classes")
    assert outcome.code == DATA


@pytest.mark.parametrize("content", [b"", b"not gzip", gzip.compress(b"\0\0\x08\x03\0\0", mtime=0), b"\x1f\x8b\x08\0"])
def test_damaged_idx_file(terminal: Terminal, content: bytes) -> None:
    terminal.write({"d/MNIST/raw/train-images-idx3-ubyte.gz": content})
    outcome = terminal.run("data=mnist", "data.root=d", "model=lenet5", *SMALL)
    outcome.says(r"data\.root: .*train-images-idx3-ubyte")
    assert outcome.code == DATA


WRONG_TOGETHER: list[tuple[str, int, list[str]]] = [
    ("model.num_classes=5", CONFIG, [r"5", r"10", r"model\.num_classes"]),
    ("model=lenet5", CONFIG, [r"LeNet|lenet", r"8"]),
    ("data.drop_last=true data.batch_size=64", CONFIG, [r"drop_last", r"16", r"64"]),
    ("'metrics.topk=[20]'", CONFIG, [r"metrics\.topk", r"20", r"10"]),
    ("hooks.mine._target_=torch.nn.Identity", CONFIG, [r"hooks\.mine._target_", r"Hook"]),
    ("model=torchvision model.name=resnet81", CONFIG, [r"model\.name", r"resnet18"]),
    ("optim=torch optim.name=NAdan", CONFIG, [r"optim\.name", r"NAdam"]),
    ("+optim.args.momentun=0.9", CONFIG, [r"momentun"]),
    ("load_from=garbage.pth", CHECKPOINT, [r"garbage\.pth"]),
    ("resume=garbage.pth", CHECKPOINT, [r"garbage\.pth"]),
    ("mode=test load_from=page.pth", CHECKPOINT, [r"page\.pth is not a checkpoint: 28 bytes, looks like a web page"]),
    ("output_root=file.txt", CANNOT_WRITE, [r"file\.txt"]),
    ("output_root=/proc/nowhere", CANNOT_WRITE, [r"/proc/nowhere", r"output_root"]),
    ("hydra.run.dir=file.txt/run", CANNOT_WRITE, [r"file\.txt/run"]),
    ("data.mean=[0.5,0.5] data.std=[0.5,0.5]", CONFIG, [r"data\.mean must have 1 or 3 numbers"]),
]


@pytest.mark.parametrize(("line", "code", "patterns"), WRONG_TOGETHER, ids=[row[0] for row in WRONG_TOGETHER])
def test_settings_that_do_not_fit_the_data_or_machine(
    terminal: Terminal, line: str, code: int, patterns: list[str]
) -> None:
    terminal.write({"garbage.pth": b"garbage" * 100, "page.pth": b"<!DOCTYPE html><html></html>", "file.txt": ""})
    outcome = terminal.run(*FAKE, *shlex.split(line))
    outcome.says(*patterns)
    assert outcome.code == code, outcome.message


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="needs a machine without a GPU")
@pytest.mark.parametrize("line", ["env.device=cuda", "env.device=cuda:3", "env.dist.backend=nccl env.device=cuda"])
def test_no_such_device(terminal: Terminal, line: str) -> None:
    outcome = terminal.run(*FAKE[:-1], *line.split())
    outcome.says(r"env\.device", r"cuda", r"cpu")
    assert outcome.code == CONFIG


def test_a_folder_that_holds_a_run_is_left_alone(terminal: Terminal) -> None:
    terminal.write({"run/.hydra/1/config.yaml": "", "run/checkpoints/epoch_1.json": "{}"})
    outcome = terminal.run(*FAKE, "hydra.run.dir=run")
    outcome.says(r"run already holds a run; use resume=true")
    for key, advice in (("resume", r"resume=true hydra\.run\.dir=run"), ("load_from", r"run/checkpoints/best\.pth")):
        terminal.run(f"{key}=run").says(rf"{key}=run: .*/run is a folder; .*{advice}")
    assert outcome.code == CONFIG
    assert (terminal.folder / "run/checkpoints/epoch_1.json").read_text() == "{}"


def test_a_run_folder_in_use(terminal: Terminal) -> None:
    from app.runs.folder import held

    (terminal.folder / "run").mkdir()
    with held(terminal.folder / "run"):
        outcome = terminal.run(*FAKE, "hydra.run.dir=run")
    outcome.says(rf"run is in use by process {os.getpid()} on")
    assert outcome.code == TEMPORARY
