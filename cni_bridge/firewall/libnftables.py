"""libnftables in this process: commands as text in, text or JSON out (libnftables(3))."""

from __future__ import annotations

import ctypes
import json
import time
from typing import Any

from ipam import effects

_LIBRARY = "libnftables.so.1"
_OUTPUT_JSON = 1 << 4  # NFT_CTX_OUTPUT_JSON


# Another program's transaction interrupts whoever reads meanwhile, and nothing has happened then: it is tried again.
_ATTEMPTS = 50
_PAUSE = 0.0005  # seconds, growing


class NftError(Exception):
    """nftables refused a command, perhaps for want of an object, or because another transaction came between."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.missing = "No such file or directory" in message
        self.interrupted = "Interrupted system call" in message


class Nftables:
    """A libnftables context in the network namespace of the thread that runs the first command."""

    def __init__(self) -> None:
        library = ctypes.CDLL(_LIBRARY)  # OSError if it is not installed
        library.nft_ctx_new.restype = ctypes.c_void_p
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(library, name).restype = ctypes.c_char_p
        self._library = library
        self._context = ctypes.c_void_p(library.nft_ctx_new(0))
        library.nft_ctx_buffer_output(self._context)
        library.nft_ctx_buffer_error(self._context)

    def run(self, commands: str) -> str:
        """Run the commands as one transaction and give what they print."""
        for attempt in range(_ATTEMPTS):
            try:
                return self._run_once(commands)
            except NftError as error:
                if not error.interrupted or attempt == _ATTEMPTS - 1:
                    raise
            time.sleep(_PAUSE * (attempt + 1))
        raise AssertionError("the last attempt returns or raises")

    def _run_once(self, commands: str) -> str:
        status = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
        output: bytes = self._library.nft_ctx_get_output_buffer(self._context)
        error: bytes = self._library.nft_ctx_get_error_buffer(self._context)
        if status != 0:
            raise NftError(" ".join(error.decode(errors="replace").split()) or "no reason given")
        return output.decode(errors="replace")

    def query(self, command: str) -> list[dict[str, Any]]:
        """The objects that a list command prints, without the header."""
        effects.ask(command)
        self._library.nft_ctx_output_set_flags(self._context, _OUTPUT_JSON)
        try:
            printed = self.run(command)
        finally:
            self._library.nft_ctx_output_set_flags(self._context, 0)
        objects: list[dict[str, Any]] = json.loads(printed)["nftables"] if printed else []
        return [each for each in objects if "metainfo" not in each]
