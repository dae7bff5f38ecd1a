"""A mail server for tests: aiosmtpd, one JSON file per mail, answers by script.

argv: directory, port. A file `answer` in the directory, if there is one, is the
reply to every mail instead of `250 OK`. The mail is parsed by Python's own
`email` package, so that what it finds is what a mail client shows.
"""

import asyncio
import email
import email.policy
import json
import os
import sys
import time

from aiosmtpd.smtp import SMTP


class Keep:
    def __init__(self, directory):
        self.directory = directory
        self.count = 0

    async def handle_DATA(self, server, session, envelope):
        try:
            with open(os.path.join(self.directory, "answer"), encoding="ascii") as file:
                answer = file.read().strip()
        except FileNotFoundError:
            answer = "250 OK"
        raw = envelope.original_content or envelope.content
        mail = email.message_from_bytes(raw, policy=email.policy.default)
        body = mail.get_body(preferencelist=("plain", "html"))
        entry = {
            "at": time.time(),
            "answer": answer,
            "peer": session.host_name,
            "mail_from": envelope.mail_from,
            "rcpt_tos": envelope.rcpt_tos,
            "headers": {name.lower(): str(value) for name, value in mail.items()},
            "defects": [str(defect) for defect in mail.defects],
            "text": body.get_content() if body is not None else "",
            "longest_line": max((len(line) for line in raw.split(b"\r\n")), default=0),
            "bare_newline": b"\n" in raw.replace(b"\r\n", b""),
        }
        self.count += 1
        name = os.path.join(self.directory, "%06d.json" % self.count)
        with open(name + ".half", "w", encoding="utf-8") as file:
            json.dump(entry, file)
        os.rename(name + ".half", name)
        return answer


async def main(directory, port):
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(Keep_one, hostname="mail.test", enable_SMTPUTF8=True), "127.0.0.1", port)
    await server.serve_forever()


Keep_one = Keep(sys.argv[1])
asyncio.run(main(sys.argv[1], int(sys.argv[2])))
