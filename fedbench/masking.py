"""Texts that stay on the disk or reach a log, without what the environment keeps secret and the home folder.

What an error says is often not ours: a library quotes the proxy that it could not reach, a plugin its environment.
"""

import os
import re
from pathlib import Path

from fedbench.escaping import printable_lines

SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)  # of an environment variable
SHORTEST = 8  # letters of a secret: a shorter value is a word or a number that stands in texts by chance
IN_ADDRESS = re.compile(r"(?<=://)[^/\s@]+@")  # user and password: https://me:abc@host
MASK = "***"


def without_secrets(text: str) -> str:
    """`***` for the value of every environment variable called like a secret, and for a login in an address."""
    values = {value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= SHORTEST}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, MASK)
    return IN_ADDRESS.sub(f"{MASK}@", text)


def told(error: object) -> str:
    """What an error says, for a terminal: without secrets, and with nothing that the terminal obeys."""
    return printable_lines(without_secrets(str(error)))


def shareable(text: str) -> str:
    """The same, and `~` for the user's home folder, which is named after its owner."""
    home = str(Path.home()).rstrip("/")
    text = without_secrets(text)
    return re.sub(rf"{re.escape(home)}(?=/|\W|$)", "~", text) if home else text
