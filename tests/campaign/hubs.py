"""A hub on this machine that answers oddly where a repository is called so."""

import io
import re

from tests.hub.server import Handler


class Odd(Handler):
    """``odd/404`` is answered with that status, ``odd/words`` with words, ..., whatever is asked of it."""

    def _odd(self, asked: str) -> bool:
        found = re.search(r'odd(?:/|", "name": "|","name":"|%2F)(\w+)', asked)
        if found is None:
            return False
        answer = found[1]
        if answer.isdigit():
            self.answer(int(answer), {"error": "no\nreally"})
        elif answer == "hangup":
            self.close_connection = True
            self.connection.close()
        elif answer == "circle":
            self.answer(302, b"", Location=self.path)
        else:
            self.answer(200, {"nothing": b"", "words": b"<html>log in", "list": b"[1]"}[answer])
        return True

    def do_GET(self):
        if not self._odd(self.path):
            super().do_GET()

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if not self._odd(f"{self.path} {body[:2000].decode(errors='replace')}"):
            self.rfile = io.BytesIO(body)
            super().do_POST()
