"""The table `[page]` of `coordinator.toml`."""

import ipaddress
from typing import Self

from pydantic import model_validator

from tapestry.config import Settings


class PageSettings(Settings):
    """The web page for the coordinator's operator, with metrics and health for programs."""

    enabled: bool = True
    """Whether `serve` starts the page beside it; `tapestry coordinator page` starts it alone."""
    listen: str = "127.0.0.1:7445"
    """host:port of the page. On any address but loopback it asks for the operator's password, which
    `tapestry coordinator page-password` sets, and speaks TLS."""
    certificate: str = ""
    """PEM file with the page's TLS certificate and chain, relative to this folder; empty: one that
    the federation's root issues, which browsers know only if that root was imported."""
    key: str = ""
    """PEM file with the private key of `certificate`."""
    behind_proxy: bool = False
    """A reverse proxy in front speaks TLS: the page itself does not, asks for the password on
    loopback too, and believes the proxy's X-Forwarded-For (from 127.0.0.1 only)."""
    metrics_open: bool = False
    """Whether /metrics and /healthz answer anybody; without it only on loopback, or logged in."""

    @property
    def host(self) -> str:
        """The address to bind."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port to bind."""
        return int(self.listen.rpartition(":")[2])

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the page."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def needs_password(self) -> bool:
        """Whether the page may not be open to whoever reaches it."""
        return self.behind_proxy or not self.is_loopback

    @property
    def speaks_tls(self) -> bool:
        """Whether the page itself encrypts."""
        return bool(self.certificate) or (not self.is_loopback and not self.behind_proxy)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        host, colon, port = self.listen.rpartition(":")
        if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f"listen = {self.listen!r}: expected host:port, as 127.0.0.1:7445")
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key go together: set both, or neither")
        if self.certificate and self.behind_proxy:
            raise ValueError("behind_proxy: the proxy speaks TLS; remove certificate and key")
        return self
