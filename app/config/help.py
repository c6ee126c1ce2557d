"""`--help` for a person, from the schema's own documentation. Imports neither Hydra's machinery nor torch."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import Field, fields, is_dataclass
from typing import Any

from app.config.command_line import CONF
from app.config.documentation import Key, doc_of, keys_of
from app.config.schema import GROUPS, register
from app.config.schema.data import AUGMENTS, BATCH_AUGMENTS
from app.config.schema.launcher import LAUNCHERS
from app.config.schema.root import AppConf
from app.config.schema.source import OPTIONS
from app.errors import ConfigError
from app.suggest import did_you_mean

WIDTH = 110
ABOUT = """\
Trains, validates and tests an image classifier from one composed configuration.

  python -m app                                             the default experiment: digits, on a CPU, under a minute
  python -m app hooks.checkpoint.interval=2 resume=true     save every 2 epochs; continue the newest run
  python -m app experiment=fashion_mnist model=lenet5 data.root=/data
  python -m app hooks=ema hooks.ema.momentum=4e-5 visualizer=tensorboard   added to what is always there
  python -m app mode=test load_from=outputs/digits/.../checkpoints/best.pth
  python -m app load_from=https://host/weights.pth          weights only: fine-tune
  python -m app --multirun optim.lr=0.1,0.03 'randomness.seed=range(3)'     a sweep, queued over GPUs or CPU slots
  python -m app --multirun hydra/launcher=slurm optim.lr=0.1,0.03           the same as SLURM jobs
  torchrun --nproc-per-node 4 -m app                        one machine, several processes
  python -m app check=true                                  try one step of everything, then stop
"""
MORE = """\
Settings are KEY=VALUE. hooks=ema or 'hooks=[ema,early_stop]' adds to the default hooks; hooks.NAME=null removes one.
A class of your own, in a package below the current directory: hooks.mine._target_=package.MyHook, model=custom
model._target_=package.Net +model.width=32, data=custom data._target_=package.load.

More: --help TOPIC, where TOPIC is a group (model, data, optim, …), a hook (hooks.ema), any key (train.amp),
      augment, or launcher.
      --cfg job [--resolve] prints the composed configuration, --info its sources, --hydra-help Hydra's own options.
      Completion in bash: eval "$(python -m app --shell-completion install=bash)"
