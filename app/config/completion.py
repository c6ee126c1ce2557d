"""Shell completion for `app …` and `python -m app …`: the script for bash, and the answer to its question.

Hydra's own script knows no `python -m`, cuts words at `=`, and completes its schema's internal group.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

from app.config.check import schema_keys
from app.config.wording import show
from app.errors import ConfigError

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra

BASH = r"""
_hydra_experiment_app()
{
    local line="${COMP_LINE:0:COMP_POINT}" command word cut
    if [[ "$line" =~ ^[[:space:]]*([^[:space:]]*python[0-9.]*[[:space:]]+-m[[:space:]]+app)([[:space:]]|$) ]]; then
        command="${BASH_REMATCH[1]}"
    elif [[ "$line" =~ ^[[:space:]]*(([^[:space:]]*/)?app)[[:space:]] ]]; then
        command="${BASH_REMATCH[1]}"
    else
        return 0
    fi
    word="${line##*[[:space:]]}"
    COMPREPLY=($(compgen -W "$(COMP_LINE="$line" $command -sc query=bash 2>/dev/null)" -- "$word"))
    cut="${word%"${word##*[=:]}"}"
    if [[ "$COMP_WORDBREAKS" == *=* && -n "$cut" ]]; then
        COMPREPLY=("${COMPREPLY[@]#"$cut"}")
    fi
}
complete -o nospace -o default -F _hydra_experiment_app app python python3
"""


def is_query(words: Sequence[str]) -> bool:
    """True for the question that the installed script asks."""
    return any(word.startswith("query=") for word in words)


def script(words: Sequence[str]) -> str:
    """What `eval` takes to switch completion on (`install=bash`) or off (`uninstall=bash`).

    Raises:
        ConfigError: another shell or word.
    """
    if list(words) == ["install=bash"]:
        return BASH.strip()
    if list(words) == ["uninstall=bash"]:
        return "complete -r app python python3; unset -f _hydra_experiment_app"
    raise ConfigError('--shell-completion: for bash, eval "$(python -m app --shell-completion install=bash)"')


def query(hydra: Hydra, config_name: str) -> None:
    """Prints the continuations of the last word of COMP_LINE, separated by spaces."""
    line = os.environ.get("COMP_LINE", "")
    os.environ["COMP_LINE"] = re.sub(r"^\s*\S*python[\d.]*\s+-m\s+app(?=\s|$)|^\s*\S*/app(?=\s|$)", "app", line)
    with redirect_stdout(io.StringIO()) as answer:
        hydra.shell_completion(config_name=config_name, overrides=["query=bash"])
    words = [word for word in answer.getvalue().split() if not word.lstrip("+~").startswith("schema")]
    key, equals, _ = line.rpartition(" ")[2].partition("=")
    field = schema_keys().get(key) if equals else None
    choices = field.metadata.get("choices") if field is not None else None
    print(" ".join([f"{key}={show(choice)}" for choice in choices] if choices else words))
