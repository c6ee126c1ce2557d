"""Where 0.1 kept `Hook`: the door for hooks written for it. It lives in app.core.hook."""

from app.core.hook import Hook

__all__ = ["Hook"]
