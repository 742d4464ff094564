"""Mail through the system's own mailer, which knows how mail leaves this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import PurePath

from manifests.printable import one_line, printable

SCHEME = "mailto:"
TIMEOUT_S = 20.0
_MORE_PLACES = ("/usr/sbin", "/usr/lib", "/sbin")
"""Where sendmail lies on many machines whose users do not have these folders on their PATH."""
_PROGRAMS = ("sendmail", "mail", "mailx")
_OWN_VARIABLES = ("PAB_PIPELINE_", "OTEL_EXPORTER_")
"""May hold secrets that are not the mailer's."""
_ADDRESS = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9._%+-]{0,63}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_SUBJECT_CHARS, _SHOWN_CHARS = 150, 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """Sends mail to `addresses` by `program`, a path to sendmail, mail or mailx, which gets these variables."""

    addresses: tuple[str, ...]
    program: str
    environment: Mapping[str, str]

    @property
    def place(self) -> str:
        """Where messages go, in words."""
        return f"{', '.join(self.addresses)} (by {PurePath(self.program).name})"

    def send(self, subject: str, text: str) -> str | None:
        """Hands a message to the mailer; returns what went wrong, or None."""
        subject = one_line(subject)[:_SUBJECT_CHARS]
        text = printable(text)
        if PurePath(self.program).name == "sendmail":
            command, given = [self.program, "-t", "-i"], self._message(subject, text)
        else:
            # Some of these programs carry out a line that begins with a tilde.
            lines = (f" {line}" if line.startswith("~") else line for line in text.splitlines())
            command, given = [self.program, "-s", subject, *self.addresses], "\n".join([*lines, ""]).encode()
        return _problem(command, given, self.environment)

    def _message(self, subject: str, text: str) -> bytes:
        message = EmailMessage()
        message["To"] = ", ".join(self.addresses)
        message["Subject"] = subject
        message["Auto-Submitted"] = "auto-generated"  # so that no machine answers
        message.set_content(text)
        return message.as_bytes(policy=SMTP.clone(linesep="\n"))


def _problem(command: Sequence[str], given: bytes, environment: Mapping[str, str]) -> str | None:
    try:
        ran = subprocess.run(
            command, input=given, capture_output=True, timeout=TIMEOUT_S, check=False, env=environment
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"the program has not ended within {TIMEOUT_S:.0f} s and was stopped"
    except OSError as error:
        return f"the program cannot be run: {error.strerror}"
    if ran.returncode == 0:
        return None
    said = one_line(ran.stderr.decode(errors="replace").strip())[:_SHOWN_CHARS]
    return f"the program ended with {ran.returncode}" + (f": {said}" if said else "")


def read_addresses(text: str) -> tuple[str, ...]:
    """Reads `mailto:me@site.org`, or several addresses with commas. Raises ValueError, which says what is needed."""
    addresses = tuple(text.removeprefix(SCHEME).split(","))
    if not all(_ADDRESS.fullmatch(address) and ".." not in address for address in addresses):
        raise ValueError("needs addresses such as mailto:me@site.org, several with commas, and nothing else")
    return addresses


def open_mail(text: str, variables: Mapping[str, str]) -> Mail:
    """Returns how mail goes to the addresses that `read_addresses` reads.

    `variables`: of this process; those that may hold secrets of ours are not for the mailer. Raises ValueError, which says
    what is looked for, if this machine has no mailer.
    """
    search_path = os.pathsep.join([variables.get("PATH", os.defpath), *_MORE_PLACES])
    for name in _PROGRAMS:
        if found := shutil.which(name, path=search_path):
            own = {each: value for each, value in variables.items() if not each.startswith(_OWN_VARIABLES)}
            return Mail(addresses=read_addresses(text), program=found, environment=own)
    raise ValueError(
        f"needs a mail program on this machine, and there is none of {', '.join(_PROGRAMS)}; install one (such as msmtp-mta "
        "or postfix), or name a webhook"
    )
