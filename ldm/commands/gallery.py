"""`ldm gallery`: a page on this machine to draw with runs, and to watch the pictures form."""

import argparse
import ipaddress
import socket
from typing import Any

PORT = 8765


def add_parser(subparsers: Any) -> None:
    """The verb and its options."""
    parser = subparsers.add_parser("gallery", help="a local web page to draw with runs")
    parser.add_argument("run", nargs="+", metavar="RUN", help="diffusion runs; their checkpoints")
    parser.add_argument("--port", type=int, default=PORT, help=f"default {PORT}; 0: any free one")
    parser.add_argument("--host", default="127.0.0.1", help="default: this machine only")
    parser.add_argument(
        "--anyone", action="store_true", help="allow a --host that others can reach"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--first-stage", help="another place of the runs' first stage")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    if not 0 <= arguments.port <= 65535:
        raise ValueError(f"--port {arguments.port}: set 1 to 65535, or 0 for a free one")
    refuse_strangers(arguments.host, arguments.anyone)

    from ldm.commands.gallery_drawing import Studio
    from ldm.commands.gallery_pages import serve

    studio = Studio(arguments.run, arguments.device, arguments.first_stage)
    names = studio.checkpoints()
    try:
        server = serve(studio, arguments.host, arguments.port)
    except OSError as error:
        raise ValueError(
            f"--host {arguments.host} --port {arguments.port}: {error.strerror or error}; set "
            "another, or --port 0 for a free one"
        ) from None
    host, port = server.server_address[:2]
    shown = f"[{host!s}]" if ":" in str(host) else str(host)
    print(
        f"gallery  http://{shown}:{port}/  ({len(names)} checkpoints; Ctrl-C ends it)", flush=True
    )
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()
    return 0


def refuse_strangers(host: str, anyone: bool) -> None:
    """ValueError where the address can be reached from other machines and nobody allowed it."""
    if anyone:
        return
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError) as error:  # the latter where it cannot be a name
        said = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"--host {host}: no such address ({said})") from None
    if not all(ipaddress.ip_address(one.split("%")[0]).is_loopback for one in found):
        raise ValueError(
            f"--host {host}: other machines could reach the page and draw on this one; add "
            "--anyone if they may, or leave --host out (and reach it through ssh -L)"
        )