Exit codes: 0 done, 64 wrong config, 65 wrong data or non-finite numbers, 66 checkpoint unusable, 73 cannot write,
      74 I/O error, 75 temporary (try again), 128+n saved and left on signal n."""


def show_help(topics: Sequence[str]) -> int:
    """Prints the overview, or what is known about each topic.

    Raises:
        ConfigError: there is no such topic.
    """
    topics = [topic.partition("=")[0].lstrip("+~") for topic in topics]
    print("\n\n".join(topic_text(topic) for topic in topics) if topics else overview())
    return 0


def overview() -> str:
    """The groups with their options, the other sections, the commands."""
    lines = [ABOUT, "Groups, and what can be chosen (GROUP=OPTION):"]
    lines += [_wrapped(f"  {group:<15}", ", ".join(options(group))) for group in ("experiment", *GROUPS)]
    lines += [_wrapped(f"  {'hydra/launcher':<15}", ", ".join(LAUNCHERS)), "", "Other keys:"]
    sections = [field for field in fields(AppConf) if is_dataclass(field.default_factory)]
    plain = [field for field in fields(AppConf) if field not in sections and field.name not in GROUPS]
    lines += [_wrapped(f"  {field.name:<17}", doc_of(field)) for field in plain]
    for section in sections:
        names = [field.name for field in fields(section.default_factory)]  # type: ignore[arg-type]
        lines.append(_wrapped(f"  {section.name + '.':<17}", ", ".join(names)))
    return "\n".join([*lines, "", MORE])


def options(group: str) -> list[str]:
    """The options of a config group: of its table, and its files."""
    register()
    offered = {name.rpartition("/")[2] for name in OPTIONS if name.rpartition("/")[0] == group}
    return sorted(offered | {path.stem for path in (CONF / group).glob("*.yaml")})


def topic_text(topic: str) -> str:
    """What is known about a group, a hook, a section or a key.

    Raises:
        ConfigError: nothing.
    """
    if topic in ("augment", "data.augment", "batch_augment", "data.batch_augment"):
        return _augment_text()
    if topic in ("launcher", "hydra/launcher", "hydra.launcher"):
        return "\n\n".join(
            _node_text(f"hydra.launcher ({name})", "hydra.launcher", node) for name, node in LAUNCHERS.items()
        )
    if topic == "experiment":
        return _experiments_text()
    nodes = sections()
    if topic in nodes:
        return _node_text(topic, topic, nodes[topic])
    if topic in GROUPS:
        return _group_text(topic)
    keys = dict(all_keys())
    if topic in keys:
        return "\n".join(_key_lines(topic, keys[topic]))
    known = [*nodes, *GROUPS, *keys, "augment", "launcher", "experiment"]
    homes = [name for name in known if name.rpartition(".")[2] == topic]
    if homes:
        return "\n\n".join(topic_text(home) for home in homes[:6])
    raise ConfigError(f"no help for '{topic}'{did_you_mean(topic, known)}")


def sections() -> dict[str, type]:
    """`train`, `env.dist`, `hooks.ema`, …: every dotted name that is a section, with its dataclass."""
    found: dict[str, type] = {}

    def walk(schema: type, prefix: str) -> None:
        for field in fields(schema):
            node: Any = field.default_factory
            if is_dataclass(node):
                found[f"{prefix}{field.name}"] = node  # type: ignore[assignment]
                walk(node, f"{prefix}{field.name}.")  # type: ignore[arg-type]

    walk(AppConf, "")
    for group, nodes in GROUPS.items():
        for name, node in nodes.items():
            if group in ("hooks", "visualizer"):
                found[f"{group}.{name}"] = node
            else:
                walk(node, f"{group}.")
                found[f"{group}={name}"] = node
    return found


def all_keys() -> Iterator[tuple[str, Key]]:
    """Every full key that takes a value."""
    for key in keys_of(AppConf):
        yield key.name, key
    for name, node in sections().items():
        prefix = name.partition("=")[0]
        for key in keys_of(node):
            yield f"{prefix}.{key.name}", key


def _group_text(group: str) -> str:
    doc = next(doc_of(field) for field in fields(AppConf) if field.name == group)
    lines = [f"{group}: {doc.partition(':')[0]}. Options: {', '.join(options(group))}"]
    nodes = GROUPS[group]
    if group in ("hooks", "visualizer"):
        for name, node in nodes.items():
            lines.append(_wrapped(f"  {name:<17}", _summary(node)))
        return "\n".join([*lines, "", f"The keys of one: --help {group}.NAME"])
    base = nodes["custom"]
    common = {key.name for key in keys_of(base)}
    lines += ["", "Keys of every option:", *(line for key in keys_of(base) for line in _key_lines(key.name, key))]
    base_keys = {key.name: key for key in keys_of(base)}
    for name, node in nodes.items():
        own = [key for key in keys_of(node) if key.name not in common or key != base_keys[key.name]]
        lines += ["", _wrapped(f"{group}={name}: ", _summary(node))]
        lines += [line for key in own for line in _key_lines(key.name, key)]
    return "\n".join(lines)


def _node_text(title: str, prefix: str, node: type) -> str:
    lines = [_wrapped(f"{title}: ", _summary(node))]
    for key in keys_of(node):
        lines += _key_lines(key.name, key)
    below: list[Field[Any]] = [field for field in fields(node) if is_dataclass(field.default_factory)]
    lines += [f"  {field.name}.…  see --help {prefix}.{field.name}" for field in below]
    if prefix.startswith(("hooks.", "visualizer.")):
        group, _, name = prefix.partition(".")
        lines.append(f"Select it with +{group}={name}")
    return "\n".join(lines)


def _augment_text() -> str:
    lines = [
        "data.augment: a list of names, '[crop,flip]', or a mapping with arguments, "
        "'{crop: {padding: 2}, flip: {prob: 0.5}}'; applied in this order:",
    ]
    for name, node in AUGMENTS.items():
        lines.append(_wrapped(f"  {name:<17}", f"{_summary(node)} {_arguments(node)}"))
    lines += [
        "  other names: classes of torchvision.transforms.v2; one's own: 'mine: {_target_: mine.Blur, …}'",
        "",
        "data.batch_augment, a mapping such as '{mixup: {alpha: 0.2}}':",
    ]
    for name, node in BATCH_AUGMENTS.items():
        lines.append(_wrapped(f"  {name:<17}", f"{_summary(node)} {_arguments(node)}"))
    return "\n".join(lines)


def _arguments(node: type) -> str:
    given = [f"{key.name}={key.default}{f' ({key.limits})' if key.limits else ''}: {key.doc}" for key in keys_of(node)]
    return "; ".join(given)


def _experiments_text() -> str:
    lines = ["experiment: named settings over the defaults."]
    for name in options("experiment"):
        comments = [
            line[1:].strip()
            for line in (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
            if line.startswith("# ")
        ]
        lines.append(
            _wrapped(f"  {name:<17}", " ".join(comment for comment in comments if not comment.startswith("@")))
        )
    return "\n".join(lines)


def _key_lines(name: str, key: Key) -> list[str]:
    facts = ", ".join(part for part in (key.type, key.limits) if part)
    return [f"  {name} = {key.default}  ({facts})", *([_wrapped("      ", key.doc)] if key.doc else [])]


def _summary(node: type) -> str:
    return " ".join((node.__doc__ or "").split())


def _wrapped(head: str, text: str) -> str:
    return (
        textwrap.fill(
            text, WIDTH, initial_indent=head, subsequent_indent=" " * max(6, len(head)), break_on_hyphens=False
        )
        or head
    )
