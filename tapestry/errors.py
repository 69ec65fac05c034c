"""Every error that Tapestry raises on purpose, in four families.

```
TapestryError             one line for a person: what was wrong, where, what to do
├── ConfigError           the operator's to mend: a setting, a path, a command
├── RejectedError         readable and refused; whoever sent it can mend it and send again
├── UnavailableError      not now: nothing is wrong with the request, try again later
└── UntrustedError        failed a cryptographic check: use nothing of it
```

Misuse of a Python API raises the built-in TypeError or ValueError, so that hostile input and bugs
never share a class. A message says what came, what was expected, and what to do.
"""


class TapestryError(Exception):
    """Something that the person at the terminal should read; printed without a traceback."""


class ConfigError(TapestryError):
    """What the operator gave (a file, a flag, a path) cannot be used as it is."""


class RejectedError(TapestryError):
    """A readable request, plan, or contribution was refused, with a reason to act on."""


class UnavailableError(TapestryError):
    """The other side cannot answer now; the same request may succeed later."""


class UntrustedError(TapestryError):
    """A signature, digest, or certificate did not verify: nothing of the thing may be used."""
