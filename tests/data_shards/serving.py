"""A web server of shard sets that can misbehave, and what its tests look at."""

import http.server

from data_shards.loader import evaluation_batches

SIZE = 32


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; changes what it sends, and counts, as the server's attributes say."""

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        self.server.asked.append(name)
        if self.server.fails > 0:
            self.server.fails -= 1
            self.send_error(503)
            return
        if name == self.server.stalls:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.server.ended.wait(20)
            return
        super().do_GET()

    def copyfile(self, source, outputfile):
        data = bytearray(source.read())
        name = self.path.rsplit("/", 1)[-1]
        if name == self.server.flips:
            data[len(data) // 2] ^= 1
        if name == self.server.cuts:
            data = data[: len(data) // 2]
        outputfile.write(data)

    def log_message(self, *_):
        pass


def everything(shards, **options):
    batches = list(evaluation_batches(shards, batch_size=10, image_size=SIZE, **options))
    return [(b.index.tolist(), b.images.numpy().tobytes(), b.labels.tolist()) for b in batches]


def kept(cache) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in (cache.folder / "shards").iterdir()}
