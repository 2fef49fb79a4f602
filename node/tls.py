"""One TLS configuration for listing and for ranges."""

import ssl
from functools import cache

import certifi

from node.config import environment


@cache
def tls_context() -> ssl.SSLContext:
    """Verifies against the system's authorities and certifi's (slim images have none of their own).

    `SSL_CERT_FILE` or `SSL_CERT_DIR` name the authorities to trust instead, as OpenSSL does it.
    Made once a process: loading 150 certificates takes tens of milliseconds.
    """
    context = ssl.create_default_context()
    if not (environment("SSL_CERT_FILE") or environment("SSL_CERT_DIR")):
        context.load_verify_locations(certifi.where())
    return context
